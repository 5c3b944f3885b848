"""OT-CFM, IFM and the exact velocities: couplings, tubes of flux and marginals."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from methods import METHODS
from methods.flow import MarginalVelocity, optimal_pairs
from methods.fm import ExactFlowMatching, FlowMatching
from methods.ifm import ExactInteractionField, InteractionFieldMatching
from methods.networks import NetworkSettings
from methods.ot_cfm import OptimalTransportFlowMatching
from methods.solvers import Solver, make_grid

ACCURATE = Solver(solver="rk4", solver_steps=200)
NETWORK = NetworkSettings().factory(2)


@pytest.mark.parametrize("data_set", [True, False])
@pytest.mark.parametrize("dim", [2, 8, 9, 64])
def test_the_noise_of_paths_is_a_default_of_data_sets_in_high_dimension(
    dim: int, data_set: bool
) -> None:
    """And the same for the exact row of a method; IFM's width is its own everywhere."""
    noisy = 0.1 if dim > 8 and data_set else 0.0
    for name, sigma in {"fm": noisy, "ot-cfm": noisy, "ifm": 0.5}.items():
        for kind in (name, f"{name}-exact"):
            method = METHODS[kind].create(dim, False, data_set)
            assert method.hyperparameters()["sigma"] == sigma, kind


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def draws(dim: int, seed: int, shift: float = 0.0) -> Callable[[int], Tensor]:
    generator = rng(seed)
    return lambda k: shift + torch.randn(k, dim, generator=generator, dtype=torch.float64)


def assignment(x0: Tensor, x1: Tensor) -> float:
    """The least sum of |x0 - x1|^2 over permutations, by another library."""
    cost = np.square(x0.numpy()[:, None] - x1.numpy()).sum(2)
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].sum())


# --- Couplings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "block"), [(60, 60), (64, 16), (50, 16), (30, 400)])
def test_optimal_pairs_are_optimal_in_every_block(n: int, block: int) -> None:
    x0, x1 = normal(n, 3), 1 + normal(n, 3, seed=1)
    paired = optimal_pairs(x0, x1, block)
    for start in range(0, n, block):
        part = slice(start, start + block)
        mine = (x0[part] - paired[part]).square().sum()
        assert float(mine) == pytest.approx(assignment(x0[part], x1[part]), rel=1e-9)
        assert set(map(tuple, paired[part].tolist())) == set(map(tuple, x1[part].tolist()))


def test_blocks_of_one_leave_the_order() -> None:
    x1 = normal(7, 2, seed=1)
    assert torch.equal(optimal_pairs(normal(7, 2), x1, 1), x1)


def ends(points: Tensor, t: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 and x_1 of points on their segments."""
    return points - t[:, None] * velocity, points + (1 - t)[:, None] * velocity


@pytest.mark.parametrize("name", ["ot-cfm", "ifm"])
def test_ot_pairs_of_a_batch_are_optimal(name: str) -> None:
    """Without noise the regression shows the ends of its pairs."""
    settings = {"coupling": "ot"} if name == "ifm" else {}
    method = METHODS[name].create(2, sigma=0.0, block=32, **settings)
    batch = method.regression(draws(2, 1), draws(2, 2, shift=3), 64, rng())
    x0, x1 = ends(batch.points, batch.scalar, batch.target)
    torch.testing.assert_close(x0, draws(2, 1)(64))
    for part in (slice(32), slice(32, 64)):
        cost = float((x0[part] - x1[part]).square().sum())
        drawn = draws(2, 2, shift=3)(64)[part]
        assert cost == pytest.approx(assignment(x0[part], drawn), rel=1e-6)
        assert cost < 0.9 * float((x0[part] - drawn).square().sum())


@pytest.mark.parametrize("name", ["fm", "ifm"])
def test_independent_pairs_are_as_drawn(name: str) -> None:
    method = METHODS[name].create(2, sigma=0.0)
    batch = method.regression(draws(2, 1), draws(2, 2, shift=3), 64, rng())
    x0, x1 = ends(batch.points, batch.scalar, batch.target)
    torch.testing.assert_close(x0, draws(2, 1)(64))
    torch.testing.assert_close(x1, draws(2, 2, shift=3)(64))


def test_ot_cfm_noise_is_sigma() -> None:
    method = OptimalTransportFlowMatching(sigma=0.7)
    constant = {"source": torch.zeros(5000, 1), "target": torch.ones(5000, 1)}
    batch = method.regression(
        lambda k: constant["source"], lambda k: constant["target"], 5000, rng()
    )
    noise = (batch.points[:, 0] - batch.scalar) / 0.7
    assert stats.kstest(noise.numpy(), stats.norm.cdf).pvalue > 1e-3
    assert (batch.target == 1).all()


def test_blocks_belong_to_the_ot_coupling() -> None:
    assert InteractionFieldMatching(block=64).block is None
    assert InteractionFieldMatching(coupling="ot", block=64).block == 64
    assert InteractionFieldMatching(coupling="ot").block == 128
    with pytest.raises(ValidationError, match="block must have a value"):
        InteractionFieldMatching(coupling="ot", block=None)


# --- IFM: the regression -------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_ifm_regresses_the_velocity_between_gaussians(
    t: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path's covariance is V = (1-t)^2 S0 + t^2 S1 + s^2 I, its velocity V'/2 V^{-1} x."""
    monkeypatch.setattr("methods.flow.uniform", lambda shape, like, rng: like.new_full(shape, t))
    spread = torch.tensor([0.5, 2.0], dtype=torch.float64)
    sigma = 0.8
    method = InteractionFieldMatching(sigma=sigma)
    source, target = draws(2, 1), draws(2, 2)
    points, _, velocity, _ = method.regression(source, lambda k: spread * target(k), 200_000, rng())

    def variance(u: float) -> Tensor:
        return (1 - u) ** 2 + u**2 * spread**2 + (sigma * math.sin(math.pi * u)) ** 2

    h = 1e-5
    slope = (variance(t + h) - variance(t - h)) / (2 * h) / 2 / variance(t)
    torch.testing.assert_close(points.var(0), variance(t), rtol=0.02, atol=0)
    fitted = (points * velocity).mean(0) / points.square().mean(0)
    torch.testing.assert_close(fitted, slope, rtol=0.02, atol=0.02)


def test_bell_and_its_slope() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    s, slope = InteractionFieldMatching(sigma=0.5).width(t)
    (expected,) = torch.autograd.grad(s.sum(), t)
    torch.testing.assert_close(slope, expected)
    assert float(s[50].detach()) == pytest.approx(0.5)
    assert abs(float(s[0].detach())) + abs(float(s[-1].detach())) < 1e-12


# --- IFM: tubes ----------------------------------------------------------------------------------

L = 6.0
SIGMA = 0.5


def tube_field(
    x: Tensor, z: Tensor, x0: Tensor, x1: Tensor, plate_distance: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """Direction and log-norm of the mean of the tubes of K pairs, x0 and x1 (K, D), at (x, z)."""
    t = (z / plate_distance)[:, None]
    s, slope = InteractionFieldMatching(sigma=sigma).width(t)
    offset = x[:, None] - torch.lerp(x0, x1, t[:, :, None])  # (B, K, D)
    across = (x1 - x0 + (slope / s)[:, :, None] * offset) / plate_distance
    log_density = -(offset / s[:, :, None]).square().sum(2) / 2
    share = torch.softmax(log_density, dim=1)
    field = torch.cat([(share[:, :, None] * across).sum(1), torch.ones_like(t)], dim=1)
    norm = torch.linalg.vector_norm(field, dim=1)
    log_sum = torch.logsumexp(log_density, dim=1) - math.log(len(x0))
    log_scale = x.shape[1] * (s[:, 0].log() + math.log(2 * math.pi) / 2)
    return field / norm[:, None], log_sum - log_scale + norm.log()


def tubes(dim: int, pairs: int = 4) -> tuple[Tensor, Tensor]:
    return normal(pairs, dim), 2 + normal(pairs, dim, seed=1)


def near_tubes(dim: int, n: int, plate_distance: float = L) -> tuple[Tensor, Tensor]:
    """Points where the field is: within a few widths of a tube."""
    x0, x1 = tubes(dim)
    z = plate_distance * (0.1 + 0.8 * torch.rand(n, generator=rng(5), dtype=torch.float64))
    own = torch.arange(n) % len(x0)
    s, _ = InteractionFieldMatching(sigma=SIGMA).width(z / plate_distance)
    middle = torch.lerp(x0[own], x1[own], (z / plate_distance)[:, None])
    return middle + s[:, None] * normal(n, dim, seed=6), z


def field(x: Tensor, z: Tensor, dim: int, plate_distance: float = L) -> Tensor:
    direction, log_norm = tube_field(x, z, *tubes(dim), plate_distance, SIGMA)
    assert torch.allclose(torch.linalg.vector_norm(direction, dim=1), torch.ones(len(x)).double())
    return direction * log_norm.exp()[:, None]


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_tubes_have_no_divergence(dim: int) -> None:
    x, z = near_tubes(dim, 20)
    places = torch.cat([x, z[:, None]], 1)

    def one(place: Tensor) -> Tensor:
        return field(place[None, :-1], place[None, -1], dim)[0]

    for place in places:
        jacobian = torch.autograd.functional.jacobian(one, place)
        assert float(jacobian.trace().abs()) < 1e-9 * float(jacobian.diagonal().abs().sum())


@pytest.mark.parametrize("z", [0.2, 3.0, 5.5])
def test_the_flux_through_every_plane_is_one(z: float) -> None:
    side = torch.linspace(-6, 8, 1401, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    parts = [
        field(block, torch.full((len(block),), z, dtype=torch.float64), 2)[:, -1].sum()
        for block in torch.split(x, 100_000)
    ]
    assert float(sum(parts)) * 0.01**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("plate_distance", [1.0, 6.0, 100.0])
def test_tubes_are_the_marginal_of_the_gaussian_path(plate_distance: float) -> None:
    """L dx/dz = v, and E_z is the density of the path."""
    x, z = near_tubes(3, 50, plate_distance)
    x0, x1 = tubes(3)
    e = field(x, z, 3, plate_distance)
    t = z / plate_distance
    velocity = MarginalVelocity(ExactInteractionField(), x0, x1, 0.0)(x, t)
    torch.testing.assert_close(plate_distance * e[:, :-1] / e[:, -1:], velocity)
    s, _ = InteractionFieldMatching(sigma=SIGMA).width(t)
    paths = [
        stats.norm.pdf(((x - torch.lerp(a, b, t[:, None])) / s[:, None]).numpy()).prod(1)
        for a, b in zip(x0, x1, strict=True)
    ]
    density = torch.from_numpy(np.mean(paths, axis=0)) / s**3
    torch.testing.assert_close(e[:, -1], density)


def released(x: Tensor, z: Tensor, dim: int, plate_distance: float) -> Tensor:
    """The field of the authors' code: the pair's length over L on E_z and on the widening."""
    x0, x1 = tubes(dim)
    t = z / plate_distance
    s = SIGMA * torch.sin(math.pi * t)[:, None]
    ds = SIGMA * math.pi / plate_distance * torch.cos(math.pi * t)[:, None]
    total = torch.zeros(len(x), dim + 1, dtype=torch.float64)
    for a, b in zip(x0, x1, strict=True):
        factor = math.sqrt(float((b - a).square().sum()) + plate_distance**2) / plate_distance
        offset = x - torch.lerp(a, b, t[:, None])
        density = torch.exp(-(offset / s).square().sum(1, keepdim=True) / 2) / s**dim
        along = (b - a) / plate_distance + factor * ds / s * offset
        total += density * torch.cat([along, torch.full((len(x), 1), factor)], 1)
    return total


@pytest.mark.parametrize(("plate_distance", "low", "high"), [(6.0, 0.10, 0.17), (100.0, 0, 1e-3)])
def test_tubes_are_the_released_field_at_large_plate_distance(
    plate_distance: float, low: float, high: float
) -> None:
    x, z = near_tubes(2, 200, plate_distance)
    mine = field(x, z, 2, plate_distance)
    theirs = released(x, z, 2, plate_distance)
    slopes = [plate_distance * e[:, :-1] / e[:, -1:] for e in (mine, theirs)]
    difference = torch.linalg.vector_norm(slopes[0] - slopes[1], dim=1)
    relative = float((difference / torch.linalg.vector_norm(slopes[0], dim=1)).median())
    assert low <= relative <= high


# --- Marginal velocities -------------------------------------------------------------------------

METHODS_AND_BLURS = [
    (ExactFlowMatching(sigma=0.0), 1.0),
    (ExactFlowMatching(sigma=0.4), 1.0),
    (ExactFlowMatching(sigma=0.2), 0.3),
    (ExactInteractionField(sigma=0.5), 1.0),
    (ExactInteractionField(sigma=0.5), 0.3),
]


@pytest.mark.parametrize(("method", "blur"), METHODS_AND_BLURS)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_marginal_velocity_obeys_the_continuity_equation(
    method: ExactFlowMatching, blur: float, t: float
) -> None:
    """dp/dt + div(p v) = 0, in one dimension by differences, p the mixture of Gaussians."""
    a, b = tubes(1)
    model = MarginalVelocity(method, a, b, blur)
    x = torch.linspace(-1, 3, 41, dtype=torch.float64)[:, None]

    def density(x: Tensor, u: float) -> Tensor:
        if isinstance(method, ExactInteractionField):
            s = method.sigma * math.sin(math.pi * u)
        else:
            s = method.sigma
        spread = math.sqrt(((1 - u) * blur) ** 2 + s**2)
        middle = (1 - u) * a + u * b
        density = stats.norm.pdf(x.numpy(), middle.T.numpy(), spread)
        return torch.from_numpy(density.mean(1))

    def flux(x: Tensor) -> Tensor:
        return density(x, t) * model(x, torch.full((len(x),), t, dtype=torch.float64))[:, 0]

    h = 1e-4
    change = (density(x, t + h) - density(x, t - h)) / (2 * h)
    divergence = (flux(x + h) - flux(x - h)) / (2 * h)
    scale = float(change.abs().max() + 1)
    torch.testing.assert_close(change, -divergence, rtol=0, atol=2e-4 * scale)


def test_marginal_velocity_in_high_dimension_against_the_posterior_of_the_source() -> None:
    """Without noise x and x_1 give x_0: v = sum of w_j (x_1 - x_0), w_j the density of x_0."""
    targets, x, t = (
        2 * normal(50, 64),
        normal(9, 64, seed=3),
        torch.full((9,), 0.3, dtype=torch.float64),
    )
    model = MarginalVelocity(FlowMatching(), torch.zeros_like(targets), targets, 1.0)
    x0 = (x[:, None] - 0.3 * targets) / 0.7
    weight = torch.softmax(-x0.square().sum(2) / 2, 1)
    expected = (weight[:, :, None] * (targets - x0)).sum(1)
    torch.testing.assert_close(model(x, t), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["fm-exact", "ifm-exact"])
def test_a_gaussian_flows_to_one_point(name: str) -> None:
    method = METHODS[name].create(2)
    point = torch.tensor([[3.0, -1.0]]).double()
    model = method.model(NETWORK, normal(1, 2), point)
    end = method.transport(model, normal(20, 2), ACCURATE).end
    torch.testing.assert_close(end, point.expand(20, 2), rtol=0, atol=1e-6)


def test_noise_stays_around_a_target() -> None:
    """From N(0, 1) to N(b, sigma^2): deviations shrink by sigma / sqrt(1 + sigma^2)."""
    method = ExactFlowMatching(sigma=0.5)
    point = torch.tensor([[3.0, -1.0]]).double()
    x0 = normal(20, 2)
    end = method.transport(method.model(NETWORK, x0, point), x0, ACCURATE).end
    # The start lacks the noise: it has variance 1, where the path has 1 + sigma^2.
    torch.testing.assert_close(end, point + x0 * 0.5 / math.sqrt(1.25), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["fm-exact", "ifm-exact"])
def test_a_gaussian_reaches_every_stored_target_alike(name: str) -> None:
    method = METHODS[name].create(2)
    targets = 4 * normal(16, 2, seed=4)
    model = method.model(NETWORK, targets, targets)
    end = method.transport(model, normal(1600, 2), ACCURATE).end
    nearest = torch.cdist(end, targets).min(1)
    assert nearest.values.quantile(0.98) < 1e-3
    assert stats.chisquare(nearest.indices.bincount(minlength=16)).pvalue > 1e-3


def test_ot_pairs_are_followed_to_their_ends() -> None:
    """Optimal segments do not cross: a line that starts on a stored sample ends on its partner."""
    method = METHODS["ot-cfm-exact"].create(2, bandwidth=0.01, block=64)
    x0, x1 = normal(64, 2), 3 + 2 * normal(64, 2, seed=1)
    end = method.transport(method.model(NETWORK, x0, x1), x0, ACCURATE).end
    reached = (end - optimal_pairs(x0, x1, 64)).norm(dim=1) < 0.1
    assert reached.double().mean() > 0.8  # a blurred start may change to a neighbour


@pytest.mark.parametrize("name", ["fm-exact", "ifm-exact", "ot-cfm-exact"])
def test_exact_velocities_have_short_steps_at_both_ends(name: str) -> None:
    seen: list[float] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    METHODS[name].create(2).transport(
        model,  # type: ignore[arg-type]
        normal(3, 2),
        Solver(solver_steps=10),
    )
    times = torch.tensor(seen, dtype=torch.float64).unique()
    torch.testing.assert_close(times, make_grid("cosine", 0.0, 0.999, 10))
    assert seen[-1] == 0.999  # the last step


def test_the_blur_moves_the_start_and_is_on_the_path() -> None:
    method = METHODS["fm-exact"].create(2, noise_source=False, bandwidth=0.3)
    x0 = normal(4000, 2)
    model = method.model(NETWORK, x0[:9], x0[:9])
    result = method.transport(model, x0, Solver(solver_steps=2), path=True, rng=rng(1))
    assert result.path is not None
    assert len(result.path) == 5  # start, blurred start, two steps, the last step
    assert torch.equal(result.path[0], x0)
    moved = (result.path[1] - x0) / 0.3
    assert stats.kstest(moved.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    again = method.transport(model, x0, Solver(solver_steps=2), rng=rng(2))
    assert not torch.equal(result.end, again.end)


def test_exact_velocities_know_what_their_source_is() -> None:
    for name in ("fm-exact", "ifm-exact"):
        gaussian, samples = METHODS[name].create(2), METHODS[name].create(2, noise_source=False)
        assert (gaussian.source, gaussian.bandwidth) == ("gaussian", None)
        assert (samples.source, samples.bandwidth) == ("samples", 0.1)
        assert gaussian.skip(2, noise_source=True) is None
        reason = gaussian.skip(2, noise_source=False)
        assert reason == f"{name} with source = gaussian cannot start from data"
        assert samples.skip(2, noise_source=True) is samples.skip(2, noise_source=False) is None
        with pytest.raises(ValidationError, match="bandwidth must have a value"):
            METHODS[name].create(2, source="samples", bandwidth=None)


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].trained])
def test_as_many_charges_are_stored_as_are_asked_for(name: str) -> None:
    """All that a model without parameters holds."""
    method = METHODS[name].create(2, charges=5)
    assert method.samples == 5
    model = method.model(NETWORK, normal(9, 2), normal(9, 2, seed=1))
    stored = list(model.buffers())
    assert stored
    assert {len(buffer) for buffer in stored} == {5}
    targets = sorted(map(tuple, normal(9, 2, seed=1)[:5].tolist()))
    assert targets in [sorted(map(tuple, buffer.tolist())) for buffer in stored]


@pytest.mark.parametrize("name", ["fm-exact", "ifm-exact"])
def test_stored_sources_are_left_for_their_own_partners(name: str) -> None:
    """Between two data sets: from each of three far samples to the end of its pair."""
    method = METHODS[name].create(2, noise_source=False, bandwidth=0.05, sigma=0.1)
    x0 = torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]], dtype=torch.float64)
    x1 = torch.tensor([[0.0, 9.0], [10.0, 12.0], [20.0, 15.0]], dtype=torch.float64)
    model = method.model(NETWORK, x0, x1)
    end = method.transport(model, x0.repeat(20, 1), ACCURATE).end
    spread = 0.1 if name == "fm-exact" else 0.0  # what is left of sigma at t = 1
    torch.testing.assert_close(end, x1.repeat(20, 1), rtol=0, atol=4 * spread + 1e-3)


def test_settings_of_exact_velocities_are_used() -> None:
    x0, x1 = normal(64, 2), 3 + normal(64, 2, seed=1)
    kinds = {
        "ot-cfm-exact": [{}, {"block": 16}, {"bandwidth": 0.4}, {"sigma": 0.3}],
        "ifm-exact": [{}, {"sigma": 0.9}],
        "fm-exact": [{}, {"sigma": 0.9}, {"source": "samples"}],
    }
    for name, settings in kinds.items():
        velocities = []
        for some in settings:
            model = METHODS[name].create(2, **some).model(NETWORK, x0, x1)
            velocities.append(model(x0 + 1, torch.full((64,), 0.4, dtype=torch.float64)))
        for i, one in enumerate(velocities):
            assert not any(torch.allclose(one, other) for other in velocities[:i])
    model = METHODS["ot-cfm-exact"].create(2, block=16).model(NETWORK, x0, x1)
    assert torch.equal(model.get_buffer("b"), optimal_pairs(x0, x1, 16))
