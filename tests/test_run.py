"""The command line end to end, with tiny budgets, in the real process where it matters."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import bench.run
from bench.cell.context import CellContext
from bench.cell.draws import build_model
from bench.config.grid import Spec
from bench.store.folder import cell_folder
from bench.store.records import read_records
from datasets import TASKS, Distribution, Task
from datasets.base import TASKS as TABLE
from datasets.gaussians import StandardNormal
from methods import METHODS
from methods.fm import FlowMatching
from tests.chaos import workers
from tests.commands import run_main

ROOT = Path(__file__).parent.parent
FINISHED = {
    "tasks": ["gaussian_to_swiss_roll"],
    "seeds": [0, 1],
    "steps": 20,
    "batch": 32,
    "threads": 1,
    "eval.n": 64,
}
"""What :func:`finished_run` was made with."""
QUICK: dict[str, Any] = {"steps": 3, "batch": 16, "eval.n": 32, "eval.metrics": "main"}
TINY = ["--steps", "3", "--batch", "16", "--set", "eval.n=32", "--set", "network.width=8"]


def command(*arguments: str, out: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The real command."""
    where = [] if out is None else ["--out", str(out)]
    return subprocess.run(
        [sys.executable, "-m", "bench.run", *arguments, *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_main_job_from_command_to_leaderboard(tmp_path: Path) -> None:
    result = command("--methods", "efm,fm,pfgm", "--seeds", "0", "--jobs", "2", *TINY, out=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = pd.read_csv(tmp_path / "results.csv")
    assert len(rows) == 15  # three methods, five tasks
    skipped = rows[rows["status"] == "skipped"]
    assert set(zip(skipped["method"], skipped["task"], strict=True)) == {
        ("pfgm", "moons_to_8gaussians"),
        ("pfgm", "digits_3_to_2"),
    }
    assert skipped["reason"].str.contains("prior").all()
    done = rows[rows["status"] == "done"]
    assert done[["sliced_w2", "sliced_w2_floor", "nfe", "train_seconds"]].notna().all(axis=None)
    assert done[done["task"].str.contains("digits")]["w2"].isna().all()
    assert done[done["method"] == "pfgm"]["transport_cost"].isna().all()
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert (board["role"] == "method").sum() == 15
    written = [line for line in result.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert {Path(line).name for line in written} >= {
        "results.csv",
        "leaderboard.csv",
        "report.html",
        "samples_gaussian_to_digits.png",
        "samples_gaussian_to_swiss_roll.png",
        "bars_sliced_w2.png",
    }
    for line in written:
        assert Path(line).stat().st_size > 0
        if line.endswith(".png"):
            assert Path(line).with_suffix(".pdf").exists()
    assert "gaussian_to_swiss_roll" in result.stdout
    assert "pfgm: skipped: " in result.stdout


def test_sweep_over_two_axes_writes_each_cell_once(tmp_path: Path) -> None:
    rows = bench.run(
        methods=["efm", "fm"],
        tasks=["gaussian_to_swiss_roll"],
        L=[6, 30],
        sigma=[0.1, 1],
        seeds=range(3),
        out=tmp_path,
        **QUICK,
    )
    assert rows.groupby("method").size().to_dict() == {"efm": 12, "fm": 6}  # FM has no L
    assert not rows.duplicated(["method", "L", "sigma", "seed"]).any()
    assert rows[rows["method"] == "fm"]["L"].isna().all()
    over_l = pd.read_csv(tmp_path / "ablation_L.csv")
    assert len(over_l) == 6  # EFM at two L and two sigma, FM at two sigma
    assert (over_l["count"] == 3).all()
    expected = rows[(rows["method"] == "efm") & (rows["L"] == 6) & (rows["sigma"] == 1)]["w2"]
    found = over_l[(over_l["L"] == 6) & (over_l["setting"] == "sigma=1")]["w2_mean"]
    np.testing.assert_allclose(found, expected.mean())
    assert set(pd.read_csv(tmp_path / "ablation_sigma.csv")["sigma"]) == {0.1, 1.0}


def test_second_run_skips_finished_cells_and_force_repeats_them(finished_run: Path) -> None:
    first = list(read_records(finished_run))
    given = {**FINISHED, "methods": ["efm", "fm", "pfgm"], "out": finished_run}
    bench.run(**given)
    assert list(read_records(finished_run)) == first
    bench.run(force=True, **{**given, "methods": ["fm"]})
    for before, after in zip(first, read_records(finished_run), strict=True):
        assert (after.started > before.started) == (before.cell.method == "fm")
        assert after.metrics == before.metrics  # same seed, same samples
    ended = run_main(["--methods", "fm", "--steps", "21", "--dry-run", "--out", str(finished_run)])
    assert ended.status == 0
    assert " finished " not in ended.out  # other steps are other cells


def test_every_method_of_a_seed_sees_the_same_data(tmp_path: Path) -> None:
    methods = ["efm", "efm-exact", "fm", "ot-cfm", "pfgm", "vp"]
    bench.run(
        methods=methods,
        tasks=["gaussian_to_swiss_roll", "gaussian_to_digits"],
        seeds=[0, 1],
        out=tmp_path,
        **QUICK,
    )
    hashes: dict[tuple[str, int], set[str]] = {}
    targets: dict[tuple[str, int], list[np.ndarray]] = {}
    for record in read_records(tmp_path):
        key = record.cell.task, record.cell.seed
        hashes.setdefault(key, set()).add(str(record.data_hash))
        with np.load(cell_folder(tmp_path, record.id) / "samples.npz") as arrays:
            targets.setdefault(key, []).append(arrays["target"])
    assert len(hashes) == 4
    assert all(len(values) == 1 for values in hashes.values())
    assert len(set.union(*hashes.values())) == 4  # and another seed sees other data
    for arrays in targets.values():
        assert len(arrays) == len(methods)
        for other in arrays[1:]:
            np.testing.assert_array_equal(other, arrays[0])


@pytest.mark.parametrize("charges", [64, 6000])
def test_an_exact_method_gets_as_many_even_samples_as_it_asks_for(charges: int) -> None:
    """As many of each of the eight modes: part of a larger set would not have that."""
    settings = {"efm-exact.charges": [charges]}
    spec = Spec(
        methods=["efm-exact"], tasks=["gaussian_to_8gaussians"], seeds=[0], settings=settings
    )
    (cell,) = spec.cells()
    model = build_model(CellContext.of(cell))
    negative = model.get_buffer("negative")
    angle = torch.atan2(negative[:, 1], negative[:, 0])
    counts = ((angle / (2 * math.pi / 8)).round().long() % 8).bincount(minlength=8)
    assert counts.tolist() == [charges // 8] * 8
    assert len(model.get_buffer("positive")) == charges


def test_digits_are_stored_in_their_original_units(tmp_path: Path) -> None:
    bench.run(methods=["fm"], tasks=["gaussian_to_digits"], seeds=[0], out=tmp_path, **QUICK)
    (record,) = read_records(tmp_path)
    assert record.normalisation == {"shift": 8.0, "scale": 8.0}
    with np.load(cell_folder(tmp_path, record.id) / "samples.npz") as arrays:
        assert set(np.unique(arrays["target"])) <= set(range(17))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "nonsense"], ["methods", "nonsense", "edm, edm-exact, efm, efm-exact, fm"]),
        (["--methods", "emf"], ["methods: unknown name 'emf', did you mean efm? Choose from edm"]),
        (["--metods", "efm"], ["unrecognized arguments: --metods efm, did you mean --methods?"]),
        (["--methods=--"], ["methods", "'--'"]),
        (["--set=--"], ["set", "'--'"]),
        (["--tasks", "nonsense"], ["tasks", "nonsense", "gaussian_to_digits"]),
        (["--suite", "nonsense"], ["suite", "nonsense", "default"]),
        (["--L", "0"], ["L", "greater than 0", "0"]),
        (["--L", "-6"], ["L", "greater than 0", "-6"]),
        (["--L", "six"], ["L", "number", "six"]),
        (["--L", "nan"], ["L", "finite"]),
        (["--methods", "fm", "--L", "nan"], ["L", "finite"]),
        (["--set", "pfgm.z_max=0.001"], ["pfgm", "z_min", "z_max"]),
        (["--set", "eval.n=1000000"], ["eval.n", "100000"]),
        (["--seeds", "9" * 5000], ["seeds", "0,1,2"]),
        (["--L", ""], ["L", "no value"]),
        (["--sigma", "-1"], ["sigma", "greater than or equal to 0", "-1"]),
        (["--seeds", ""], ["seeds", "empty"]),
        (["--seeds", "a"], ["seeds", "0,1,2", "a"]),
        (["--seeds", "4-0"], ["seeds", "empty"]),
        (["--steps", "0"], ["train.steps", "greater than or equal to 1"]),
        (["--jobs", "0"], ["jobs", "0"]),
        (["--device", "abacus"], ["device", "abacus", "cuda"]),
        (["--set", "efm.pionts=log"], ["efm.pionts", "points"]),
        (["--set", "efm.points=logg"], ["efm.points", "logg", "capacitor"]),
        (["--set", "elm.points=log"], ["elm", "efm"]),
        (["--set", "efm.points"], ["set", "name=value"]),
        (["--set", "sample.solver=eluer"], ["sample.solver", "eluer", "heun"]),
        (["--config", "missing.toml"], ["config", "missing.toml"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_a_mistake_is_one_line_and_status_two(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bench.run.main([*arguments, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    for word in words:
        assert word in lines[0]
    assert not out.exists()  # nothing was started


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    ended = run_main(["--methods", "fm", "--out", str(tmp_path / "file")])
    assert ended.status == 2
    assert ended.err.splitlines() == [
        f"bench.run: out: cannot write to '{tmp_path / 'file'}': Not a directory"
    ]


def test_foreign_record_is_one_line_and_stays(finished_run: Path) -> None:
    path, *_ = finished_run.glob("cells/*/record.json")
    path.write_text('{"something": "else"}')
    # Also where the cell is none of this command's.
    ended = run_main(["--methods", "ifm", "--out", str(finished_run), *TINY])
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1
    assert str(path) in ended.err
    assert path.read_text() == '{"something": "else"}'


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_interrupted_run_keeps_what_is_finished_and_goes_on(tmp_path: Path, jobs: str) -> None:
    arguments = ["--methods", "fm", "--tasks", "gaussian_to_swiss_roll", "--seeds", "0-9"]
    arguments += ["--steps", "300", "--set", "eval.n=32", "--jobs", jobs, "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.run", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("cells/*/record.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begin < 10
    assert process.returncode == 130
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert re.search(r"interrupted; \d+ of 10 cells are recorded", last), errors
    records = {record.id: record for record in read_records(tmp_path)}
    assert len(records) >= 2
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(records)
    assert command(*arguments).returncode == 0
    after = {record.id: record for record in read_records(tmp_path)}
    assert len(after) == 10
    assert all(after[key] == record for key, record in records.items())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_costs_no_cell(tmp_path: Path) -> None:
    arguments = ["--methods", "fm", "--tasks", "gaussian_to_swiss_roll", "--seeds", "0-19"]
    arguments += ["--steps", "300", "--set", "eval.n=32", "--jobs", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.run", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("cells/*/record.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(workers(process.pid)[0].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    rows = pd.read_csv(tmp_path / "results.csv")
    assert (rows["status"] == "done").all()
    assert sorted(rows["seed"]) == list(range(20))


class Broken(FlowMatching):
    """A method that fails."""

    name = "broken"

    def regression(self, source, target, n, rng):  # type: ignore[no-untyped-def]
        raise RuntimeError("no field today")


class Exploding(FlowMatching):
    """A method whose target is not finite from the fourth batch on."""

    name = "exploding"

    def regression(self, source, target, n, rng):  # type: ignore[no-untyped-def]
        batch = super().regression(source, target, n, rng)
        bad = source.rest.shape[0] <= source.BLOCK - 4 * n
        return batch._replace(target=batch.target * (float("nan") if bad else 1.0))


class PlaneOnly(FlowMatching):
    """A method that takes two dimensions only."""

    name = "plane_only"

    def skip(self, dim: int, noise_source: bool) -> str | None:
        return None if dim == 2 else f"plane_only takes D = 2, not {dim}"


def test_failures_become_rows_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in (Broken, Exploding, PlaneOnly):
        monkeypatch.setitem(METHODS, method.name, method)
    arguments = ["--methods", "broken,exploding,plane_only,fm", "--seeds", "0", *TINY]
    arguments += ["--steps", "20", "--tasks", "gaussian_to_digits", "--out", str(tmp_path)]
    assert bench.run.main(arguments) == 1
    rows = pd.read_csv(tmp_path / "results.csv").set_index("method")
    assert rows["status"].to_dict() == {
        "broken": "failed",
        "exploding": "diverged",
        "plane_only": "skipped",
        "fm": "done",
    }
    assert rows.loc["broken", "reason"] == "RuntimeError: no field today"
    assert rows.loc["exploding", "reason"] == "loss not finite at step 3"
    assert rows.loc["plane_only", "reason"] == "plane_only takes D = 2, not 64"
    assert (cell_folder(tmp_path, rows.loc["broken", "id"]) / "traceback.txt").exists()
    errors = capsys.readouterr().err
    assert "failed: broken gaussian_to_digits seed 0: RuntimeError: no field today" in errors


class Poisoned(StandardNormal):
    """A distribution with a NaN."""

    def sample(self, n: int, rng: torch.Generator) -> torch.Tensor:
        samples = super().sample(n, rng)
        samples[n // 2, 0] = float("nan")
        return samples


class PoisonedTask(Task):
    """A task whose target holds NaN."""

    name = "poisoned"
    title = "Poisoned"
    dim = 2
    noise_source = True

    def source(self) -> Distribution:
        return StandardNormal((2,))

    def target(self) -> Distribution:
        return Poisoned((2,))


def test_nan_in_the_data_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TASKS is TABLE
    monkeypatch.setitem(TASKS, "poisoned", PoisonedTask)
    rows = bench.run(
        methods=["fm"], tasks=["poisoned"], seeds=[0], out=tmp_path, steps=3, **{"eval.n": 8}
    )
    assert rows["status"].tolist() == ["failed"]
    assert "poisoned target holds NaN or infinity in" in rows["reason"][0]
    assert pd.isna(rows["train_seconds"][0])


def test_run_from_python_gives_the_rows_of_results_csv(tmp_path: Path) -> None:
    from bench import run

    rows = run(
        methods=["efm"],
        tasks=["gaussian_to_swiss_roll"],
        seeds=[0],
        out=tmp_path,
        L=[6, 30],
        steps=3,
        batch=16,
        **{"eval.n": 32, "efm.points": "log"},
    )
    assert rows["L"].tolist() == [6, 30]
    assert rows["points"].tolist() == ["log", "log"]
    assert rows["sigma"].isna().all()
    stored = pd.read_csv(tmp_path / "results.csv")
    np.testing.assert_allclose(rows["w2"], stored["w2"])
    with pytest.raises(ValueError, match="methods: unknown name 'x'"):
        run(methods=["x"], out=tmp_path)


def test_scheme_without_sigma_runs_once_over_sigma(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--methods", "efm", "--tasks", "gaussian_to_swiss_roll", "--seeds", "0"]
    arguments += ["--sigma", "0.1,1", "--set", "efm.points=uniform,log", "--dry-run"]
    assert bench.run.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("points=log" in line for line in lines) == 1
    assert sum("points=uniform" in line for line in lines) == 2


def test_configuration_file_is_strict_and_the_command_overrides_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        'methods = ["efm", "fm"]\ntasks = ["gaussian_to_swiss_roll"]\nseeds = "0-1"\nL = [6, 30]\n'
        "[train]\nlr = 1e-3\n"
    )
    assert bench.run.main(["--config", str(config), "--methods", "efm", "--dry-run"]) == 0
    assert "4 cells, 4 to do, in results/runs/mine" in capsys.readouterr().out
    config.write_text("[train]\nlearning_rate = 1e-3\n")
    assert bench.run.main(["--config", str(config)]) == 2
    assert "train.learning_rate: unknown setting" in capsys.readouterr().err


def test_settings_that_concern_nothing_are_told_and_the_run_goes_on(tmp_path: Path) -> None:
    arguments = ["--methods", "fm", "--tasks", "gaussian_to_swiss_roll", "--dry-run"]
    arguments += ["--L", "6", "--set", "efm.points=log", "--out", str(tmp_path)]
    ended = run_main(arguments)
    assert ended.status == 0
    assert ended.err.splitlines() == [
        "bench.run: L: none of the methods fm has it, it is ignored",
        "bench.run: efm.points: efm is none of the methods, it is ignored",
    ]
    assert run_main([*arguments[:5], "--suite", "efm_ablation", *arguments[-2:]]).err == ""


def test_global_random_state_is_untouched(tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    bench.run(tasks=["gaussian_to_swiss_roll"], seeds=[0], out=tmp_path, steps=3, **{"eval.n": 32})
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
