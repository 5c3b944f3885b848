"""Where the field of a capacitor is learned: schemes of points in R^{D+1}.

A scheme makes points (x (B, D), z (B,)) of charge pairs, p (B, D) on the plate z = 0 and q (B, D)
on z = L.
"""

import math
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor

from methods.base import Draw
from methods.capacitor.lines import FAR, Capacitor
from methods.capacitor.transport import CapacitorMethod
from methods.draws import directions, normal, uniform
from methods.electrostatics import capacitor_field
from methods.pfgm import perturb
from methods.solvers import Solver

Points = tuple[Tensor, Tensor]
PointScheme = Literal[
    "uniform", "capacitor", "log", "mix", "mesh", "poisson", "lines", "released", "flux"
]


def along_segments(
    p: Tensor, q: Tensor, plate_distance: float, mean: float, sigma: float, rng: Generator
) -> Points:
    """(1 - t/L) p + t/L q at z = t, t ~ U(0, L), and a step of length |eps| off it.

    eps ~ N(mean, sigma^2 I) in R^{D+1}; the step's direction is uniform (Algorithm 1).
    """
    t = uniform((len(p),), p, rng)
    n = p.shape[1] + 1
    noise = mean + sigma * normal((len(p), n), p, rng)
    step = torch.linalg.vector_norm(noise, dim=1, keepdim=True) * directions(len(p), n, p, rng)
    return torch.lerp(p, q, t[:, None]) + step[:, :-1], t * plate_distance + step[:, -1]


def on_segments(
    p: Tensor, q: Tensor, plate_distance: float, sigma: float, rng: Generator
) -> Points:
    r"""Points on the lines through p and q, at log-like heights over the target plate.

    .. math:: h = |\epsilon| (L / \sigma)^u, \quad \epsilon \sim N(0, \sigma^2), \; u \sim U(0, 1),
              \quad x = (h/L)\, p + (1 - h/L)\, q, \quad z = L - h

    A height can be a few times L; such points lie behind the source plate. ``Uniform_mixing`` in
    https://github.com/justkolesov/FieldMatching.
    """
    epsilon = sigma * normal((len(p),), p, rng).abs()
    h = epsilon * (plate_distance / sigma) ** uniform((len(p),), p, rng)
    return torch.lerp(q, p, (h / plate_distance)[:, None]), plate_distance - h


def around_charges(p: Tensor, q: Tensor, plate_distance: float, rng: Generator) -> Points:
    """At a log-uniform distance in [0.02, 2 L] of p or q, in a uniform direction."""
    y, height = _either(p, q, plate_distance, rng)
    low, high = math.log(0.02), math.log(2 * plate_distance)
    radius = torch.exp(low + (high - low) * uniform((len(p), 1), p, rng))
    step = radius * directions(len(p), p.shape[1] + 1, p, rng)
    return y + step[:, :-1], height + step[:, -1]


def perturbed(
    p: Tensor, q: Tensor, plate_distance: float, both_sides: bool, rng: Generator
) -> Points:
    """PFGM's perturbation of p or q, up to about 2 L off the plate, inward or on either side."""
    y, height = _either(p, q, plate_distance, rng)
    sigma = 0.01  # PFGM's: the smallest perturbation
    x, z = perturb(y, sigma, 2 * plate_distance / sigma, rng)
    down = uniform((len(p),), p, rng) < 0.5 if both_sides else height > 0
    return x, height + torch.where(down, -z, z)


def in_box(p: Tensor, q: Tensor, plate_distance: float, rng: Generator) -> Points:
    """Uniform in the box of all p and q, widened by L/2 on every side."""
    corners = torch.cat([p, q])
    margin = plate_distance / 2
    low, high = corners.amin(0) - margin, corners.amax(0) + margin
    x = low + (high - low) * uniform(p.shape, p, rng)
    return x, plate_distance * (2 * uniform((len(p),), p, rng) - 0.5)


def _either(p: Tensor, q: Tensor, plate_distance: float, rng: Generator) -> Points:
    """p at height 0 or q at height L, with equal odds."""
    at_target = uniform((len(p),), p, rng) < 0.5
    return torch.where(at_target[:, None], q, p), at_target * plate_distance


class LinePool:
    """Steps of exact field lines, from which points are drawn near them.

    ``LINES`` lines of the exact field of ``CHARGES`` charges a plate, those along which samples
    move, are traced once. A point is on a random step, off it by a normal step of half its length:
    it is dense at the plates, where steps are short, and follows lines as far out as they go.
    """

    LINES, CHARGES = 1024, 2048
    SOLVER = Solver(rtol=1e-3, atol=1e-3, solver_steps=5)

    def __init__(self, method: CapacitorMethod, source: Draw, target: Draw, rng: Generator) -> None:
        distance, p, q = method.plate_distance, source(self.CHARGES), target(self.CHARGES)
        field = partial(capacitor_field, positive=p, negative=q, plate_distance=distance)
        capacitor = Capacitor.of(distance, p, q)
        lines = method.by_arc_length(field, capacitor, source(self.LINES), self.SOLVER, rng, True)
        assert lines.path is not None
        assert lines.heights is not None
        path = torch.cat([lines.path, lines.heights[..., None]], dim=2)
        before, after = path[:-1], path[1:]
        step = torch.linalg.vector_norm(after - before, dim=2)
        # Not of a line at rest, nor over the leap from one side of the far field to the other.
        inside = (step > 0) & (step < FAR / 2 * capacitor.size)
        self.before, self.after = before[inside], after[inside]

    def __call__(self, n: int, rng: Generator) -> Points:
        row = torch.randint(len(self.before), (n,), generator=rng, device=rng.device)
        a, b = self.before[row], self.after[row]
        noise = normal(a.shape, a, rng) / math.sqrt(a.shape[1])
        reach = torch.linalg.vector_norm(b - a, dim=1, keepdim=True) / 2
        points = torch.lerp(a, b, uniform((n, 1), a, rng)) + reach * noise
        return points[:, :-1], points[:, -1]
