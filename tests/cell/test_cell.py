"""A cell from start to end: transport in blocks, seeds, what its record says, what it imports."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from bench.analysis.results import row
from bench.cell import draws
from bench.cell import transport as cells
from bench.cell.context import CellContext
from bench.cell.draws import FEW, build_model, generator
from bench.cell.run import run_cell
from bench.cell.transport import transported
from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.metrics import metric
from bench.store.folder import SAMPLES
from bench.store.records import Outcome, Record, RecordedCell
from datasets import Empirical
from methods.fm import FlowMatching
from methods.networks import NetworkFactory

ROOT = Path(__file__).parents[2]
QUICK = {"train.steps": 2, "eval.metrics": "main", "eval.replicates": 0}


def one_cell(method: str, task: str = "gaussian_to_swiss_roll", **settings: Any) -> Cell:
    small = {"train.steps": 20, "train.batch": 16, "eval.n": 64, "sample.solver_steps": 5}
    given = {name: [value] for name, value in {**small, **settings}.items()}
    (cell,) = Spec(methods=[method], tasks=[task], seeds=[0], settings=given).cells()
    return cell


def record_of(cell: Cell, outcome: Outcome) -> Record:
    return Record(
        **outcome.model_dump(),
        id=cell.id,
        cell=RecordedCell(**cell.model_dump(mode="json")),
        steps=cell.train.steps,
        batch=cell.train.batch,
        device="cpu",
        threads=1,
        started=0.0,
        seconds=1.0,
    )


READS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda weight: float(weight.mean()),
    "numpy": lambda weight: weight.numpy(),
    "a list": lambda weight: weight.tolist(),
    "a mask": lambda weight: weight[weight > 0],
    "samples": lambda weight: weight + torch.ones(weight.shape),
    "a copy": lambda weight: weight.to("cpu"),
    "equality": lambda weight: torch.equal(weight, weight),
}
"""What a model may do with its weights that those without numbers cannot."""


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_model_that_reads_its_weights_keeps_its_width(
    read: Callable[[Tensor], object], capsys: pytest.CaptureFixture[str]
) -> None:
    class Reading(FlowMatching):
        def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
            model = super().model(network, source, target)
            read(next(model.parameters()).detach())
            return model

    model = build_model(CellContext.of(one_cell("fm", **{"network.width": 24})), Reading())
    widths = {layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)}
    assert widths == {24, 2}
    assert "the width is not matched: " in capsys.readouterr().out


@pytest.mark.parametrize("fault", [RuntimeError("shapes differ"), TypeError("one is missing")])
def test_an_error_of_a_model_is_not_taken_for_weights_that_were_read(fault: Exception) -> None:
    """Also where it is of the few samples with which weights are counted alone."""

    class Faulty(FlowMatching):
        def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
            if len(source) == FEW:
                raise fault
            return super().model(network, source, target)

    with pytest.raises(type(fault), match=str(fault)):
        build_model(CellContext.of(one_cell("fm")), Faulty())


@pytest.mark.parametrize("method", ["fm", "efm", "pfgm", "edm"])
def test_samples_do_not_depend_on_the_blocks_they_are_transported_in(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = one_cell(method)
    context = CellContext.of(cell)
    built, model = context.method, build_model(context)
    start = built.start(context.source.sample(50, generator(cell, "x")))

    def ends(numbers: int) -> Any:
        monkeypatch.setattr(cells, "BLOCK_NUMBERS", numbers)
        return transported(built, model, start, cell.sample, generator(cell, "y"), path=True)

    whole, parts = ends(10**6), ends(2 * 20)  # 20 samples of two numbers at a time
    torch.testing.assert_close(parts.end, whole.end)
    assert torch.equal(parts.landed, whole.landed)
    assert parts.nfe == whole.nfe
    assert parts.path.shape[1:] == (20, 2)
    torch.testing.assert_close(parts.path, whole.path[:, :20])
    assert set(parts.diagnostics) == set(whole.diagnostics)


def test_evaluations_a_line_are_the_mean_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = one_cell("fm", **{"sample.solver": "dopri5"})
    context = CellContext.of(cell)
    built, model = context.method, build_model(context)
    start = 5 * context.source.sample(30, generator(cell, "x"))
    alone = [built.transport(model, block, cell.sample).nfe for block in torch.split(start, 20)]
    monkeypatch.setattr(cells, "BLOCK_NUMBERS", 40)
    found = transported(built, model, start, cell.sample, generator(cell, "y"))
    assert found.nfe == math.ceil((20 * alone[0] + 10 * alone[1]) / 30)


def test_a_cell_in_blocks_has_all_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = one_cell("fm")
    whole = run_cell(cell, tmp_path).metrics
    monkeypatch.setattr(cells, "BLOCK_NUMBERS", 2 * 50)
    parts = run_cell(cell, tmp_path).metrics
    assert set(parts) == set(whole)
    of_lines = ("straightness", "path_energy")  # of the first block alone
    for name, value in whole.items():
        if not name.startswith(of_lines):
            # The ends of an interval may be near zero: as exact as the metric is.
            metric = whole.get(name.removesuffix("_low").removesuffix("_high"), value)
            assert parts[name] == pytest.approx(value, rel=1e-3, abs=1e-3 * abs(metric)), name
    assert parts["straightness"] != whole["straightness"]


@pytest.mark.parametrize(
    ("settings", "used", "idle"),
    [
        ({}, ["width", "depth", "skip"], ["unet", "dropout"]),
        ({"network.architecture": "unet"}, ["unet", "dropout"], ["width", "depth", "skip"]),
    ],
)
def test_settings_that_the_network_lacks_are_empty(
    settings: dict[str, str], used: list[str], idle: list[str], tmp_path: Path
) -> None:
    cell = one_cell("fm", "gaussian_to_digits", **{**QUICK, **settings})
    outcome = run_cell(cell, tmp_path)
    found = row(record_of(cell, outcome))
    assert all(found[name] is not None for name in used)
    assert all(found[name] is None for name in idle)


def test_settings_that_the_method_does_not_use_are_empty(tmp_path: Path) -> None:
    used = {"fm": "precondition", "efm": "far_field"}
    for method, empty in (("fm", "far_field"), ("efm", "precondition")):
        cell = one_cell(method, **QUICK)
        found = row(record_of(cell, run_cell(cell, tmp_path / method)))
        assert found[empty] is None
        assert found[used[method]] is not None


def test_the_general_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    cell = one_cell(
        *("fm", "gaussian_to_digits"),
        **{**QUICK, "network.architecture": "unet", "network.dropout": 0.5},
    )
    first = run_cell(cell, tmp_path).metrics
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert run_cell(cell, tmp_path).metrics == first


def purposes_of(cell: Cell, folder: Path) -> dict[str, list[int]]:
    """The seeds that a run of a cell asks for, by their purpose; with the samples of its FID."""
    seeds: dict[str, list[int]] = {}
    plain = draws.seed_of

    def seed_of(cell: Cell, purpose: str) -> int:
        seeds.setdefault(purpose, []).append(plain(cell, purpose))
        return seeds[purpose][-1]

    def fid_train(fresh: Iterable[Tensor], *rest: object) -> dict[str, float]:
        list(fresh)
        return {}

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BENCH_CACHE", str(folder / "cache"))  # what is kept is not drawn again
        patched.setattr(draws, "seed_of", seed_of)
        patched.setattr("bench.cell.run.fid_to_training_set", fid_train)
        assert run_cell(cell, folder).status == "done"
    return seeds


def test_no_two_draws_of_a_cell_share_a_seed(tmp_path: Path) -> None:
    """What is drawn twice for one purpose is one set: the training samples that set the scale."""
    given = {**QUICK, "eval.replicates": 3, "eval.fid_n": 5}
    cell = one_cell("fm", "gaussian_to_digits", **given)
    seeds = purposes_of(cell, tmp_path)
    assert [name for name, asked in seeds.items() if len(asked) > 1] == ["statistics"]
    distinct = {seed for asked in seeds.values() for seed in asked}
    assert len(distinct) == len(seeds) >= 14
    tuned = one_cell("fm", "gaussian_to_digits", **given, **{"eval.split": "validation"})
    other = purposes_of(tuned, tmp_path)
    evaluated = [name for name in seeds if name not in other]
    assert len(evaluated) == len(other.keys() - seeds.keys()) == 4  # three sets, and FID's starts


def test_seeds_are_of_the_task_its_version_the_seed_and_the_purpose_alone() -> None:
    cell = one_cell("fm")
    changes = ({"seed": 1}, {"task": "gaussian_to_moons"}, {"task_version": 99})
    others = [cell.model_copy(update=change) for change in changes]
    seeds = {draws.seed_of(one, name) for one in (cell, *others) for name in ("a", "b")}
    assert len(seeds) == 8
    same = one_cell("efm", **{"train.lr": 1e-4, "eval.n": 32, "efm.L": 7.0})
    assert draws.seed_of(same, "a") == draws.seed_of(cell, "a")


def test_what_is_near_to_the_training_set_is_measured_against_it(tmp_path: Path) -> None:
    """Samples, and as their floor held-out images, by scikit-learn's search for neighbours."""
    cell = one_cell("fm", "gaussian_to_digits", **QUICK)
    outcome = run_cell(cell, tmp_path)
    target = cell.build_task().target()
    assert isinstance(target, Empirical)
    search = NearestNeighbors(n_neighbors=1).fit(target.train.double().numpy())
    with np.load(tmp_path / SAMPLES) as stored:
        sets = {name: target.normalisation.apply(torch.from_numpy(stored[name])) for name in stored}
    near = {name: search.kneighbors(sets[name].double())[0] for name in ("samples", "target")}
    assert outcome.nearest_train == pytest.approx(near["samples"].mean(), rel=1e-4)
    assert outcome.nearest_train_floor == pytest.approx(near["target"].mean(), rel=1e-4)
    close = np.quantile(near["target"], 0.05)
    assert outcome.metrics["copied"] == (near["samples"] <= close).mean()
    assert near["target"].min() > 0


def test_a_record_names_the_data_of_the_task(tmp_path: Path) -> None:
    cell = one_cell("fm", **QUICK)
    assert run_cell(cell, tmp_path).task_digest == cell.build_task().digest()


def test_a_metric_of_a_plugin_is_measured_in_every_cell_from_then_on(tmp_path: Path) -> None:
    cell = one_cell("fm", **{"train.steps": 1, "eval.replicates": 3})
    before = run_cell(cell, tmp_path).metrics

    @metric("mine", "My distance", "distance")
    def mine(samples: Tensor, target: Tensor) -> Any:
        return (samples.mean(0) - target.mean(0)).norm()  # no float

    found = run_cell(cell, tmp_path).metrics
    assert set(found) - set(before) == {"mine", "mine_floor", "mine_low", "mine_high"}
    assert {name: found[name] for name in before} == before


def test_running_a_cell_imports_no_tables_and_no_pictures(tmp_path: Path) -> None:
    cell = one_cell("fm", **QUICK)
    code = f"""
import sys
from pathlib import Path
from bench.cell.run import run_cell
from bench.config.cell import Cell
cell = Cell.model_validate_json({cell.model_dump_json()!r})
assert run_cell(cell, Path({str(tmp_path)!r})).status == "done"
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {".".join(name.split(".")[:2]) for name in done.stdout.split()}
    assert "bench.cell" in loaded
    assert not loaded & {"bench.analysis", "bench.report", "bench.execute", "bench.tuning"}
    assert not loaded & {"matplotlib", "seaborn", "jinja2", "dask"}
