"""EFM learned at points of its flux: identities, targets, the model, and the theorem."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from bench.cell.train import regression_loss
from datasets.gaussians import StandardNormal
from methods.base import Draw, Mixture, Regression
from methods.capacitor import mixtures
from methods.capacitor.flux import (
    FluxModel,
    FluxRegression,
    GaussianFlux,
    Plates,
    as_columns,
    flux_field,
    flux_points,
)
from methods.efm import ElectrostaticFieldMatching
from methods.electrostatics import capacitor_field, plate_flux, poisson_field
from methods.networks import NetworkSettings
from methods.solvers import Solver

EFM, L = ElectrostaticFieldMatching, 6.0
PLATES = Plates.of(L, 0.05)
Posterior = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def two_clusters(dim: int) -> Mixture:
    means = torch.zeros(2, dim).double()
    means[0, 0], means[1, 0] = 2.0, -1.0
    return means, torch.tensor([[0.3], [0.6]]).double().expand(2, dim), torch.tensor([0.25, 0.75])


def standard(dim: int) -> Mixture:
    return torch.zeros(1, dim).double(), torch.ones(1, dim).double(), torch.ones(1).double()


def draw_of(mixture: Mixture, seed: int) -> Draw:
    means, stds, weights = mixture
    own = rng(seed)

    def draw(n: int) -> Tensor:
        k = torch.multinomial(weights, n, True, generator=own)
        noise = torch.randn(n, means.shape[1], generator=own, dtype=torch.float64)
        return means[k] + stds[k] * noise

    return draw


def exactly(source: Mixture, target: Mixture, distance: float = L) -> Posterior:
    """y_P, y_Q and r of the distributions, by the quadrature over widths."""

    def posterior(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, logs = [], []
        for h, charge in ((z, source), (z - distance, target)):
            direction, log_norm = mixtures.plate_field(x, h, charge)
            means.append(mixtures.mean_charge(x, h, charge))
            logs.append(log_norm + direction[:, -1].abs().log())
        return means[0], means[1], torch.sigmoid(logs[0] - logs[1])

    return posterior


# --- The identities ------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_twice_the_normal_field_of_a_plate_is_the_density_of_cauchy_steps(dim: int) -> None:
    """E_z = sgn(h) (P * K_|h|) / 2, with scipy's multivariate Cauchy density for the kernel."""
    charges, x = normal(5, dim), 2 * normal(40, dim, seed=1)
    for h in (0.3, 5.0, -2.0):
        direction, log_norm = poisson_field(x, torch.full((40,), h).double(), charges)
        kernels = [
            stats.multivariate_t(y.numpy(), h * h * torch.eye(dim).numpy(), df=1).logpdf(x.numpy())
            for y in charges
        ]
        log_density = torch.from_numpy(np.stack(kernels)).logsumexp(0) - math.log(len(charges))
        found = math.log(2) + log_norm + (math.copysign(1, h) * direction[:, -1]).log()
        torch.testing.assert_close(found, log_density, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dim", [2, 16, 64])
@pytest.mark.parametrize("both_sides", [True, False])
def test_points_are_cauchy_steps_from_their_charges(dim: int, both_sides: bool) -> None:
    """|x - y|^2 / (h^2 D) has the F distribution with D and 1 degrees of freedom."""
    p, q = normal(4000, dim), 3 + normal(4000, dim, seed=1)
    x, z, of_source = flux_points(p, q, PLATES, both_sides, rng(2))
    y, h = torch.where(of_source[:, None], p, q), torch.where(of_source, z, z - L)
    ratio = (x - y).square().sum(1) / (h.square() * dim)
    assert stats.kstest(ratio.numpy(), stats.f(dim, 1).cdf).pvalue > 1e-3
    assert 0.46 < of_source.double().mean() < 0.54
    between = ((z > 0) & (z < L)).double().mean()
    assert 0.46 < between < 0.54 if both_sides else between == 1
    near = torch.minimum(z.abs(), (z - L).abs())
    assert (near < 0.1).double().mean() > 0.1  # heights are log-uniform at the plates
    assert z.max() <= 21 * L


def test_the_flux_of_charges_is_that_of_their_field() -> None:
    charges, x, h = normal(9, 3), 3 * normal(50, 3, seed=1), 2 * normal(50, seed=2)
    y, log_density = plate_flux(x, h, charges)
    direction, log_norm = poisson_field(x, h, charges)
    slopes = direction[:, :-1] / direction[:, -1:]
    torch.testing.assert_close(y, x - h[:, None] * slopes)
    differences = log_density - (log_norm + direction[:, -1].abs().log())
    torch.testing.assert_close(differences, differences[:1].expand(50))


@pytest.mark.parametrize("dim", [2, 16])
def test_exact_posteriors_make_the_field_of_the_capacitor(dim: int) -> None:
    p, q = normal(7, dim), 2 + normal(9, dim, seed=1)
    x, z = 2 * normal(60, dim, seed=2), torch.linspace(-2 * L, 3 * L, 60).double()
    (y_p, log_p), (y_q, log_q) = plate_flux(x, z, p), plate_flux(x, z - L, q)
    columns = as_columns(y_p, y_q, torch.sigmoid(log_p - log_q))
    torch.testing.assert_close(flux_field(x, z, L, columns)[0], capacitor_field(x, z, p, q, L)[0])


# --- The regression ------------------------------------------------------------------------------


@pytest.mark.parametrize("charges", [1, 16, 256])
@pytest.mark.parametrize("dim", [2, 16, 64])
def test_targets_are_unbiased(dim: int, charges: int) -> None:
    """E[w (target - exact) phi(x, z)] = 0 within four standard errors, for any phi: bounded here.

    The exact posteriors are those of the distributions, not of the batch's charges.
    """
    source, target = standard(dim), two_clusters(dim)
    draws = draw_of(source, 1), draw_of(target, 2)
    regression, posterior = FluxRegression(*draws, PLATES, charges, True), exactly(source, target)
    errors = []
    for seed in range(60):
        x, z, y, weight = regression.batch(256, rng(seed))
        assert weight is not None
        error = weight * (y - as_columns(*posterior(x, z)))
        error = torch.cat([error[:, :2], error[:, dim : dim + 2], error[:, -1:]], dim=1)
        tests = [torch.ones_like(z), torch.tanh(x[:, 0]), torch.tanh(z / L), (z > L).double()]
        errors.append(torch.stack([(error * t[:, None]).mean(0) for t in tests]))
    found = torch.stack(errors)  # of batches, whose points share charges
    deviation = found.mean(0) / (found.std(0) / math.sqrt(len(found)))
    assert deviation.abs().max() < 4


@pytest.mark.parametrize("charges", [1, 16])
def test_without_the_own_charge_targets_are_biased(charges: int) -> None:
    """The test above can fail: charges that are not the points' own pull y away."""
    source, target = standard(2), two_clusters(2)
    draws, posterior = (draw_of(source, 1), draw_of(target, 2)), exactly(source, target)
    p, q = draws[0](20_000), draws[1](20_000)
    x, z, _ = flux_points(p, q, PLATES, True, rng())
    others = draws[1](charges)
    y, _ = plate_flux(x, z - L, others)
    r = posterior(x, z)[2]
    error = ((1 - r)[:, None] * (y - posterior(x, z)[1]))[:, 0]
    assert error.mean().abs() > 4 * error.std() / math.sqrt(len(error))


def test_a_weight_of_each_output_enters_the_loss_by_itself() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, s: Tensor) -> Tensor:
            return 0 * x

    x, target = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.5]])
    loss = regression_loss(Zero(), Regression(x, x[:, 0], target, weight))
    assert loss.item() == pytest.approx((1 + 0 + 18 + 8) / 4)
    loss = regression_loss(Zero(), Regression(x, x[:, 0], target, weight[:, 0]))
    assert loss.item() == pytest.approx((2.5 + 2 * 12.5) / 2)


# --- The model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16, 64, 768])
def test_the_flux_of_a_gaussian_plate(dim: int) -> None:
    """Mean charge and density against the quadrature of the exact fields, everywhere."""
    stds = torch.logspace(-1, 0.3, dim).double()
    axes = torch.linalg.qr(normal(dim, dim, seed=3)).Q
    samples = math.sqrt(2 * dim) * torch.cat([torch.eye(dim), -torch.eye(dim)]).double() * stds / 2
    samples = math.sqrt(2) * samples @ axes.T + 1  # of exactly this covariance
    model = GaussianFlux(samples, 0.02, 1e4)
    charge = torch.zeros(1, dim).double(), stds[None], torch.ones(1).double()
    radius = float(torch.linalg.vector_norm(stds))
    direction = normal(20, dim, seed=1)
    direction /= torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    references = []
    for reach in (0.3, 1.0, 3.0, 30.0):
        for height in (0.02, 0.5, 5.0, 100.0):
            x, h = reach * radius * direction, torch.full((20,), height).double()
            y, log_density, _ = model(x @ axes.T + 1, h)
            exact = mixtures.mean_charge(x, h, charge)
            error = torch.linalg.vector_norm((y - 1) @ axes - exact, dim=1).max()
            assert error < 0.01 * radius, (reach, height)
            field, log_norm = mixtures.plate_field(x, h, charge)
            references.append(log_density - log_norm - field[:, -1].log())
    differences = torch.cat(references)
    assert (differences - differences.mean()).abs().max() < 0.03


@pytest.mark.parametrize("dim", [2, 16])
def test_far_away_plates_have_the_flux_of_point_charges(dim: int) -> None:
    """Whatever the network says: mean charges, and the odds of the plates."""
    p, q = normal(500, dim).float() + 2, normal(500, dim, seed=1).float() - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = FluxModel(NetworkSettings(width=16, depth=2).factory(dim), p, q, PLATES).double()
    away = normal(20, dim + 1, seed=4)
    points = 500 * away / torch.linalg.vector_norm(away, dim=1, keepdim=True)
    x, z = points[:, :-1], points[:, -1]
    columns = model(x, z)
    centres = p.double().mean(0), q.double().mean(0)
    for y, centre in zip(columns[:, :-1].split(dim, 1), centres, strict=True):
        assert torch.linalg.vector_norm(y - centre, dim=1).max() < 0.1 * math.sqrt(dim)
    logs = [plate_flux(x, h, c[None])[1] for h, c in zip((z, z - L), centres, strict=True)]
    odds = torch.logit(columns[:, -1] / math.sqrt(2 * dim))
    torch.testing.assert_close(odds, logs[0] - logs[1], rtol=0, atol=0.02)


def test_the_model_has_columns_of_both_plates_and_both_sides() -> None:
    p, q = normal(100, 3).float(), normal(100, 3, seed=1).float() + 2
    model = EFM.create(3, recipe="flux", L=L).model(
        NetworkSettings(width=16, depth=2).factory(3), p, q
    )
    assert isinstance(model, FluxModel)
    z = torch.linspace(-L, 2 * L, 100) + 0.01
    columns = model(p, z)
    assert columns.shape == (100, 7)
    mirrored = model(p, -z)
    torch.testing.assert_close(mirrored[:, :3], columns[:, :3])  # the source's charge, of |z|
    direction, _ = flux_field(p, z, L, columns)
    torch.testing.assert_close(torch.linalg.vector_norm(direction, dim=1), torch.ones(100))
    between = (z > 1e-3) & (z < L - 1e-3)
    assert (direction[between, -1] > 0).all()


# --- The theorem ---------------------------------------------------------------------------------


class Exactly(nn.Module):
    """What a perfect network says."""

    def __init__(self, posterior: Posterior, capacitor: object) -> None:
        super().__init__()
        self.posterior, self.capacitor = posterior, capacitor

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return as_columns(*(part.to(x) for part in self.posterior(x.double(), z.double())))


def test_both_sided_lines_of_exact_posteriors_carry_one_law_to_the_other() -> None:
    """To the weights of three clusters; forward lines alone do not (chi^2)."""
    means = torch.tensor([[4.0, 0.0], [-3.0, 2.0], [-1.0, -4.0]]).double()
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    target = means, torch.full((3, 2), 0.4).double(), weights
    distance, n = 2.0, 1000
    p, q = draw_of(standard(2), 1)(4000), draw_of(target, 2)(4000)
    start = StandardNormal((2,)).low_variance(n, rng(3)).double()
    found = {}
    for lines in ("two_sided", "forward"):
        method = EFM.create(2, recipe="flux", L=distance, lines=lines, variable="arc_length")
        capacitor = method.model(NetworkSettings().factory(2), p, q).capacitor
        model = Exactly(exactly(standard(2), target, distance), capacitor)
        result = method.transport(model, start, Solver(rtol=0.02, atol=0.01), rng=rng(4))
        assert result.landed.double().mean() > 0.995
        counts = torch.cdist(result.end, means).argmin(1).bincount(minlength=3).double()
        found[lines] = float(((counts - n * weights).square() / (n * weights)).sum())
    assert found["two_sided"] < 10  # of two degrees of freedom, for independent starts
    assert found["forward"] > 20


def test_settings_come_with_their_recipe() -> None:
    assert EFM.create(2).recipe == EFM.create(64).recipe == "published"
    low, high = EFM.create(2, recipe="flux"), EFM.create(64, points="flux")
    assert (low.points, low.lines, low.charges, low.sigma) == ("flux", "two_sided", 256, None)
    assert (high.recipe, high.charges, high.offset) == ("flux", 1, 1e-3)
    forward = EFM.create(2, points="flux", lines="forward")
    assert (forward.lines, low.tolerance, forward.tolerance) == ("forward", 3e-3, None)
    with pytest.raises(ValueError, match="recipe"):
        EFM.create(2, recipe="flux", points="mix")
