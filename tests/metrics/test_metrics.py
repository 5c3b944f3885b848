"""Metrics: closed forms, invariants and other implementations."""

import functools
import math
import re
import sys
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from scipy.special import xlogy
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor

from bench.metrics import METRICS, base, distances, metric
from bench.metrics.base import main_metrics
from bench.metrics.distances import (
    frechet,
    max_sliced_w2,
    optimal_cost,
    optimal_plan,
    sinkhorn_divergence,
    sliced_w2,
    w1,
    w2,
)
from bench.metrics.kernels import energy_distance, mmd, stein_discrepancy
from bench.metrics.modes import mode_error, mode_shares, modes_missed
from bench.metrics.neighbours import copied, copied_error, coverage, density, recall
from bench.metrics.neighbours import precision as knn_precision
from bench.metrics.transport import (
    coupling_error,
    coupling_ratio,
    excess_cost,
    excess_flow_cost,
    map_error,
    path_energy,
    straightness,
    transport_cost,
)
from bench.metrics.two_sample import c2st, c2st_error, c2st_mlp
from datasets import Known
from datasets.gaussians import Gaussian, StandardNormal, covariances
from datasets.mixtures import Mixture

DISTANCES = {
    name: metric
    for name, metric in METRICS.items()
    if metric.kind == "distance" and metric.better == "lower" and metric.ideal == 0
    if metric.features is None
}
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
    for cost in (w2, optimal_cost, coupling_ratio):
        with pytest.raises(RuntimeError, match="did not converge"):
            cost(x, y)


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
    """Eigenvalues .1 and 4, the target turned by 45 degrees: in closed form 2.132.

    For 2 x 2 matrices tr M^{1/2} = sqrt(tr M + 2 sqrt(det M)); here tr S1 S2 = 4.1 * 2.05.
    """
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / math.sqrt(2)
    first = torch.diag(torch.tensor([0.1, 4.0])).double()
    second = turn @ first @ turn.T
    zero = torch.zeros(2).double()
    value = frechet(with_moments(40, zero, first, 0), with_moments(40, zero, second, 1))
    assert value == pytest.approx(2 * 4.1 - 2 * math.sqrt(4.1 * 2.05 + 2 * 0.4), rel=1e-8)


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


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [2, 40, 8], [30, 20]])
@pytest.mark.parametrize("dim", [3, 20, 70])
def test_moments_of_parts_are_those_of_the_whole(sizes: list[int], dim: int) -> None:
    """Of numbers far from 0, where sums of squares would cancel."""
    x = 1e4 + normal(50, dim) @ normal(dim, dim, seed=1)
    parts = [distances.moments_of(part) for part in torch.split(x, sizes)]
    found = functools.reduce(distances.merged, parts)
    assert found.n == 50
    assert len(found.root) <= dim
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13)
    covariance = np.cov(x.numpy(), rowvar=False)
    np.testing.assert_allclose(found.root.T @ found.root / 49, covariance, atol=1e-9)
    y = normal(40, dim, seed=2)
    value = distances.frechet_of_moments(found, distances.moments_of(y))
    assert value == pytest.approx(frechet(x, y), rel=1e-9)


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
    if name not in SCALED_BY_THE_TARGET:
        assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-9)
    assert metric(x, x) == pytest.approx(0, abs=1e-6)
    assert metric(x, x.flip(0)) == pytest.approx(0, abs=1e-6)  # the order does not matter


SCALED_BY_THE_TARGET = {"sinkhorn", "mmd"}
"""Metrics with a scale that is a spread of the target: not symmetric."""

UNITS = {
    "w2": 1.0,
    "w1": 1.0,
    "sliced_w2": 1.0,
    "max_sliced_w2": 1.0,
    "sinkhorn": 2.0,
    "frechet": 2.0,
    "energy_distance": 0.5,
    "mmd": 0.0,
}
"""Powers of the unit of the data."""


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_scales_and_does_not_see_where_the_origin_is(name: str) -> None:
    x, y = normal(60, 3), 0.5 + normal(60, 3, seed=1)
    metric = DISTANCES[name]
    value = metric(x, y)
    assert metric(4 * x, 4 * y) == pytest.approx(4 ** UNITS[name] * value, rel=1e-9)
    assert metric(x + 7, y + 7) == pytest.approx(value, rel=1e-9)
    turn = rotation(3, seed=2)
    # Finitely many directions, or an ascent from them.
    tolerance = {"sliced_w2": 0.1, "max_sliced_w2": 1e-3}.get(name, 1e-9)
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


@pytest.mark.parametrize("power", [1, 2])
def test_the_potentials_prove_that_a_plan_is_optimal(power: int) -> None:
    x, y = normal(60, 2), 1 + 2 * normal(60, 2, seed=1)
    plan = optimal_plan(x, y, power)
    costs = cdist(x.numpy(), y.numpy()) ** power
    assert (plan.first[:, None] + plan.second <= costs + 1e-9).all()
    assert plan.first.mean() + plan.second.mean() == pytest.approx(plan.cost, rel=1e-9)
    assert plan.cost == pytest.approx(costs[linear_sum_assignment(costs)].mean(), rel=1e-9)


@pytest.mark.parametrize("kind", ["crossed", "nearly optimal", "short moves"])
def test_the_error_of_the_coupling_ratio_is_its_spread_over_draws(kind: str) -> None:
    """Also where the two costs go together, and the ratio varies far less than either of them."""
    values, errors = [], []
    for k in range(60):
        x, noise = normal(200, 2, seed=k), normal(200, 2, seed=1000 + k)
        ends = {
            "crossed": 3 * noise.sign() + 0.3 * normal(200, 2, seed=2000 + k),
            "nearly optimal": 2 * x + 1 + 0.5 * noise,
            "short moves": x + 0.5 * noise,
        }[kind]
        values.append(coupling_ratio(x, ends))
        errors.append(coupling_error(values[-1], x, ends))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


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
    """One line 3 + 4 long with ends 5 apart, one straight of length 15: 22 / 20, no mean ratio."""
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    line = torch.tensor([[0.0, 0.0], [2.5, 0.0], [15.0, 0.0]])
    assert straightness(torch.stack([corner, line], dim=1)) == pytest.approx(1.1)


# The table of metrics, and the evaluation of a cell


def test_every_metric_is_documented() -> None:
    labels = [metric.label for metric in METRICS.values()]
    assert len(set(labels)) == len(labels)
    for name, known in METRICS.items():
        assert known.name == name
        assert known.floor
        words = known.function.__doc__ or ""
        assert re.search(r"\b(ideal|optimal|straight)\b", words), name
        module = sys.modules[known.function.__module__].__doc__ or ""
        assert re.search(r"\((n|T\+1), ", words + module), name  # shapes
    assert set(UNITS) == set(DISTANCES)


def test_w2_is_left_out_above_three_dimensions() -> None:
    assert [METRICS["w2"].meaningful(dim) for dim in (1, 3, 4, 64)] == [True, True, False, False]
    few = {"w1", "w2", "coupling_ratio", "c2st", "c2st_mlp"}
    assert all(m.meaningful(3072) for name, m in METRICS.items() if name not in few)


# W1, max-sliced W2


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_w1_is_that_of_an_assignment(dim: int) -> None:
    x, y = normal(70, dim), 0.3 + 2 * normal(70, dim, seed=1)
    cost = cdist(x.numpy(), y.numpy())
    assert w1(x, y) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-9)
    if dim == 1:
        scipy = stats.wasserstein_distance(x[:, 0].numpy(), y[:50, 0].numpy())
        assert w1(x, y[:50]) == pytest.approx(scipy, rel=1e-9)


def test_max_sliced_w2_in_the_plane_is_that_of_the_best_angle() -> None:
    x, y = normal(150, 2), normal(150, 2, seed=1) @ torch.tensor([[2.0, 0.7], [0.0, 0.5]]).double()
    angles = torch.linspace(0, math.pi, 2001).double()
    units = torch.stack([angles.cos(), angles.sin()])
    values = [sorted_w2(x @ unit, y @ unit) for unit in units.T]
    assert max_sliced_w2(x, y) == pytest.approx(max(values), rel=1e-5)


def test_max_sliced_w2_begins_with_the_directions_of_pot(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(100, 5), 0.1 + normal(100, 5, seed=1)
    pot = ot.max_sliced_wasserstein_distance(x.numpy(), y.numpy(), n_projections=256, seed=0)
    ascended = max_sliced_w2(x, y)
    monkeypatch.setattr(distances, "ASCENT_STEPS", 0)
    assert max_sliced_w2(x, y) == pytest.approx(pot, rel=1e-9)
    assert ascended > 1.02 * pot


def test_max_sliced_w2_finds_one_direction_among_many() -> None:
    x, shift = normal(300, 64), torch.zeros(64).double()
    shift[7] = 3
    assert max_sliced_w2(x, x + shift) == pytest.approx(3, rel=1e-9)
    wide = x.clone()
    wide[:, 7] *= 4  # no difference of means to begin with
    assert max_sliced_w2(x, wide) > 0.95 * sorted_w2(x[:, 7], wide[:, 7])


# Sinkhorn divergence


def entropic_cost(x: Tensor, y: Tensor, epsilon: float) -> float:
    """<plan, C> + e KL(plan | product), from POT's plan."""
    cost = cdist(x.numpy(), y.numpy(), "sqeuclidean")
    a, b = (np.full(size, 1 / size) for size in cost.shape)
    plan = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", numItermax=5000, stopThr=1e-12)
    return float((plan * cost).sum() + epsilon * xlogy(plan, plan / np.outer(a, b)).sum())


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_sinkhorn_divergence_is_that_of_its_plans(far: float) -> None:
    """With a far sample the kernel vanishes: logarithms are needed."""
    x, y = normal(60, 3), 0.5 + 1.5 * normal(50, 3, seed=1)
    x[0] += far
    epsilon = 0.5 * float(cdist(y.numpy(), y.numpy(), "sqeuclidean").mean())
    within = entropic_cost(x, x, epsilon) + entropic_cost(y, y, epsilon)
    expected = entropic_cost(x, y, epsilon) - within / 2
    assert sinkhorn_divergence(x, y) == pytest.approx(expected, rel=1e-6)


def test_sinkhorn_divergence_against_geomloss() -> None:
    """Its cost is |x - y|^2 / 2, and its e the square of the blur."""
    geomloss = pytest.importorskip("geomloss")
    x, y = normal(120, 3), 0.5 + 1.5 * normal(100, 3, seed=1)
    epsilon = 0.5 * float(cdist(y.numpy(), y.numpy(), "sqeuclidean").mean())
    loss = geomloss.SamplesLoss(
        "sinkhorn", p=2, blur=math.sqrt(epsilon / 2), scaling=0.99, backend="tensorized"
    )
    assert sinkhorn_divergence(x, y) == pytest.approx(2 * float(loss(x, y)), rel=1e-4)


@pytest.mark.parametrize("dim", [2, 64])
def test_sinkhorn_divergence_of_a_shift_is_its_square(dim: int) -> None:
    x, shift = normal(80, dim), torch.zeros(dim).double()
    shift[0] = 2
    assert sinkhorn_divergence(x, x + shift) == pytest.approx(4, rel=1e-5)


# MMD and the Stein discrepancy


def test_mmd_is_that_of_scikit_learns_kernels() -> None:
    x, y = normal(90, 4), 0.4 + normal(70, 4, seed=1)
    median = np.median(pdist(y.numpy()))

    def kernel(a: Tensor, b: Tensor) -> float:
        widths = median * np.array([0.25, 0.5, 1, 2, 4])
        return float(np.mean([rbf_kernel(a, b, 1 / (2 * h**2)).mean() for h in widths]))

    expected = math.sqrt(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert mmd(x, y) == pytest.approx(expected, rel=1e-9)


class Turned(StandardNormal):
    """A distribution with a score that is not radial."""

    matrix = torch.tensor([[2.0, 0.6], [0.6, 0.5]]).double()

    def score(self, x: Tensor) -> Tensor:
        return -(x @ self.matrix) + 0.3 * x.flip(1).sin()


def test_the_stein_discrepancy_is_that_of_the_kernels_derivatives() -> None:
    """By automatic differentiation of (s + grad_x)(s + grad_y) k."""
    x, y, known = normal(12, 2), normal(30, 2, seed=1), Turned((2,))
    h2 = float(np.median(pdist(y.numpy()))) ** 2

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (1 + (a - b).square().sum() / h2) ** -0.5

    total = 0.0
    for a in x:
        for b in x:
            s, t = known.score(a[None])[0], known.score(b[None])[0]
            grad_a, grad_b = torch.func.grad(k, argnums=(0, 1))(a, b)
            mixed = torch.func.jacrev(torch.func.grad(k, argnums=0), argnums=1)(a, b)
            total += float(s @ t * k(a, b) + s @ grad_b + t @ grad_a + mixed.trace())
    assert stein_discrepancy(x, y, known) == pytest.approx(math.sqrt(total) / 12, rel=1e-9)


def test_the_stein_discrepancy_vanishes_on_its_law_and_sees_another() -> None:
    known = StandardNormal((3,))
    sizes = [
        np.mean([stein_discrepancy(normal(n, 3, seed=k), normal(200, 3), known) for k in range(40)])
        for n in (200, 800)
    ]
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.15)  # 1 / sqrt(n)
    x = normal(800, 3)
    assert stein_discrepancy(x + torch.tensor([1.0, 0, 0]), x, known) > 5 * sizes[1]
    assert stein_discrepancy(1.5 * x, x, known) > 5 * sizes[1]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, known = normal(70, 3), normal(50, 3, seed=1), StandardNormal((3,))

    def values() -> list[float]:
        pairs = [energy_distance, mmd, knn_precision, recall, density, coverage]
        return [f(x, y) for f in pairs] + [stein_discrepancy(x, y, known), copied(x, y, 2 * y)]

    whole = values()
    monkeypatch.setattr(base, "BLOCK", 300)
    assert values() == pytest.approx(whole, rel=1e-12)


# Neighbours


@pytest.mark.parametrize("dim", [2, 20])
def test_precision_recall_density_and_coverage_are_those_of_prdc(dim: int) -> None:
    prdc = pytest.importorskip("prdc")
    x, y = 0.3 + 1.2 * normal(150, dim), normal(130, dim, seed=1)
    expected = prdc.compute_prdc(real_features=y.numpy(), fake_features=x.numpy(), nearest_k=5)
    assert knn_precision(x, y) == pytest.approx(expected["precision"])
    assert recall(x, y) == pytest.approx(expected["recall"])
    assert density(x, y) == pytest.approx(expected["density"])
    assert coverage(x, y) == pytest.approx(expected["coverage"])
    assert min(expected[name] for name in ("precision", "coverage")) < 1


def test_one_mode_of_two_is_precise_and_half_covered() -> None:
    target = torch.cat([normal(200, 2), normal(200, 2, seed=1) + 50])
    samples = normal(400, 2, seed=2)
    assert knn_precision(samples, target) > 0.95
    assert recall(samples, target) == pytest.approx(0.5, abs=0.03)
    assert coverage(samples, target) == pytest.approx(0.5, abs=0.03)
    assert density(samples, target) == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("size", [400, 8000])
def test_the_copied_share_of_copies_of_fresh_data_and_of_a_mixture(size: int) -> None:
    """However many training samples there are: none of the copies is diluted."""
    train, held_out, fresh = (normal(n, 3, seed=k) for k, n in enumerate((size, 400, 400)))
    assert copied(train[:300], held_out, train) == 1
    assert copied(held_out, held_out, train) == 0.05
    assert copied(fresh, held_out, train) == pytest.approx(0.05, abs=3 * copied_error(0.05, fresh))
    tenth = torch.cat([train[:40] + 1e-4, fresh[:360]])
    assert copied(tenth, held_out, train) == pytest.approx(0.1 + 0.9 * 0.05, abs=0.04)
    assert copied(fresh + 50, held_out, train) == 0


def test_the_error_of_the_copied_share_is_its_spread_over_draws() -> None:
    train = normal(1000, 3)
    draws = [(normal(300, 3, seed=k), normal(300, 3, seed=1000 + k)) for k in range(1, 100)]
    values = [copied(samples, held_out, train) for samples, held_out in draws]
    assert np.mean(values) == pytest.approx(0.05, abs=0.005)
    assert np.std(values) == pytest.approx(copied_error(0.05, train[:300]), rel=0.2)


# C2ST


def test_c2st_is_the_accuracy_of_scikit_learns_cross_validation() -> None:
    x, y = normal(150, 2), normal(150, 2, seed=1) + 1
    rows, labels = torch.cat([x, y]).numpy(), np.repeat([0, 1], 150)
    trees = HistGradientBoostingClassifier(
        max_iter=20, learning_rate=0.2, max_leaf_nodes=15, early_stopping=False, random_state=0
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    assert c2st(x, y) == pytest.approx(cross_val_score(trees, rows, labels, cv=folds).mean())


def test_c2st_is_near_the_best_possible_accuracy_and_one_half() -> None:
    """Two normal distributions d apart: Phi(d / 2)."""
    x, y, z = (normal(2000, 2, seed=k) for k in range(3))
    assert c2st(x, y) == pytest.approx(0.5, abs=0.03)
    shifted = z + torch.tensor([2.0, 0.0])
    assert c2st(x, shifted) == pytest.approx(stats.norm.cdf(1), abs=0.02)
    assert c2st(x, x[:1500] + 100) == 1
    assert c2st_error(0.5, x) == pytest.approx(1.25 * 0.5 / math.sqrt(4000))


def test_a_network_sees_correlations_that_trees_miss() -> None:
    """Sixteen normal variables whose correlations were removed: columns in random orders."""
    law = Gaussian(covariances(16)[0])
    x, y = (law.sample(2000, torch.Generator().manual_seed(k)) for k in range(2))
    orders = [torch.randperm(2000, generator=torch.Generator().manual_seed(k)) for k in range(16)]
    apart = torch.stack([column[order] for column, order in zip(x.T, orders, strict=True)], dim=1)
    assert c2st(apart, y) < 0.84
    assert c2st_mlp(apart, y) > 0.88
    assert c2st_mlp(x, y) == pytest.approx(0.5, abs=0.03)
    assert c2st_mlp(x, y) == c2st_mlp(x, y)
    shifted = y + torch.tensor([2.0] + 15 * [0.0])
    assert c2st_mlp(y[:1500], shifted) > stats.norm.cdf(1 / 2.0**0.5)
    assert math.isnan(c2st_mlp(x[:20], y))


@pytest.mark.slow
def test_the_error_of_c2st_is_its_spread_over_draws() -> None:
    values = [c2st(normal(200, 2, seed=k), normal(200, 2, seed=100 + k) + 0.7) for k in range(30)]
    assert np.std(values) == pytest.approx(
        c2st_error(float(np.mean(values)), normal(200, 2)), rel=0.5
    )


# Modes


def test_modes_are_counted() -> None:
    mixture = Mixture(
        torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]),
        torch.tensor([0.5, 1.0, 1.0]),
        torch.tensor([0.5, 0.3, 0.2]),
    )
    counts = torch.tensor([70, 30, 0])
    samples = torch.repeat_interleave(mixture.means, counts, dim=0) + 0.1
    assert mode_shares(samples, mixture).tolist() == pytest.approx([0.7, 0.3, 0])
    assert mode_error(samples, samples, mixture) == pytest.approx(0.2)
    assert modes_missed(samples, samples, mixture) == 1
    one_in_twenty = torch.repeat_interleave(mixture.means, torch.tensor([64, 30, 6]), dim=0)
    assert modes_missed(one_in_twenty, samples, mixture) == 0  # more than a quarter of its share
    assert math.isnan(mode_error(samples, samples, StandardNormal((2,))))


# Against a known map


def test_excess_costs_and_the_map_error() -> None:
    known = Known(4.0, lambda x: x + 2, lambda x: x + 3, 9.0)
    x = normal(50, 1)
    assert excess_cost(x, x + 2, known) == pytest.approx(0, abs=1e-12)
    assert excess_cost(x, x + 3, known) == pytest.approx(1.25)
    assert excess_flow_cost(x, x + 3, known) == pytest.approx(0, abs=1e-12)
    assert excess_flow_cost(x, x + 2, known) == pytest.approx(-5 / 9)
    assert map_error(x, x + 2, known) == 0
    assert map_error(x, x + 3, known) == pytest.approx(1 / float(x.var()))
    error = np.square(2 * x.numpy() - 2).mean()  # of samples three times as wide as the images
    assert map_error(x, 3 * x, known) == pytest.approx(error / x.numpy().var(ddof=1))
    assert math.isnan(excess_flow_cost(x, x, known._replace(flow_map=None)))


def test_path_energy_is_the_squared_length() -> None:
    """Lines 7 and 5 long, at any pace."""
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    line = torch.tensor([[0.0, 0.0], [0.5, 0.0], [5.0, 0.0]])
    assert path_energy(torch.stack([corner, line], dim=1)) == pytest.approx((49 + 25) / 2)


def test_losses_are_smaller_where_values_are_better() -> None:
    assert METRICS["w2"].loss(2.0) > METRICS["w2"].loss(1.0)
    assert METRICS["coverage"].loss(0.5) > METRICS["coverage"].loss(0.9)
    assert METRICS["density"].loss(1.5) > METRICS["density"].loss(0.9)
    assert METRICS["copied"].loss(0.9) > METRICS["copied"].loss(0.04)
    assert {m.better for m in METRICS.values()} == {"lower", "higher", "nearest"}


# What a metric says of itself


def test_a_name_a_label_and_a_kind_suffice() -> None:
    @metric("plain", "Plain", "distance")
    def plain(samples: Tensor, target: Tensor) -> Tensor:
        return (samples.mean() - target.mean()).abs()

    found = METRICS["plain"]
    assert found.summary == "Plain"
    assert found.floor_kind == "measured"
    assert found.floor == METRICS["w2"].floor == "the same metric between two fresh target sets"
    assert type(found(torch.ones(3, 2), torch.zeros(3, 2))) is float
    assert METRICS["w2"].summary.startswith("2-Wasserstein distance")
    assert METRICS["map_error"].floor_kind == METRICS["copied"].floor_kind == "ideal"
    assert METRICS["path_energy"].floor == "the optimal cost to the held-out target"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"kind": "distanse"}, "'distance', 'distribution', 'memory'"),
        ({"better": "most"}, "'lower', 'higher' or 'nearest'"),
        ({"floor_kind": "sea"}, "'measured', 'ideal', 'cost' or 'none'"),
        ({"plottet": True}, "plottet"),
        ({"name": "w2"}, "a metric named 'w2' is registered already"),
    ],
)
def test_a_mistake_in_a_metric_is_an_error_that_names_it(more: dict[str, Any], words: str) -> None:
    known = dict(METRICS)
    with pytest.raises(ValueError, match=re.escape(words)):
        metric(**{"name": "mine", "label": "Mine", "kind": "distance", **more})(w2)
    assert known == METRICS


def test_what_ranks_comes_first_and_the_first_of_it_first() -> None:
    ranks = [found.main for found in METRICS.values()]
    assert ranks == sorted(ranks, reverse=True)
    ranking = ["fid", "fd_classifier", "energy_distance", "w2", "sliced_w2"]
    assert main_metrics() == ranking


def test_few_samples_far_away_decide_w2_and_not_the_energy_distance() -> None:
    """A share e at a distance r: W2 + sqrt(e) r, W1 + e r, energy distance e times the point's."""
    x, y = normal(1000, 2), normal(1000, 2, seed=1)
    far = x.clone()
    far[0] = torch.tensor([20.0, 0.0])
    assert w2(far, y) > 3 * w2(x, y)
    assert w1(far, y) == pytest.approx(w1(x, y) + 20 / 1000, abs=0.005)
    assert energy_distance(far, y) == pytest.approx(energy_distance(x, y), rel=0.1)
    few, point = torch.cat([y[:999], far[:1]]), far[:1]
    expected = energy_distance(point, y[:999]) / 1000  # D((1-e) P + e d, P) = e D(d, P)
    assert energy_distance(few, y[:999]) == pytest.approx(expected, rel=1e-6)
