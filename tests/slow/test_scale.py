"""Ten thousand cells: the tables, plots and report of a large run, in bounded time and memory."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis.analysis import Analysis
from bench.analysis.leaderboard import GROUP, ablation, aggregate, best, cut, with_setting
from bench.analysis.words import few
from bench.cell.stored import read_samples
from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.metrics import METRICS
from bench.report import build as report
from bench.report import terminal, write_report
from bench.report.__main__ import main
from bench.report.plots.charts import bar_figure
from bench.store.folder import RECORD, StorageError, cell_folder, file_name
from bench.store.records import read_records
from datasets import TASKS
from tests.analysis.made import CELLS, FIVE, analysis, first_cells, record_of, results


def make_samples(path: Path, dim: int, rng: np.random.Generator) -> None:
    """A samples file of two well-spread clouds."""
    names = ("source", "target", "samples")
    np.savez(path, **{name: rng.normal(size=(300, dim)).astype(np.float32) for name in names})


def make_folder(out: Path, cells: Iterable[Cell]) -> int:
    """An output folder with a record a cell, each done one with samples; returns their number."""
    rng = np.random.default_rng(0)
    (out / "cells").mkdir(parents=True)
    for task in FIVE:
        make_samples(out / f"{task}.npz", TASKS[task].dim, rng)
    number = 0
    for cell in cells:
        number += 1
        folder = cell_folder(out, cell.id)
        folder.mkdir()
        made = record_of(cell, rng)
        (folder / RECORD).write_text(json.dumps(made))
        if made["status"] == "done":
            os.link(out / f"{cell.task}.npz", folder / "samples.npz")
    return number


SMALL = Spec(methods=["efm", "fm"], tasks=FIVE[:1], seeds=[0, 1], settings={"L": [6.0, 30.0]})
ROOT = Path(__file__).parents[2]


def processor_seconds() -> float:
    """Of the processes that this one has started and that have ended."""
    used = os.times()
    return used.children_user + used.children_system


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["settings"])
def test_ten_thousand_cells_in_a_minute_and_two_gigabytes(shape: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make_folder(out, first_cells(shape)) == CELLS
    code = (
        "import sys; from bench.report.__main__ import main; from tests.peak import peak_kibibytes;"
        "status = main(); print('peak', peak_kibibytes()); sys.exit(status)"
    )
    begin = processor_seconds()
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert processor_seconds() - begin < 60
    assert int(done.stdout.split()[-1]) < 2 * 2**20  # KiB
    board = pd.read_csv(out / "leaderboard.csv")
    assert len(pd.read_csv(out / "results.csv", low_memory=False)) == CELLS
    assert len(board) > 3000
    assert board.loc[board["role"] != "baseline", "count"].sum() == sum(
        r.status == "done" for r in read_records(out)
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<tr>") < len(FIVE) * 220
    assert "best 100 of 720 settings by energy distance, of each method in turn" in page
    assert "best 40 of 720 settings by energy distance, of each method in turn" in done.stdout
    # a task: 40 rows of two lines, the references, words; 10,000 cells have 3,000 settings
    assert len(done.stdout.splitlines()) < len(FIVE) * 110


def random_results() -> pd.DataFrame:
    """Groups of 1 to 6 seeds, some values missing, some rows or whole groups not done."""
    rng = np.random.default_rng(1)
    cells = Spec(
        methods=["efm", "fm"],
        tasks=[FIVE[0], FIVE[3]],
        seeds=list(range(6)),
        settings={"L": [6.0, 30.0], "train.lr": [1e-3, 2e-3]},
    ).cells()
    made = []
    for cell in cells:
        one = record_of(cell, rng)
        lost = cell.method == "efm" and cell.train.lr == 1e-3
        if (cell.seed and rng.random() < 0.4) or lost:
            one |= {"status": "failed", "reason": f"no {cell.seed}"}
        elif rng.random() < 0.2:
            one["metrics"].pop("sliced_w2", None)
        made.append(one)
    return results(made)


def test_the_aggregate_is_that_of_numpy_and_scipy() -> None:
    rows = with_setting(random_results())
    summary = aggregate(rows, GROUP)
    groups = list(dict.fromkeys(rows[GROUP].itertuples(index=False, name=None)))
    assert list(summary[GROUP].itertuples(index=False, name=None)) == groups
    sizes = set()
    for key, (_, row) in zip(groups, summary.iterrows(), strict=True):
        mine = rows[(rows[GROUP] == list(key)).all(axis=1)]
        done = mine[mine["status"] == "done"]
        assert row["count"] == len(done)
        reasons = [f"{s}: {r}" for s, r in zip(mine["status"], mine["reason"], strict=True)]
        assert row["note"] == few(r for r in reasons if not r.startswith("done"))
        for name in METRICS:
            values = [value for value in done[name] if np.isfinite(value)]
            sizes.add(len(values))
            expected = [np.nan] * 4
            if values:
                expected[0] = np.mean(values)
            if len(values) > 1:
                error = stats.sem(values)
                interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
                expected[1:] = [np.std(values, ddof=1), *interval]
            found = [row[f"{name}_{what}"] for what in ("mean", "std", "ci_low", "ci_high")]
            np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert {0, 1, 3} <= sizes


def test_a_note_has_three_reasons_on_one_line() -> None:
    reasons = [f"step {k}" for k in range(1000)]
    assert few([*reasons, *reasons]) == "step 0; step 1; step 2; and 997 more"
    assert few(["a", "a"]) == "a"
    assert few(["one\ntwo\x1b[2J"]) == "one two [2J"
    assert len(few(["x" * 10**6])) == 300


def board(**settings: int) -> pd.DataFrame:
    """Settings of each method; the k-th has the W2 k."""
    nothing = {f"{name}_mean": np.nan for name in METRICS} | {"count": 1}
    return pd.DataFrame(
        [
            nothing | {"method": method, "setting": f"k={k}", "w2_mean": float(k)}
            for method, number in settings.items()
            for k in reversed(range(number))
        ]
    )


def test_few_rows_stay_as_they_are() -> None:
    rows = board(efm=3, fm=2)
    assert best(rows, 5) is rows
    assert cut(rows, 5) == ""


def test_no_method_hides_another() -> None:
    rows = board(efm=1000, fm=1)
    rows.loc[rows["method"] == "fm", "w2_mean"] = 1e6
    kept = best(rows, 4)
    assert list(zip(kept["method"], kept["w2_mean"], strict=True)) == [
        ("efm", 0.0),
        ("efm", 1.0),
        ("efm", 2.0),
        ("fm", 1e6),
    ]
    assert cut(rows, 4) == "best 4 of 1,001 settings by W2, of each method in turn"
    rows.loc[:9, ["w2_mean", "count"]] = [np.nan, 0]
    assert cut(rows, 4).endswith("; 10 of the others have no result")


def test_the_terminal_and_the_bars_say_what_they_cut() -> None:
    spec = SMALL.model_copy(update={"settings": {"train.lr": [k / 1e4 for k in range(1, 31)]}})
    rng = np.random.default_rng(0)
    rows = results([record_of(cell, rng) for cell in spec.cells()])
    text = terminal(Analysis(rows))
    rows_of_text, cut_here, _ = text.partition(
        "best 40 of 60 settings by energy distance, of each method in turn"
    )
    assert cut_here
    lines = [line.split()[:2] for line in rows_of_text.splitlines()]  # without a seed no rank
    assert sum("efm" in words or "fm" in words for words in lines) == 40
    done = with_setting(rows[rows["status"] == "done"])
    summary = aggregate(done, GROUP)
    figure = bar_figure(done, summary, "w2")
    assert figure is not None
    (ax,) = figure.axes
    assert len(ax.patches) == 16
    assert f"best 16 of {len(summary)} settings by energy distance" in ax.get_title()


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def arrays(**changed: Any) -> bytes:
    content = io.BytesIO()
    plain = {name: np.ones((4, 2)) for name in ("source", "samples", "target")}
    np.savez(content, **{k: v for k, v in (plain | changed).items() if v is not None})
    return content.getvalue()


def lying_header() -> bytes:
    """A small file that claims to hold 10^12 numbers."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("source", "samples", "target"):
            header = io.BytesIO()
            claim = {"descr": "<f8", "fortran_order": False, "shape": (10**12 // 2, 2)}
            np.lib.format.write_array_header_1_0(header, claim)
            archive.writestr(f"{name}.npy", header.getvalue())
    return content.getvalue()


CORRUPT: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda trap: b"",
    "truncated": lambda trap: arrays()[:-50],
    "pickle": lambda trap: pickle.dumps(Trap(trap)),
    "objects": lambda trap: arrays(samples=np.array([Trap(trap)], dtype=object)),
    "a key less": lambda trap: arrays(target=None),
    "shape": lambda trap: arrays(samples=np.ones((4, 3))),
    "no rows": lambda trap: arrays(source=np.ones((0, 2))),
    "words": lambda trap: arrays(samples=np.array([["a", "b"]])),
    "nan": lambda trap: arrays(samples=np.full((4, 2), np.nan)),
    "claim": lambda trap: lying_header(),
}


@pytest.mark.parametrize("what", CORRUPT)
def test_corrupt_samples_cost_their_panel_alone(what: str, tmp_path: Path) -> None:
    out, trap, logged = tmp_path / "out", tmp_path / "trap", []
    make_folder(out, SMALL.cells())
    row = next(r for r in read_records(out) if r.cell.seed == 0 and r.status == "done")
    path = cell_folder(out, row.id) / "samples.npz"
    path.unlink()  # a link to those of the others
    path.write_bytes(CORRUPT[what](trap))
    with pytest.raises(ValueError, match=r"samples\.npz"):
        read_samples(path, 2)
    paths = write_report(out, logged.append)
    assert not trap.exists()
    (line,) = (line for line in logged if "left out" in line)
    assert line.startswith(f"samples_{FIVE[0]}: left out {row.cell.method}")
    assert "\n" not in line
    assert f"samples_{FIVE[0]}.png" in {path.name for path in paths}


HOSTILE = ["../x", "/etc/x", "a/b", "<script>", '"', "$x$", "", ".", "..", "é", "a\0b", "x" * 500]


def test_file_names_stay_in_their_folder(tmp_path: Path) -> None:
    names = [file_name("ablation", name) for name in [*HOSTILE, "L", "sigma"]]
    assert names[-2:] == ["ablation_L", "ablation_sigma"]
    assert len(set(names)) == len(names)
    for name in names:
        assert (tmp_path / f"{name}.csv").resolve().parent == tmp_path
        (tmp_path / f"{name}.csv").touch()


def test_a_hostile_axis_and_reason_end_in_plain_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, axis = np.random.default_rng(0), "../../<script>$x$"
    made = [record_of(cell, rng) for cell in SMALL.cells()]
    for k, one in enumerate(made):
        one["cell"]["hyperparameters"][axis] = k
        one |= {"status": "done"} if k else {"status": "failed", "reason": "<script>1</script>"}
    out = tmp_path / "a" / "b" / "out"
    (out / "cells").mkdir(parents=True)
    for path in write_report(out, analysis=analysis(made)):
        assert path.resolve().is_relative_to(out)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;1&lt;/script&gt;" in page


def test_an_axis_of_words_and_numbers_has_an_order() -> None:
    rng = np.random.default_rng(0)
    made = [record_of(cell, rng) for cell in SMALL.cells()]
    for one, value in zip(made, ["auto", 0.5, None, 2, "b", 1], strict=True):
        one["cell"]["hyperparameters"]["mixed"] = value
    assert len(ablation(results(made), "mixed")) == 6


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_every_file_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    make_folder(out, SMALL.cells())
    write_report(out)
    (out / "plots" / "bars_old.png").write_bytes(b"old")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(report, "write_tables", lambda out, analysis: (analysis.rows, []))
    with pytest.raises(StorageError, match="No space left"):
        write_report(out)  # as far as the plots
    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", full)
    assert refusal(out, capsys) == (
        f"bench.report: cannot write {out / 'results.csv'}: No space left on device\n"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    write_report(out)
    assert not (out / "plots" / "bars_old.png").exists()


def refusal(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``python -m bench.report`` says when it refuses."""
    capsys.readouterr()
    assert main([str(out)]) == 2
    return capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refusal(tmp_path / "none", capsys)
    assert "holds no recorded cells" in refusal(tmp_path, capsys)
    (tmp_path / "cells" / "a").mkdir(parents=True)
    (tmp_path / "cells" / "a" / RECORD).write_text("{")
    line = refusal(tmp_path, capsys)
    assert "truncated, or not a record" in line
    assert line.count("\n") == 1
