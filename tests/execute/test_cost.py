"""What cells cost: for the dry run, for their order and for the time that is left."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.cell.context import CellContext
from bench.cell.draws import build_model
from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.config.options import RunOptions
from bench.execute.cost import Expectation, cost_of, forecast, in_words
from bench.execute.session import Session
from methods import METHODS
from methods.efm import ElectrostaticFieldMatching
from methods.networks import NetworkSettings


def one_cell(method: str, task: str = "gaussian_to_digits", **settings: Any) -> Cell:
    given = {name: [value] for name, value in settings.items()}
    (cell,) = Spec(methods=[method], tasks=[task], seeds=[0], settings=given).cells()
    return cell


@pytest.mark.parametrize("architecture", ["mlp", "unet"])
@pytest.mark.parametrize("method", ["efm", "fm", "pfgm", "vp"])
def test_parameters_are_those_of_the_model(method: str, architecture: str) -> None:
    cell = one_cell(method, **{"network.architecture": architecture})
    model = build_model(CellContext.of(cell))
    found = cost_of(cell).parameters
    assert found == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.trained])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_method_has_an_estimate(method: str, precision: str) -> None:
    cell = one_cell(method, "gaussian_to_swiss_roll", **{"network.precision": precision})
    found = cost_of(cell)
    assert min(found.parameters, found.memory, found.seconds()) > 0


def test_operations_of_an_mlp() -> None:
    """Two for each weight and sample, three times in training, twice a step of Heun's method."""
    plain = {"network.inputs": "raw", "network.embedding": "plain"}
    cell = one_cell("fm", "gaussian_to_swiss_roll", **{"train.steps": 100, "eval.n": 1000}, **plain)
    inputs, width = 2 + 1, 128
    weights = inputs * width + 2 * width * width + width * 2
    samples = 100 * 512 * 3 + 1000 * 25 * 2
    assert cost_of(cell).operations == 2 * weights * samples


def test_memory_is_that_of_weights_and_activations() -> None:
    """Weights take five times four bytes; activations grow with the batch."""
    small, large = (cost_of(one_cell("fm", **{"train.batch": batch})) for batch in (2, 1002))
    activations = (large.memory - small.memory) / 1000
    assert small.memory == pytest.approx(20 * small.parameters + 2 * activations)
    layers = 4 * (64 + 8 + 3 * 128)  # the inputs of the four linear layers, in float32
    assert layers <= activations <= 6 * layers  # SiLU and the skip keep theirs


def test_accumulated_batches_take_time_and_no_memory() -> None:
    one, four = (cost_of(one_cell("fm", **{"train.accumulate": k, "eval.n": 5})) for k in (1, 4))
    assert four.seconds() == pytest.approx(4 * one.seconds(), rel=2e-2)
    assert four.memory == one.memory


def test_the_table_has_a_row_a_setting_and_a_total() -> None:
    cells = Spec(methods=["fm", "fm-exact"], tasks=["gaussian_to_digits"], seeds=[0, 1]).cells()
    lines = forecast(cells, "cpu", 1)
    assert len(lines) == 3
    assert lines[0].split()[:4] == ["2", "x", "fm", "gaussian_to_digits"]
    assert lines[1].split()[:5] == ["2", "x", "fm-exact", "gaussian_to_digits", "0"]
    assert "on cpu at" in lines[2]


def test_what_cannot_be_built_has_no_estimate() -> None:
    unet = NetworkSettings(architecture="unet")  # which no grid gives to vectors
    cell = one_cell("fm", "gaussian_to_swiss_roll").model_copy(update={"network": unet})
    line, _ = forecast([cell], "cpu", 1)
    assert "no estimate: architecture = unet is for images" in line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (100, "100 s"), (150, "2.5 min"), (3e4, "8.3 h"), (4e6, "46 d")],
)
def test_durations(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_the_target_of_efm_costs_little_beside_the_network_of_the_papers() -> None:
    """64 points in 1,024 charges at D = 3072, beside a step of 64: less than a tenth.

    A step of 64 takes gigabytes; that of one is taken instead, and counted eight times only.
    """
    network = NetworkSettings(unet="paper").factory(3, 32, 32)(3, 3073)
    x, s = torch.randn(1, 3072), torch.randn(1, 3)
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(4096, 3072, generator=rng)
    method = ElectrostaticFieldMatching.create(3072, charges=1024)

    def draw(k: int) -> torch.Tensor:
        return data[torch.randint(len(data), (k,), generator=rng)]

    def step() -> None:
        network.zero_grad()
        network(x, s).square().mean().backward()

    def target() -> None:
        method.regression(draw, draw, 64, rng)

    seconds = {}
    for work in (step, target):
        work()
        begin = time.process_time()
        work()
        seconds[work] = time.process_time() - begin
    assert seconds[target] < 8 * seconds[step] / 10


def ended(status: str, seconds: float) -> Any:
    """A record as far as the expectation needs it."""
    return SimpleNamespace(status=status, seconds=seconds)


def spec_of(**settings: list[Any]) -> Spec:
    """Two methods on two tasks."""
    return Spec(
        methods=["fm", "efm"],
        tasks=["gaussian_to_swiss_roll", "gaussian_to_digits"],
        seeds=[0],
        settings=settings,
    )


def cells_of(**settings: list[Any]) -> list[Cell]:
    return spec_of(**settings).cells()


def test_long_cells_go_first(tmp_path: Path) -> None:
    spec = spec_of(**{"train.steps": [10, 1000, 100]})
    cells = spec.cells()
    ordered = Session(spec, cells, RunOptions(out=tmp_path, device="cpu", jobs=1)).todo
    assert sorted(cell.id for cell in ordered) == sorted(cell.id for cell in cells)
    assert [cell.train.steps for cell in ordered][:4] == [1000] * 4
    assert ordered[0].task == "gaussian_to_digits"  # D = 64 is more work than D = 2
    work = [cost_of(cell).seconds() for cell in ordered]
    assert work == sorted(work, reverse=True)


def test_expected_seconds_are_learnt_from_the_nearest_cells() -> None:
    fm_roll, efm_roll, fm_digits, efm_digits = (
        next(c for c in cells_of() if (c.method, c.task) == (method, task))
        for task in ("gaussian_to_swiss_roll", "gaussian_to_digits")
        for method in ("fm", "efm")
    )
    roll, efm, digits, efm_more = (
        cost_of(cell).seconds() for cell in (fm_roll, efm_roll, fm_digits, efm_digits)
    )
    expectation = Expectation()
    expectation.learn(fm_roll, ended("done", 2.0))
    pace = 2 / roll
    assert expectation.seconds(fm_roll) == pytest.approx(2)
    assert expectation.seconds(fm_digits) == pytest.approx(pace * digits)  # its method
    assert expectation.seconds(efm_roll) == pytest.approx(pace * efm)  # from any
    expectation.learn(efm_roll, ended("done", 6.0))
    own = 6 / efm
    assert expectation.seconds(efm_digits) == pytest.approx(own * efm_more)
    expectation.learn(fm_digits, ended("failed", 0.0))
    assert expectation.seconds(fm_digits) == pytest.approx(pace * digits)  # no length


def test_a_kind_of_cell_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that differ in their seed alone are of one kind."""
    counted = []
    monkeypatch.setattr("bench.execute.cost._known", {})
    monkeypatch.setattr("bench.execute.cost._counted", lambda cell: counted.append(cell))
    spec = Spec(methods=["fm", "efm"], tasks=["gaussian_to_swiss_roll"], seeds=list(range(50)))
    for cell in spec.cells():
        cost_of(cell)
    assert len(counted) == 2


def test_order_knows_networks_and_methods_without_training() -> None:
    """A U-Net is more than the MLP of the same task; an exact method trains no step."""
    mlp = cost_of(one_cell("fm"))
    unet = cost_of(one_cell("fm", **{"network.architecture": "unet"}))
    assert unet.operations > 10 * mlp.operations
    exact = cost_of(one_cell("fm-exact"))
    assert 0 < exact.seconds() < mlp.seconds()
    longer = cost_of(one_cell("fm-exact", **{"sample.solver_steps": 100}))
    assert longer.seconds() == pytest.approx(4 * exact.seconds())


def test_a_model_that_cannot_be_built_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(self: object, *arguments: object) -> None:
        raise RuntimeError("no meta tensors")

    monkeypatch.setattr("bench.execute.cost._known", {})
    known = cost_of(one_cell("fm"))
    monkeypatch.setattr("bench.execute.cost._known", {})
    monkeypatch.setattr("methods.fm.FlowMatching.model", model)
    guessed = cost_of(one_cell("fm"))
    assert guessed.problem == "no meta tensors"
    assert 1 / 3 < guessed.seconds() / known.seconds() < 3
