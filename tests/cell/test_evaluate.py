"""The evaluation of a cell: which metrics, against which sets, with floors and intervals."""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from bench.cell.evaluate import Evaluation, applies, evaluate
from bench.metrics import METRICS
from bench.metrics.distances import sliced_w2
from bench.metrics.kernels import energy_distance
from datasets import TASKS, Distribution, Known
from datasets.gaussians import StandardNormal
from datasets.mixtures import Mixture
from tests.peak import peak_kibibytes


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def assignment_cost(x: Tensor, y: Tensor) -> float:
    """The optimal cost of two sets of one size, by the Hungarian algorithm."""
    cost = cdist(x.numpy(), y.numpy(), "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean())


def evaluation(dim: int, native: bool = True, **known: object) -> Evaluation:
    source, samples, target, second = (normal(40, dim, seed=seed) for seed in range(4))
    path = torch.stack([source, source + 1, samples])
    return Evaluation(source, samples, target, second, path, native, **known)


IN_THE_PLANE = {"w1", "w2"}
DISTANCES = {
    name
    for name, metric in METRICS.items()
    if metric.kind == "distance" and metric.features is None
}
NATIVE = {"transport_cost", "coupling_ratio", "straightness", "path_energy"}
PRIOR = {"radial_transport_cost"}
COSTLY = {"transport_cost", "path_energy", "radial_transport_cost"}


@pytest.mark.parametrize(
    ("dim", "native", "names"),
    [
        (2, True, DISTANCES | NATIVE),
        (3, False, DISTANCES | PRIOR),
        (64, True, DISTANCES | NATIVE - {"coupling_ratio"}),
        (64, False, DISTANCES | PRIOR),
    ],
)
def test_evaluate_gives_what_means_something_with_floors(
    dim: int, native: bool, names: set[str]
) -> None:
    values = evaluate(evaluation(dim, native))
    without: set[str] = set()
    if dim == 64:
        names = names - IN_THE_PLANE
        without = COSTLY  # samples are too sparse to know the optimal cost
    assert set(values) == names | {f"{name}_floor" for name in names - without}
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert len(DISTANCES) == 13


def test_what_is_known_of_the_task_adds_metrics() -> None:
    plain = set(evaluate(evaluation(2)))
    known = Known(1.0, lambda x: x + 1)
    mixture = Mixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1))
    more: dict[str, tuple[dict[str, object], set[str]]] = {
        "map": ({"known": known}, {"excess_cost", "map_error"}),
        "distribution": ({"distribution": StandardNormal((2,))}, {"stein"}),
        "modes": ({"distribution": mixture}, {"stein", "mode_error", "modes_missed"}),
        "no score": ({"distribution": TASKS["gaussian_to_moons"]().target()}, set()),
        "data": ({"train": normal(30, 2, seed=9)}, {"memorised"}),
    }
    for what, expected in more.values():
        added = set(evaluate(evaluation(2, **what))) - plain
        assert added == expected | {f"{name}_floor" for name in expected}
    assert not set(evaluate(evaluation(2, native=False, known=known))) & {"excess_cost"}


def test_evaluate_compares_the_right_sets() -> None:
    distribution, train = StandardNormal((2,)), normal(30, 2, seed=9)
    data = evaluation(2, distribution=distribution, train=train)
    values = evaluate(data)
    pairs: dict[str, Callable[..., float]] = {
        "w2": lambda x, y: math.sqrt(assignment_cost(x, y)),
        "energy_distance": energy_distance,
        "coverage": METRICS["coverage"],
    }
    for name, distance in pairs.items():
        assert values[name] == pytest.approx(distance(data.samples, data.target))
        assert values[f"{name}_floor"] == pytest.approx(distance(data.second_target, data.target))
    stein = METRICS["stein"]
    assert values["stein"] == stein(data.samples, data.target, distribution)
    assert values["stein_floor"] == stein(data.second_target, data.target, distribution)
    assert values["memorised"] == METRICS["memorised"](data.samples, data.target, train)
    assert values["memorised_floor"] == 0.5
    cost = float((data.source - data.samples).square().sum(1).mean())
    assert values["transport_cost"] == pytest.approx(cost)
    optimal = assignment_cost(data.source, data.target)
    assert values["transport_cost_floor"] == pytest.approx(optimal)
    assert values["path_energy_floor"] == pytest.approx(optimal)
    radial = evaluate(evaluation(2, native=False))
    for name in ("", "_floor"):
        assert radial[f"radial_transport_cost{name}"] == values[f"transport_cost{name}"]
    assert values["coupling_ratio"] == pytest.approx(
        cost / assignment_cost(data.source, data.samples)
    )
    assert values["coupling_ratio_floor"] == values["straightness_floor"] == 1
    assert values["straightness"] > 1.2  # through source + 1: a detour
    assert values["path_energy"] > values["transport_cost"]


def test_the_floor_of_a_cost_is_the_exact_one_where_it_is_known() -> None:
    known = Known(7.0, lambda x: x + 1)
    for dim in (2, 64):
        values = evaluate(evaluation(dim, known=known))
        assert values["transport_cost_floor"] == values["path_energy_floor"] == 7.0


# Intervals


def drawn(distribution: Distribution, n: int, seed: int, native: bool = True) -> Evaluation:
    """A perfect sampler: independent draws in every place."""
    source, samples, target, second = (
        distribution.sample(n, rng(100 * seed + k)) for k in range(4)
    )
    path = torch.stack([source, samples])
    return Evaluation(source, samples, target, second, path, native, distribution=distribution)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8gaussians", "gaussian_16"])
def test_two_draws_of_one_distribution_are_within_the_interval_of_the_floor(name: str) -> None:
    """In at least 90% of 50 repetitions, every metric."""
    tasks = {"8gaussians": "gaussian_to_8gaussians", "gaussian_16": "gaussian_to_gaussian_16"}
    distribution = TASKS[tasks[name]]().target()
    within: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for repetition in range(50):
        data = drawn(distribution, 800, 1000 + repetition, native=False)
        values = evaluate(data, 10, rng(repetition))
        for metric in METRICS:
            if metric in values and METRICS[metric].kind in ("distance", "distribution"):
                low, high = values[f"{metric}_low"], values[f"{metric}_high"]
                within.setdefault(metric, []).append(low <= values[f"{metric}_floor"] <= high)
                widths.setdefault(metric, []).append((high - low) / 2)
    assert len(within) >= 12
    shares = {metric: np.mean(hits) for metric, hits in within.items()}
    assert min(shares.values()) >= 0.9, shares


@pytest.mark.parametrize("dim", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_a_shift_of_one_standard_deviation_is_seen_by_every_distance(dim: int) -> None:
    """Along one axis; of 64 too. Balls of neighbours do not claim to: they overlap."""
    blind = {"knn_precision", "knn_recall", "density"} | ({"coverage"} if dim == 64 else set())
    data = drawn(StandardNormal((dim,)), 1000, 0)
    moved = data.samples.clone()
    moved[:, 0] += 1
    values = evaluate(Evaluation(**{**vars(data), "samples": moved}), 10)
    for name, metric in METRICS.items():
        if metric.kind in ("distance", "distribution") and name in values and name not in blind:
            value, floor = values[name], values[f"{name}_floor"]
            assert not values[f"{name}_low"] <= floor <= values[f"{name}_high"], name
            assert metric.loss(value) > metric.loss(floor), name


@pytest.mark.slow
def test_intervals_are_as_wide_as_the_spread_over_draws() -> None:
    """Of samples of another distribution, where first order terms do not vanish."""
    standard = StandardNormal((2,))
    names = ["sliced_w2", "energy_distance", "frechet", "mmd", "transport_cost"]
    values: dict[str, list[float]] = {name: [] for name in names}
    halves: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(24):
        source, y, z = (standard.sample(400, rng(10 * seed + k)) for k in range(3))
        x = 1.5 * standard.sample(400, rng(10 * seed + 3)) + 0.5
        data = Evaluation(source, x, y, z, torch.stack([source, x]), True)
        found = evaluate(data, 10, rng(seed), names)
        assert {name for name in METRICS if name in found} == set(names)
        for name in names:
            values[name].append(found[name])
            halves[name].append((found[f"{name}_high"] - found[f"{name}_low"]) / 2)
    for name in names:
        expected = 2.26 * np.std(values[name], ddof=1)  # Student's t with 9 degrees of freedom
        assert np.mean(halves[name]) == pytest.approx(expected, rel=0.4), name


def test_intervals_are_of_the_seed_and_only_on_request() -> None:
    data = drawn(StandardNormal((2,)), 200, 0)
    first, again, other = (evaluate(data, 5, rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["sliced_w2_low"] != other["sliced_w2_low"]
    assert first["sliced_w2"] == other["sliced_w2"] == sliced_w2(data.samples, data.target)
    assert not any(name.endswith(("_low", "_high")) for name in evaluate(data))
    few = evaluate(drawn(StandardNormal((2,)), 30, 0), 5)
    assert [name for name in few if name.endswith("_low")] == ["c2st_low"]


# Cost


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "seconds"), [(2, 10), (64, 15)])
def test_an_evaluation_takes_seconds_and_less_than_a_gigabyte(dim: int, seconds: float) -> None:
    """Of 2,000 samples, in seconds of one processor."""
    code = f"""
import torch
torch.set_num_threads(1)
print(*cost_of_an_evaluation({dim}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    used, kibibytes = map(float, done.stdout.split())
    assert used < seconds
    assert kibibytes < 2**20


def cost_of_an_evaluation(dim: int) -> tuple[float, int]:
    """Seconds of processor time, and by how much the peak of memory rose in KiB."""
    task = TASKS[f"gaussian_to_gaussian_{dim}"]()
    normal = task.target()
    source, target, second = (normal.low_variance(2000, rng(k)) for k in range(3))
    samples = 1.1 * normal.sample(2000, rng(3))
    path = torch.stack([torch.lerp(source, samples, k / 25) for k in range(26)])
    data = Evaluation(
        *(source, samples, target, second, path, True),
        distribution=normal,
        known=task.known(),
        train=second,
    )
    assert all(applies(metric, data) for metric in METRICS.values() if metric.kind == "known")
    before = peak_kibibytes()
    begin = time.process_time()
    evaluate(data, 10)
    return time.process_time() - begin, peak_kibibytes() - before
