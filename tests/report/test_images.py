"""Pictures of images: what cells keep for them, what they show, and files of any origin."""

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.utils import make_grid

import bench.run
from bench.analysis.analysis import Analysis
from bench.cell import images as images_module
from bench.cell.images import FRAMES, excerpts, extremes, frames, nearest_images
from bench.cell.stored import Ranked, StoredImages, read_images
from bench.config import plugins
from bench.config.plugins import load_plugin
from bench.report import write_report
from bench.report.export import PICTURES
from bench.report.plots import samples as plots
from bench.report.plots.draw import save
from bench.report.plots.images import (
    ENLARGED,
    SCALED,
    image_figures,
    montage,
    neighbours_figure,
    paths_figure,
    samples_figure,
)
from bench.report.plots.samples import sample_figures
from bench.report.plots.style import DPI
from bench.store.folder import SAMPLES, cell_folder
from bench.store.records import Record, read_records
from datasets import TASKS
from datasets.base import Empirical
from methods import METHODS

PLUGIN = Path(__file__).parents[1] / "coloured.py"
TINY = ["--steps", "30", "--batch", "32", "--set", "eval.n=40", "--set", "network.width=16"]
TINY += ["--set", "eval.metrics=main", "--set", "eval.replicates=0", "--threads", "1"]


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two methods on two tasks of colour images, one of them in two sizes."""
    tables = METHODS, TASKS, plugins._loaded
    before = [dict(table) for table in tables]
    load_plugin(str(PLUGIN))
    out = tmp_path_factory.mktemp("coloured")
    arguments = ["--methods", "fm,pfgm", "--tasks", "red_to_blue,gaussian_to_red", "--seeds", "0"]
    arguments += ["--set", "red_to_blue.size=6,8", "--plugin", str(PLUGIN)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bench.report.plots.draw.METRICS", {})  # no bars
        assert bench.run.main([*arguments, *TINY, "--out", str(out)]) == 0
    yield out
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture
def copied(coloured: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(coloured, tmp_path / "copied"))


def cell_of(out: Path, task: str, method: str, size: int = 6) -> Record:
    """The record of a cell."""
    (record,) = (
        record
        for record in read_records(out)
        if (record.cell.task, record.cell.method) == (task, method)
        and record.cell.task_parameters["size"] == size
    )
    return record


def file_of(out: Path, task: str, method: str, size: int = 6) -> Path:
    """Its samples."""
    return cell_folder(out, cell_of(out, task, method, size).id) / SAMPLES


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def some(seed: int = 0, **changed: Any) -> StoredImages:
    """Colour images of 5 x 6 pixels: random ones, in [0, 1]."""
    rng = np.random.default_rng(seed)

    def images(n: int) -> np.ndarray:
        return rng.random((n, 3, 5, 6))

    ranked = Ranked(images(4), images(4), rng.random((4, 2)))
    paths = rng.random((9, 3, 3, 5, 6))
    fields = {"source": images(20), "samples": images(20), "target": images(30)}
    return StoredImages(**(fields | {"paths": paths, "ranked": ranked} | changed))


def span_of(*images: np.ndarray) -> tuple[float, float]:
    """The range in which real images are drawn."""
    return min(x.min() for x in images), max(x.max() for x in images)


def shown(figure: Figure) -> list[np.ndarray]:
    """The pictures in a figure, from the first panel to the last."""
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def drawn(out: Path, task: str) -> tuple[dict[str, Figure], list[str]]:
    """The figures of a task by name, and what is logged."""
    analysis = Analysis.of(out)
    rows, summary = (part[part["task"] == task] for part in (analysis.done, analysis.summary))
    logged: list[str] = []
    return dict(sample_figures(task, rows, summary, out, logged.append)), logged


def tile(image: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    """An image of a montage as (C, H, W)."""
    top, left = row * (height + 1), column * (width + 1)
    return image[top : top + height, left : left + width].transpose(2, 0, 1)


# What a cell keeps


def test_a_path_begins_at_the_input_and_ends_at_the_sample(coloured: Path) -> None:
    stored = arrays_of(file_of(coloured, "red_to_blue", "fm", 8))
    assert stored["paths"].shape == (FRAMES, 4, 3 * 64)
    assert list(stored["shape"]) == [3, 8, 8]
    np.testing.assert_allclose(stored["paths"][0], stored["source"][:4], atol=1e-6)
    np.testing.assert_array_equal(stored["paths"][-1], stored["samples"][:4])
    assert not np.allclose(stored["paths"][4], stored["paths"][-1])


@pytest.mark.parametrize(("states", "kept"), [(1, [0]), (4, [0, 1, 2, 3]), (9, list(range(9)))])
def test_short_paths_are_kept_whole(states: int, kept: list[int]) -> None:
    path = torch.arange(states * 7 * 2.0).reshape(states, 7, 2)
    assert torch.equal(frames(path), path[kept, :4])


def test_long_paths_are_thinned_evenly() -> None:
    path = torch.arange(101.0)[:, None, None].expand(-1, 2, 3)
    kept = frames(path)[:, 0, 0]
    assert kept.tolist() == [0, 12, 25, 38, 50, 62, 75, 88, 100]
    assert frames(path).shape == (9, 2, 3)


def test_neighbours_are_the_nearest_training_images(coloured: Path) -> None:
    record = cell_of(coloured, "red_to_blue", "fm")
    stored = arrays_of(cell_folder(coloured, record.id) / SAMPLES)
    target = TASKS["red_to_blue"](size=6).target()
    assert isinstance(target, Empirical)
    train = target.normalisation.undo(target.train).double().numpy()

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None].astype(float) - y, axis=2)

    to_held_out = distances(stored["samples"], stored["target"]).min(1)
    order = np.argsort(to_held_out, kind="stable")
    chosen = np.concatenate([order[:6], order[-6:]])
    np.testing.assert_array_equal(stored["ranked"], stored["samples"][chosen])
    to_train = distances(stored["ranked"], train)
    np.testing.assert_allclose(stored["neighbours"], train[to_train.argmin(1)], atol=1e-6)
    unit = 0.5  # a pixel of the task is half one of the original
    np.testing.assert_allclose(stored["distances"][:, 0], to_held_out[chosen] / unit, rtol=1e-4)
    np.testing.assert_allclose(stored["distances"][:, 1], to_train.min(1) / unit, rtol=1e-4)


def test_blocks_find_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    points, train = torch.randn(9, 40, generator=rng), torch.randn(50, 40, generator=rng)
    points[3] = train[41]
    whole = nearest_images(points, train)
    monkeypatch.setattr(images_module, "BLOCK", 7)
    parts = nearest_images(points, train)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    assert whole[1][3] == 0
    assert torch.equal(whole[0][3], train[41])
    brute = np.linalg.norm(points[:, None].double() - train.double(), axis=2).min(1)
    np.testing.assert_allclose(whole[1], brute, rtol=1e-12)


@pytest.mark.parametrize("count", [2, 5, 11, 12, 13, 100])
def test_no_sample_is_both_best_and_worst(count: int) -> None:
    distances = torch.randn(count, generator=torch.Generator().manual_seed(0))
    chosen = extremes(distances)
    assert len(set(chosen.tolist())) == len(chosen) == 2 * min(6, count // 2)
    assert distances[chosen].tolist() == sorted(distances[chosen].tolist())
    assert distances[chosen[0]] == distances.min()
    assert distances[chosen[-1]] == distances.max()


def test_other_data_keep_nothing() -> None:
    assert (
        excerpts(TASKS["gaussian_to_swiss_roll"]().target(), *[torch.zeros(9, 2)] * 2, None) == {}
    )


# What the pictures show


def test_red_is_red_in_the_file(tmp_path: Path) -> None:
    red = np.zeros((16, 3, 8, 8))
    red[:, 0] = 1.0
    figure = samples_figure(
        {"fm": some()._replace(samples=red, target=red)}, False, (0.0, 1.0), "Red"
    )
    path = save(figure, tmp_path / "red")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    inside = pixels[pixels.min(1) < 128]
    assert (inside == [255, 0, 0]).all(1).sum() > 2 * 16 * (2 * 8) ** 2
    assert not (pixels == [0, 0, 255]).all(1).any()


def test_a_montage_is_clipped_and_keeps_channels_and_order() -> None:
    images = np.zeros((3, 3, 2, 4))
    images[0, 0], images[1, 1], images[2, 2] = 5.0, 1.0, -5.0
    image = montage(images, 2, (-1.0, 1.0))
    assert image.shape == (2 * 3 - 1, 2 * 5 - 1, 3)
    np.testing.assert_array_equal(tile(image, 0, 0, 2, 4)[:, 0, 0], [1, 0.5, 0.5])
    np.testing.assert_array_equal(tile(image, 0, 1, 2, 4)[:, 0, 0], [0.5, 1, 0.5])
    np.testing.assert_array_equal(tile(image, 1, 0, 2, 4)[:, 0, 0], [0.5, 0.5, 0])
    np.testing.assert_array_equal(tile(image, 1, 1, 2, 4), 1)  # nothing there
    assert (image[2] == 1).all()  # white between rows


@pytest.mark.parametrize("channels", [1, 3])
def test_a_full_montage_is_that_of_torchvision(channels: int) -> None:
    images = np.random.default_rng(0).normal(size=(12, channels, 5, 7))
    theirs = make_grid(
        torch.from_numpy(images), 4, padding=1, normalize=True, value_range=(-1.0, 0.5), pad_value=1
    )
    framed = theirs.permute(1, 2, 0).numpy()
    np.testing.assert_allclose(montage(images, 4, (-1.0, 0.5)), framed[1:-1, 1:-1], atol=1e-12)


def test_other_channels_are_grey_and_a_row_that_is_not_full_is_white() -> None:
    image = montage(np.full((3, 2, 4, 4), [[[0.0]], [[1.0]]]), 5, (0.0, 1.0))
    assert image.shape == (4, 5 * 5 - 1, 3)
    np.testing.assert_array_equal(tile(image, 0, 2, 4, 4), 0.5)
    np.testing.assert_array_equal(image[:, 15:], 1)
    assert montage(np.zeros((1, 3, 4, 4)), 1, (0.0, 1.0)).shape == (4, 4, 3)  # no border


def test_one_channel_is_grey() -> None:
    image = montage(np.linspace(0, 16, 8).reshape(1, 1, 2, 4), 1, (0.0, 16.0))
    assert (image == image[..., :1]).all()
    assert image[0, 0, 0] == 0
    assert image[-1, -1, 0] == 1


def test_pairs_stand_above_each_other() -> None:
    panels = {"fm": some(0), "efm": some(1)._replace(source=some(0).source)}
    low, high = span_of(*(x for p in panels.values() for x in (p.target, p.source)))
    pictures = shown(dict(image_figures("t", panels, True, "Pairs"))["pairs_t"])
    assert len(pictures) == 2
    for picture, panel in zip(pictures, panels.values(), strict=True):
        for k in range(16):
            for row, images in enumerate((panel.source, panel.samples)):
                expected = np.clip((images[k] - low) / (high - low), 0, 1)
                np.testing.assert_allclose(tile(picture, row, k, 5, 6), expected)


def test_a_row_of_a_path_is_one_sample() -> None:
    panel = some()
    low, high = span_of(panel.target)
    (picture,) = shown(dict(image_figures("t", {"fm": panel}, False, "Paths"))["paths_t"])
    for frame in range(9):
        for sample in range(3):
            expected = np.clip((panel.paths[frame, sample] - low) / (high - low), 0, 1)
            np.testing.assert_allclose(tile(picture, sample, frame, 5, 6), expected)


def test_frames_far_beyond_the_data_have_their_own_range() -> None:
    panel = some(paths=2 * np.random.default_rng(1).random((9, 3, 3, 5, 6)) - 0.5)
    wide = panel.paths.copy()
    wide[0] = 800 * (wide[0] - 0.5)
    panels = {"pfgm": panel._replace(paths=wide), "fm": panel}
    figure = paths_figure(panels, span_of(panel.target), "Paths")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [f"pfgm\n{SCALED}", "fm"]
    scaled, plain = shown(figure)
    start = tile(scaled, 0, 0, 5, 6)
    assert 0.1 < start.mean() < 0.9
    assert ((start > 0.05) & (start < 0.95)).mean() > 0.8  # clipped, it would be black and white
    np.testing.assert_allclose(scaled[:, 7:], plain[:, 7:])  # the other frames are not touched


def test_neighbours_stand_below_the_samples_with_both_distances() -> None:
    panel = some()
    assert panel.ranked is not None
    low, high = span_of(panel.target)
    figure = neighbours_figure({"fm": panel}, (low, high), "Neighbours")
    for part, (ax, picture) in enumerate(zip(figure.axes, shown(figure), strict=True)):
        assert ax.get_title() == f"fm: {('best', 'worst')[part]}"
        for column in range(2):
            for row, images in enumerate((panel.ranked.samples, panel.ranked.neighbours)):
                expected = np.clip((images[2 * part + column] - low) / (high - low), 0, 1)
                np.testing.assert_allclose(tile(picture, row, column, 5, 6), expected)
        above = ax.child_axes[0].get_xticklabels()
        for side, labels in ((1, ax.get_xticklabels()), (0, above)):
            numbers = panel.ranked.distances[2 * part : 2 * part + 2, side]
            assert [label.get_text() for label in labels] == [f"{d:.3g}" for d in numbers]


def test_what_was_not_stored_is_not_drawn() -> None:
    names = [name for name, _ in image_figures("t", {"fm": some()}, True, "T")]
    assert names == ["samples_t", "pairs_t", "paths_t", "neighbours_t"]
    bare = {"fm": some(ranked=None)}
    assert [name for name, _ in image_figures("t", bare, False, "T")] == ["samples_t", "paths_t"]
    mixed = {"fm": some(), "efm": some(ranked=None)}
    figures = dict(image_figures("t", mixed, False, "T"))
    assert len(shown(figures["samples_t"])) == 3
    assert len(shown(figures["paths_t"])) == 2
    assert len(shown(figures["neighbours_t"])) == 2


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
def test_pixels_are_enlarged(side: int) -> None:
    images = np.random.default_rng(0).random((64, 3, side, side))
    ranked = Ranked(images[:12], images[:12], np.ones((12, 2)))
    paths = np.stack([images[:4]] * 9)
    panels = dict.fromkeys(("fm", "efm"), StoredImages(images, images, images, paths, ranked))
    for name, figure in image_figures("t", panels, True, "T"):
        figure.draw_without_rendering()
        for ax in figure.axes:
            if ax.images:
                width = ax.get_window_extent().width / figure.dpi * DPI
                assert width >= 0.95 * ENLARGED * ax.images[0].get_array().shape[1], name


# In the report


def test_the_report_shows_them_with_words(coloured: Path) -> None:
    page = (coloured / "report.html").read_text(encoding="utf-8")
    for kind in ("samples", "pairs", "paths", "neighbours"):
        name = f"{kind}_red_to_blue"
        assert (coloured / "plots" / f"{name}.png").stat().st_size > 2000
        assert (coloured / "plots" / f"{name}.pdf").exists()
        assert f'<img src="plots/{name}.png" alt="{kind} of Red to blue">' in page
        assert PICTURES[kind] in page
    assert not (coloured / "plots" / "pairs_gaussian_to_red.png").exists()
    assert (coloured / "plots" / "paths_gaussian_to_red.png").exists()


def test_panels_stand_in_the_order_of_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame(
        {
            "method": ["efm", "efm", "efm", "efm", "fm", "efm"],
            "setting": ["L=1e+06", "L=100", "L=30, sigma=0.1", "L=30, sigma=0.05", "", "L=1e-05"],
            "seed": 0,
        }
    )
    seen: list[str] = []
    monkeypatch.setattr(plots, "best", lambda summary, most: rows)
    monkeypatch.setattr(plots, "cut", lambda summary, most: "")
    monkeypatch.setattr(
        plots, "read_samples", lambda path, dim: seen.append(path.parent.name) or {}
    )
    monkeypatch.setattr(plots, "scatter_figure", lambda panels, title: Figure())
    rows["id"] = rows["setting"]
    assert len(list(sample_figures("gaussian_to_8gaussians", rows, rows, tmp_path, print))) == 1
    assert seen == ["L=1e-05", "L=30, sigma=0.05", "L=30, sigma=0.1", "L=100", "L=1e+06", "cells"]


def test_sizes_of_a_task_stand_side_by_side(coloured: Path) -> None:
    panels = {}
    for size in (6, 8):
        panel = read_images(file_of(coloured, "red_to_blue", "fm", size))
        assert panel is not None
        assert panel.samples.shape == (40, 3, size, size)
        panels[f"fm {size}"] = panel
    titles = [ax.get_title() for ax in samples_figure(panels, False, (0.0, 1.0), "T").axes]
    assert titles == ["real, held out (6 x 6)", "real, held out (8 x 8)", "fm 6", "fm 8"]


def test_the_report_needs_no_data(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copied / "plots" / "pairs_red_to_blue.png").read_bytes()
    shutil.rmtree(copied / "plots")
    monkeypatch.setattr("bench.report.plots.draw.METRICS", {})  # no bars
    module = sys.modules[TASKS["red_to_blue"].__module__]
    monkeypatch.setattr(module, "HERE", False)
    logged: list[str] = []
    write_report(copied, logged.append)
    assert (copied / "plots" / "pairs_red_to_blue.png").read_bytes() == before
    assert not [line for line in logged if "left out" in line]


def test_old_pictures_go(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.plots.draw.METRICS", {})  # no bars
    for record in read_records(copied):
        if record.cell.task == "red_to_blue":
            shutil.rmtree(cell_folder(copied, record.id))
    write_report(copied)
    names = {path.name for path in (copied / "plots").glob("*")}
    assert not [name for name in names if "red_to_blue" in name]
    assert "paths_gaussian_to_red.png" in names


def rewritten(**changed: Any) -> Callable[[Path], None]:
    """Changes arrays of a file, and drops those that become None."""

    def corrupt(path: Path) -> None:
        arrays = arrays_of(path) | changed
        content = io.BytesIO()
        np.savez(content, **{name: a for name, a in arrays.items() if a is not None})
        path.write_bytes(content.getvalue())

    return corrupt


CORRUPT: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: path.unlink(), "no samples.npz"),
    "no frames": (rewritten(paths=np.zeros((0, 4, 108))), "108 columns"),
    "narrow paths": (rewritten(paths=np.zeros((9, 4, 107))), "108 columns"),
    "wild paths": (rewritten(paths=np.full((9, 4, 108), np.nan)), "not finite"),
    "words": (rewritten(ranked=np.array([["a"]])), "not a table"),
    "objects": (rewritten(ranked=np.array([{}], dtype=object)), "cannot be read"),
    "shape": (rewritten(shape=np.array([3, 5, 5])), "75 columns"),
    "no shape": (rewritten(shape=np.array("x")), "cannot be read"),
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_file_costs_its_panels_alone(what: str, copied: Path) -> None:
    corrupt, reason = CORRUPT[what]
    corrupt(file_of(copied, "red_to_blue", "fm", 6))
    figures, logged = drawn(copied, "red_to_blue")
    (line,) = logged
    assert line.startswith("samples_red_to_blue: left out fm size=6: ")
    assert reason in line
    assert len(shown(figures["pairs_red_to_blue"])) == 1
    assert "without fm size=6" in figures["paths_red_to_blue"].get_suptitle()


def test_without_the_shape_of_any_there_is_no_picture(copied: Path) -> None:
    for method in ("fm", "pfgm"):
        rewritten(shape=None)(file_of(copied, "gaussian_to_red", method))
    assert drawn(copied, "gaussian_to_red") == ({}, [])
