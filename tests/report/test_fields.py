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
from bench.analysis.analysis import Analysis
from bench.report.build import write_report
from bench.report.plots import fields as pictures
from bench.report.plots.draw import save
from bench.report.plots.fields import Frame, field_figure, field_figures, inside
from bench.store.folder import MODEL, RECORD, cell_folder
from bench.store.records import read_records
from methods import METHODS
from methods.base import FieldPicture

EIGHT = "gaussian_to_8gaussians"
TINY = ["--steps", "20", "--batch", "32", "--set", "eval.n=32", "--set", "network.width=8"]
TINY += ["--set", "eval.metrics=main", "--set", "eval.replicates=0", "--threads", "1"]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few lines and a coarse grid."""
    for name, value in {"LINES": 16, "ROWS": 11, "COLUMNS": 21}.items():
        monkeypatch.setattr(pictures, name, value)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of EFM with two plate distances, the exact field with one, and FM; without plots."""
    out = tmp_path_factory.mktemp("swept")
    arguments = ["--methods", "efm,efm-exact,fm", "--tasks", EIGHT, "--seeds", "0"]
    arguments += ["--L", "6,30", "--set", "efm-exact.L=6", "--set", "lines=two_sided"]
    arguments += ["--set", "points=mix", "--set", "charges=64"]
    arguments += ["--set", "sample.rtol=1e-3", "--set", "sample.atol=1e-3"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bench.report.build.draw_plots", lambda *arguments, **options: [])
        assert bench.run.main([*arguments, *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(swept, tmp_path / "copied"))


def folder_of(out: Path, method: str) -> Path:
    """The folder of the cell of a method with L = 6."""
    (found,) = (
        record.id
        for record in read_records(out)
        if record.cell.method == method and record.cell.hyperparameters.get("L") == 6
    )
    return cell_folder(out, found)


# Which are drawn


def test_each_plate_distance_has_a_figure_and_fm_has_none(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn_quickly(folder: Path, setting: str) -> Figure:
        if not (folder / MODEL).exists():
            raise ValueError("no model.safetensors")
        return Figure()

    monkeypatch.setattr(pictures, "field_figure", drawn_quickly)
    monkeypatch.setattr("bench.report.plots.draw.METRICS", {})  # no bars
    write_report(copied)
    names = [f"field_{EIGHT}_{rest}_two_sided" for rest in ("efm_L6", "efm_L30", "efm-exact_L6")]
    drawn = {path.name for path in (copied / "plots").glob("field_*")}
    assert drawn == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="fields">Field lines</h2>' in page
    for name in names:
        assert f'<img src="plots/{name}.png" alt="' in page
    # The next report has neither the picture of a cell without model nor those of cells gone.
    logged: list[str] = []
    (folder_of(copied, "efm") / MODEL).unlink()
    for record in read_records(copied):
        if record.cell.hyperparameters.get("L") == 30:
            shutil.rmtree(cell_folder(copied, record.id))
    paths = write_report(copied, logged.append)
    assert sum("not drawn: no model.safetensors" in line for line in logged) == 1
    left = {path.name for path in (copied / "plots").glob("field_*")}
    assert left == {f"{names[2]}.{suffix}" for suffix in ("png", "pdf")}
    assert f"{names[2]}.png" in [path.name for path in paths]
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert page.count('src="plots/field_') == 1


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
    """The cells whose figures are drawn if there may be ``most``, and what is logged."""
    cells: list[str] = []
    logged: list[str] = []

    def drawn(folder: Path, setting: str) -> Figure:
        cells.append(folder.name)
        return Figure()

    monkeypatch.setattr(pictures, "field_figure", drawn)
    assert len(list(field_figures(rows, Path("out"), logged.append, most))) == len(cells)
    return cells, logged


def test_of_each_the_lowest_seed_and_the_first_setting_and_no_digits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells, logged = chosen_of(many(), monkeypatch, 8)
    assert cells == [f"{m} {L} mix 0" for m in ("efm", "efm-exact") for L in (3, 6, 10, 30)]
    assert logged == []


def test_what_is_too_many_is_logged_and_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, logged = chosen_of(many(), monkeypatch, 3)
    assert cells == ["efm 3 mix 0", "efm 6 mix 0", "efm-exact 3 mix 0"]
    (line,) = logged
    assert line.startswith("fields of 3 settings are drawn, 5 are not")
    assert "bench.report out --fields 8" in line


# What they show


def test_the_learned_field_stands_over_the_exact_one(swept: Path, tmp_path: Path) -> None:
    figure = field_figure(folder_of(swept, "efm"), "L=6, lr=0.5")
    assert save(figure, tmp_path / "field").stat().st_size > 20_000
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


def test_the_exact_counterpart_has_the_settings_of_the_method() -> None:
    method = METHODS["efm"].create(2, L=7.0, lines="stop_rule", crossing="sign", offset=0.1)
    picture = method.picture(2)
    assert picture is not None
    assert (picture.plate_distance, picture.behind, picture.offset) == (7.0, True, 0.1)
    assert picture.exact is not None
    assert picture.exact.name == "efm-exact"
    settings = {"L": 7, "lines": "stop_rule", "crossing": "sign", "offset": 0.1, "charges": 1024}
    assert picture.exact.hyperparameters().items() >= settings.items()
    alone = picture.exact.picture(2)
    assert alone is not None
    assert alone.exact is None
    assert METHODS["fm"].create(2).picture(2) is None


def test_a_method_of_any_name_says_which_pictures_it_has(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but ``picture_settings`` and ``picture`` decides."""
    efm = METHODS["efm"]
    monkeypatch.setattr(efm, "picture_settings", ("sigma",))
    rows = many().assign(sigma=np.tile([0.5, 1.0], 48))
    cells, _ = chosen_of(rows[rows["method"] == "efm"], monkeypatch, 8)
    assert len(cells) == 2
    monkeypatch.undo()
    monkeypatch.setattr(efm, "picture", lambda method, dim: None)
    with pytest.raises(ValueError, match="efm has no picture with these settings"):
        field_figure(folder_of(swept, "efm"))
    monkeypatch.setattr(efm, "picture_settings", ())
    assert list(field_figures(many().query("method == 'efm'"), swept, print)) == []


def test_lines_are_cut_at_the_frame_and_jumps_far_away_are_not_drawn() -> None:
    frame = Frame(-np.ones(3), np.ones(3), [], FieldPicture(1.0, True, 0.0, None))
    out = np.linspace(0, 3, 5)[:, None] * [1, 0, 0]
    jump = np.array([-9, -8, 8, 9, 9])[:, None] * [1, 0, 0]  # its chord crosses the frame
    drawn = inside(np.stack([out, jump], axis=1), frame)
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

    def corrupt(folder: Path, trap: Path) -> None:
        weights = safetensors.torch.load_file(folder / MODEL)
        weights["source.shift"] = change(weights["source.shift"])
        safetensors.torch.save_file(weights, folder / MODEL)

    return corrupt


def recorded(section: str, **values: Any) -> Callable[[Path, Path], None]:
    """Changes what the record says of the cell."""

    def corrupt(folder: Path, trap: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        record["cell"][section] |= values
        (folder / RECORD).write_text(json.dumps(record))

    return corrupt


def older(folder: Path, trap: Path) -> None:
    """The record of a task whose data have changed since."""
    record = json.loads((folder / RECORD).read_text())
    record["cell"]["task_version"] -= 1
    (folder / RECORD).write_text(json.dumps(record))


CORRUPT: dict[str, tuple[Callable[[Path, Path], object], str]] = {
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
        "cannot be read",
    ),
    "shape": (changed(lambda centre: torch.zeros(3)), "does not fit"),
    "network": (recorded("network", width=17), "other settings or data"),
    "setting": (recorded("hyperparameters", old=1), "old"),
    "older": (older, "other settings or data"),
    "value": (recorded("hyperparameters", L=-1), "greater than 0"),
    "task": (recorded("task_parameters", radius="far"), "number"),
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_cell_costs_its_figure_and_one_line(
    what: str, copied: Path, tmp_path: Path
) -> None:
    logged: list[str] = []
    rows = Analysis.of(copied).done
    rows = rows[(rows["method"] == "efm") & (rows["L"] == 6)]
    corrupt, reason = CORRUPT[what]
    corrupt(folder_of(copied, "efm"), tmp_path / "trap")
    assert list(field_figures(rows, copied, logged.append)) == []
    (line,) = logged
    assert line.startswith(f"field_{EIGHT}_efm_L6_two_sided: not drawn: ")
    assert reason in line
    assert line.isprintable()
    assert len(line) < 300
    assert not (tmp_path / "trap").exists()
