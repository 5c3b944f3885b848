"""Metrics: closed forms, invariants and other implementations."""

import math
from collections.abc import Callable

import numpy as np
import ot
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from bench.metrics import (
    METRICS,
    Evaluation,
    coupling_ratio,
    distances,
    energy_distance,
    evaluate,
    frechet,
    optimal_cost,
    sliced_w2,
    straightness,
    transport_cost,
    w2,
)

DISTANCES = {name: metric for name, metric in METRICS.items() if metric.kind == "distance"}
DISTANCES_BY_DIM = [
    (name, dim)
    for name, metric in DISTANCES.items()
    for dim in (1, 2, 16)
    if metric.meaningful(dim)
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def rotation(dim: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def assignment_cost(x: Tensor, y: Tensor) -> float:
    """The optimal cost of two sets of one size, by the Hungarian algorithm."""
    cost = cdist(x.numpy(), y.numpy(), "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean())


def sorted_w2(x: Tensor, y: Tensor) -> float:
    """W2 of two sets of one size in one dimension, where sorting is optimal."""
    return float((x.flatten().sort().values - y.flatten().sort().values).square().mean().sqrt())


# W2


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_w2_is_the_optimal_assignment(dim: int) -> None:
    x, y = normal(80, dim), 1 + 2 * normal(80, dim, seed=1)
    assert w2(x, y) == pytest.approx(math.sqrt(assignment_cost(x, y)), rel=1e-9)
    assert optimal_cost(x, y) == pytest.approx(assignment_cost(x, y), rel=1e-9)


def test_w2_in_one_dimension_is_that_of_the_sorted_sets() -> None:
    x, y = normal(300, 1), normal(300, 1, seed=1).exp()
    assert w2(x, y) == pytest.approx(sorted_w2(x, y), rel=1e-9)


def test_w2_of_sets_of_different_size() -> None:
    """Each point of 6 repeated twice and of 4 three times: the same measures, of one size."""
    x, y = normal(6, 1), normal(4, 1, seed=1)
    expected = sorted_w2(x.repeat_interleave(2), y.repeat_interleave(3))
    assert w2(x, y) == pytest.approx(expected, rel=1e-9)


def test_w2_says_when_optimal_transport_did_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 2), normal(50, 2, seed=1)
    assert w2(x, y) > 0
    monkeypatch.setattr(distances, "MAX_SIMPLEX_ITERATIONS", 1)
    for metric in (w2, optimal_cost, coupling_ratio):
        with pytest.raises(RuntimeError, match="did not converge"):
            metric(x, y)


# Sliced W2


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_sliced_w2_of_a_shift(dim: int) -> None:
    x, shift = normal(100, dim), 3 * normal(dim, seed=1)
    assert sliced_w2(x, x + shift) == pytest.approx(float(shift.norm()) / dim**0.5, rel=0.1)


def test_sliced_w2_in_one_dimension_is_w2() -> None:
    x, y = normal(200, 1), normal(200, 1, seed=1).exp()
    assert sliced_w2(x, y) == pytest.approx(sorted_w2(x, y), rel=1e-9)


@pytest.mark.parametrize("dim", [2, 10])
def test_sliced_w2_is_the_mean_over_directions(dim: int) -> None:
    x, y = normal(200, dim), 0.5 + normal(200, dim, seed=1) * torch.linspace(1, 4, dim)
    directions = normal(dim, 5000, seed=2)
    directions /= directions.norm(dim=0)
    projections = [(z @ directions).sort(dim=0).values for z in (x, y)]
    expected = float((projections[0] - projections[1]).square().mean().sqrt())
    assert sliced_w2(x, y) == pytest.approx(expected, rel=0.06)


def test_sliced_w2_takes_the_same_directions_every_time() -> None:
    x, y = normal(50, 5), normal(50, 5, seed=1)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert sliced_w2(x, y) == sliced_w2(x, y)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


# Energy distance


def test_energy_distance_is_that_of_scipy() -> None:
    x, y = normal(150, 1), 0.3 + 2 * normal(90, 1, seed=1)
    expected = stats.energy_distance(x.flatten().numpy(), y.flatten().numpy())
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_energy_distance_of_points() -> None:
    """Two points at distance r: sqrt(2 r). A point between two: 2 (r/2) - r/2 = r/2."""
    a, b = torch.zeros(1, 3), torch.tensor([[2.0, 3.0, 6.0]])
    assert energy_distance(a, b) == pytest.approx(math.sqrt(14))
    assert energy_distance((a + b) / 2, torch.cat([a, b])) == pytest.approx(math.sqrt(3.5))


def test_samples_that_are_not_finite_are_not_perfect() -> None:
    x = normal(20, 2)
    x[3, 0] = math.nan
    assert math.isnan(energy_distance(x, normal(20, 2, seed=1)))


# Fréchet


def with_moments(n: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """``n`` samples with exactly this mean and (unbiased) covariance."""
    x = normal(n, len(mean), seed=seed)
    x -= x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False)
    return mean + white.T @ torch.linalg.cholesky(covariance).T


def test_frechet_of_commuting_covariances() -> None:
    """|m_1 - m_2|^2 + sum (a_i - b_i)^2 for standard deviations a_i, b_i on common axes."""
    a, b = torch.tensor([[0.25, 1.0, 2.0], [1.25, 1.0, 0.5]]).double()
    axes = rotation(3)
    x, y = (
        with_moments(50, mean, axes @ torch.diag(std**2) @ axes.T, seed)
        for mean, std, seed in ((torch.zeros(3).double(), a, 0), (torch.ones(3).double(), b, 1))
    )
    assert frechet(x, y) == pytest.approx(3 + 1.0 + 0 + 2.25, rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    """Eigenvalues .1 and 4, the target turned by 45 degrees: 2.132 (METHODS.md)."""
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / math.sqrt(2)
    first = torch.diag(torch.tensor([0.1, 4.0])).double()
    second = turn @ first @ turn.T
    zero = torch.zeros(2).double()
    value = frechet(with_moments(40, zero, first, 0), with_moments(40, zero, second, 1))
    assert value == pytest.approx(2.132, abs=5e-4)


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_frechet_against_pot_and_scipy(dim: int) -> None:
    x = normal(300, dim) @ normal(dim, dim, seed=2)
    y = 0.7 + normal(200, dim, seed=1) @ normal(dim, dim, seed=3)
    means = [z.numpy().mean(0) for z in (x, y)]
    covariances = [np.atleast_2d(np.cov(z.numpy().T)) for z in (x, y)]
    pot = ot.gaussian.bures_wasserstein_distance(*means, *covariances) ** 2
    root = np.trace(sqrtm(covariances[0] @ covariances[1])).real
    by_scipy = np.sum((means[0] - means[1]) ** 2) + np.trace(sum(covariances)) - 2 * root
    assert frechet(x, y) == pytest.approx(pot, rel=1e-6)
    assert frechet(x, y) == pytest.approx(by_scipy, rel=1e-6)


def test_frechet_of_singular_covariances() -> None:
    """Fewer samples than dimensions: exact for a shift, for a scaling and for a point mass."""
    x, shift = normal(7, 64), normal(64, seed=1)
    centred = x - x.mean(0)
    trace = float(centred.square().sum() / 6)
    assert frechet(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-6)
    assert frechet(centred, 3 * centred) == pytest.approx(4 * trace, rel=1e-6)
    assert frechet(centred, shift.expand(5, 64)) == pytest.approx(
        trace + float(shift.square().sum()), rel=1e-6
    )
    apart = frechet(x, normal(9, 64, seed=2))
    assert math.isfinite(apart)
    assert apart > 0


# Every distance


@pytest.mark.parametrize(("name", "dim"), DISTANCES_BY_DIM)
def test_a_distance_is_about_its_floor_on_one_law_and_above_on_another(name: str, dim: int) -> None:
    sets = [normal(400, dim, seed=seed) for seed in range(6)]
    metric = DISTANCES[name]
    same = [metric(sets[0], sets[1]), metric(sets[2], sets[3]), metric(sets[4], sets[5])]
    assert max(same) < 3 ** max(1, UNITS[name]) * min(same)
    shift = torch.zeros(dim).double()
    shift[0] = 1  # one standard deviation, along one axis
    near, far = (metric(sets[0] + c * shift, sets[1]) for c in (1.0, 3.0))
    assert near > 1.3 * max(same)
    assert far > 1.5 * near
    assert metric(3 * sets[0], sets[1]) > 2 * max(same)


@pytest.mark.parametrize(("name", "dim"), DISTANCES_BY_DIM)
def test_a_distance_is_symmetric_and_zero_for_equal_sets(name: str, dim: int) -> None:
    x, y = normal(60, dim), 0.2 + normal(45, dim, seed=1)
    metric = DISTANCES[name]
    assert metric(x, y) > 0
    assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-9)
    assert metric(x, x) == pytest.approx(0, abs=1e-6)
    assert metric(x, x.flip(0)) == pytest.approx(0, abs=1e-6)  # the order does not matter


UNITS = {"w2": 1.0, "sliced_w2": 1.0, "energy_distance": 0.5, "frechet": 2.0}
"""Powers of the unit of the data."""


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_scales_and_does_not_see_where_the_origin_is(name: str) -> None:
    x, y = normal(60, 3), 0.5 + normal(60, 3, seed=1)
    metric = DISTANCES[name]
    value = metric(x, y)
    assert metric(4 * x, 4 * y) == pytest.approx(4 ** UNITS[name] * value, rel=1e-9)
    assert metric(x + 7, y + 7) == pytest.approx(value, rel=1e-9)
    turn = rotation(3, seed=2)
    tolerance = 0.1 if name == "sliced_w2" else 1e-9  # finitely many directions
    assert metric(x @ turn, y @ turn) == pytest.approx(value, rel=tolerance)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_takes_float32(name: str) -> None:
    x, y = normal(40, 2), normal(40, 2, seed=1)
    value = DISTANCES[name](x.float(), y.float().requires_grad_())
    assert type(value) is float
    assert value == pytest.approx(DISTANCES[name](x, y), rel=1e-4)


# Coupling and path


def test_a_translation_is_an_optimal_coupling() -> None:
    x = normal(50, 2)
    moved = x + torch.tensor([3.0, 4.0])
    assert transport_cost(x, moved) == pytest.approx(25, rel=1e-12)
    assert coupling_ratio(x, moved) == pytest.approx(1, rel=1e-9)


def test_a_crossed_map_has_its_known_ratio() -> None:
    """0 -> 11 and 10 -> 1 cost (121 + 81)/2 = 101; uncrossed, 1."""
    source, samples = torch.tensor([[0.0], [10.0]]), torch.tensor([[11.0], [1.0]])
    assert transport_cost(source, samples) == pytest.approx(101)
    assert coupling_ratio(source, samples) == pytest.approx(101)


def test_a_permuted_optimal_map_has_a_ratio_above_one() -> None:
    x = normal(40, 2)
    y = 2 * x + 1  # the gradient of a convex function: optimal
    permuted = y[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    expected = float((x - permuted).square().sum(1).mean() / (x - y).square().sum(1).mean())
    assert expected > 1.5
    assert coupling_ratio(x, y) == pytest.approx(1, rel=1e-9)
    assert coupling_ratio(x, permuted) == pytest.approx(expected, rel=1e-9)


def test_nothing_moved() -> None:
    x = normal(20, 2)
    assert transport_cost(x, x) == 0
    assert math.isnan(coupling_ratio(x, x))
    assert math.isnan(straightness(x.expand(4, 20, 2)))


def test_a_straight_line_at_any_pace_has_straightness_one() -> None:
    x, y = normal(30, 3), normal(30, 3, seed=1)
    pace = torch.tensor([0.0, 0.01, 0.5, 0.51, 1.0]).double()[:, None, None]
    assert straightness(x + pace * (y - x)) == pytest.approx(1, rel=1e-12)


def test_half_circles_have_straightness_pi_over_two() -> None:
    angle = torch.linspace(0, math.pi, 1001).double()[:, None]
    radius = torch.tensor([0.1, 1.0, 30.0]).double()
    path = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    assert straightness(path) == pytest.approx(math.pi / 2, rel=1e-5)


def test_straightness_of_a_corner_and_back() -> None:
    """One line 3 + 4 long with ends 5 apart, one straight of length 5: 12 / 10."""
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    line = torch.tensor([[0.0, 0.0], [2.5, 0.0], [5.0, 0.0]])
    assert straightness(torch.stack([corner, line], dim=1)) == pytest.approx(1.2)


# The table of metrics, and the evaluation of a cell


def test_every_metric_is_documented() -> None:
    labels = [metric.label for metric in METRICS.values()]
    assert len(set(labels)) == len(labels)
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.floor
        assert (metric.function.__doc__ or "").strip()
    assert set(UNITS) == set(DISTANCES)


def test_w2_is_left_out_above_three_dimensions() -> None:
    assert [METRICS["w2"].meaningful(dim) for dim in (1, 3, 4, 64)] == [True, True, False, False]
    assert all(metric.meaningful(3072) for name, metric in METRICS.items() if name != "w2")


def evaluation(dim: int, native: bool = True) -> Evaluation:
    source, samples, target, second = (normal(30, dim, seed=seed) for seed in range(4))
    path = torch.stack([source, source + 1, samples])
    return Evaluation(source, samples, target, second, path, native)


ALL = {"w2", "sliced_w2", "energy_distance", "frechet"}
NATIVE = {"transport_cost", "coupling_ratio", "straightness"}
PRIOR = {"radial_transport_cost"}


@pytest.mark.parametrize(
    ("dim", "native", "names"),
    [
        (2, True, ALL | NATIVE),
        (3, False, ALL | PRIOR),
        (64, True, ALL - {"w2"} | NATIVE),
        (64, False, ALL - {"w2"} | PRIOR),
    ],
)
def test_evaluate_gives_what_means_something_with_floors(
    dim: int, native: bool, names: set[str]
) -> None:
    values = evaluate(evaluation(dim, native))
    assert set(values) == names | {f"{name}_floor" for name in names}
    assert all(type(value) is float and math.isfinite(value) for value in values.values())


def test_evaluate_compares_the_right_sets() -> None:
    data = evaluation(2)
    values = evaluate(data)
    pairs: dict[str, Callable[..., float]] = {
        "w2": lambda x, y: math.sqrt(assignment_cost(x, y)),
        "energy_distance": energy_distance,
    }
    for name, distance in pairs.items():
        assert values[name] == pytest.approx(distance(data.samples, data.target))
        assert values[f"{name}_floor"] == pytest.approx(distance(data.second_target, data.target))
    cost = float((data.source - data.samples).square().sum(1).mean())
    assert values["transport_cost"] == pytest.approx(cost)
    assert values["transport_cost_floor"] == pytest.approx(
        assignment_cost(data.source, data.target)
    )
    radial = evaluate(evaluation(2, native=False))
    for name in ("", "_floor"):
        assert radial[f"radial_transport_cost{name}"] == values[f"transport_cost{name}"]
    assert values["coupling_ratio"] == pytest.approx(
        cost / assignment_cost(data.source, data.samples)
    )
    assert values["coupling_ratio_floor"] == values["straightness_floor"] == 1
    assert values["straightness"] > 1.2  # through source + 1: a detour
