"""Tasks of which the optimal map, Flow Matching's map or the score are known, and the tables."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor

from datasets import TASKS, Distribution, Empirical, Known, Task, exact
from datasets.base import Map
from datasets.exact import Components, exact_map, standard_normal
from datasets.gaussians import (
    covariances,
    flow_matrix,
    linear_cost,
    linear_map,
    optimal_matrix,
    square_root,
)
from datasets.mixtures import Mixture, even_modes, mixtures, quantile
from datasets.toy import Moons, SCurve, SwissRoll

GAUSSIANS = ["gaussian_to_gaussian_2", "gaussian_to_gaussian_16", "gaussian_to_gaussian_64"]
MIXTURES = ["mixture_to_mixture_2", "mixture_to_mixture_16", "gaussian_to_mixture_1"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known_of(task: Task) -> Known:
    known = task.known()
    assert known is not None
    return known


# Gaussians


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("side", [0, 1])
def test_draws_have_their_covariance(name: str, side: int) -> None:
    task = TASKS[name]()
    distribution = (task.source(), task.target())[side]
    covariance = torch.from_numpy(covariances(task.dim)[side])
    for draw in (distribution.sample, distribution.low_variance):
        samples = draw(20_000, rng()).double()
        error = (samples.T.cov() - covariance).norm() / covariance.norm()
        assert error < 0.12
        assert samples.mean(0).norm() < 0.15
    white = samples @ torch.linalg.inv(torch.from_numpy(square_root(covariance.numpy())))
    assert stats.kstest(white[:2000].flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_covariances_have_the_eigenvalues_and_do_not_commute(dim: int) -> None:
    source, target = covariances(dim)
    values = np.geomspace(0.1, 4, dim)
    np.testing.assert_allclose(np.linalg.eigvalsh(source), values, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.eigvalsh(target), values, rtol=1e-9)
    assert np.linalg.norm(source @ target - target @ source) > 0.3 * np.linalg.norm(source)


def test_the_costs_in_the_plane_are_the_measured_ones() -> None:
    """Bures 2.132, Flow Matching 2.243 times that, 2.050 times at sigma = .1: measured once."""
    source, target = covariances(2)
    optimal = linear_cost(source, optimal_matrix(source, target))
    assert optimal == pytest.approx(2.132, abs=5e-4)
    assert linear_cost(source, flow_matrix(source, target)) / optimal == pytest.approx(
        2.243, abs=1e-3
    )
    noisy = flow_matrix(source, target, sigma=0.1)
    assert linear_cost(source, noisy) / optimal == pytest.approx(2.050, abs=1e-3)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_the_optimal_map_is_that_of_pot(name: str) -> None:
    task = TASKS[name]()
    source, target = covariances(task.dim)
    zero = np.zeros(task.dim)
    matrix, _ = ot.gaussian.bures_wasserstein_mapping(zero, zero, source, target)
    np.testing.assert_allclose(optimal_matrix(source, target), matrix, rtol=1e-6, atol=1e-8)
    distance = ot.gaussian.bures_wasserstein_distance(zero, zero, source, target)
    known = known_of(task)
    assert known.optimal_cost == pytest.approx(distance**2, rel=1e-6)
    x = torch.randn(5, task.dim, generator=rng(), dtype=torch.float64)
    np.testing.assert_allclose(known.optimal_map(x), x @ matrix.T, rtol=1e-6)
    assert linear_cost(source, matrix) == pytest.approx(known.optimal_cost, rel=1e-6)


def test_the_linear_map_has_the_moments_of_its_target_and_is_optimal() -> None:
    """Of samples, and of samples in a plane: there the part that can be carried."""
    x = torch.randn(400, 3, generator=rng()).double() @ torch.randn(3, 3, generator=rng(1)).double()
    y = 2 + torch.randn(300, 3, generator=rng(2)).double() * torch.tensor([1.0, 0.1, 3.0])
    image = linear_map(x, y)(x)
    torch.testing.assert_close(image.mean(0), y.mean(0))
    torch.testing.assert_close(image.T.cov(), y.T.cov())
    cost = (image - x).square().sum(1).mean() - (x.mean(0) - y.mean(0)).square().sum()
    nothing, spreads = np.zeros(3), (x.T.cov().numpy(), y.T.cov().numpy())
    expected = ot.gaussian.bures_wasserstein_distance(nothing, nothing, *spreads) ** 2 * 399 / 400
    assert float(cost) == pytest.approx(float(expected), rel=1e-6)
    flat = x.clone()
    flat[:, 1] = 5
    image = linear_map(flat, y)(flat)
    assert image.isfinite().all()
    assert linear_map(flat, y)(flat.float()).dtype == torch.float32
    wide = torch.eye(3).double() * 2
    torch.testing.assert_close(linear_map(flat, flat @ wide)(flat), flat @ wide)


def test_the_linear_map_of_fewer_samples_than_dimensions_keeps_to_their_span() -> None:
    """From N(0, I): S_1^{1/2}, with S_1 of rank n - 1. From samples: that of their coordinates."""
    x, y = torch.randn(9, 40, generator=rng()).double(), 3 + torch.randn(12, 40, generator=rng(1))
    y = y.double()
    starts = torch.randn(5, 40, generator=rng(2)).double()
    image = linear_map(None, y)(starts)
    root = torch.from_numpy(square_root(y.T.cov().numpy()))
    torch.testing.assert_close(image, y.mean(0) + starts @ root, atol=1e-6, rtol=1e-6)
    axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:8].T  # (40, 8)
    inside = linear_map(x @ axes, y @ axes)(starts @ axes)
    outside = y.mean(0) - y.mean(0) @ axes @ axes.T
    found = linear_map(x, y)(starts)
    torch.testing.assert_close(found, inside @ axes.T + outside, atol=1e-8, rtol=1e-8)


def test_the_flow_of_commuting_covariances_is_optimal() -> None:
    """On common axes FM maps each coordinate by itself, and on a line every map is optimal."""
    source, target = np.diag([0.5, 1.0, 3.0]), np.diag([2.0, 1.0, 0.1])
    expected = np.diag(np.sqrt(np.diag(target) / np.diag(source)))
    np.testing.assert_allclose(flow_matrix(source, target), expected, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_flow_carries_the_source_to_the_target(sigma: float) -> None:
    source, target = covariances(16)
    noise = sigma**2 * np.eye(16)
    matrix = flow_matrix(source, target, sigma)
    carried = matrix @ (source + noise) @ matrix.T
    np.testing.assert_allclose(carried, target + noise, atol=1e-8)
    if sigma == 0:
        assert linear_cost(source, matrix) > 1.05 * linear_cost(
            source, optimal_matrix(source, target)
        )


def test_the_flow_is_that_of_the_regression_of_pairs() -> None:
    """Velocities fitted by least squares to drawn pairs, integrated by small steps of Euler."""
    source, target = covariances(2)
    roots = [torch.from_numpy(square_root(s)) for s in (source, target)]
    generator, steps, pairs = rng(), 200, 40_000
    matrix = torch.eye(2).double()
    x0, x1 = (
        torch.randn(pairs, 2, generator=generator, dtype=torch.float64) @ root for root in roots
    )
    for k in range(steps):
        t = (k + 0.5) / steps
        velocity = torch.linalg.lstsq((1 - t) * x0 + t * x1, x1 - x0).solution.T
        matrix = matrix + velocity @ matrix / steps
    np.testing.assert_allclose(matrix, flow_matrix(source, target), rtol=0.02, atol=0.03)


# Scores


@pytest.mark.parametrize("name", [*GAUSSIANS, *MIXTURES, "gaussian_to_8gaussians"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_the_score_is_the_gradient_of_the_log_density(name: str, side: str) -> None:
    task = TASKS[name]()
    distribution: Distribution = getattr(task, side)()
    x = (1.3 * distribution.sample(20, rng())).double().requires_grad_()
    if isinstance(distribution, Mixture):
        means, stds = distribution.means.double(), distribution.stds.double()
        parts = torch.distributions.MultivariateNormal(
            means, stds.square()[:, None, None] * torch.eye(distribution.dim)
        )
        weights = torch.distributions.Categorical(distribution.weights.double())
        density = torch.distributions.MixtureSameFamily(weights, parts).log_prob(x)
    else:
        covariance = np.eye(distribution.dim)
        if name in GAUSSIANS:
            covariance = covariances(distribution.dim)[side == "target"]
        normal = torch.distributions.MultivariateNormal(
            torch.zeros(distribution.dim).double(), torch.from_numpy(covariance)
        )
        density = normal.log_prob(x)
    (expected,) = torch.autograd.grad(density.sum(), x)
    score = distribution.score(x.detach())
    assert score is not None
    torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-8)
    assert distribution.score(x.detach().float()).dtype == torch.float32


def test_a_distribution_without_a_density_says_so() -> None:
    assert TASKS["gaussian_to_moons"]().target().score(torch.zeros(3, 2)) is None


# Mixtures


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("draw", ["sample", "low_variance"])
def test_mixtures_have_their_modes_weights_and_widths(dim: int, draw: str) -> None:
    for distribution, modes in zip(mixtures(dim), (3, 5), strict=True):
        assert len(distribution.means) == modes
        assert float(distribution.weights.sum()) == pytest.approx(1)
        samples = getattr(distribution, draw)(30_000, rng()).double()
        mode = torch.cdist(samples, distribution.means.double()).argmin(1)
        if modes == 5:  # the modes of the source overlap
            shares = torch.bincount(mode) / len(mode)
            torch.testing.assert_close(shares, distribution.weights, rtol=0, atol=0.01)
            rest = (samples - distribution.means[mode]) / distribution.stds[mode, None]
            assert float(rest.std()) == pytest.approx(1, abs=0.02)
            assert torch.equal(distribution.mode(samples), mode)


@pytest.mark.parametrize("n", [7, 100, 1001])
def test_even_modes_have_their_shares(n: int) -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])
    counts = torch.stack(
        [torch.bincount(even_modes(n, weights, rng(k)), minlength=3) for k in range(200)]
    )
    assert (counts.sum(1) == n).all()
    assert ((counts - n * weights).abs() < 1).all()
    torch.testing.assert_close(counts.float().mean(0), n * weights, rtol=0, atol=0.12)
    assert not torch.equal(even_modes(n, weights, rng(0)), even_modes(n, weights, rng(0)).sort()[0])


def test_on_the_line_sorting_is_the_known_map() -> None:
    task = TASKS["gaussian_to_mixture_1"]()
    known = known_of(task)
    x = task.source().low_variance(50_000, rng()).double().sort(dim=0).values
    y = task.target().low_variance(50_000, rng(1)).double().sort(dim=0).values
    assert float((x - y).square().mean()) == pytest.approx(known.optimal_cost, rel=5e-3)
    image = known.optimal_map(x)
    assert float((x - image).square().mean()) == pytest.approx(known.optimal_cost, rel=1e-3)
    assert stats.ks_2samp(image[:, 0], y[:, 0]).statistic < 0.005
    assert (image.diff(dim=0) >= 0).all()


def test_the_quantile_function_is_the_inverse() -> None:
    distribution = Mixture(
        torch.tensor([[-2.0], [3.0]]), torch.tensor([0.5, 1.0]), torch.tensor([0.4, 0.6])
    )
    probability = np.array([1e-9, 0.1, 0.39, 0.41, 0.9, 1 - 1e-9])
    at = quantile(distribution, probability)
    again = 0.4 * stats.norm.cdf(at, -2, 0.5) + 0.6 * stats.norm.cdf(at, 3, 1)
    np.testing.assert_allclose(again, probability, rtol=1e-6)


# Exact maps

EXACT = [
    *(f"gaussian_to_{name}" for name in ("swiss_roll", "8gaussians", "moons", "s_curve")),
    *("moons_to_8gaussians", "mixture_to_mixture_2", "mixture_to_mixture_16"),
    *("gaussian_to_mixture_1", "gaussian_to_gaussian_2", "gaussian_to_gaussian_64"),
]


def exact_map_of(name: str) -> Map:
    found = TASKS[name]().exact_map()
    assert found is not None
    return found


def energy(x: Tensor, y: Tensor) -> float:
    """E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2 over pairs of different samples: 0 on average."""
    n = len(x)
    within = sum(torch.cdist(z, z).sum() / (n * (n - 1)) for z in (x, y))
    return float(torch.cdist(x, y).mean() - within / 2)


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_map_carries_the_source_to_the_target(name: str) -> None:
    """No farther from fresh draws of the target than those are from each other."""
    task, carry = TASKS[name](), exact_map_of(name)
    values: dict[str, list[float]] = {"map": [], "target": []}
    for k in range(12):
        source, samples = (side.sample(500, rng(k)) for side in (task.source(), task.target()))
        image, other = carry(source), task.target().sample(500, rng(100 + k))
        assert image.shape == source.shape
        assert image.dtype == source.dtype
        values["map"].append(energy(image.double(), other.double()))
        values["target"].append(energy(samples.double(), other.double()))
    error = max(np.std(some, ddof=1) for some in values.values()) / math.sqrt(12)
    assert np.mean(values["map"]) < 3.5 * error, values  # what differs is above 0 on average


def test_an_exact_map_gives_every_mode_its_share() -> None:
    for name in ("gaussian_to_8gaussians", "mixture_to_mixture_2", "mixture_to_mixture_16"):
        target = TASKS[name]().target()
        assert isinstance(target, Mixture)
        source = TASKS[name]().source().low_variance(2**13, rng())
        shares = torch.bincount(target.mode(exact_map_of(name)(source))) / 2**13
        torch.testing.assert_close(shares, target.weights, rtol=0, atol=0.01)


def test_on_the_line_the_exact_flow_is_the_map_of_quantiles() -> None:
    target = TASKS["gaussian_to_mixture_1"]().target()
    x = torch.linspace(-3, 3, 201, dtype=torch.float64)[:, None]
    assert isinstance(target, Mixture)
    expected = quantile(target, stats.norm.cdf(x.numpy()))
    found = exact_map(standard_normal(1), target.components())(x)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_between_normal_distributions_the_exact_flow_is_the_matrix() -> None:
    first, second = torch.tensor([[0.3, 1.0, 2.0], [1.5, 0.2, 2.0]]).double()
    mean, one = torch.tensor([[1.0, -2.0, 0.5]]).double(), torch.ones(1).double()
    source, target = (Components(m, s[None], one) for m, s in ((-mean, first), (mean, second)))
    matrix = flow_matrix(np.diag(first.square()), np.diag(second.square()))
    x = torch.randn(50, 3, generator=rng()).double()
    expected = mean + (x + mean) @ torch.from_numpy(matrix).T
    torch.testing.assert_close(exact_map(source, target)(x), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["moons_to_8gaussians", "gaussian_to_swiss_roll"])
def test_a_finer_solver_changes_an_exact_map_little(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = TASKS[name]().source().low_variance(500, rng())
    found = exact_map_of(name)(x)
    monkeypatch.setattr(exact, "TOLERANCE", 1e-8)
    assert float((exact_map_of(name)(x) - found).abs().max()) < 1e-3


@pytest.mark.parametrize("most", [14, 15])
def test_an_exact_map_of_many_pairs_goes_by_way_of_noise(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 15 pairs of components, both ways."""
    task = TASKS["mixture_to_mixture_2"]()
    monkeypatch.setattr(exact, "PAIRS", most)
    image = exact_map_of(task.name)(task.source().low_variance(2000, rng()))
    target = task.target()
    assert isinstance(target, Mixture)
    shares = torch.bincount(target.mode(image)) / 2000
    torch.testing.assert_close(shares, target.weights, rtol=0, atol=0.03)
    rest = (image - target.means[target.mode(image)]) / target.stds[target.mode(image), None]
    assert float(rest.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("curve", [SwissRoll(0.8), Moons(0.05), SCurve(0.05)])
def test_blurred_curves_are_mixtures(curve: SwissRoll | Moons | SCurve) -> None:
    """Their density against the mean over 40,000 points of the curve, and none without blur."""
    components = curve.components()
    assert components is not None
    assert float(components.weights.sum()) == pytest.approx(1, abs=1e-12)

    def density(means: Tensor, weights: Tensor) -> Tensor:
        rest = (x[:, None] - means) / components.stds[0]
        return (-rest.square().sum(2) / 2).exp() @ weights

    u = (torch.arange(40_000).double() + 0.5) / 40_000
    if isinstance(curve, SwissRoll):
        points = curve.curve(math.pi * (1.5 + 3 * u)) / 5
    elif isinstance(curve, SCurve):
        points = curve.curve(3 * math.pi * (u - 0.5)) / curve.variances.sqrt()
    else:
        points = 3 * torch.cat([curve.upper(math.pi * u), curve.lower(math.pi * u)]) - 1
    ends = points[[0, -1]] + 0.3 * components.stds[0]
    x = torch.cat([curve.sample(100, rng()).double(), ends])
    expected = density(points, torch.full((len(points),), 1 / len(points)).double())
    found = density(components.means, components.weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.max()))
    assert type(curve)(0.0).components() is None


def test_what_is_no_mixture_has_no_exact_map() -> None:
    assert TASKS["gaussian_to_digits"]().exact_map() is None


# Tables


@pytest.mark.parametrize(
    ("name", "side", "loader", "label"),
    [
        ("gaussian_to_wine", "target", load_wine, None),
        ("gaussian_to_cancer", "target", load_breast_cancer, None),
        ("cancer_benign_to_malignant", "source", load_breast_cancer, "benign"),
        ("cancer_benign_to_malignant", "target", load_breast_cancer, "malignant"),
    ],
)
def test_tables_are_those_of_scikit_learn_standardised_by_what_is_trained_on(
    name: str, side: str, loader: object, label: str | None
) -> None:
    distribution = getattr(TASKS[name](), side)()
    data = loader()
    rows = data.data
    if label is not None:
        rows = rows[data.target == list(data.target_names).index(label)]
    assert isinstance(distribution, Empirical)
    both = torch.cat([distribution.train, distribution.test])
    assert abs(len(distribution.train) - len(distribution.test)) <= 1
    apart = cdist(distribution.normalisation.apply(torch.from_numpy(rows)), both)
    assert apart.min(1).max() < 1e-4
    assert sorted(apart.argmin(1)) == list(range(len(both)))  # each row once
    original = distribution.normalisation.undo(both[apart.argmin(1)]).numpy()
    np.testing.assert_allclose(original, rows, rtol=1e-3, atol=1e-4)
    if label is None:
        assert distribution.train.mean(0).abs().max() < 1e-5
        torch.testing.assert_close(
            distribution.train.std(0), torch.ones(distribution.dim), rtol=0, atol=1e-4
        )
        assert distribution.test.mean(0).abs().max() > 0.02  # the held-out rows had no say
    else:
        parts = [TASKS[name]().source(), TASKS[name]().target()]
        assert torch.equal(
            torch.as_tensor(parts[0].normalisation.shift),
            torch.as_tensor(parts[1].normalisation.shift),
        )


def test_the_normalisation_of_a_table_is_recorded_as_numbers() -> None:
    found = TASKS["gaussian_to_wine"]().target().normalisation.record()
    assert isinstance(found["shift"], list)
    assert len(found["shift"]) == 13
    assert all(isinstance(value, float) and math.isfinite(value) for value in found["scale"])


def images_of(known: Known, x: Tensor) -> list[Tensor]:
    maps = [known.optimal_map, known.flow_map]
    return [function(x) for function in maps if function is not None]


@pytest.mark.parametrize("name", TASKS)
def test_what_is_known_is_a_map_to_the_target(name: str) -> None:
    task = TASKS[name]()
    known = task.known()
    if known is None:
        return
    x, y = task.source().low_variance(4000, rng()), task.target().low_variance(4000, rng(1))
    for image in images_of(known, x):
        assert image.shape == x.shape
        assert image.dtype == x.dtype
        for a, b in zip(image.T, y.T, strict=True):
            assert stats.ks_2samp(a, b).pvalue > 1e-4
