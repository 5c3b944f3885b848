"""Where the field of a capacitor is learned: schemes of points in R^{D+1}.

Every scheme is handed charge pairs, p (B, D) on the plate z = 0 and q (B, D) on z = L, and makes
one point (x (B, D), z (B,)) of each.
"""

import math

import torch
from torch import Tensor

from methods.base import Draw, normal, uniform
from methods.electrostatics import capacitor_field
from methods.lines import FAR, Capacitor, Crossing, Rule, follow
from methods.pfgm import perturb

Points = tuple[Tensor, Tensor]

MIN_RADIUS = 0.02
"""Smallest radius of the scheme ``log``, in the units of the data."""
POISSON_SIGMA = 0.01
"""PFGM's sigma: the smallest perturbation of the scheme ``poisson``."""


def along_segments(
    p: Tensor, q: Tensor, plate_distance: float, mean: float, sigma: float, rng: torch.Generator
) -> Points:
    """(1 - t/L) p + t/L q at z = t, t ~ U(0, L), and a step of length |eps| off it.

    eps ~ N(mean, sigma^2 I) in R^{D+1}; the step's direction is uniform (Algorithm 1).
    """
    t = uniform((len(p),), p, rng)
    n = p.shape[1] + 1
    noise = mean + sigma * normal((len(p), n), p, rng)
    step = torch.linalg.vector_norm(noise, dim=1, keepdim=True) * directions(len(p), n, p, rng)
    return torch.lerp(p, q, t[:, None]) + step[:, :-1], t * plate_distance + step[:, -1]


def around_charges(p: Tensor, q: Tensor, plate_distance: float, rng: torch.Generator) -> Points:
    """At a log-uniform distance in [MIN_RADIUS, 2 L] of p or q, in a uniform direction."""
    y, height = _either(p, q, plate_distance, rng)
    low, high = math.log(MIN_RADIUS), math.log(2 * plate_distance)
    radius = torch.exp(low + (high - low) * uniform((len(p), 1), p, rng))
    step = radius * directions(len(p), p.shape[1] + 1, p, rng)
    return y + step[:, :-1], height + step[:, -1]


def perturbed(
    p: Tensor, q: Tensor, plate_distance: float, both_sides: bool, rng: torch.Generator
) -> Points:
    """PFGM's perturbation of p or q, off the plate on the inner side or on either.

    Heights reach up to about 2 L, and steps along the plate to sqrt(D) times that.
    """
    y, height = _either(p, q, plate_distance, rng)
    x, z = perturb(y, POISSON_SIGMA, 2 * plate_distance / POISSON_SIGMA, rng)
    inward = torch.where(height > 0, -1.0, 1.0)
    if both_sides:
        inward = torch.where(uniform((len(p),), p, rng) < 0.5, -1.0, 1.0)
    return x, height + inward * z


def in_box(p: Tensor, q: Tensor, plate_distance: float, rng: torch.Generator) -> Points:
    """Uniform in the box of all p and q, widened by L/2 on every side."""
    corners = torch.cat([p, q])
    margin = plate_distance / 2
    low, high = corners.amin(0) - margin, corners.amax(0) + margin
    x = low + (high - low) * uniform(p.shape, p, rng)
    return x, plate_distance * (2 * uniform((len(p),), p, rng) - 0.5)


def _either(
    p: Tensor, q: Tensor, plate_distance: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """p at height 0 or q at height L, with equal odds."""
    at_target = uniform((len(p),), p, rng) < 0.5
    return torch.where(at_target[:, None], q, p), at_target * plate_distance


def directions(count: int, n: int, like: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform directions in R^n, shape (count, n)."""
    m = normal((count, n), like, rng)
    unit: Tensor = m / torch.linalg.vector_norm(m, dim=1, keepdim=True)
    return unit


class LinePool:
    """Steps of exact field lines, from which points are drawn near them.

    The lines are those along which samples move: ``LINES`` of them, started at source samples
    with the flux of the exact field of ``CHARGES`` charges a plate, and traced once. A point is
    on a random step, off it by a normal step of half its length: tracing is fine where the field
    is, so the points are dense at the plates and follow the lines as far out as they go.
    """

    LINES = 1024
    CHARGES = 2048
    TOLERANCE = 1e-3
    MAX_STEPS = 400

    def __init__(
        self,
        source: Draw,
        target: Draw,
        plate_distance: float,
        rule: Rule,
        crossing: Crossing,
        offset: float,
        rng: torch.Generator,
    ) -> None:
        positive, negative = source(self.CHARGES), target(self.CHARGES)
        capacitor = Capacitor.of(plate_distance, positive, negative)
        traced = follow(
            lambda x, z: capacitor_field(x, z, positive, negative, plate_distance),
            capacitor,
            source(self.LINES),
            rule,
            crossing,
            offset,
            rng,
            rtol=self.TOLERANCE,
            atol=self.TOLERANCE,
            max_steps=self.MAX_STEPS,
            path=True,
        ).traced
        assert traced.path is not None
        before, after = traced.path[:-1], traced.path[1:]
        step = torch.linalg.vector_norm(after - before, dim=2)
        # Not of a line at rest, nor over the leap from one side of the far field to the other.
        inside = (step > 0) & (step < FAR / 2 * capacitor.size)
        self.before, self.after = before[inside], after[inside]

    def __call__(self, n: int, rng: torch.Generator) -> Points:
        """``n`` points near the lines."""
        row = torch.randint(len(self.before), (n,), generator=rng, device=rng.device)
        a, b = self.before[row], self.after[row]
        noise = normal(a.shape, a, rng) / math.sqrt(a.shape[1])
        reach = torch.linalg.vector_norm(b - a, dim=1, keepdim=True) / 2
        points = torch.lerp(a, b, uniform((n, 1), a, rng)) + reach * noise
        return points[:, :-1], points[:, -1]
