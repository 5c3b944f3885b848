"""Pictures of fields: which are drawn, what they show, and files that cannot be trusted."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure

import bench.run
from bench import pictures
from bench.folder import MODEL, RECORD, cell_folder
from bench.leaderboard import with_setting
from bench.pictures import Box, exact_counterpart, field_figure, field_figures, inside
from bench.records import read_records, results
from bench.report import write_report
from methods import METHODS

EIGHT = "gaussian_to_8gaussians"
TINY = ["--steps", "20", "--batch", "32", "--set", "eval.n=32", "--set", "network.width=8"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EFM with two plate distances, the exact field with one, and FM."""
    out = tmp_path_factory.mktemp("swept")
    arguments = ["--methods", "efm,efm-exact,fm", "--tasks", EIGHT, "--seeds", "0"]
    arguments += ["--L", "6,30", "--set", "efm-exact.L=6", "--set", "lines=two_sided"]
    arguments += ["--set", "points=mix", "--set", "charges=64", "--threads", "1"]
    assert bench.run.main([*arguments, *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(swept, tmp_path / "copied"))


def folder_of(out: Path, method: str) -> Path:
    """The folder of the cell of a method with L = 6."""
    cells = [record["cell"] | {"id": record["id"]} for record in read_records(out)]
    (cell,) = (
        cell for cell in cells if cell["method"] == method and cell["hyperparameters"].get("L") == 6
    )
    return cell_folder(out, cell["id"])


def rows_of(out: Path) -> pd.DataFrame:
    """What the plots are made of."""
    return with_setting(results(read_records(out)))


# Which are drawn


def test_each_plate_distance_has_a_figure_and_fm_has_none(swept: Path) -> None:
    names = [f"field_{EIGHT}_{rest}_two_sided" for rest in ("efm_L6", "efm_L30", "efm-exact_L6")]
    drawn = {path.name for path in (swept / "plots").glob("field_*")}
    assert drawn == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    page = (swept / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="fields">Field lines</h2>' in page
    for name in names:
        words = name.removeprefix("field_").replace("_", " ")
        assert f'<img src="plots/{name}.png" alt="field lines, {words}">' in page


def many() -> pd.DataFrame:
    """Rows of a table: four plate distances, two settings and two seeds of every method."""
    rows = [
        {"task": task, "method": method, "seed": seed, "L": L, "lines": "forward"}
        | {"id": f"{method} {L:g} {points} {seed}", "setting": f"points={points}"}
        for task in (EIGHT, "gaussian_to_digits")
        for method in ("efm", "efm-exact", "fm")
        for L in (3.0, 6.0, 10.0, 30.0)
        for points in ("mix", "log")
        for seed in (1, 0)
    ]
    return pd.DataFrame(rows)


def chosen_of(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, most: int
) -> tuple[list[str], list[str]]:
    """The cells whose figures are drawn if there may be ``most``, and what is told."""
    cells: list[str] = []
    told: list[str] = []

    def drawn(folder: Path, setting: str) -> Figure:
        cells.append(folder.name)
        return Figure()

    monkeypatch.setattr(pictures, "field_figure", drawn)
    assert len(list(field_figures(rows, Path("out"), told.append, most))) == len(cells)
    return cells, told


def test_of_each_the_lowest_seed_and_the_first_setting_and_no_digits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells, told = chosen_of(many(), monkeypatch, 8)
    assert cells == [f"{m} {L} mix 0" for m in ("efm", "efm-exact") for L in (3, 6, 10, 30)]
    assert told == []


def test_what_is_too_many_is_told_and_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, told = chosen_of(many(), monkeypatch, 3)
    assert cells == ["efm 3 mix 0", "efm 6 mix 0", "efm-exact 3 mix 0"]
    (line,) = told
    assert line.startswith("fields of 3 settings are drawn, 5 are not")
    assert "bench.report out --fields 8" in line


# What they show


def test_the_learned_field_stands_over_the_exact_one(swept: Path) -> None:
    figure = field_figure(folder_of(swept, "efm"), "L=6, lr=0.5")
    titles = [ax.get_title() for ax in figure.axes]
    assert [title.split(":")[0] for title in titles] == [
        *["learned field"] * 2,
        *["exact field of 1,024 charges a plate"] * 2,
    ]
    assert "run behind a plate" in titles[0]
    for above, below in zip(figure.axes[:2], figure.axes[2:], strict=True):
        assert above.get_xlim() == below.get_xlim()
        assert above.get_ylim() == below.get_ylim()
    assert figure.axes[1].get_xlim() == (-3, 9)  # behind both plates
    words = figure.get_suptitle().replace("\u00a0", " ").replace("\n", " ")
    for part in ("8 Gaussians", "(efm), seed 0", "L = 6,", "lines = two_sided", "lr = 0.5"):
        assert part in words
    assert "endpoints = " in words
    assert words.count("L = 6") == 1


def test_an_exact_field_stands_alone(swept: Path) -> None:
    figure = field_figure(folder_of(swept, "efm-exact"))
    assert [ax.get_title().split(":")[0] for ax in figure.axes] == ["exact field"] * 2


def test_lines_run_from_source_samples_to_the_target(swept: Path) -> None:
    figure = field_figure(folder_of(swept, "efm-exact"))
    view = figure.axes[0]
    starts, ends = (
        np.stack([np.ma.getdata(part) for part in points._offsets3d])
        for points in view.collections[-2:]
    )  # type: ignore[attr-defined]
    assert np.abs(starts[0]).max() < 0.06
    assert np.abs(ends[0] - 6).max() < 0.06
    radius = np.hypot(ends[1], ends[2])
    assert len(radius) == pictures.LINES
    assert np.median(radius) == pytest.approx(5, abs=0.3)  # modes on a circle of that radius
    heights = np.concatenate([line.get_data_3d()[0] for line in view.lines])
    assert np.nanmin(heights) < -1
    assert np.nanmax(heights) > 7


def test_what_is_drawn_as_learned_is_the_stored_model(copied: Path) -> None:
    folder = folder_of(copied, "efm")

    def lines() -> list[Any]:
        figure = field_figure(folder)
        return [np.stack(line.get_data_3d()) for ax in figure.axes[::2] for line in ax.lines]

    before = lines()
    weights = safetensors.torch.load_file(folder / MODEL)
    name = "target.network.layers.0.bias"
    weights[name] = weights[name] + 3
    safetensors.torch.save_file(weights, folder / MODEL)
    after = lines()
    same = [np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True)]
    half = pictures.LINES
    assert not any(same[:half])  # the learned ones
    assert all(same[half:])


def test_the_exact_counterpart_has_the_settings_of_the_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = METHODS["efm"].create(2, L=7.0, lines="stop_rule", crossing="sign", offset=0.1)
    exact = exact_counterpart(method, 2)
    assert exact is not None
    assert exact.name == "efm-exact"
    settings = {"L": 7, "lines": "stop_rule", "crossing": "sign", "offset": 0.1, "charges": 1024}
    assert exact.hyperparameters().items() >= settings.items()
    assert exact_counterpart(exact, 2) is None
    monkeypatch.delitem(METHODS, "fm-exact")
    assert exact_counterpart(METHODS["fm"].create(2), 2) is None


def test_lines_are_cut_at_the_frame_and_jumps_far_away_are_not_drawn() -> None:
    box = Box(np.zeros(3) - 1, np.ones(3))
    out = np.linspace(0, 3, 5)[:, None] * [1, 0, 0]
    jump = np.array([-9, -8, 8, 9, 9])[:, None] * [1, 0, 0]  # its chord crosses the box
    drawn = inside(np.stack([out, jump], axis=1), box)
    assert len(drawn) >= pictures.STATES
    seen = drawn[:, 0][np.isfinite(drawn[:, 0, 0])]
    assert seen[0] == pytest.approx(0)
    assert seen[-1, 0] == pytest.approx(1, abs=0.01)
    assert np.isnan(drawn[:, 1]).all()


def test_drawing_leaves_the_random_state(swept: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    field_figure(folder_of(swept, "efm"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


# Files of any origin


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, Path], None]:
    """Applies a change to one tensor of the file."""

    def spoil(folder: Path, trap: Path) -> None:
        weights = safetensors.torch.load_file(folder / MODEL)
        weights["source.centre"] = change(weights["source.centre"])
        safetensors.torch.save_file(weights, folder / MODEL)

    return spoil


def recorded(section: str, **values: Any) -> Callable[[Path, Path], None]:
    """Changes what the record says of the cell."""

    def spoil(folder: Path, trap: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        record["cell"][section] |= values
        (folder / RECORD).write_text(json.dumps(record))

    return spoil


def older(folder: Path, trap: Path) -> None:
    """The record of a task whose data have changed since."""
    record = json.loads((folder / RECORD).read_text())
    record["cell"]["task_version"] -= 1
    (folder / RECORD).write_text(json.dumps(record))


SPOILED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda folder, trap: (folder / MODEL).unlink(), "no model"),
    "empty": (lambda folder, trap: (folder / MODEL).write_bytes(b""), "cannot be read"),
    "truncated": (
        lambda folder, trap: (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-9]),
        "cannot be read",
    ),
    "pickle": (
        lambda folder, trap: (folder / MODEL).write_bytes(pickle.dumps(Trap(trap))),
        "cannot be read",
    ),
    "large": (
        lambda folder, trap: (folder / MODEL).open("ab").truncate(2**40),  # a hole on the disk
        "larger than",
    ),
    "shape": (changed(lambda centre: torch.zeros(3)), "does not fit"),
    "type": (changed(lambda centre: centre.double()), "does not fit"),
    "nan": (changed(lambda centre: centre * torch.nan), "not finite"),
    # A network of 268 billion weights, which must not be made before the file is looked at.
    "network": (recorded("network", width=16_384, depth=1_000), "does not fit"),
    "setting": (recorded("hyperparameters", old=1), "old"),
    "older": (older, "other settings or data"),
    "value": (recorded("hyperparameters", L=-1), "greater than 0"),
    "task": (recorded("task_parameters", radius="far"), "number"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_cell_costs_its_figure_and_one_line(
    what: str, copied: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    rows = rows_of(copied)
    rows = rows[(rows["method"] == "efm") & (rows["L"] == 6)]
    spoil, reason = SPOILED[what]
    spoil(folder_of(copied, "efm"), tmp_path / "trap")
    assert list(field_figures(rows, copied, told.append)) == []
    (line,) = told
    assert line.startswith(f"field_{EIGHT}_efm_L6_two_sided: not drawn: ")
    assert reason in line
    assert line.isprintable()
    assert len(line) < 300
    assert not (tmp_path / "trap").exists()


def test_the_report_is_written_without_it_and_old_figures_go(copied: Path) -> None:
    told: list[str] = []
    (folder_of(copied, "efm") / MODEL).unlink()
    for record in read_records(copied):
        if record["cell"]["hyperparameters"].get("L") == 30:
            shutil.rmtree(cell_folder(copied, record["id"]))
    old = copied / "plots" / f"field_{EIGHT}_efm_L6_two_sided"
    assert old.with_suffix(".png").exists()
    paths = write_report(copied, told.append)
    assert sum("not drawn: no model.safetensors" in line for line in told) == 1
    assert not old.with_suffix(".png").exists()
    assert not old.with_suffix(".pdf").exists()
    names = [path.name for path in paths]
    assert f"field_{EIGHT}_efm-exact_L6_two_sided.png" in names
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert page.count('alt="field lines') == 1
