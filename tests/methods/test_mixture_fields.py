"""The fields of mixtures of Gaussians: closed forms, Fourier integrals, charges, the quadrature."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import jv, wofz
from torch import Tensor

from bench.metrics.distances import w2
from datasets import TASKS
from methods import electrostatics
from methods.base import Mixture
from methods.capacitor import mixtures
from methods.capacitor.mixtures import MixtureField, chain_field, mean_charge, plate_field
from methods.capacitor.models import ExactField
from methods.efm import ExactElectrostaticField
from methods.solvers import Solver

L = 6.0
Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
HEIGHTS = [1e-3, 0.1, 1.0, 30.0, 300.0, -1e-3, -2.0]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=rng(seed), dtype=torch.float64)


def full(count: int, value: float) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def mixture(dim: int, k: int, seed: int, widths: int = 1, radius: float = 3.0) -> Mixture:
    """``k`` Gaussians, their standard deviations .03 to 3, of one or (``widths`` = dim) many."""
    stds = 10 ** uniform(-1.5, 0.5, k, widths, seed=seed + 1)
    means = radius * normal(k, dim, seed=seed) / math.sqrt(dim)
    return means, stds.expand(k, dim), normal(k, seed=seed + 2).softmax(0)


def gaussian(dim: int, std: float) -> Mixture:
    zero = torch.zeros(1, dim).double()
    return zero, zero + std, torch.ones(1).double()


def samples(charge: Mixture, n: int, seed: int = 0) -> Tensor:
    means, stds, weights = charge
    k = torch.multinomial(weights, n, True, generator=rng(seed))
    return means[k] + stds[k] * normal(n, means.shape[1], seed=seed + 1)


def vectors(field: tuple[Tensor, Tensor]) -> Tensor:
    return field[0] * field[1].exp()[:, None]


def points(p: Mixture, q: Mixture, count: int = 40) -> tuple[Tensor, Tensor]:
    """Points in the data, beside and far from them, at heights 1e-3 to 3 over either plate."""
    dim = p[0].shape[1]
    away = 10 ** uniform(1, 2.5, count, 1, seed=3) * normal(count, dim, seed=4) / math.sqrt(dim)
    x = torch.cat([samples(p, count), samples(q, count), away])
    h = 10 ** uniform(-3, 0.5, len(x), seed=5)
    return x, torch.where(torch.arange(len(x)) % 2 == 0, h, L - h)


# --- Closed forms and Fourier integrals --------------------------------------------------------


@pytest.mark.parametrize("h", HEIGHTS)
def test_on_the_line_it_is_the_faddeeva_function(h: float) -> None:
    """D = 1: E_z + i E_x = sum_k w_k w((x - m_k + i h) / (s_k sqrt 2)) / (2 s_k sqrt(2 pi))."""
    means, stds, weights = np.array([-1.0, 2.0, 9.0]), np.array([1.0, 0.1, 3.0]), [0.3, 0.6, 0.1]
    parts = (means, stds, np.array(weights))
    charge = tuple(torch.from_numpy(part) for part in parts)
    x = torch.linspace(-400, 400, 81, dtype=torch.float64)[:, None]
    arguments = (x.numpy() - means + 1j * abs(h)) / (stds * math.sqrt(2))
    expected = (wofz(arguments) / (2 * stds * math.sqrt(2 * math.pi))) @ parts[2]
    mix = charge[0][:, None], charge[1][:, None], charge[2]
    field = vectors(plate_field(x, full(81, h), mix)).numpy()
    assert np.abs(math.copysign(1, h) * field[:, 1] / expected.real - 1).max() < 1e-8
    assert np.abs((field[:, 0] - expected.imag) / np.abs(expected)).max() < 1e-8


def fourier(
    dim: int, r: float, kernels: list[tuple[float, Callable[[float], float]]], order: int
) -> float:
    """(2 pi)^{-D/2} r^{1 - D/2} / 2 times the integral of k^{D/2} J(k r) sum f(k) e^{-s^2 k^2/2}.

    With J of order D/2 - 1 + ``order``: E_z (0) or the radial field (1) of concentric Gaussians of
    standard deviations s, whose charge's potential transforms like f(k) / 2k.
    """

    def integrand(k: float) -> float:
        sum_ = sum(f(k) * math.exp(-((s * k) ** 2) / 2) for s, f in kernels)
        return float(k ** (dim / 2) * jv(dim / 2 - 1 + order, k * r) * sum_)

    top = 9 / min(s for s, _ in kernels) + math.sqrt(dim)
    value, _ = quad(integrand, 0, top, limit=2000, epsabs=0, epsrel=1e-11)
    return float(value * (2 * math.pi) ** (-dim / 2) * r ** (1 - dim / 2) / 2)


@pytest.mark.parametrize("dim", [2, 3, 16, 64])
@pytest.mark.parametrize("h", [1e-3, 0.3, 4.0])
def test_a_plate_is_its_fourier_integral(dim: int, h: float) -> None:
    for r in (1e-3, 0.5, 2.0):
        x = torch.zeros(1, dim).double()
        x[0, 0] = r
        field = vectors(plate_field(x, full(1, h), gaussian(dim, 0.8)))[0]
        kernel = [(0.8, lambda k: math.exp(-k * h))]
        assert float(field[-1]) == pytest.approx(fourier(dim, r, kernel, 0), rel=1e-8)
        assert float(field[0]) == pytest.approx(fourier(dim, r, kernel, 1), rel=1e-8)


@pytest.mark.parametrize("dim", [2, 3, 16])
@pytest.mark.parametrize("distance", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("t", [0.01, 0.4, 0.98])
def test_a_chain_is_its_fourier_integral(dim: int, distance: float, t: float) -> None:
    """The Poisson kernels of the strip: sinh(k (L - z)) / sinh(k L) and sinh(k z) / sinh(k L)."""
    z = t * distance

    def ratio(sign: int, h: float) -> Callable[[float], float]:
        """(e^{-k (L - h)} + sign e^{-k (L + h)}) / (1 - e^{-2 k L})."""

        def kernel(k: float) -> float:
            both = math.exp(-k * (distance - h)) + sign * math.exp(-k * (distance + h))
            return -both / math.expm1(-2 * k * distance)

        return kernel

    flux = [(1.0, ratio(-1, distance - z)), (0.6, ratio(-1, z))]
    away, towards = ratio(1, distance - z), ratio(1, z)
    pull = [(1.0, away), (0.6, lambda k: -towards(k))]
    for r in (1e-3, 1.0, 2.0):
        x = torch.zeros(1, dim).double()
        x[0, 0] = r
        at = full(1, z)
        field = vectors(chain_field(x, at, gaussian(dim, 1.0), gaussian(dim, 0.6), distance))[0]
        size = float(field.norm())
        assert float(field[-1]) == pytest.approx(fourier(dim, r, flux, 0), rel=1e-7)
        assert float(field[0]) == pytest.approx(fourier(dim, r, pull, 1), abs=1e-8 * size)


# --- Charges and samples -----------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 64])
def test_points_without_width_are_charges(dim: int) -> None:
    p, q = normal(5, dim), 3 + normal(4, dim, seed=1)
    as_mixtures = [(c, torch.zeros_like(c), full(len(c), 1 / len(c))) for c in (p, q)]
    x, z = points(*as_mixtures)
    x = x + 0.1 * normal(*x.shape, seed=6)
    pairs = [
        (plate_field(x, z, as_mixtures[0]), electrostatics.poisson_field(x, z, p)),
        (
            mixtures.capacitor_field(x, z, *as_mixtures, L),
            electrostatics.capacitor_field(x, z, p, q, L),
        ),
    ]
    for (direction, log_norm), (expected, expected_log) in pairs:
        bound = 2e-8 if dim > 1 else 1e-7
        assert (direction - expected).norm(dim=1).max() < bound
        assert (log_norm - expected_log).abs().max() < bound


@pytest.mark.parametrize("dim", [2, 8])
def test_it_is_the_mean_field_of_samples(dim: int) -> None:
    """A million samples: field and mean charge within four standard errors."""
    charge, n = mixture(dim, 4, seed=2, widths=dim), 1_000_000
    p = samples(charge, n, seed=7)
    x, h = samples(charge, 4, seed=8), torch.tensor([0.5, -1.0, 2.0, 10.0]).double()
    field, y = vectors(plate_field(x, h, charge)), mean_charge(x, h, charge)
    for row in range(4):
        difference = torch.cat([x[row] - p, h[row].expand(n, 1)], dim=1)
        r = difference.norm(dim=1, keepdim=True)
        weight = (r / r.min()) ** -(dim + 1)
        area = math.exp(electrostatics.log_sphere_area(dim + 1))
        each = difference * weight * float(r.min()) ** -(dim + 1) / area
        error = each.std(0) / math.sqrt(n)
        assert ((field[row] - each.mean(0)).abs() < 4 * error).all()
        mean = (weight * p).sum(0) / weight.sum()
        error = (weight * (p - mean)).std(0) / weight.mean() / math.sqrt(n)
        assert ((y[row] - mean).abs() < 4 * error).all()


@pytest.mark.parametrize("dim", [2, 64])
def test_mean_charges_far_and_near(dim: int) -> None:
    """Far away that of the plate; within the hull of x and the means; at the plate x itself."""
    means, _, weights = charge = mixture(dim, 3, seed=1)
    x = samples(charge, 20)
    far = mean_charge(x, full(20, 1e5), charge)
    torch.testing.assert_close(far, (weights @ means).expand(20, -1), atol=1e-3, rtol=0)
    if dim == 2:  # above, sharp Gaussians farther away outweigh a broad one
        near = mean_charge(x, full(20, 1e-5), charge)
        torch.testing.assert_close(near, x, atol=1e-2, rtol=0)
    directions = normal(50, dim, seed=3)
    y = mean_charge(x, full(20, 0.7), charge) @ directions.T
    hull = torch.stack([x @ directions.T, *(m.expand(20, -1) @ directions.T for m in means)])
    assert ((y <= hull.amax(0) + 1e-9) & (y >= hull.amin(0) - 1e-9)).all()


# --- Laws of the field -------------------------------------------------------------------------


def test_gauss_law() -> None:
    """D = 1: the flux through circles around the plate, and beside it."""
    charge = mixture(1, 3, seed=4, radius=1.0)
    angle = 2 * math.pi * torch.arange(400).double() / 400
    outward = torch.stack([angle.cos(), angle.sin()], dim=1)
    for centre, radius, inside in ((0.0, 60.0, 1.0), (70.0, 60.0, 0.0)):
        field = plate_field(radius * outward[:, :1], centre + radius * outward[:, 1], charge)
        flux = (vectors(field) * outward).sum(1).mean() * 2 * math.pi * radius
        assert float(flux) == pytest.approx(inside, abs=1e-8)


@pytest.mark.parametrize("z", [0.01, 1.0, 3.0, 5.9])
def test_half_of_the_flux_of_a_chain_passes_at_any_height(z: float) -> None:
    """Each plate sends as much to either side, and between plates nothing is lost."""
    p, q = mixture(2, 3, seed=0), mixture(2, 4, seed=5)
    p, q = ((means, 1 + stds, weights) for means, stds, weights in (p, q))
    axis = torch.arange(-40, 41).double()
    x = torch.cartesian_prod(axis, axis)
    field = vectors(chain_field(x, full(len(x), z), p, q, L))
    assert float(field[:, 2].sum()) == pytest.approx(0.5, abs=1e-5)
    assert (field[:, 2] > 0).all()


@pytest.mark.parametrize("dim", [2, 3, 16])
@pytest.mark.parametrize("kind", [mixtures.capacitor_field, chain_field])
def test_field_is_free_of_divergence_and_curl(dim: int, kind: Callable[..., object]) -> None:
    p, q = mixture(dim, 3, seed=0, widths=dim), mixture(dim, 2, seed=5)
    at = torch.cat([samples(q, 5), torch.tensor([0.5, 2, 3, 5, 5.6])[:, None]], dim=1)
    steps = 1e-3 * torch.eye(dim + 1).double()
    moved = torch.stack([at + part * step for step in steps for part in (-2, -1, 1, 2)])
    flat = moved.reshape(-1, dim + 1)
    direction, log_norm = kind(flat[:, :-1], flat[:, -1], p, q, L)  # type: ignore[misc]
    log_norm = log_norm.reshape(-1, 5)
    scaled = direction.reshape(-1, 5, dim + 1) * (log_norm - log_norm.mean(0)).exp()[:, :, None]
    far_below, below, above, far_above = scaled.reshape(dim + 1, 4, 5, dim + 1).unbind(1)
    jacobian = ((8 * (above - below) - (far_above - far_below)) / 12e-3).permute(1, 0, 2)
    size = torch.linalg.matrix_norm(jacobian)
    assert (jacobian.diagonal(dim1=1, dim2=2).sum(1).abs() < 1e-5 * size).all()
    assert (torch.linalg.matrix_norm(jacobian - jacobian.mT) < 1e-5 * size).all()


@pytest.mark.parametrize("dim", [2, 16])
def test_a_mixture_is_the_sum_of_its_parts(dim: int) -> None:
    """Also where the field of a far plate is above that of a small charge nearby."""
    means = torch.stack([full(dim, 0.0), full(dim, 1e3)])
    stds, weights = full(2, 0.03)[:, None].expand(2, dim), torch.tensor([10.0**-dim / 1e8, 1.0])
    x, h = 0.03 * normal(20, dim), 0.1 * normal(20)
    whole = vectors(plate_field(x, h, (means, stds, weights)))
    parts = [(means[k, None], stds[k, None], weights[k, None]) for k in range(2)]
    expected = sum((vectors(plate_field(x, h, part)) for part in parts), torch.zeros(1))
    assert ((whole - expected).norm(dim=1) < 1e-8 * expected.norm(dim=1)).all()


def test_coordinates_of_equal_widths_are_grouped() -> None:
    """Two of three, beside widths that differ by so little that they are not."""
    means, stds, weights = mixture(3, 4, seed=0, widths=3)
    stds = stds[:, [0, 1, 0]]
    apart = stds * torch.tensor([1, 1, 1 + 1e-12], dtype=torch.float64)
    x, h = samples((means, stds, weights), 20), 10 ** uniform(-2, 0, 20)
    grouped, single = (plate_field(x, h, (means, some, weights)) for some in (stds, apart))
    torch.testing.assert_close(vectors(grouped), vectors(single), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("z", [0.3, 4.0])
def test_a_chain_is_the_sum_of_its_plates(z: float) -> None:
    """Plates as far as 40 L, and the means of partial sums, of which every second is too large.

    The means of both plates are the same, or the dipoles of pairs add up far away.
    """
    p, (means, stds, weights) = mixture(3, 3, seed=0, widths=3), mixture(3, 2, seed=5)
    q = means + p[2] @ p[0] - weights @ means, stds, weights
    x = samples(p, 10)
    total, sums = torch.zeros(10, 4).double(), []
    for shell in range(40):
        for k in {shell, -shell}:
            height = full(10, z - k * L)
            plate = vectors(plate_field(x, height, q if k % 2 else p))
            total = total - plate if k % 2 else total + plate
        sums.append(total)
    partial = torch.stack(sums[-8:])
    while len(partial) > 1:
        partial = (partial[1:] + partial[:-1]) / 2
    field = vectors(chain_field(x, full(10, z), p, q, L))
    assert ((field - partial[0]).norm(dim=1) < 1e-7 * field.norm(dim=1)).all()
    for way in (2 * L, -4 * L):
        again = vectors(chain_field(x, full(10, z + way), p, q, L))
        torch.testing.assert_close(again, field, rtol=1e-7, atol=1e-12)


# --- The quadrature ----------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("same_widths", [True, False])
def test_more_nodes_change_nothing(
    dim: int, same_widths: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as dense, and farther at both ends."""
    p, q = (mixture(dim, 4, seed, 1 if same_widths else dim) for seed in (0, 5))
    x, z = points(p, q)
    inside = x[: len(x) * 2 // 3], z[: len(x) * 2 // 3]  # far from a chain E_z is not resolved
    fields: list[Callable[[], tuple[Tensor, Tensor]]] = [
        lambda: plate_field(x, z, p),
        lambda: plate_field(x, -z, q),
        lambda: mixtures.capacitor_field(x, z, p, q, L),
        lambda: chain_field(*inside, p, q, L),
        lambda: chain_field(inside[0], inside[1] / L, p, q, 1.0),
    ]
    before, nodes = [field() for field in fields], mixtures._nodes

    def more(*arguments: object) -> tuple[Tensor, float]:
        tau, step = nodes(*arguments)  # type: ignore[arg-type]
        low, high = math.log(float(tau[0])) - 3, math.log(float(tau[-1])) + 20 / dim
        u = torch.arange(low, high, step / 2, dtype=torch.float64)
        return u.exp(), step / 2

    monkeypatch.setattr(mixtures, "_nodes", more)
    for (direction, log_norm), field in zip(before, fields, strict=True):
        finer, finer_log = field()
        # At D = 1 a far pair cancels nearly to the square of its distance.
        bound = 2e-8 if dim > 1 else 1e-6
        assert (direction - finer).norm(dim=1).max() < bound
        assert (log_norm - finer_log).abs().max() < bound
        assert (direction[:, -1] / finer[:, -1] - 1).abs().max() < bound


@pytest.mark.parametrize("dim", [2, 16, 64])
@pytest.mark.parametrize("h", HEIGHTS)
def test_about_a_hundred_nodes_are_enough(dim: int, h: float) -> None:
    charge = mixture(dim, 4, seed=0)
    plate, x = mixtures._Plate.of(charge, charge[0]), samples(charge, 50)
    side = (x - plate.means, full(50, h), plate)
    assert len(mixtures._nodes([side], math.inf)[0]) <= (115 if dim < 64 else 165)


# --- The method --------------------------------------------------------------------------------


def test_the_model_of_mixtures_is_that_of_many_charges() -> None:
    """The same field, and the same centres and size of the plates."""
    p, q = mixture(2, 3, seed=0), mixture(2, 4, seed=5)
    model = MixtureField(p, q, L)
    x, z = samples(p, 20), uniform(1, 5, 20)
    charges = samples(p, 20_000, seed=1), samples(q, 20_000, seed=2)
    many = ExactField(*charges, L)
    torch.testing.assert_close(model(x, z), many(x, z), rtol=0, atol=0.03)
    ours, theirs = model.capacitor, many.capacitor
    torch.testing.assert_close(ours.centres, theirs.centres, rtol=0, atol=0.1)
    assert ours.size == pytest.approx(theirs.size, rel=0.02)
    weights, again = model.state_dict(), MixtureField(q, q, L)
    with pytest.raises(RuntimeError, match="size mismatch for source"):
        again.load_state_dict(weights)


def test_a_field_of_distributions_has_no_charges() -> None:
    method = ExactElectrostaticField(of="distributions")
    assert method.hyperparameters()["charges"] is None
    assert ExactElectrostaticField(**method.hyperparameters()) == method
    with pytest.raises(ValueError, match="landing must be plate"):
        ExactElectrostaticField(of="distributions", landing="charge")
    with pytest.raises(ValueError, match="charges must have a value"):
        ExactElectrostaticField(charges=None)


@pytest.mark.parametrize(("lines", "bound"), [("forward", 1.5), ("two_sided", 0.4)])
def test_the_lines_of_the_distributions_reach_the_target(lines: str, bound: float) -> None:
    """Eight Gaussians at L = 6: all of them by two-sided lines, and no better than .9 forward."""
    task = TASKS["gaussian_to_8gaussians"]()
    source, target = task.source(), task.target()
    mixed = source.components(), target.components()
    assert mixed[0] is not None
    assert mixed[1] is not None
    method = ExactElectrostaticField(of="distributions", L=L, lines=lines)
    model = method.mixture_model(mixed[0], mixed[1])
    result = method.transport(model, source.low_variance(500, rng(1)), Solver(rtol=1e-3, atol=1e-3))
    assert result.landed.all()
    distance = w2(result.end, target.low_variance(500, rng(2)))
    assert (0.9 if lines == "forward" else 0) < distance < bound


# --- The interface -----------------------------------------------------------------------------


def test_both_sides_of_a_plate() -> None:
    charge = mixture(2, 3, seed=0)
    x, h = samples(charge, 30), 10 ** uniform(-3, 1, 30)
    (above, log_above), (below, log_below) = plate_field(x, h, charge), plate_field(x, -h, charge)
    torch.testing.assert_close(below, above * torch.tensor([1.0, 1.0, -1.0]).double())
    torch.testing.assert_close(log_below, log_above)
    on, log_on = plate_field(x, torch.zeros(30).double(), charge)
    assert (on[:, 2] == 0).all()
    near = vectors(plate_field(x, full(30, 1e-6), charge))
    torch.testing.assert_close(vectors((on, log_on))[:, :2], near[:, :2], rtol=1e-4, atol=1e-6)


def test_blocks_order_and_precision_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = mixture(2, 3, seed=0), mixture(2, 4, seed=5)
    x, z = points(p, q)
    direction, log_norm = mixtures.capacitor_field(x, z, p, q, L)
    half, half_log = mixtures.capacitor_field(x.float(), z.float(), p, q, L)
    assert half.dtype == half_log.dtype == torch.float32
    assert (half - direction).norm(dim=1).median() < 1e-6
    monkeypatch.setattr(mixtures, "BLOCK", 4000)
    mixed = torch.randperm(len(x), generator=rng())
    again, again_log = mixtures.capacitor_field(x[mixed], z[mixed], p, q, L)
    torch.testing.assert_close(again, direction[mixed], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(again_log, log_norm[mixed], rtol=1e-7, atol=1e-7)


def test_points_that_are_not_finite_spoil_no_others() -> None:
    charge = mixture(2, 3, seed=0)
    x, h = samples(charge, 4), torch.ones(4).double()
    x[1, 0], h[2] = math.nan, math.inf
    direction, log_norm = plate_field(x, h, charge)
    good = torch.tensor([0, 3])
    expected = plate_field(x[good], h[good], charge)
    torch.testing.assert_close(direction[good], expected[0])
    torch.testing.assert_close(log_norm[good], expected[1])
    assert direction[1:3].isnan().all()
    assert log_norm[1:3].isnan().all()
    empty, _ = plate_field(x[:0], h[:0], charge)
    assert empty.shape == (0, 3)


def test_shapes_that_do_not_fit_are_named() -> None:
    means, stds, weights = charge = mixture(2, 3, seed=0)
    with pytest.raises(ValueError, match=r"x must be \(B, D\).*\(4, 2\) and \(3,\)"):
        plate_field(torch.zeros(4, 2), torch.zeros(3), charge)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), got \(3, 2\) and \(3, 1\)"):
        plate_field(torch.zeros(4, 2), torch.zeros(4), (means, stds[:, :1], weights))
