r"""The flux of a capacitor: where it passes, and the charges that it belongs to.

Over a unit plate with the density P, at the height h, the field has

.. math:: E_z = \frac{\mathrm{sgn}\, h}2\, q, \quad q = P * K_{|h|}, \qquad
          E_x = \frac{|h|^{-1}}2\, q\, (x - y), \quad y = E[p \mid x],

with the Poisson kernel K_h, which is the density of h C, C = g / |g_0| with standard normal g in
R^D and g_0: a Cauchy distribution. So q is a density of x = p + |h| C, p ~ P, and y is the mean of
the charges p whose flux passes there. The flux of two plates is the mixture of both: with the
probability r = q_P / (q_P + q_Q) that it is the source's, and h_P = z, h_Q = z - L,

.. math:: \frac{2 E}{q_P + q_Q} = r \Bigl(\frac{x - y_P}{|h_P|}, \mathrm{sgn}\, h_P\Bigr)
          - (1 - r) \Bigl(\frac{x - y_Q}{|h_Q|}, \mathrm{sgn}\, h_Q\Bigr).

y_P, y_Q and r are means, given x, of what is known when the point is drawn. So a network can learn
them without bias, by least squares, at points of the flux: in every dimension, on both sides of
both plates, and from one charge a point. Between the plates E_x / E_z is the velocity of a Flow
Matching along z whose conditional paths are Cauchy distributions.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor, nn

from methods.base import Draw, Regression
from methods.capacitor.lines import FAR, Capacitor, rms_radius
from methods.draws import normal, uniform
from methods.electrostatics import plate_flux, unit
from methods.networks import NetworkFactory, ScaledNetwork, Standardised

LOWEST, HIGHEST = 0.4, 20.0  # heights that are learned, in units of where lines end and of L
REFERENCES = 64  # charges a plate of which the weights of the loss are made
CHARGE_WEIGHT, NEAR = 4.0, 0.3  # of an error of y, which counts less nearer than NEAR deviations
LEAST_ERROR = 1e-3  # of the variance of a charge, that a network may correct
DIGITS = 8.0  # of the integral that is a Gaussian plate's flux: what is below e^-8 is left out
MOST_AXES = 1024  # dimensions up to which a plate's covariance is known
TINY = 1e-30  # for 0 in a denominator


class Plates(NamedTuple):
    """How far apart the plates are, and the lowest height over them that is learned."""

    distance: float
    lowest: float

    @classmethod
    def of(cls, plate_distance: float, offset: float) -> Self:
        """Lines start and end at the height ``offset``."""
        return cls(plate_distance, LOWEST * offset)


class FluxPoints(NamedTuple):
    """Points (x, z) of the flux, and whether it is the source's."""

    x: Tensor  # (B, D)
    z: Tensor  # (B,)
    of_source: Tensor  # (B,) bool


def flux_points(
    p: Tensor, q: Tensor, plates: Plates, both_sides: bool, rng: Generator
) -> FluxPoints:
    """A point of the flux of each pair of charges p, q (B, D): x = y + |h| C with y one of them.

    Between the plates half of the heights are uniform, and half log-uniform over either plate. With
    ``both_sides`` half of all points are behind a plate, log-uniform up to ``HIGHEST`` L.
    """
    n, (length, lowest) = len(p), plates
    u, kind, side, owner = uniform((4, n), p, rng)
    near = lowest * (length / 2 / lowest) ** u
    behind = lowest * (HIGHEST * length / lowest) ** u
    height = torch.where(kind < 0.5, u * length, near)
    if both_sides:
        kind = 2 * kind
        height = torch.where(kind < 0.5, u * length, torch.where(kind < 1, near, -behind))
    z = torch.where(side < 0.5, height, length - height)
    of_source = owner < 0.5
    y = torch.where(of_source[:, None], p, q)
    h = torch.where(of_source, z, z - length).abs()
    # Single normal numbers in float32 are zero.
    cauchy = normal(p.shape, p, rng) / normal((n, 1), p, rng).abs().clamp_min(1e-6)
    return FluxPoints(y + h[:, None] * cauchy, z, of_source)


class FluxRegression:
    r"""Batches of the regression of y_P, y_Q and r at points of the flux.

    The charges of a batch stand for the distributions, the point's own among them: then the means
    over them, given the point, are unbiased. y_P is only known from the source's flux, so its error
    is weighted with r, and y_Q's with 1 - r. A displacement of the mean charge turns the field by
    its part of the distance, so errors of y are weighted with the inverse square of that,
    (\sqrt{|x - y|^2 / D + h^2} + .3 s)^2, s the standard deviation of the plate. There y is the
    mean of other charges than those learned from, or the weight would bias what it weighs.
    """

    def __init__(
        self, source: Draw, target: Draw, plates: Plates, charges: int, both_sides: bool
    ) -> None:
        self.source, self.target, self.charges = source, target, charges
        self.plates, self.both_sides = plates, both_sides

    def batch(self, n: int, rng: Generator) -> Regression:
        """``n`` points: targets and weights of the columns of :class:`FluxModel`."""
        own = self.charges == 1
        p, q = (draw(n if own else self.charges) for draw in (self.source, self.target))
        rows = torch.arange(n, device=p.device)
        if not own:
            rows = torch.randint(len(p), (n,), generator=rng, device=rng.device)
        x, z, _ = flux_points(p[rows], q[rows], self.plates, self.both_sides, rng)
        heights = z.double(), z.double() - self.plates.distance
        fluxes = [
            _flux_of_one(x, h, y) if own else plate_flux(x, h, y)
            for h, y in zip(heights, (p, q), strict=True)
        ]
        r = torch.sigmoid(fluxes[0][1] - fluxes[1][1]).to(x)
        target = as_columns(fluxes[0][0].to(x), fluxes[1][0].to(x), r)
        references = self.source(REFERENCES), self.target(REFERENCES)
        sides = zip(heights, references, (r, 1 - r), strict=True)
        weights = [self._weight(x, h, *side) for h, *side in sides]
        last = torch.ones_like(weights[0][:, :1])
        return Regression(x, z, target, torch.cat([*weights, last], dim=1))

    def _weight(self, x: Tensor, h: Tensor, charges: Tensor, share: Tensor) -> Tensor:
        y, _ = plate_flux(x, h, charges)
        distance = ((x - y).square().mean(1) + h.to(x).square()).sqrt()
        distance = distance + NEAR * charges.std(0).mean()
        weight = CHARGE_WEIGHT * share / distance.to(x).square()
        return weight[:, None].expand_as(x)


def _flux_of_one(x: Tensor, h: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`plate_flux` where each point has a plate with one charge, ``charge`` (B, D)."""
    squared = (x - charge).double().square().sum(1) + h.square()
    return charge, h.abs().log() - (x.shape[1] + 1) / 2 * squared.log()


def as_columns(y_p: Tensor, y_q: Tensor, r: Tensor) -> Tensor:
    """y_P, y_Q (B, D) and r (B,), which counts as much as a coordinate does: (B, 2 D + 1)."""
    return torch.cat([y_p, y_q, math.sqrt(2 * y_p.shape[1]) * r[:, None]], dim=1)


class GaussianFlux(nn.Module):
    r"""The flux of the plate N(m, S): mean charge and log-density, with m and S those of samples.

    x is m + N(0, S + tau I) with tau = h^2 / g_0^2, so in the axes of S, with the variances v_k,

    .. math:: y_k - m_k = E\Bigl[\frac{v_k}{v_k + \tau} \Bigm| x\Bigr] (x_k - m_k), \quad
              q = \int_0^\infty \frac{h}{\tau^{3/2}} e^{-h^2 / 2 \tau} \prod_k (v_k + \tau)^{-1/2}
              e^{-(x_k - m_k)^2 / 2 (v_k + \tau)}\, d\tau

    up to a constant, by the trapezoid rule in log tau. Far away it is the flux of a point charge
    and of the plate's quadrupole. Above ``MOST_AXES`` dimensions all v_k are their mean.
    """

    def __init__(self, samples: Tensor, lowest: float, farthest: float) -> None:
        super().__init__()
        dim = samples.shape[1]
        self.mean, self.farthest = nn.Buffer(samples.mean(0)), farthest
        offset = (samples - self.mean).double()
        if dim <= MOST_AXES:
            variances, axes = torch.linalg.eigh(offset.T @ offset / len(samples))
        else:
            variances, axes = offset.square().mean().expand(dim), None
        self.variances = nn.Buffer(variances.clamp_min(0).to(samples))  # (D,)
        self.axes = None if axes is None else nn.Buffer(axes.to(samples))  # (D, D)
        low = 2 * math.log(lowest / 16)
        high = 2 * math.log(farthest) + 1 + 2 * DIGITS / (dim + 1) - math.log(dim + 1)
        step = min(0.8, 1.2 * math.sqrt(2 / (dim + 1)))  # in widths of the integrand: 1.2 or less
        self.log_tau = nn.Buffer(torch.arange(low, high + step, step, device=samples.device))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, D), h > 0 (B,) -> y (B, D), log q (B,), mean of E[v / (v + tau)] (B, 1)."""
        offset, log_tau, h2 = x - self.mean, self.log_tau, h[:, None].square()
        reach = torch.sqrt(offset.square().sum(1, keepdim=True) + h2)
        held = (self.farthest / reach).clamp_max(1.0)
        offset, h2 = held * offset, held.square() * h2
        if self.axes is not None:
            offset = offset @ self.axes
        total = self.variances[:, None] + log_tau.exp()  # (D, Q)
        log_norm = (log_tau + torch.log(total).sum(0)) / 2
        log_weight = (torch.log(h2) - h2 / log_tau.exp() - offset.square() @ (1 / total)) / 2
        log_weight = log_weight - log_norm
        weight = torch.softmax(log_weight, dim=1)
        known = self.variances[:, None] / total
        y = weight @ known.T * offset
        rho2 = weight @ (self.variances @ known / self.variances.sum().clamp_min(TINY))
        if self.axes is not None:
            y = y @ self.axes.T
        return self.mean + y, torch.logsumexp(log_weight, 1), rho2[:, None]


class PlateFlux(Standardised):
    r"""Mean charge y and log-density of the flux of one plate, at (x, |h|).

    .. math:: y = y_0 + g s \sqrt{1 - \rho^2}\, N_y, \quad \log q = \log q_0 + g N_q, \quad
              g = \min(1, 9 \rho^2)

    where a network N corrects the flux of a Gaussian plate (:class:`GaussianFlux`). There the
    part 1 - rho^2 of the variance s^2 (over coordinates) of a charge is unknown, given x. Far away
    rho -> 0, and the Gaussian's flux is left.
    """

    def __init__(self, samples: Tensor, plates: Plates) -> None:
        super().__init__(samples)
        self.radius = nn.Buffer(rms_radius(samples))
        farthest = 2 * FAR * (plates.distance + float(self.radius))
        self.gaussian = GaussianFlux(samples, plates.lowest, farthest)

    def forward(self, x: Tensor, h: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D), h > 0 (B,), N (B, D + 1) -> y (B, D), log q (B,) up to a constant."""
        y, log_density, rho2 = self.gaussian(x, h)
        correction = (9 * rho2).clamp_max(1.0) * output
        error = self.scale * (1 - rho2).clamp_min(LEAST_ERROR).sqrt()
        return y + error * correction[:, :-1], log_density + correction[:, -1]


class FluxModel(nn.Module):
    """Mean charges of both plates and the probability of the source's flux, everywhere.

    One network serves both plates; an input tells it which.
    """

    def __init__(
        self, network: NetworkFactory, source: Tensor, target: Tensor, plates: Plates
    ) -> None:
        super().__init__()
        self.plate_distance, self.lowest = plates
        self.source, self.target = PlateFlux(source, plates), PlateFlux(target, plates)
        span = math.log(plates.lowest / 2), math.log(HIGHEST * plates.distance)
        self.network = ScaledNetwork(network, source.shape[1] + 1, span, flags=1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> the columns of :func:`as_columns`, (B, 2 D + 1)."""
        plates = self.source, self.target
        heights = [h.abs().clamp_min(self.lowest / 4) for h in (z, z - self.plate_distance)]
        v = torch.cat([plate.standardise(x) for plate in plates])
        parts = zip(heights, plates, strict=True)
        height = torch.cat([h / plate.scale for h, plate in parts])[:, None]
        scalar = torch.log(torch.cat(heights) + self.lowest / 2)
        flag = torch.cat([torch.ones_like(z), -torch.ones_like(z)])[:, None]
        outputs = self.network(torch.cat([x, x]), v, scalar, height, flag).chunk(2)
        y_p, log_p = self.source(x, heights[0], outputs[0])
        y_q, log_q = self.target(x, heights[1], outputs[1])
        return as_columns(y_p, y_q, torch.sigmoid(log_p - log_q))

    @property
    def capacitor(self) -> Capacitor:
        plates = self.source, self.target
        centres = torch.stack([plate.shift for plate in plates])
        return Capacitor.between(self.plate_distance, centres, [plate.radius for plate in plates])


def flux_field(
    x: Tensor, z: Tensor, plate_distance: float, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Direction of E, and log|E| less the log-density of the flux, of columns (B, 2 D + 1)."""
    dim = x.shape[1]
    y_p, y_q, r = columns[:, :dim], columns[:, dim:-1], columns[:, -1:] / math.sqrt(2 * dim)
    plates = [
        torch.cat([(x - y) / h.abs().clamp_min(TINY)[:, None], _side(h)], dim=1)
        for h, y in ((z, y_p), (z - plate_distance, y_q))
    ]
    direction, norm = unit(r * plates[0] - (1 - r) * plates[1])
    return direction, norm.clamp_min(torch.finfo(x.dtype).tiny).log()


def _side(h: Tensor) -> Tensor:
    """The signs of heights (B,), +1 on the plate, as a column (B, 1)."""
    return torch.where(h < 0, -1.0, 1.0).to(h)[:, None]
