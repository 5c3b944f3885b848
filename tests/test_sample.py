"""``python -m bench.sample``: what it draws, how it shows it, and what it refuses."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bench.run
from bench.config.plugins import load_plugin
from bench.sample import image_grid, main
from bench.store.folder import MODEL, RECORD, SAMPLES, cell_folder
from bench.store.records import read_records
from datasets import TASKS
from datasets.base import Empirical
from tests.commands import no_plugins

PLUGIN = Path(__file__).with_name("coloured.py")
TINY = ["--steps", "30", "--batch", "32", "--set", "eval.n=40", "--set", "network.width=16"]
TINY += ["--set", "eval.metrics=main", "--set", "eval.replicates=0", "--threads", "1"]
MOONS, DIGITS, THREES = "moons_to_8gaussians", "gaussian_to_digits", "digits_3_to_2"


def run(out: Path, methods: str, tasks: str, *more: str) -> None:
    arguments = ["--methods", methods, "--tasks", tasks, "--seeds", "0", "--out", str(out)]
    assert bench.run.main([*arguments, *TINY, *more]) == 0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cells of every kind: trained and exact, with noise and without, images and others."""
    folder = tmp_path_factory.mktemp("sample") / "out"
    with no_plugins(), pytest.MonkeyPatch.context() as patch:
        load_plugin(str(PLUGIN))
        # Plots take most of the time.
        patch.setattr("bench.report.build.draw_plots", lambda *arguments: [])
        run(folder, "efm,fm,fm-exact,pfgm", DIGITS)
        run(folder, "fm,pfgm", f"{THREES},red_to_blue", "--plugin", str(PLUGIN))
        run(folder, "fm", f"{MOONS},gaussian_to_wine")
        run(folder, "fm", "gaussian_to_swiss_roll", "--set", "fm.sigma=0,0.5", "--seeds", "0,1")
        run(folder, "vp", "gaussian_to_swiss_roll", "--set", "vp.sampler=sde")
        yield folder


@pytest.fixture
def copied(out: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(out, tmp_path / "copied"))


def folder_of(out: Path, task: str, method: str) -> Path:
    """The folder of a cell."""
    (record,) = (
        record
        for record in read_records(out)
        if (record.cell.task, record.cell.method) == (task, method)
    )
    return cell_folder(out, record.id)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def sampled(folder: Path, file: Path, *more: str) -> dict[str, np.ndarray]:
    """The arrays that the command writes."""
    assert main([str(folder), "--out", str(file), *more]) == 0
    return arrays_of(file)


# What is drawn


@pytest.mark.parametrize(
    ("task", "method"),
    [(DIGITS, name) for name in ("efm", "fm", "fm-exact", "pfgm")]
    + [(THREES, "fm"), ("red_to_blue", "fm"), (MOONS, "fm"), ("gaussian_to_wine", "fm")]
    + [("gaussian_to_swiss_roll", "vp")],
)
def test_stored_inputs_give_the_stored_samples(
    task: str, method: str, out: Path, tmp_path: Path
) -> None:
    folder = folder_of(out, task, method)
    stored = arrays_of(folder / SAMPLES)
    again = sampled(folder, tmp_path / "a.npz", "--inputs", str(folder / SAMPLES))
    for name in ("source", "samples"):
        scale = np.abs(stored[name]).max()
        shape = again[name].shape
        np.testing.assert_allclose(
            again[name].reshape(stored[name].shape), stored[name], atol=1e-5 * scale
        )
        assert again[name].dtype == np.float32
        assert len(shape) == (4 if "digits" in task or "red" in task else 2)
    first = sampled(folder, tmp_path / "b.npz", "--inputs", str(folder / SAMPLES), "--n", "7")
    np.testing.assert_array_equal(first["source"], again["source"][:7])


def test_the_same_command_writes_the_same_file(out: Path, tmp_path: Path) -> None:
    folder = folder_of(out, DIGITS, "pfgm")
    files = [tmp_path / f"{k}.npz" for k in range(3)]
    one = sampled(folder, files[0], "--n", "9")
    torch.manual_seed(5)
    sampled(folder, files[1], "--n", "9", "--draw-seed", "0")
    other = sampled(folder, files[2], "--n", "9", "--draw-seed", "1")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert one["samples"].shape == (9, 1, 8, 8)
    assert not np.allclose(one["source"], other["source"])
    assert not np.allclose(one["samples"], other["samples"])


def test_fresh_draws_are_not_those_of_the_evaluation(out: Path, tmp_path: Path) -> None:
    folder = folder_of(out, DIGITS, "fm")
    fresh = sampled(folder, tmp_path / "a.npz", "--n", "40")["source"].reshape(40, 64)
    stored = arrays_of(folder / SAMPLES)["source"]
    assert np.linalg.norm(fresh[:, None] - stored, axis=2).min() > 0.5


def test_the_noise_of_a_stochastic_transport_has_the_seed_of_the_draw(
    out: Path, tmp_path: Path
) -> None:
    folder = folder_of(out, "gaussian_to_swiss_roll", "vp")
    inputs = ["--inputs", str(folder / SAMPLES), "--draw-seed"]
    one, two = (sampled(folder, tmp_path / f"{k}.npz", *inputs, k) for k in "01")
    np.testing.assert_array_equal(one["source"], two["source"])
    assert not np.allclose(one["samples"], two["samples"], atol=0.1)


def test_blocks_give_the_same_samples(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(out, DIGITS, "efm")
    whole = sampled(folder, tmp_path / "a.npz", "--n", "25")
    monkeypatch.setattr("bench.cell.transport.BLOCK_NUMBERS", 64 * 4)
    parts = sampled(folder, tmp_path / "b.npz", "--n", "25")
    np.testing.assert_allclose(parts["samples"], whole["samples"], atol=1e-3)


def test_a_translation_starts_from_held_out_inputs(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(out, "red_to_blue", "fm")
    drawn = sampled(folder, tmp_path / "a.npz", "--n", "1000")
    assert "red_to_blue has 40 held-out inputs; all are taken" in capsys.readouterr().err
    source = TASKS["red_to_blue"]().source()
    assert isinstance(source, Empirical)
    test = source.normalisation.undo(source.test).numpy()
    rows = drawn["source"].reshape(40, -1)
    nearest = np.abs(rows[:, None] - test).max(2)
    assert nearest.min(1).max() < 1e-6
    assert len(set(nearest.argmin(1))) == 40


def test_solver_steps_may_be_others(out: Path, tmp_path: Path) -> None:
    folder = folder_of(out, DIGITS, "fm")
    usual, same, few = (
        sampled(folder, tmp_path / f"{k}.npz", "--n", "5", *more)
        for k, more in enumerate(([], ["--solver-steps", "25"], ["--solver-steps", "2"]))
    )
    np.testing.assert_array_equal(usual["samples"], same["samples"])
    assert not np.allclose(usual["samples"], few["samples"], atol=1e-3)


def test_inputs_may_be_images_or_rows(out: Path, tmp_path: Path) -> None:
    folder = folder_of(out, "red_to_blue", "fm")
    rows = np.random.default_rng(0).random((3, 108))
    results = []
    for k, array in enumerate((rows, rows.reshape(3, 3, 6, 6), np.asfortranarray(rows))):
        np.savez(tmp_path / f"{k}.npz", source=array)
        inputs = ["--inputs", str(tmp_path / f"{k}.npz")]
        results.append(sampled(folder, tmp_path / "out.npz", *inputs))
    for other in results[1:]:
        np.testing.assert_array_equal(other["samples"], results[0]["samples"])
    np.testing.assert_allclose(results[0]["source"].reshape(3, 108), rows, atol=1e-6)


def test_the_cell_is_found_by_what_it_is(out: Path, tmp_path: Path) -> None:
    folder = folder_of(out, THREES, "fm")
    named = sampled(out, tmp_path / "a.npz", "--task", THREES)  # pfgm was skipped
    by_id = sampled(out, tmp_path / "b.npz", "--cell", folder.name)
    alone = sampled(folder, tmp_path / "c.npz", "--method", "fm", "--seed", "0")
    assert named["samples"].shape == (64, 1, 8, 8)
    for other in (by_id, alone):
        np.testing.assert_array_equal(named["samples"], other["samples"])


# Pictures


def test_blue_is_blue_and_pairs_are_pairs(out: Path, tmp_path: Path) -> None:
    folder = folder_of(out, "red_to_blue", "fm")
    red, blue = torch.zeros(2, 3, 6, 6), torch.zeros(2, 3, 6, 6)
    red[:, 0], blue[:, 2] = 1, torch.tensor([[[1.0]], [[0.5]]])
    grid = image_grid(blue, red, (0.0, 1.0))
    small = grid[:, ::8, ::8].permute(1, 2, 0)
    assert torch.equal(small.repeat_interleave(8, 0).repeat_interleave(8, 1), grid.permute(1, 2, 0))
    frame = torch.ones(19, 21, 3)  # white around the pairs, 3 wide, and a line within them
    for left, colour in ((3, [0, 0, 1.0]), (12, [0, 0, 0.5])):
        frame[3:9, left : left + 6] = torch.tensor([1.0, 0, 0])
        frame[10:16, left : left + 6] = torch.tensor(colour)
    assert torch.equal(small, frame)
    assert main([str(folder), "--n", "5", "--out", str(tmp_path / "a.png")]) == 0
    arrays = sampled(folder, tmp_path / "a.npz", "--n", "5")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))[::8, ::8]
    pixels = pixels[3:, 3:]
    first = (255 * arrays["source"][0]).transpose(1, 2, 0).clip(0, 255)
    # White is the brightest real pixel, a little below 1.
    np.testing.assert_allclose(pixels[:6, :6], first, atol=3)
    below = (255 * arrays["samples"][0]).transpose(1, 2, 0).clip(0, 255)
    np.testing.assert_allclose(pixels[7:13, :6], below, atol=3)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64])
@pytest.mark.parametrize("paired", [True, False])
def test_every_image_is_in_the_grid(count: int, paired: bool) -> None:
    images = torch.ones(count, 1, 4, 4) * torch.arange(1, count + 1)[:, None, None, None]
    grid = image_grid(-images, images if paired else None, (-100.0, 100.0))
    values = set((200 * grid[0] - 100).round().int().flatten().tolist())
    shown = {*range(-count, 0), *(range(1, count + 1) if paired else ())}
    assert values - {100} == shown


@pytest.mark.parametrize("task", [DIGITS, MOONS])
def test_a_picture_is_a_picture(task: str, out: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(2)]
    for file in files:
        assert main([str(folder_of(out, task, "fm")), "--out", str(file), "--n", "20"]) == 0
    pixels = np.asarray(Image.open(files[0]).convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 5
    assert files[0].read_bytes() == files[1].read_bytes()


# What is refused


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that is misused."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench.sample: ")
    assert error.count("\n") == 1
    return error.removeprefix("bench.sample: ")


def test_several_cells_are_listed(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.npz"
    line = refused(capsys, out, "--out", file)
    assert "cells fit, choose by --task digits_3_to_2, gaussian_to_digits, " in line
    assert "--method efm, fm, fm-exact, pfgm, vp" in line
    line = refused(capsys, out, "--out", file, "--task", DIGITS)
    assert line == "run: 4 cells fit, choose by --method efm, fm, fm-exact, pfgm\n"
    roll = ["--task", "gaussian_to_swiss_roll", "--method", "fm"]
    assert "--seed 0, 1" in refused(capsys, out, "--out", file, *roll)
    line = refused(capsys, out, "--out", file, *roll, "--seed", "1")
    assert "run: 2 cells fit, choose by --cell " in line
    assert "(fm gaussian_to_swiss_roll sigma=0.0 seed 1)" in line
    assert "(fm gaussian_to_swiss_roll sigma=0.5 seed 1)" in line
    assert not file.exists()


def misuses(tmp_path: Path) -> dict[str, tuple[list[Any], str]]:
    """Options of the cell of fm on 3s, and what is said of them."""
    files = {
        "narrow": {"source": np.zeros((3, 63))},
        "empty": {"source": np.zeros((0, 64))},
        "nan": {"source": np.full((3, 64), np.nan)},
        "words": {"source": np.array([["a"] * 64])},
        "objects": {"source": np.array([{}] * 64, dtype=object)},
        "unnamed": {"x": np.zeros((3, 64))},
        "good": {"source": np.zeros((3, 64))},
    }
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "text.npz").write_text("text")
    file = tmp_path / "a.npz"
    inputs = {
        name: (["--out", file, "--inputs", tmp_path / f"{name}.npz"], words)
        for name, words in {
            "narrow": "inputs: expected numbers of shape (n, 64) or (n, 1, 8, 8), got float64",
            "empty": "inputs: expected numbers",
            "nan": "inputs: holds NaN",
            "words": "inputs: expected numbers",
            "objects": "inputs: no array 'source' can be read",
            "unnamed": "inputs: no array 'source' can be read",
            "text": "inputs: no array 'source' can be read",
            "none": "inputs: no array 'source' can be read from",
        }.items()
    }
    return inputs | {
        "more": (["--out", file, "--inputs", tmp_path / "good.npz", "--n", 4], "n: "),
        "no out": ([], "the following arguments are required: --out"),
        "suffix": (["--out", tmp_path / "a.jpg"], "out: expected a name that ends in .png or .npz"),
        "no folder": (["--out", tmp_path / "no" / "a.png"], "cannot write"),
        "a file": (["--out", tmp_path / "text.npz" / "a.png"], "cannot write"),
        "n": (["--out", file, "--n", 0], "n: must be a number from 1 to"),
        "no n": (["--out", file, "--n", "x"], "argument --n: expected a number, got 'x'"),
        "steps": (["--out", file, "--solver-steps", 0], "sample.solver_steps: input should be"),
        "device": (["--out", file, "--device", "tpu"], "device: unknown device 'tpu'"),
        "method": (["--out", file, "--method", "gan"], "method: no cell has 'gan', choose from fm"),
        "task": (
            ["--out", file, "--task", "x"],
            "task: no cell has 'x', choose from digits_3_to_2",
        ),
        "seed": (["--out", file, "--seed", 3], "seed: no cell has 3, choose from 0"),
        "cell": (["--out", file, "--cell", "abc"], "cell: no cell has 'abc', choose from "),
        "data": (["--out", file, "--data-root", tmp_path / "no"], "data-root: no folder"),
        "plugin": (["--out", file, "--plugin", tmp_path / "no.py"], "plugin: expected"),
        "unknown": (["--out", file, "--frames", 3], "unrecognized arguments: --frames 3"),
    }


@pytest.mark.parametrize("what", misuses(Path("/tmp")))
def test_a_mistake_is_one_line(
    what: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = misuses(tmp_path)[what]
    assert refused(capsys, folder_of(out, THREES, "fm"), *words).startswith(said)
    assert not (tmp_path / "a.npz").exists()


def test_cells_without_a_model(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = ["--out", tmp_path / "a.npz"]
    skipped = folder_of(copied, THREES, "pfgm")
    assert "skipped (pfgm generates from its own prior" in refused(capsys, skipped, *end)
    folder = folder_of(copied, THREES, "fm")
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-9])
    assert "model.safetensors cannot be read" in refused(capsys, folder, *end)
    (folder / MODEL).unlink()
    assert "no model.safetensors" in refused(capsys, folder, *end)
    record = json.loads((folder / RECORD).read_text())
    record |= {"status": "failed", "reason": "RuntimeError: no field"}
    (folder / RECORD).write_text(json.dumps(record))
    assert "failed (RuntimeError: no field); it has no model" in refused(capsys, folder, *end)
    (folder / RECORD).write_text("{")
    assert "not a record" in refused(capsys, folder, *end)
    assert "got " in refused(capsys, tmp_path / "nowhere", *end)
    assert "cannot read" in refused(capsys, "x" * 5000, *end)
    assert not (tmp_path / "a.npz").exists()


def test_a_task_that_is_not_known(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    folder = folder_of(copied, "red_to_blue", "fm")
    monkeypatch.delitem(TASKS, "red_to_blue")
    line = refused(capsys, folder, "--out", tmp_path / "a.npz")
    assert line.startswith("task: 'red_to_blue' is not known; the record names the plugins: ")
    assert "coloured.py" in line


def test_data_that_are_missing(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys.modules[TASKS["red_to_blue"].__module__], "HERE", False)
    folder = folder_of(out, "red_to_blue", "fm")
    line = refused(capsys, folder, "--out", tmp_path / "a.npz")
    assert line == f"cell {folder.name}: squares: the images are gone\n"


def test_no_picture_of_a_table_and_none_of_too_many(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = ["--out", tmp_path / "a.png"]
    line = refused(capsys, folder_of(out, "gaussian_to_wine", "fm"), *end)
    assert "a .png shows images and two-dimensional data, got gaussian_to_wine with D = 13" in line
    line = refused(capsys, folder_of(out, DIGITS, "fm"), *end, "--n", "3000")
    assert line.startswith("out: a .png shows at most 2,500 images, got 3000 inputs")


def test_samples_that_are_not_finite_are_not_written(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", source=np.full((3, 64), 3e38))
    folder, file = folder_of(out, DIGITS, "fm"), tmp_path / "a.npz"
    words = [str(folder), "--inputs", str(tmp_path / "in.npz"), "--out", str(file)]
    assert main(words) == 1
    assert "3 of 3 samples are not finite; nothing is written" in capsys.readouterr().err
    assert not file.exists()
