"""What a dry run says of cells, beside what they are."""

import time
from typing import Any

import pytest
import torch

from bench.cell import build_model, laws
from bench.estimate import estimate, forecast, in_words
from bench.spec import Cell, Spec
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
    model = build_model(cell, cell.build_method(), *laws(cell, cell.build_task()))
    found = estimate(cell, (1, 8, 8), 1e9).parameters
    assert found == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.trained])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_method_has_an_estimate(method: str, precision: str) -> None:
    cell = one_cell(method, "gaussian_to_swiss_roll", **{"network.precision": precision})
    found = estimate(cell, (2,), 1e9)
    assert min(found.parameters, found.memory, found.seconds) > 0


def test_operations_of_an_mlp() -> None:
    """Two for each weight and sample, three times in training, twice a step of Heun's method."""
    cell = one_cell("fm", "gaussian_to_swiss_roll", **{"train.steps": 100, "eval.n": 1000})
    inputs, width = 2 + 8, 128
    weights = inputs * width + 2 * width * width + width * 2
    samples = 100 * 512 * 3 + 1000 * 25 * 2
    assert estimate(cell, (2,), 1e9).seconds == pytest.approx(2 * weights * samples / 1e9)


def test_memory_is_that_of_weights_and_activations() -> None:
    """Weights take five times four bytes; activations grow with the batch."""
    small, large = (
        estimate(one_cell("fm", **{"train.batch": batch}), (1, 8, 8), 1e9) for batch in (2, 1002)
    )
    activations = (large.memory - small.memory) / 1000
    assert small.memory == pytest.approx(20 * small.parameters + 2 * activations)
    layers = 4 * (64 + 8 + 3 * 128)  # the inputs of the four linear layers, in float32
    assert layers <= activations <= 6 * layers  # SiLU and the skip keep theirs


def test_accumulated_batches_take_time_and_no_memory() -> None:
    one, four = (
        estimate(one_cell("fm", **{"train.accumulate": k, "eval.n": 5}), (1, 8, 8), 1e9)
        for k in (1, 4)
    )
    assert four.seconds == pytest.approx(4 * one.seconds, rel=1e-2)
    assert four.memory == one.memory


def test_the_table_has_a_row_a_setting_and_a_total() -> None:
    cells = Spec(methods=["fm", "fm-exact"], tasks=["gaussian_to_digits"], seeds=[0, 1]).cells()
    lines = forecast(cells, "cpu", 1)
    assert len(lines) == 3
    assert lines[0].split()[:4] == ["2", "x", "fm", "gaussian_to_digits"]
    assert lines[1].split()[:5] == ["2", "x", "fm-exact", "gaussian_to_digits", "0"]
    assert "on cpu at" in lines[2]


def test_what_cannot_be_built_has_no_estimate() -> None:
    cell = one_cell("fm", "gaussian_to_swiss_roll", **{"network.architecture": "unet"})
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
