"""The live view, on a terminal and off it."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.execute.cost import Expectation
from bench.execute.progress import Progress, best_of, names_of, running_cells
from tests.store.records import record_of


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def cells(number: int) -> list[Cell]:
    """Cells of one task."""
    spec = Spec(methods=["fm"], tasks=["gaussian_to_swiss_roll"], seeds=list(range(number)))
    return spec.cells()


def write_state(out: Path, name: str, **values: Any) -> None:
    """What a running cell says."""
    (out / "running").mkdir(exist_ok=True)
    state = {"label": name, "stage": "train", "step": 50, "steps": 100, "loss": 0.25}
    now = time.time()
    state |= {"began": now - 10, "at": now, **values}
    (out / "running" / f"{name}.json").write_text(json.dumps(state))


def test_the_state_of_a_run(tmp_path: Path) -> None:
    run = cells(10)
    progress = Progress(run, tmp_path, Expectation(), [])
    progress.begin -= 100
    for cell, w2 in zip(run[:3], (0.5, 0.3, 0.4), strict=True):
        progress.finished(record_of(cell, metrics={"w2": w2, "w2_floor": 0.1}, seconds=25))
    progress.finished(record_of(run[3], status="failed"))
    write_state(tmp_path, "fm seed 4", began=time.time() - 10)
    head, best, running = progress._block()
    # Four cells of equal length took 100 s, six are left.
    assert head == "4 of 10 cells done, 1 running, 1 failed, about 02:30 left"
    assert best == "best so far: gaussian_to_swiss_roll fm w2 0.300"
    assert running == "fm seed 4 step 50/100 loss 0.25 00:10 left"


def test_the_best_of_an_earlier_run_counts(tmp_path: Path) -> None:
    run = cells(3)
    before = [
        record_of(run[0], metrics={"w2": 0.2, "w2_floor": 0.1}),
        record_of(run[1], status="diverged"),
    ]
    progress = Progress(run, tmp_path, Expectation(), before)
    assert progress._block() == [
        "0 of 1 cells done, 0 running",
        "best so far: gaussian_to_swiss_roll fm w2 0.200",
    ]


def test_the_state_of_dead_processes_is_not_shown(tmp_path: Path) -> None:
    now = time.time()
    write_state(tmp_path, "ours", began=now - 5, at=now - 4)
    write_state(tmp_path, "another's", began=now - 500, at=now - 1)
    write_state(tmp_path, "a dead one's", began=now - 500, at=now - 400)
    (tmp_path / "running" / "half.json").write_text('{"label": "ha')
    (tmp_path / "running" / "foreign.json").write_text("[]")
    shown = [state["label"] for state in running_cells(tmp_path, since=now - 10)]
    assert shown == ["another's", "ours"]


def test_a_terminal_has_one_block_that_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.execute.progress.TERMINAL_SECONDS", 0.01)
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    run = cells(2)
    write_state(tmp_path, "fm seed 1", began=time.time() + 5)
    with Progress(run, tmp_path, Expectation(), []) as progress:
        time.sleep(0.1)
        progress.finished(record_of(run[0]))
        time.sleep(0.1)
    text = stream.getvalue()
    screen = render(text)
    assert screen == ["[1/2] fm gaussian_to_swiss_roll seed 0: w2 0.500 (floor 0.100), 1 s"]
    assert text.count("\x1b[J") > 5


def render(text: str) -> list[str]:
    """What a terminal shows that knows lines, "n lines up" and "clear below"."""
    lines: list[str] = [""]
    while text:
        if text.startswith("\x1b["):
            number, kind = "", 2
            while text[kind].isdigit():
                number, kind = number + text[kind], kind + 1
            if text[kind] == "F":
                lines = lines[: len(lines) - int(number)]
                lines[-1] = ""
            text = text[kind + 1 :]
        elif text[0] == "\n":
            lines.append("")
            text = text[1:]
        else:
            lines[-1] += text[0]
            text = text[1:]
    return [line for line in lines if line]


def test_without_a_terminal_finished_cells_are_printed_and_a_line_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    run = cells(2)
    with Progress(run, tmp_path, Expectation(), []) as progress:
        time.sleep(1.2)
        progress.finished(record_of(run[0]))
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("[1/2] fm gaussian_to_swiss_roll seed 0: w2 0.500")
    monkeypatch.setattr("bench.execute.progress.HEARTBEAT_SECONDS", 0.1)
    with Progress(run, tmp_path, Expectation(), []):
        time.sleep(0.35)
    heartbeats = stream.getvalue().splitlines()[1:]
    assert 1 <= len(heartbeats) <= 3
    assert set(heartbeats) == {"0 of 2 cells done, 0 running"}


def test_settings_that_vary_stand_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that vary among the cells of a method on a task; not what differs between methods."""
    spec = Spec(
        methods=["efm", "fm"],
        tasks=["gaussian_to_swiss_roll", "moons_to_8gaussians"],
        seeds=[0, 1],
        settings={"L": [6, 30], "train.lr": [1e-3, 1e-2], "gaussian_to_swiss_roll.noise": [0.3]},
    )
    run = spec.cells()
    names = names_of(run)
    assert len(set(names.values())) == len(run)
    assert "efm gaussian_to_swiss_roll L=6.0 train.lr=0.001 seed 0" in names.values()
    assert "fm moons_to_8gaussians train.lr=0.01 seed 1" in names.values()
    progress = Progress(run, Path("nowhere"), Expectation(), [record_of(run[0])])
    progress.finished(record_of(run[1]))
    assert f"[ 1/{len(run) - 1}] {names[run[1].id]}: w2 0.500" in capsys.readouterr().err


def test_the_best_is_by_one_metric() -> None:
    """A task is compared by the first main metric that all its cells have, and by no other."""
    run = cells(3)
    records = [record_of(run[0], metrics={"w2": 0.5, "sliced_w2": 0.01})]
    assert best_of(records) == ["gaussian_to_swiss_roll fm w2 0.500"]
    records.append(record_of(run[1], metrics={"w2": 0.4, "sliced_w2": 0.02}))
    assert best_of(records) == ["gaussian_to_swiss_roll fm w2 0.400"]
    records.append(record_of(run[2], metrics={"sliced_w2": 0.03}))
    assert best_of(records) == ["gaussian_to_swiss_roll fm sliced_w2 0.010"]
    records.append(record_of(run[2], status="diverged"))
    assert best_of(records) == ["gaussian_to_swiss_roll fm sliced_w2 0.010"]
