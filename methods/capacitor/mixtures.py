r"""Exact fields of plates whose charge is a mixture of Gaussians: of distributions, not of samples.

Coulomb's field of a unit charge is an integral of Gaussians over their variance. So with
P = sum_k w_k N(m_k, S_k), S_k diagonal, the field of the unit plate z = 0 is

.. math:: E(x, h) = \frac12 \int_0^\infty \sum_k w_k N(x; m_k, S_k + \tau I)
          \Bigl( (S_k + \tau I)^{-1} (x - m_k)\, \theta, \; \eta \Bigr) d\tau, \quad
          \theta = \frac{e^{-h^2 / 2 \tau}}{\sqrt{2 \pi \tau}}, \quad \eta = \frac h\tau \theta,

in one dimension for any D. In a chain of capacitors, with P on all planes z = 2kL and -Q on all
z = (2k + 1)L, theta and eta are the sums over the images of a plate.

The integral is taken by the trapezoid rule in log tau, which converges exponentially, with all
terms in logs. Plates that are superposed share the nodes: far from a neutral pair, where their
fields cancel, so do the errors.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from methods.base import Mixture
from methods.capacitor.lines import Capacitor
from methods.electrostatics import superpose, unit

DIGITS = 22.0  # what is below e^-22 of an integral is left out
BLOCK, NODES = 2**18, 100  # components x points x nodes held at a time; nodes, about
LOWEST = 1e-12  # in units of a plate's distances: lower points have E_z = 0, as on the plate
CROSSOVER = 2 / math.pi  # in L^2: the variance from which cosines converge faster than images
FLAT = 30.0  # E_z of a chain is not resolved where it is below e^-30 of E_x

# tau (Q,) and heights (B,) over a plate -> log theta and eta / theta, (B, Q).
_Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# The differences (K, B, D) of points to the means of a plate, their heights (B,) over it, and it.
_Side = tuple[Tensor, Tensor, "_Plate"]


def plate_field(x: Tensor, h: Tensor, charge: Mixture) -> tuple[Tensor, Tensor]:
    """Direction and log-norm of the field of one unit plate at z = 0.

    Points ``x`` (B, D) and ``h`` (B,) on either side of it, and the result, are those of
    :func:`methods.electrostatics.poisson_field`; relative errors are about 1e-9. On the plate
    (h = 0) E_z is the mean of both sides, zero.
    """
    return _field(x, [(h, charge)], _one_plate)


def capacitor_field(
    x: Tensor, z: Tensor, positive: Mixture, negative: Mixture, plate_distance: float
) -> tuple[Tensor, Tensor]:
    """Direction and log-norm of the field of a capacitor.

    As :func:`methods.electrostatics.capacitor_field`, of which it is the limit for many charges.
    """
    plates = [(z, positive), (z.double() - plate_distance, negative)]
    return _field(x, plates, _one_plate)


def chain_field(
    x: Tensor, z: Tensor, positive: Mixture, negative: Mixture, plate_distance: float
) -> tuple[Tensor, Tensor]:
    r"""Direction and log-norm of the field of a chain of capacitors.

    .. math:: E(x, z) = \sum_k E_P(x, z - 2kL) - E_Q(x, z - (2k + 1)L)

    Points and result are those of :func:`capacitor_field`. E_z is positive for 0 < z < L, and zero
    on all plates off the charges. Away from them it falls off like e^{-pi r / L}, E_x as a power.
    """

    def images(tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return _all_images(tau, h, plate_distance)

    def nearest(h: Tensor) -> Tensor:
        return torch.remainder(h + plate_distance, 2 * plate_distance) - plate_distance

    plates = [(nearest(z.double()), positive), (nearest(z.double() - plate_distance), negative)]
    return _field(x, plates, images, plate_distance)


def mean_charge(x: Tensor, h: Tensor, charge: Mixture) -> Tensor:
    r"""E[p | x] (B, D) of the charges p ~ P whose flux meets the points, at the height h != 0.

    .. math:: x = p + h C, \quad E[p | x] = x - h E_x / E_z,

    with C a D-dimensional Cauchy vector: what a perfect model of a plate's field learns.
    """
    direction, _ = plate_field(x.double(), h, charge)
    return (x - h[:, None] * direction[:, :-1] / direction[:, -1:]).to(x)


class MixtureField(nn.Module):
    """The field of a capacitor of two distributions: direction and log-norm, (B, D + 2)."""

    def __init__(self, source: Mixture, target: Mixture, plate_distance: float) -> None:
        super().__init__()
        self.plate_distance, self.dim = plate_distance, source[0].shape[1]
        plates = [torch.cat([m, s, w[:, None]], dim=1).double() for m, s, w in (source, target)]
        self.source, self.target = map(nn.Buffer, plates)  # (K, 2D + 1)
        centres, radii = zip(*map(_centre_and_radius, (source, target)), strict=True)
        self.capacitor = Capacitor.between(plate_distance, torch.stack(centres), radii)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> E/|E| and log|E|, (B, D + 2)."""
        plates = [
            (plate[:, : self.dim], plate[:, self.dim : -1], plate[:, -1])
            for plate in (self.source, self.target)
        ]
        direction, log_norm = capacitor_field(x, z, plates[0], plates[1], self.plate_distance)
        return torch.cat([direction, log_norm[:, None]], dim=1)


def _centre_and_radius(mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Mean (D,) and root mean square distance from it."""
    means, stds, weights = mixture
    centre = weights @ means
    squared = (means - centre).square().sum(1) + stds.square().sum(1)
    return centre, (weights @ squared).sqrt()


class _Plate(NamedTuple):
    """A mixture whose coordinates are grouped by equal standard deviations, in float64."""

    means: Tensor  # (K, 1, D)
    variances: Tensor  # (K, G)
    log_weights: Tensor  # (K,)
    group: Tensor  # (D,) of each coordinate, in 0 .. G-1
    sizes: Tensor  # (G,)

    @classmethod
    def of(cls, charge: Mixture, x: Tensor) -> Self:
        means, stds, weights = (part.to(x.device, torch.float64) for part in charge)
        shape = (len(weights), x.shape[1])
        if means.shape != shape or stds.shape != shape:
            shapes = f"{tuple(means.shape)} and {tuple(stds.shape)}"
            raise ValueError(f"means and stds must have the shape {shape}, got {shapes}")
        columns, group, sizes = torch.unique(stds, dim=1, return_inverse=True, return_counts=True)
        return cls(means[:, None], columns.square(), weights.log(), group, sizes.double())

    def squared(self, difference: Tensor) -> Tensor:
        """Squared distances by group (K, B, G) of the differences (K, B, D)."""
        by_group = difference.new_zeros(*difference.shape[:2], len(self.sizes))
        return by_group.index_add_(2, self.group, difference.square())


def _field(
    x: Tensor, plates: list[tuple[Tensor, Mixture]], kernel: _Kernel, period: float = math.inf
) -> tuple[Tensor, Tensor]:
    """The field of one plate, or of the first minus the second; ``period`` is L of a chain.

    Of points that are not finite it is NaN.
    """
    if x.ndim != 2 or any(h.shape != x.shape[:1] for h, _ in plates):
        shapes = f"{tuple(x.shape)} and {tuple(plates[0][0].shape)}"
        raise ValueError(f"x must be (B, D) and z (B,), got {shapes}")
    grouped = [_Plate.of(charge, x) for _, charge in plates]
    heights = torch.stack([h.double() for h, _ in plates])
    result = x.new_full((len(x), x.shape[1] + 2), math.nan)
    # Points of about one height need about the same nodes.
    finite = (x.double().square().sum(1) + heights.square().sum(0)).isfinite().nonzero()[:, 0]
    order = finite[heights.abs().amin(0)[finite].argsort()]
    size = max(len(plate.means) for plate in grouped) * max(x.shape[1], NODES)
    for rows in torch.split(order, max(1, BLOCK // size)) if len(order) else ():
        points = x[rows].double()
        sides = [
            (points - plate.means, h[rows], plate)
            for plate, h in zip(grouped, heights, strict=True)
        ]
        tau, step = _nodes(sides, period)
        fields = [_integral(side, tau, step, kernel) for side in sides]
        direction, log_norm = fields[0] if len(fields) == 1 else superpose(fields[0], fields[1])
        result[rows] = torch.cat([direction, log_norm[:, None]], dim=1).to(x.dtype)
    return result[:, :-1], result[:, -1]


def _nodes(sides: list[_Side], period: float) -> tuple[Tensor, float]:
    r"""Variances tau (Q,), evenly in the logarithm, that serve all points, and their step.

    In u = log tau the integrand is at its narrowest like e^{-s u - a e^{-u}}, s = (D + 1)/2, whose
    Fourier transform falls off like Gamma(s + i omega): to e^{-22} at omega = 11 + 3.75 sqrt(D).
    E_z of a chain is like e^{-a e^{-u} - b e^u}, with kappa = 2 sqrt(ab) = pi r / L, as narrow as
    2 kappa dimensions would make it.
    """
    dim = sides[0][0].shape[2]
    squared = [difference.square().sum(2) for difference, _, _ in sides]  # (K, B)
    nearest = max(float(each.amin(0).max()) for each in squared)
    kappa = min(FLAT, math.pi / period * math.sqrt(nearest))
    # Below, e^{-r^2 / 2 tau} outweighs tau^{-D/2}; beyond, what is left is the power of the tail.
    cut = 2 * (DIGITS + dim / 2 + math.sqrt(DIGITS * dim) + kappa)
    power = (dim + math.isinf(period)) / 2
    lows, highs = [], []
    for r2, (_, h, plate) in zip(squared, sides, strict=True):
        widest, h2 = plate.variances.amax(1, keepdim=True), h.square()
        peak = (widest + (r2 + h2) / dim).log() - plate.log_weights[:, None] / power
        high = peak.amin(0)
        low = torch.maximum((r2 / cut - widest).amin(0), h2.maximum(LOWEST**2 * high.exp()) / cut)
        lows.append(float(low.min().log()))
        highs.append(float(high.max()))
    step = 2 * math.pi / (11 + 3.75 * math.sqrt(math.hypot(dim, 2 * kappa)))
    last = max(highs) + 1 + DIGITS / power
    nodes = torch.arange(math.floor(min(lows) / step), math.ceil(last / step) + 1)
    return nodes.to(squared[0]).mul(step).exp(), step


def _integral(side: _Side, tau: Tensor, step: float, kernel: _Kernel) -> tuple[Tensor, Tensor]:
    """The field of one plate by the trapezoid rule: direction (B, D+1) and log-norm (B,)."""
    difference, h, plate = side
    variance = plate.variances[:, :, None] + tau  # (K, G, Q)
    log_norm = torch.log(2 * math.pi * variance).mul_(plate.sizes[:, None]).sum(1)  # (K, Q)
    constant = plate.log_weights[:, None] - log_norm / 2 + torch.log(tau * step / 2)
    log_theta, slope = kernel(tau, h)
    terms = torch.baddbmm(constant[:, None], plate.squared(difference), 1 / variance, alpha=-0.5)
    terms += log_theta  # (K, B, Q)
    scale = terms.amax((0, 2))
    terms.sub_(scale[:, None]).exp_()
    pull = torch.bmm(terms, (1 / variance).mT)  # (K, B, G)
    field_x = (pull[:, :, plate.group] * difference).sum(0)
    field_z = torch.linalg.vecdot(terms.sum(0), slope)
    direction, norm = unit(torch.cat([field_x, field_z[:, None]], dim=1))
    return direction, scale + norm.log()


def _one_plate(tau: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    h = h[:, None]
    return -(h.square() / tau + torch.log(2 * math.pi * tau)) / 2, h / tau


def _all_images(tau: Tensor, h: Tensor, plate_distance: float) -> tuple[Tensor, Tensor]:
    r"""The sums over the images 2kL of a plate, |h| <= L, in the form that converges at once.

    .. math:: \theta = \sum_k \frac{e^{-(h - 2kL)^2 / 2\tau}}{\sqrt{2\pi\tau}}
                     = \frac1{2L} \Bigl( 1 + 2 \sum_{m \ge 1} \cos\frac{m \pi h}L
                       e^{-m^2 \pi^2 \tau / 2L^2} \Bigr), \quad \eta = -\partial_h \theta
    """
    distance, h = plate_distance, h[:, None]
    log_nearest, _ = _one_plate(tau, h[:, 0])
    few, many = (torch.zeros_like(log_nearest) for _ in range(2))
    theta, eta = torch.ones_like(few), torch.zeros_like(few)
    for k in range(-4, 5):
        image = torch.exp(-2 * distance * (k * k * distance - k * h) / tau)
        few += image
        many += (h - 2 * k * distance) / tau * image
    for m in range(1, 5):
        rate = m * math.pi / distance
        wave = 2 * torch.exp(-(rate**2) * tau / 2)
        theta += torch.cos(rate * h) * wave
        eta += rate * torch.sin(rate * h) * wave
    near = tau < CROSSOVER * distance**2
    log_theta = torch.where(near, log_nearest + few.log(), theta.log() - math.log(2 * distance))
    return log_theta, torch.where(near, many / few, eta / theta)
