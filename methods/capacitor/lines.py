r"""Lines of a capacitor's field, traced by arc length on both sides of both plates.

Every line of the field of a unit positive plate z = 0 and a unit negative plate z = L starts on
the first and ends on the second, and carries its share of the flux. A plate of density q makes
the flux jump by q, E_z(0+) - E_z(0-) = q_P and E_z(L-) - E_z(L+) = q_Q, so

* at a source sample the line leaves forward with probability E_z(0+) / q_P, and backward, away
  from the target, with the rest, if E_z(0-) < 0;
* of the flux that arrives at z = L from the left the part q_Q / E_z(L-) ends there, and the
  part E_z(L+) / E_z(L-) goes on behind the plate, if E_z(L+) > 0;
* a line that comes back from the right always ends, and one that comes from behind the source
  plate always passes it: E_z(L-) and E_z(0+) are positive.

The theorem is that of Kolesov et al., Field Matching, https://arxiv.org/abs/2502.02367.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor

from methods.base import Field

FAR = 50.0  # in units of a capacitor's size: from there on its field is taken for a dipole's
MAX_STATES, MAX_PATH_BYTES = 256, 2**29  # of a path that is kept
SMALLEST_STEP = 1e-9  # a line whose steps get shorter than this part of the first is lost


class Step(NamedTuple):
    """One accepted step of some lines, with the cubic through its ends."""

    before: Tensor  # (K, n)
    after: Tensor  # (K, n)
    slope_before: Tensor  # (K, n)
    slope_after: Tensor  # (K, n)
    size: Tensor  # (K,)

    def at(self, part: Tensor) -> Tensor:
        """The points at the parts (K,) in [0, 1] of the step, by Hermite's cubic."""
        s, h = part[:, None], self.size[:, None]
        chord = self.after - self.before
        bend = (1 - 2 * s) * chord + h * ((s - 1) * self.slope_before + s * self.slope_after)
        return self.before + s * chord + s * (s - 1) * bend

    def rows(self, chosen: Tensor) -> "Step":
        return Step(*(part[chosen] for part in self))

    def crossing(self, height: Tensor) -> Tensor:
        """The parts (K,) of the steps at which they pass z = height (K,), by bisection."""
        low, high = torch.zeros_like(self.size), torch.ones_like(self.size)
        rising = self.after[:, -1] > self.before[:, -1]
        for _ in range(30):
            middle = (low + high) / 2
            beyond = (self.at(middle)[:, -1] > height) == rising
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        return high


class Arrival(NamedTuple):
    """Where a step left some lines."""

    points: Tensor  # (K, n)
    ended: Tensor  # (K,) bool: the line is at its end
    jumped: Tensor  # (K,) bool: the line goes on elsewhere than at the end of the step
    lost: Tensor  # (K,) bool: the line went where no line of such a field goes
    part: Tensor  # (K,): the part of the step that the line took


class Recorder:
    """Keeps the states (B, n) of a path: of a long one every second, fourth, ..."""

    def __init__(self, start: Tensor) -> None:
        self.states, self.stride, self.count = [start], 1, 0
        held = MAX_PATH_BYTES // (start.numel() * start.element_size() or 1)
        self.most = max(8, min(MAX_STATES, held))

    def add(self, points: Tensor) -> None:
        self.count += 1
        if self.count % self.stride == 0:
            self.states.append(points.clone())
        if len(self.states) > self.most:
            self.states, self.stride = self.states[::2], 2 * self.stride

    def path(self, end: Tensor) -> Tensor:
        states = self.states if torch.equal(self.states[-1], end) else [*self.states, end]
        return torch.stack(states)


class Traced(NamedTuple):
    """Where lines went."""

    end: Tensor  # (B, n); of a line that did not end, where it was left
    ended: Tensor  # (B,) bool
    length: Tensor  # (B,) arc length, without what a guide leaps over
    path: Tensor | None  # (T+1, B, n)


def trace(
    guide: "CapacitorLines",
    start: Tensor,
    first_step: float,
    rtol: float,
    atol: float,
    max_steps: int,
    path: bool = False,
) -> Traced:
    r"""Follows d\tilde x/ds = direction(\tilde x) from ``start`` (B, n) until every line ends.

    Bogacki and Shampine's pair of orders 3 and 2, with a step of its own for each line: the
    estimated error of a step of length h is at most ``atol`` + ``rtol`` h, so that rtol is an
    angle. ``first_step`` is the length of the first step, also after a jump. After ``max_steps``,
    refused ones included, a line is left where it is, as is one without a direction.
    """
    active = torch.arange(len(start), device=start.device)
    points, slope = start.clone(), guide.direction(start, active)
    size = torch.full_like(start[:, 0], first_step)
    length = torch.zeros_like(size)
    ended, lost = torch.zeros(2, len(start), dtype=torch.bool, device=start.device)
    recorder = Recorder(start)
    for _ in range(max_steps):
        step, error = _bogacki_shampine(guide, points[active], slope[active], size[active], active)
        allowed = atol + rtol * step.size
        accepted = error <= allowed  # False for NaN
        growth = (0.9 * (allowed / error) ** (1 / 3)).nan_to_num(0.2)
        size[active] = step.size * growth.clamp(0.2, 5.0)
        moving, step = active[accepted], step.rows(accepted)
        arrival = guide.arrive(step, moving)
        points[moving], slope[moving] = arrival.points, step.slope_after
        length[moving] += step.size * arrival.part
        ended[moving], lost[moving] = arrival.ended, arrival.lost
        jumped = moving[arrival.jumped & ~arrival.ended & ~arrival.lost]
        if len(jumped):
            slope[jumped] = guide.direction(points[jumped], jumped)
            size[jumped] = size[jumped].clamp_max(first_step)
        slopes = torch.linalg.vector_norm(slope[active], dim=1)  # zero, infinite, NaN or 1
        lost[active] |= ~((slopes > 0) & (slopes < math.inf))
        lost[active] |= size[active] < SMALLEST_STEP * first_step
        active = active[~ended[active] & ~lost[active]]
        if path:
            recorder.add(points)
        if not len(active):
            break
    return Traced(points, ended, length, recorder.path(points) if path else None)


def _bogacki_shampine(
    guide: "CapacitorLines", points: Tensor, k1: Tensor, size: Tensor, lines: Tensor
) -> tuple[Step, Tensor]:
    """One step of order 3, and the norm (K,) of its difference to one of order 2."""
    h = size[:, None]
    k2 = guide.direction(points + h / 2 * k1, lines)
    k3 = guide.direction(points + 3 * h / 4 * k2, lines)
    after = points + h * (2 * k1 + 3 * k2 + 4 * k3) / 9
    k4 = guide.direction(after, lines)
    error = size * torch.linalg.vector_norm(-5 * k1 + 6 * k2 + 8 * k3 - 9 * k4, dim=1) / 72
    return Step(points, after, k1, k4, size), error


def rms_radius(samples: Tensor) -> Tensor:
    """Root mean square distance of the samples (N, D) from their mean."""
    return samples.var(0, correction=0).sum().sqrt()


class Capacitor(NamedTuple):
    """Where two plates are."""

    plate_distance: float
    centres: Tensor  # (2, D), of the source and the target
    size: float  # the larger of the distance of the centres and the radii of the plates

    @classmethod
    def of(cls, plate_distance: float, source: Tensor, target: Tensor) -> Self:
        centres = torch.stack([source.mean(0), target.mean(0)])
        return cls.between(plate_distance, centres, [rms_radius(source), rms_radius(target)])

    @classmethod
    def between(cls, plate_distance: float, centres: Tensor, radii: Iterable[Tensor]) -> Self:
        """The capacitor whose plates have these centres (2, D) and root mean square radii."""
        apart = torch.linalg.vector_norm(centres[1] - centres[0]).item()
        size = max(math.hypot(apart, plate_distance), *(radius.item() for radius in radii))
        return cls(plate_distance, centres, size)

    def mirror(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The points (K, n) mirrored in the mid-plane; which are far off on the source's side.

        A dipole's lines are symmetric: one that leaves the near field returns at its point's image.
        """
        heights = self.centres.new_tensor([[0.0], [self.plate_distance]])
        ends = torch.cat([self.centres, heights], dim=1)
        axis, middle = ends[1] - ends[0], ends.sum(0) / 2
        axis = (axis / torch.linalg.vector_norm(axis)).to(points)
        offset = points - middle.to(points)
        along = offset @ axis
        far = torch.linalg.vector_norm(offset, dim=1) > FAR * self.size
        return points - 2 * along[:, None] * axis, far & (along < 0)


BEHIND_SOURCE, BETWEEN, BEHIND_TARGET = 0, 1, 2


class CapacitorLines:
    """Guides lines from the source plate to the target plate.

    A line less than ``offset`` from a plate follows the field ``offset`` off it, on its own side.
    ``backward`` (B,) says which lines start behind the source plate. A line passes the target plate
    if E_z(L+) > u E_z(L-), with u in [0, 1) its number in ``passing`` (B,): u = 0 is the rule of
    the signs, uniform u that of the flux. Without ``passing`` no line passes.
    """

    def __init__(
        self,
        field: Field,
        capacitor: Capacitor,
        offset: float,
        backward: Tensor,
        passing: Tensor | None,
    ) -> None:
        self.field, self.capacitor, self.offset, self.passing = field, capacitor, offset, passing
        distance = capacitor.plate_distance
        low, high = [-math.inf, offset, distance + offset], [-offset, distance - offset, math.inf]
        self.low, self.high = torch.tensor([low, high], dtype=torch.float64).to(backward.device)
        self.region = torch.where(backward, BEHIND_SOURCE, BETWEEN)
        self.passed = torch.zeros_like(backward)

    def direction(self, points: Tensor, lines: Tensor) -> Tensor:
        """Unit directions (K, n) at the points (K, n) of the lines with the indices (K,)."""
        return self.field(points[:, :-1], self._held(points[:, -1], self.region[lines]))[0]

    def _held(self, z: Tensor, region: Tensor) -> Tensor:
        return z.clamp(self.low[region].to(z), self.high[region].to(z))

    def arrive(self, step: Step, lines: Tensor) -> Arrival:
        """Where a step leaves the lines with the indices (K,)."""
        points, part = step.after.clone(), torch.ones_like(step.size)
        ended, lost = torch.zeros(2, len(lines), dtype=torch.bool, device=lines.device)
        height = self._held(points[:, -1], self.region[lines])
        out = points[:, -1] != height
        if bool(out.any()):
            crossed = step.rows(out)
            part[out] = crossed.crossing(height[out])
            points[out], ended[out], lost[out] = self._meet(crossed.at(part[out]), lines[out])
        jumped = out
        if self.passing is not None:  # forward lines have no business out there
            image, far = self.capacitor.mirror(points)
            far &= ~out
            points[far] = image[far]
            z = image[far, -1]
            behind = torch.where(z > self.capacitor.plate_distance, BEHIND_TARGET, BETWEEN)
            self.region[lines[far]] = torch.where(z < 0, BEHIND_SOURCE, behind)
            jumped = out | far
        return Arrival(points, ended, jumped, lost, part)

    def _meet(self, points: Tensor, lines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lines that meet a plate at ``points``: where they go on, which end, which are lost."""
        region = self.region[lines]
        at_target = points[:, -1] > self.capacitor.plate_distance / 2
        arriving = (region == BETWEEN) & at_target
        lost = (region == BETWEEN) & ~at_target  # between the plates E_z > 0: no line comes back
        passing = torch.zeros_like(arriving)
        if self.passing is not None and bool(arriving.any()):
            x, u = points[arriving, :-1], self.passing[lines[arriving]]
            left, right = at_plate(self.field, x, self.capacitor.plate_distance, self.offset)
            passing[arriving] = right > u * left.clamp_min(0)
        ended = (region == BEHIND_TARGET) | (arriving & ~passing)
        self.passed[lines[passing]] = True
        goes_on = torch.where(passing, BEHIND_TARGET, BETWEEN)
        self.region[lines] = torch.where(ended | lost, region, goes_on)
        z = points[:, -1]
        z = torch.where(ended | lost, z, self._held(z, goes_on))
        return torch.cat([points[:, :-1], z[:, None]], dim=1), ended, lost


def at_plate(field: Field, x: Tensor, height: float, offset: float) -> tuple[Tensor, Tensor]:
    """E_z (B,) just below and just above the plate at ``height``, both over one positive scale.

    The jump E_z(+e) - E_z(-e) holds the plate's density smoothed over e, with a tail of first order
    in e from charges farther away; the mean of both sides is even in e. Both are extrapolated to
    e = 0 from ``offset`` and twice that: without, most of the flux that arrives between the modes
    of a target would seem to end there.
    """
    heights = [height + part * offset for part in (-2, -1, 1, 2)]
    values = [field(x, x.new_full((len(x),), at)) for at in heights]
    scale = torch.stack([log_norm for _, log_norm in values]).amax(0)
    parts = [direction[:, -1] * torch.exp(log_norm - scale) for direction, log_norm in values]
    far_below, below, above, far_above = parts
    mean = (4 * (below + above) - (far_below + far_above)) / 6
    jump = 2 * (above - below) - (far_above - far_below)
    return mean - jump / 2, mean + jump / 2


def backward_share(field: Field, x: Tensor, offset: float) -> Tensor:
    """-E_z(0-) / (E_z(0+) - E_z(0-)), at least 0: the share (B,) of flux that leaves backward."""
    below, above = at_plate(field, x, 0.0, offset)
    backward, forward = (-below).clamp_min(0), above.clamp_min(0)
    return backward / (backward + forward).clamp_min(torch.finfo(x.dtype).tiny)


def even_uniforms(count: int, like: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Two sets of ``count`` numbers in float64, each uniform on [0, 1), more evenly than by chance.

    Points k (1/g, 1/g^2) mod 1, g^3 = g + 1 (Roberts, The Unreasonable Effectiveness of Quasirandom
    Sequences, 2018), under one random shift and in random order: in their own order they would go
    with the coordinates of Sobol starts.
    """
    g = 1.32471795724474602596
    shift = torch.rand(2, generator=rng, device=rng.device, dtype=torch.float64).to(like.device)
    k = torch.randperm(count, generator=rng, device=rng.device).to(like.device, torch.float64)
    return (shift[0] + k / g).frac(), (shift[1] + k / g**2).frac()
