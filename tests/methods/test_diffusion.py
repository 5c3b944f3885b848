"""VP, EDM and PFGM++: noise, denoisers, and samplers, against closed forms and each other."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import integrate, stats
from torch import Tensor, nn

from bench.config.errors import SpecError
from bench.config.grid import Spec
from methods import METHODS
from methods.edm import Denoiser, ElucidatedDiffusion, PosteriorMean, effective_level
from methods.electrostatics import poisson_field
from methods.networks import NetworkSettings
from methods.pfgm import PoissonFlow
from methods.pfgmpp import PoissonFlowPlus
from methods.solvers import Solver
from methods.vp import (
    ExactNoise,
    ExactVariancePreservingDiffusion,
    VariancePreservingDiffusion,
    VpMethod,
)
from tests.networks import given

ACCURATE = Solver(solver="rk4", solver_steps=400)
NETWORK = NetworkSettings().factory(2)
VP = VariancePreservingDiffusion
EDM = ElucidatedDiffusion


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def constant(*point: float) -> Callable[[int], Tensor]:
    return lambda k: torch.tensor(point, dtype=torch.float64).repeat(k, 1)


def same_distribution(samples: Tensor, distribution: Callable[[np.ndarray], np.ndarray]) -> bool:
    return bool(stats.kstest(samples.numpy().ravel(), distribution).pvalue > 1e-3)


class Function(nn.Module):
    """A model from a function of points and scalars."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.function(x, s)


# --- VP: the noise -------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1e-5, 0.01, 0.5, 1.0])
def test_vp_schedule_solves_the_forward_sde(t: float) -> None:
    """d alpha = -beta alpha / 2 dt, and d sigma^2 = beta (1 - sigma^2) dt."""
    method = VP(beta_min=0.2, beta_max=15.0)
    total, _ = integrate.quad(lambda u: 0.2 + u * 14.8, 0, t)
    alpha, sigma = method.schedule(torch.tensor([t], dtype=torch.float64))
    assert float(alpha) == pytest.approx(math.exp(-total / 2), rel=1e-12)
    solution = integrate.solve_ivp(
        lambda u, v: (0.2 + u * 14.8) * (1 - v), (0, t), [0.0], rtol=1e-10, atol=1e-14
    )
    assert float(sigma) ** 2 == pytest.approx(solution.y[0, -1], rel=1e-6)


def test_vp_perturbs_and_asks_for_the_noise() -> None:
    method = VP()
    x, t, epsilon, weight = method.regression(constant(0.0), constant(3.0, -1.0), 5000, rng())
    assert weight is None
    assert same_distribution(epsilon, stats.norm.cdf)
    assert same_distribution(t, stats.uniform(1e-5, 1 - 1e-5).cdf)
    alpha, sigma = method.schedule(t)
    expected = alpha[:, None] * torch.tensor([3.0, -1.0]) + sigma[:, None] * epsilon
    torch.testing.assert_close(x, expected)


# --- VP: the samplers ----------------------------------------------------------------------------

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.25, 4.0], dtype=torch.float64)


def gaussian_noise(method: VpMethod) -> Function:
    """epsilon of data N(MEAN, VARIANCE): sigma (x - alpha m) / (alpha^2 v + sigma^2)."""

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part[:, None] for part in method.schedule(t))
        return sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)

    return Function(epsilon)


@pytest.mark.parametrize("t_min", [1e-3, 0.2])
def test_vp_ode_maps_gaussians_by_their_deviations(t_min: float) -> None:
    """Along the flow (x - alpha m) / sqrt(alpha^2 v + sigma^2) stays as it is."""
    method = VP(t_min=t_min)
    x0 = normal(20, 2)
    end = method.transport(gaussian_noise(method), x0, ACCURATE).end
    ends = torch.tensor([1.0, t_min], dtype=torch.float64)
    alpha, sigma = method.schedule(ends)
    spread = torch.sqrt(alpha[:, None] ** 2 * VARIANCE + sigma[:, None] ** 2)
    last = alpha[1] * MEAN + (x0 - alpha[0] * MEAN) / spread[0] * spread[1]
    denoised = MEAN + alpha[1] * VARIANCE / spread[1] ** 2 * (last - alpha[1] * MEAN)
    torch.testing.assert_close(end, denoised, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_both_samplers_give_the_law_of_gaussian_data(name: str) -> None:
    method = METHODS[name].create(2)
    model = gaussian_noise(method) if isinstance(method, VpMethod) else gaussian_denoiser()
    start = method.start(normal(20_000, 2))
    steps = Solver(solver_steps=400)
    for sampler in ("ode", "sde"):
        kind = method.model_copy(update={"sampler": sampler})
        end = kind.transport(model, start, steps, rng=rng(3)).end
        torch.testing.assert_close(end.mean(0), MEAN, rtol=0, atol=0.06)
        torch.testing.assert_close(end.var(0), VARIANCE, rtol=0.05, atol=0)
        assert abs(float(end.T.corrcoef()[0, 1])) < 0.03


@pytest.mark.parametrize("name", ["vp", "edm", "vp-exact", "edm-exact"])
def test_the_sde_sampler_has_noise_of_its_own(name: str) -> None:
    """Random, from the given generator; one evaluation a step, and the last one."""
    method = METHODS[name].create(2, sampler="sde")
    data = 3 * normal(50, 2, seed=1)
    model = method.model(NETWORK, data, data)
    start = method.start(normal(6, 2))

    def run(seed: int | None, sampler: str = "sde") -> Tensor:
        kind = method.model_copy(update={"sampler": sampler})
        given = None if seed is None else rng(seed)
        with torch.no_grad():
            result = kind.transport(model.double(), start, Solver(solver_steps=12), True, given)
        assert result.nfe == (13 if sampler == "sde" else 25)  # Heun has two a step
        assert result.path is not None
        assert len(result.path) == 14
        assert torch.equal(result.path[-1], result.end)
        return result.end

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(None), run(0))
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(run(1), run(1, "ode"))


def test_the_sde_forgets_its_start_and_the_ode_does_not() -> None:
    method = VP(sampler="sde")
    start = normal(4000, 2)
    model = gaussian_noise(method)
    sde = method.transport(model, start, Solver(solver_steps=200), rng=rng(1)).end
    ode = VP().transport(model, start, Solver(solver_steps=200)).end
    assert abs(np.corrcoef(start[:, 0], sde[:, 0])[0, 1]) < 0.1
    assert np.corrcoef(start[:, 0], ode[:, 0])[0, 1] > 0.999


@pytest.mark.parametrize("sampler", ["ode", "sde"])
@pytest.mark.parametrize("name", ["vp", "edm", "pfgmpp"])
def test_samplers_go_from_the_first_to_the_last_level(name: str, sampler: str) -> None:
    """Those of the settings, on the grid that the user names."""
    settings = {"t_min": 0.05} if name == "vp" else {"sigma_min": 0.05, "sigma_max": 7.0}
    if name != "pfgmpp":
        settings |= {"sampler": sampler}
    method = METHODS[name].create(2, **settings)
    seen: list[float] = []

    def model(x: Tensor, level: Tensor) -> Tensor:
        seen.append(float(level[0]))
        return torch.zeros_like(x)

    for grid in ("uniform", "log"):
        seen.clear()
        method.transport(Function(model), normal(3, 2), Solver(solver_steps=4, grid=grid))
        first, last = (1.0 if name == "vp" else 7.0), 0.05
        expected = np.linspace(first, last, 5)
        if grid == "log":
            expected = np.geomspace(first, last, 5)
        assert sorted(set(seen), reverse=True) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["pfgm", "pfgm-exact"])
def test_pfgm_goes_from_z_max_to_z_min_in_equal_ratios(name: str) -> None:
    seen: list[float] = []

    def model(x: Tensor, z: Tensor) -> Tensor:
        seen.append(float(z[0]))
        return torch.ones(len(x), x.shape[1] + 1, dtype=x.dtype)

    method = METHODS[name].create(2, z_max=30.0, z_min=0.02)
    method.transport(Function(model), normal(3, 2), Solver(solver_steps=4))
    assert sorted(set(seen), reverse=True) == pytest.approx(np.geomspace(30.0, 0.02, 5))


def test_a_solver_of_odes_is_refused_for_the_sde() -> None:
    """Its name would stand in the tables, and the steps be Euler and Maruyama's."""
    model = gaussian_noise(VP())
    with pytest.raises(ValueError, match=r"solver = dopri5 .*sampler = sde"):
        VP(sampler="sde").transport(model, normal(3, 2), Solver(solver="dopri5"))


@pytest.mark.parametrize("t", [1e-5, 0.01, 0.5, 1.0])
def test_vp_network_sees_unit_variance_and_the_log_of_the_ratio(t: float) -> None:
    method = VP()
    data = around(5.0, 3.0)
    model = method.model(
        given(Constant(0.0), inputs="standardised", embedding="plain"), data, data
    ).double()
    alpha, sigma = method.schedule(torch.tensor(t, dtype=torch.float64))
    y = 5 + 3 * normal(50_000, 2)
    x = alpha * y + sigma * normal(50_000, 2, seed=1)
    model(x, torch.full((50_000,), t, dtype=torch.float64))
    network = model.network.network
    assert isinstance(network, Constant)
    torch.testing.assert_close(network.inputs.mean(0), torch.zeros(2).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(network.inputs.var(0), torch.ones(2).double(), rtol=0.02, atol=0)
    place = float((sigma / alpha).log()) / 4
    assert network.embedding[:, 0].tolist() == pytest.approx([place] * 50_000, abs=1e-9)


@pytest.mark.parametrize("t", [1e-5, 0.01, 0.5, 1.0])
def test_vp_asks_for_unit_variance_at_every_time(t: float) -> None:
    """What the network is to give, (epsilon - guess) / error, has variance 1 and no slope in x."""
    method, data = VP(), around(5.0, 3.0)
    alpha, sigma = method.schedule(torch.tensor(t, dtype=torch.float64))
    epsilon = normal(50_000, 2, seed=1)
    x = alpha * (5 + 3 * normal(50_000, 2)) + sigma * epsilon
    times = torch.full((50_000,), t, dtype=torch.float64)
    networks = [given(Constant(c), inputs="standardised") for c in (0.0, 1.0)]
    guess, raised = (method.model(one, data, data).double()(x, times) for one in networks)
    wanted = (epsilon - guess) / (raised - guess)
    assert float(wanted.var()) == pytest.approx(1, rel=0.02)
    slope = ((x - x.mean(0)) * wanted).mean() / x.std()
    assert abs(float(slope)) < 0.02


def test_vp_training_begins_at_a_hundredth_of_t_min() -> None:
    t = VP(t_min=0.5).regression(constant(0.0), constant(1.0), 5000, rng()).scalar
    assert same_distribution(t, stats.uniform(0.005, 0.995).cdf)
    assert t.min() >= 0.005


def test_vp_noise_is_accurate_at_the_shortest_times_in_float32() -> None:
    for t in (1e-5, 1e-4):
        single = VP().schedule(torch.tensor(t, dtype=torch.float32))[1]
        double = VP().schedule(torch.tensor(t, dtype=torch.float64))[1]
        assert float(single) == pytest.approx(float(double), rel=1e-5)


# --- EDM: the training ---------------------------------------------------------------------------


def test_edm_noise_levels_follow_the_scale_of_the_data() -> None:
    """ln(sigma / (2 sigma_data)) ~ N(P_mean, P_std^2): the paper's values are for 1/2."""
    method = EDM(P_mean=-0.7, P_std=0.9)
    generator = rng(1)

    def data(k: int) -> Tensor:
        return 5 + 3 * torch.randn(k, 2, generator=generator, dtype=torch.float64)

    x, sigma, y, weight = method.regression(constant(0.0), data, 4000, rng())
    assert same_distribution((sigma / 6).log(), stats.norm(-0.7, 0.9).cdf)
    assert same_distribution((x - y) / sigma[:, None], stats.norm.cdf)
    assert weight is not None
    expected = (sigma**2 + 9) / (3 * sigma) ** 2
    torch.testing.assert_close(weight, expected, rtol=0.05, atol=0)


class Constant(nn.Module):
    """A network that gives a constant, and remembers what it was given."""

    def __init__(self, outputs: float) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        self.inputs, self.embedding = x, embedding
        return torch.full_like(x, self.outputs)


def around(mean: float, deviation: float) -> Tensor:
    """Data with exactly these."""
    half = torch.cat([torch.ones(50, 2), -torch.ones(50, 2)]).double()
    return mean + deviation * half / half.std(0).mean()


def untrained(
    outputs: float, levels: tuple[float, float] = (0.002, 80.0), freedom: float = math.inf
) -> Denoiser:
    """A denoiser of data around 5 with deviation 3 whose network gives a constant."""
    aug_dim = "inf" if math.isinf(freedom) else int(freedom)
    method = PoissonFlowPlus(aug_dim=aug_dim, sigma_min=levels[0], sigma_max=levels[1])
    network = given(Constant(outputs), inputs="standardised", embedding="plain")
    return Denoiser(method, network, around(5.0, 3.0)).double()


@pytest.mark.parametrize("sigma", [0.01, 1.0, 3.0, 50.0])
def test_edm_asks_for_unit_variance_at_every_level(sigma: float) -> None:
    """What the network is to give, (y - c_skip x) / c_out, and its input have variance 1."""
    y = 5 + 3 * normal(50_000, 2)
    x = y + sigma * normal(50_000, 2, seed=1)
    levels = torch.full((50_000,), sigma, dtype=torch.float64)
    skipped, raised = untrained(0.0), untrained(1.0)
    base = skipped(x, levels)
    output = (raised(x, levels) - base).mean()  # c_out
    torch.testing.assert_close(
        ((y - base) / output).var(), torch.tensor(1.0).double(), rtol=0.02, atol=0
    )
    torch.testing.assert_close(
        skipped.network.network.inputs.var(), torch.tensor(1.0).double(), rtol=0.02, atol=0
    )
    weight = (sigma**2 + 9) / (3 * sigma) ** 2
    assert float(output) ** 2 * weight == pytest.approx(1, rel=1e-3)


def test_the_network_sees_the_logarithm_of_the_level() -> None:
    """log(sigma) / 4, as in the paper: even steps for even ratios."""
    model = untrained(0.0, levels=(0.01, 100.0))
    levels = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
    model(normal(5, 2), levels)
    torch.testing.assert_close(model.network.network.embedding[:, 0], levels.log() / 4)


@pytest.mark.parametrize("sigma", [0.01, 3.0, 80.0])
@pytest.mark.parametrize("freedom", [1, 4])
def test_heavy_tails_are_denoised_to_the_data(freedom: int, sigma: float) -> None:
    """However far outside: there all data are as likely."""
    for distance in (1e3, 1e6):
        far = 5 + distance * torch.nn.functional.normalize(normal(20, 2))
        mean = untrained(0.0, freedom=freedom)(far, torch.full((20,), sigma, dtype=torch.float64))
        assert (mean - 5).norm(dim=1).max() < (freedom + 2) * 3**2 / distance * 1.1


@pytest.mark.parametrize("freedom", [1.0, 8.0])
def test_the_effective_level_is_the_slope_of_the_likelihood(freedom: float) -> None:
    """d/d(d^2) of -log p is 1 / (2 level^2), p the density of the noise at the distance d."""
    beyond = torch.tensor([4.0, 20.0, 300.0], dtype=torch.float64, requires_grad=True)  # d^2
    sigma = 0.7
    log_density = -(2 + freedom) / 2 * torch.log(beyond + freedom * sigma**2)
    (slope,) = torch.autograd.grad(log_density.sum(), beyond)
    d = 3 * math.sqrt(2) + beyond.detach().sqrt()
    v = torch.stack([d, 0 * d], 1)
    level = effective_level(v, torch.full((3,), sigma, dtype=torch.float64), freedom)
    torch.testing.assert_close(-1 / (2 * level**2), slope)


def test_the_effective_level_is_sigma_near_the_data_and_for_gaussians() -> None:
    sigma = torch.full((9,), 0.3, dtype=torch.float64)
    assert torch.equal(effective_level(1e3 * normal(9, 2), sigma, math.inf), sigma)
    assert torch.equal(effective_level(normal(9, 2), sigma, 1.0), sigma)


@pytest.mark.parametrize(("aug_dim", "most"), [(1, 12), (2, 4), (128, 1.1)])
def test_pfgmpp_asks_for_about_unit_variance(aug_dim: int, most: float) -> None:
    """The loss of a network that gives zero: 1, but for tails (40 at N = 1 without their level)."""
    method = PoissonFlowPlus(aug_dim=aug_dim)
    data = around(5.0, 3.0)
    generator = rng(3)

    def draw(k: int) -> Tensor:
        return data[torch.randint(100, (k,), generator=generator)]

    x, sigma, y, weight = method.regression(draw, draw, 20_000, rng())
    assert weight is not None
    model = untrained(0.0, freedom=aug_dim)
    loss = weight * (model(x, sigma) - y).square().mean(1)
    assert 0.8 < float(loss.mean()) < most


def gaussian_denoiser() -> Function:
    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        return MEAN + VARIANCE / (VARIANCE + sigma[:, None] ** 2) * (x - MEAN)

    return Function(denoised)


def test_edm_ode_maps_gaussians_by_their_deviations() -> None:
    method = EDM(sigma_max=30.0, sigma_min=0.1)
    x0 = normal(20, 2)
    start = method.start(x0)
    torch.testing.assert_close(start, 30 * x0)
    end = method.transport(gaussian_denoiser(), start, ACCURATE).end
    ratio = torch.sqrt((VARIANCE + 0.01) / (VARIANCE + 900))
    denoised = MEAN + VARIANCE / (VARIANCE + 0.01) * ratio * (start - MEAN)
    torch.testing.assert_close(end, denoised, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["edm", "pfgmpp"])
def test_heun_on_the_papers_grid(name: str) -> None:
    """Levels fall as the seventh power; after them one more evaluation."""
    seen: list[float] = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return torch.zeros_like(x)

    METHODS[name].create(2).transport(Function(model), normal(3, 2), Solver(solver_steps=5))
    levels = sorted(set(seen), reverse=True)
    roots = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 6)
    assert levels == pytest.approx(roots**7)
    assert len(seen) == 11
    assert seen[-1] == levels[-1]


# --- Denoisers of stored samples -----------------------------------------------------------------

CHARGES = 2 * normal(30, 3, seed=7)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_posterior_mean_is_tweedies_formula(sigma: float) -> None:
    """D = x + sigma^2 grad log p of the blurred samples."""
    x = normal(9, 3).requires_grad_()
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(30, dtype=torch.float64)),
        torch.distributions.Independent(torch.distributions.Normal(CHARGES, sigma), 1),
    )
    (score,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    mean = PosteriorMean(CHARGES)(x.detach(), torch.full((9,), sigma, dtype=torch.float64))
    torch.testing.assert_close(mean, x.detach() + sigma**2 * score)


@pytest.mark.parametrize("aug_dim", [1, 2, 16])
def test_posterior_mean_is_the_field_of_extra_dimensions(aug_dim: int) -> None:
    """x - D = r E_x / E_r, E the gradient of the potential |.|^{-(D + N - 2)} in R^{D+N}."""
    x = normal(9, 3).requires_grad_()
    r = torch.full((9,), 1.5, dtype=torch.float64, requires_grad=True)
    squared = (x[:, None] - CHARGES).square().sum(2) + r[:, None] ** 2
    potential = squared ** (-(3 + aug_dim - 2) / 2)
    along, up = torch.autograd.grad(potential.sum(), (x, r))
    sigma = r.detach() / math.sqrt(aug_dim)
    mean = PosteriorMean(CHARGES, aug_dim)(x.detach(), sigma)
    torch.testing.assert_close(x.detach() - mean, 1.5 * along / up[:, None])


def test_one_extra_dimension_is_pfgm() -> None:
    x, z = normal(9, 3), torch.full((9,), 0.7, dtype=torch.float64)
    direction, _ = poisson_field(x, z, CHARGES)
    expected = x - z[:, None] * direction[:, :-1] / direction[:, -1:]
    torch.testing.assert_close(PosteriorMean(CHARGES, 1)(x, z), expected)


def test_pfgm_and_pfgmpp_move_samples_along_the_same_lines() -> None:
    plus = METHODS["pfgmpp-exact"].create(
        3, aug_dim=1, sigma_max=40.0, sigma_min=1e-3, max_radius=75.0
    )
    flow = METHODS["pfgm-exact"].create(3)
    x0 = normal(50, 3)
    start = flow.start(x0)
    torch.testing.assert_close(plus.start(x0), start)
    exact = Solver(solver="dopri5", rtol=1e-9, atol=1e-9, solver_steps=2)
    paths = [
        method.transport(method.model(NETWORK, CHARGES, CHARGES), start, exact, path=True).path
        for method in (plus, flow)
    ]
    assert paths[0] is not None
    assert paths[1] is not None
    # At sigma = z = z_min; PFGM++ goes on from there to the denoised sample.
    torch.testing.assert_close(paths[0][-2], paths[1][-1], rtol=1e-5, atol=1e-5)


def test_many_extra_dimensions_are_diffusion() -> None:
    x, sigma = normal(9, 3), torch.full((9,), 0.8, dtype=torch.float64)
    many, all_of_them = PosteriorMean(CHARGES, 10**6), PosteriorMean(CHARGES)
    torch.testing.assert_close(many(x, sigma), all_of_them(x, sigma), rtol=1e-4, atol=1e-4)


def test_infinitely_many_extra_dimensions_are_edm() -> None:
    """The same batches, prior, model and lines, to the last bit."""
    plus, edm = PoissonFlowPlus(aug_dim="inf"), EDM()

    def batch(method: EDM | PoissonFlowPlus) -> tuple[Tensor | None, ...]:
        generator = rng(1)
        return method.regression(
            constant(0.0), lambda k: torch.randn(k, 2, generator=generator), 100, rng()
        )

    for mine, other in zip(batch(plus), batch(edm), strict=True):
        assert mine is not None
        assert torch.equal(mine, other)
    assert torch.equal(plus.start(normal(9, 2)), edm.start(normal(9, 2)))
    models = []
    for method in (plus, edm):
        torch.manual_seed(0)
        models.append(method.model(NETWORK, normal(50, 2).float(), normal(50, 2).float()))
    with torch.no_grad():
        ends = [
            method.transport(model, edm.start(normal(9, 2).float()), Solver()).end
            for method, model in zip((plus, edm), models, strict=True)
        ]
    assert torch.equal(*ends)
    exact = METHODS["pfgmpp-exact"].create(2, aug_dim="inf").model(NETWORK, CHARGES, CHARGES)
    assert isinstance(exact, PosteriorMean)
    assert math.isinf(exact.aug_dim)


# --- PFGM++: noise and prior ---------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("aug_dim", [1, 4, 128])
def test_pfgmpp_perturbation(dim: int, aug_dim: int) -> None:
    """R = r sqrt(B / (1 - B)), B ~ Beta(D/2, N/2), r = sigma sqrt(N); the direction uniform."""
    method = PoissonFlowPlus(aug_dim=aug_dim, max_radius=1e9)
    y = torch.ones(5000, dim, dtype=torch.float64)
    sigma = 0.1 + torch.rand(5000, generator=rng(1), dtype=torch.float64)
    moved = method.perturb(y, sigma, rng(2)) - y
    radius = moved.norm(dim=1)
    share = radius**2 / (radius**2 + aug_dim * sigma**2)
    assert same_distribution(share, stats.beta(dim / 2, aug_dim / 2).cdf)
    axis = moved[:, 0] / radius
    if dim > 2:
        assert same_distribution((1 + axis) / 2, stats.beta((dim - 1) / 2, (dim - 1) / 2).cdf)
    else:
        assert same_distribution(
            torch.atan2(moved[:, 1], moved[:, 0]), stats.uniform(-math.pi, 2 * math.pi).cdf
        )


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("aug_dim", [1, 128, 2048])
def test_pfgmpp_prior(dim: int, aug_dim: int) -> None:
    method = PoissonFlowPlus(aug_dim=aug_dim, sigma_max=20.0, max_radius=1e9)
    x0 = normal(5000, dim)
    prior = method.start(x0)
    radius = prior.norm(dim=1)
    torch.testing.assert_close(prior / radius[:, None], x0 / x0.norm(dim=1)[:, None])
    share = radius**2 / (radius**2 + aug_dim * 400)
    assert same_distribution(share, stats.beta(dim / 2, aug_dim / 2).cdf)
    assert (radius[x0.norm(dim=1).argsort()].diff() > 0).all()


def test_pfgm_has_the_prior_of_one_extra_dimension() -> None:
    x0 = normal(20, 3)
    plus = PoissonFlowPlus(aug_dim=1, sigma_max=25.0, max_radius=75.0)
    torch.testing.assert_close(plus.start(x0), PoissonFlow(z_max=25.0).start(x0))


@pytest.mark.parametrize(("dim", "aug_dim"), [(2, 1), (64, 1), (2, 128)])
def test_no_perturbation_is_longer_than_the_largest_radius(dim: int, aug_dim: int) -> None:
    """Those that would be are exactly so long, in the same direction; others stay as they are."""
    sigma = 0.1 + torch.rand(5000, generator=rng(1), dtype=torch.float64)
    y, most = torch.zeros(5000, dim, dtype=torch.float64), 2.0 * (dim / aug_dim) ** 0.5
    free, held = (
        PoissonFlowPlus(aug_dim=aug_dim, max_radius=r).perturb(y, sigma, rng(2))
        for r in (1e9, most)
    )
    limit = most * sigma * math.sqrt(aug_dim)
    longer = free.norm(dim=1) > limit
    assert float(longer.double().mean()) > 0.01
    assert torch.equal(held[~longer], free[~longer])
    torch.testing.assert_close(held[longer].norm(dim=1), limit[longer])
    cosine = torch.nn.functional.cosine_similarity(held, free)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize("name", ["pfgm", "pfgmpp"])
def test_the_prior_is_cut_at_the_largest_radius(name: str) -> None:
    """As the authors' samplers cut it: PFGM at 75 z_max, PFGM++ where B = 1 - 1e-3."""
    kind = METHODS[name]
    x0 = normal(20_000, 2)
    plus = name == "pfgmpp"
    settings = {"aug_dim": 1, "sigma_max": 40.0} if plus else {"z_max": 40.0}
    most = 40 * (math.sqrt(999) if plus else 75)
    free = kind.create(2, **settings, max_radius=1e12).start(x0)
    held = kind.create(2, **settings).start(x0)
    longer = free.norm(dim=1) > most
    share = 1 / math.sqrt(1 + (most / 40) ** 2)  # P(R > most) at D = 2
    assert float(longer.double().mean()) == pytest.approx(share, rel=0.25)
    torch.testing.assert_close(held[~longer], free[~longer])
    torch.testing.assert_close(held[longer].norm(dim=1), torch.full_like(x0[longer, 0], most))


# --- The exact flows -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edm-exact", "vp-exact", "pfgm-exact", "pfgmpp-exact"])
def test_noise_reaches_every_stored_sample_alike(name: str) -> None:
    method = METHODS[name].create(2)
    data = 3 * normal(16, 2, seed=4)
    model = method.model(NETWORK, data, data)
    assert not list(model.parameters())
    start = method.start(normal(1600, 2, seed=1))
    end = method.transport(model, start, Solver(solver_steps=100)).end
    nearest = torch.cdist(end, data).min(1)
    assert nearest.values.quantile(0.95) < 0.05
    assert stats.chisquare(nearest.indices.bincount(minlength=16)).pvalue > 1e-3


def test_exact_noise_is_the_score_of_the_stored_samples() -> None:
    """epsilon = -sigma grad log p_t, p_t the mixture of N(alpha y, sigma^2 I)."""
    method = ExactVariancePreservingDiffusion()
    t = torch.full((9,), 0.4, dtype=torch.float64)
    alpha, sigma = (float(part[0]) for part in method.schedule(t))
    x = normal(9, 3).requires_grad_()
    log_density = torch.logsumexp(
        -(x[:, None] - alpha * CHARGES).square().sum(2) / (2 * sigma**2), 1
    )
    (score,) = torch.autograd.grad(log_density.sum(), x)
    epsilon = ExactNoise(method, CHARGES)(x.detach(), t)
    torch.testing.assert_close(epsilon, -sigma * score)


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("edm", {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min must be below sigma_max"),
        ("pfgmpp-exact", {"sigma_max": 0.001}, "sigma_min must be below sigma_max"),
        ("vp", {"beta_min": 3.0, "beta_max": 1.0}, "beta_min must be at most beta_max"),
        ("pfgmpp", {"aug_dim": 0}, "greater than or equal to 1"),
        ("pfgmpp", {"aug_dim": 2.5}, "valid integer"),
        ("pfgmpp", {"aug_dim": "many"}, "'inf'"),
        ("edm", {"sampler": "heun"}, "'ode' or 'sde'"),
    ],
)
def test_settings_that_are_refused(name: str, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        METHODS[name].create(2, **settings)


def test_extra_dimensions_on_the_command_line() -> None:
    """``inf`` is a value of aug_dim, as a word or as TOML's number, and of nothing else."""

    def cells(axis: str, *values: object) -> list[object]:
        spec = Spec(
            methods=["pfgmpp"],
            tasks=["gaussian_to_8gaussians"],
            seeds=[0],
            settings={axis: list(values)},
        )
        return [cell.hyperparameters["aug_dim"] for cell in spec.cells()]

    assert cells("pfgmpp.aug_dim", 1, "128", "inf") == [1, 128, "inf"]
    assert cells("pfgmpp.aug_dim", math.inf) == ["inf"]
    with pytest.raises(SpecError, match=r"pfgmpp\.sigma_max: .*finite number"):
        cells("pfgmpp.sigma_max", "inf")
