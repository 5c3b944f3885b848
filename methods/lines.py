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

References:
    Kolesov et al., Field Matching: an Electrostatic Paradigm to Generate and Transfer Data,
    ICML 2025, https://arxiv.org/abs/2502.02367
"""

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from methods.base import Field

Rule = Literal["forward", "stop_rule", "two_sided"]
Crossing = Literal["sign", "flux"]

FAR = 50.0
"""Radius, in units of the capacitor's size, beyond which its field is taken for a dipole's."""
MAX_STATES = 256
"""States of a path that are kept; of a longer one every second, fourth, ... is."""
MAX_PATH_BYTES = 2**29
"""Of large states fewer are kept."""
SMALLEST_STEP = 1e-9
"""A line whose steps get shorter than this part of its first is lost."""
BISECTIONS = 30
EVALUATIONS_AT_PLATE = 4


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
        points: Tensor = self.before + s * chord + s * (s - 1) * bend
        return points

    def rows(self, chosen: Tensor) -> "Step":
        """The steps of some of the lines."""
        return Step(*(part[chosen] for part in self))

    def crossing(self, height: Tensor) -> Tensor:
        """The parts (K,) of the steps at which they pass z = height (K,)."""
        low, high = torch.zeros_like(self.size), torch.ones_like(self.size)
        rising = self.after[:, -1] > self.before[:, -1]
        for _ in range(BISECTIONS):
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


class Guide(Protocol):
    """What lines follow, and where they end."""

    def direction(self, points: Tensor, lines: Tensor) -> Tensor:
        """Unit directions (K, n) at the points (K, n) of the lines with the indices (K,)."""
        ...

    def arrive(self, step: Step, lines: Tensor) -> Arrival:
        """Looks at a step of the lines with the indices (K,)."""
        ...


class Traced(NamedTuple):
    """Lines and what they cost."""

    start: Tensor  # (B, n)
    end: Tensor  # (B, n); of a line that did not end, where it was left
    ended: Tensor  # (B,) bool
    length: Tensor  # (B,) arc length, without what a guide leaps over
    evaluations: int  # directions that were asked for, over all lines
    path: Tensor | None  # (T+1, B, n)


def trace(
    guide: Guide,
    start: Tensor,
    first_step: float,
    rtol: float,
    atol: float,
    max_steps: int,
    path: bool = False,
) -> Traced:
    r"""Follows d\tilde x/ds = direction(\tilde x) from ``start`` (B, n) until every line ends.

    Bogacki and Shampine's pair of orders 3 and 2, with a step of its own for each line: the
    estimated error of a step of length h is at most atol + rtol h, so that rtol is an angle.

    Args:
        guide: the directions and the ends.
        start: where the lines start.
        first_step: length of the first step, also after a jump.
        rtol, atol: tolerances.
        max_steps: steps a line may take, refused ones included; then it is left where it is, as
            is one without a direction.
        path: whether to keep states along the lines.
    """
    points, ended = start.clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)
    size = torch.full_like(start[:, 0], first_step)
    length = torch.zeros_like(size)
    hopeless = torch.zeros_like(ended)
    active = torch.arange(len(start), device=start.device)
    slope = guide.direction(points, active)
    evaluations = len(active)
    states, stride = [start], 1
    most = max(8, min(MAX_STATES, MAX_PATH_BYTES // (start.numel() * start.element_size() or 1)))
    for count in range(1, max_steps + 1):
        step, error = _bogacki_shampine(guide, points[active], slope[active], size[active], active)
        evaluations += 3 * len(active)
        allowed = atol + rtol * step.size
        accepted = error <= allowed  # False for NaN
        factor = (0.9 * (allowed / error) ** (1 / 3)).nan_to_num(0.2).clamp(0.2, 5.0)
        size[active] = step.size * factor
        moving = active[accepted]
        step = step.rows(accepted)
        arrival = guide.arrive(step, moving)
        points[moving], slope[moving] = arrival.points, step.slope_after
        length[moving] += step.size * arrival.part
        ended[moving] = arrival.ended
        jumped = moving[arrival.jumped & ~arrival.ended & ~arrival.lost]
        if len(jumped):
            slope[jumped] = guide.direction(points[jumped], jumped)
            size[jumped] = size[jumped].clamp_max(first_step)
            evaluations += len(jumped)
        hopeless[moving] = arrival.lost
        slopes = torch.linalg.vector_norm(slope[active], dim=1)
        hopeless[active] |= ~(slopes > 0) | ~(slopes < math.inf)  # zero, infinite or NaN
        hopeless[active] |= size[active] < SMALLEST_STEP * first_step
        active = active[~ended[active] & ~hopeless[active]]
        if path and count % stride == 0:
            states.append(points.clone())
            if len(states) > most:
                states, stride = states[::2], 2 * stride
        if not len(active):
            break
    if path and not torch.equal(states[-1], points):
        states.append(points)
    return Traced(start, points, ended, length, evaluations, torch.stack(states) if path else None)


def _bogacki_shampine(
    guide: Guide, points: Tensor, k1: Tensor, size: Tensor, lines: Tensor
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
    radius: Tensor = samples.var(0, correction=0).sum().sqrt()
    return radius


class Capacitor(NamedTuple):
    """Where two plates are."""

    plate_distance: float
    source_centre: Tensor  # (D,)
    target_centre: Tensor  # (D,)
    size: float
    """The larger of the distance of the centres and the radii of the plates."""

    @classmethod
    def of(cls, plate_distance: float, source: Tensor, target: Tensor) -> "Capacitor":
        """The capacitor whose plates hold the samples (N, D) and (M, D)."""
        radii = [rms_radius(plate) for plate in (source, target)]
        return cls.between(plate_distance, source.mean(0), target.mean(0), *radii)

    @classmethod
    def between(
        cls,
        plate_distance: float,
        source_centre: Tensor,
        target_centre: Tensor,
        source_radius: Tensor,
        target_radius: Tensor,
    ) -> "Capacitor":
        """The capacitor whose plates have these centres (D,) and root mean square radii."""
        apart = torch.linalg.vector_norm(target_centre - source_centre).item()
        size = max(math.hypot(apart, plate_distance), source_radius.item(), target_radius.item())
        return cls(plate_distance, source_centre, target_centre, size)

    def mirror(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The points (K, n) reflected in the mid-plane of the dipole; and which are on its
        source's side and far away.

        The lines of a dipole are symmetric under that reflection: one that leaves the near field
        at a point returns to it at the point's image.
        """
        axis = torch.cat(
            [
                self.target_centre - self.source_centre,
                self.target_centre.new_tensor([self.plate_distance]),
            ]
        )
        middle = torch.cat(
            [
                (self.target_centre + self.source_centre) / 2,
                self.target_centre.new_tensor([self.plate_distance / 2]),
            ]
        )
        axis = (axis / torch.linalg.vector_norm(axis)).to(points)
        offset = points - middle.to(points)
        along = offset @ axis
        far = torch.linalg.vector_norm(offset, dim=1) > FAR * self.size
        return points - 2 * along[:, None] * axis, far & (along < 0)


BEHIND_SOURCE, BETWEEN, BEHIND_TARGET = 0, 1, 2


class CapacitorLines:
    """Guides lines from the source plate to the target plate.

    The field is looked at no nearer than ``offset`` to a plate: a line that is less than that
    from z = 0 or z = L sees the field ``offset`` off it, on its own side.

    Args:
        field: the field, with its magnitude.
        capacitor: where the plates are.
        offset: height over the plates where lines start and land, in the units of the data.
        backward: which lines start behind the source plate, shape (B,).
        passing: numbers u in [0, 1), shape (B,): a line passes the target plate if
            E_z(L+) > u E_z(L-); u = 0 is the rule of the signs, uniform u that of the flux. None:
            no line passes.
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
        self.low = torch.tensor(low, device=backward.device, dtype=torch.float64)
        self.high = torch.tensor(high, device=backward.device, dtype=torch.float64)
        self.region = torch.where(backward, BEHIND_SOURCE, BETWEEN)
        self.passed = torch.zeros_like(backward)
        self.arrivals = 0  # how often the target plate's two sides were looked at

    def direction(self, points: Tensor, lines: Tensor) -> Tensor:
        """The direction of the field, as :class:`Guide` says."""
        region = self.region[lines]
        low, high = self.low[region].to(points), self.high[region].to(points)
        return self.field(points[:, :-1], points[:, -1].clamp(low, high))[0]

    def arrive(self, step: Step, lines: Tensor) -> Arrival:
        """Stops, lets pass or mirrors the lines, as :class:`Guide` says."""
        region = self.region[lines]
        low, high = self.low[region].to(step.after), self.high[region].to(step.after)
        points, part = step.after.clone(), torch.ones_like(step.size)
        ended = torch.zeros_like(lines, dtype=torch.bool)
        lost = ended.clone()

        out = (points[:, -1] < low) | (points[:, -1] > high)
        if bool(out.any()):
            crossed = step.rows(out)
            height = torch.where(crossed.after[:, -1] > high[out], high[out], low[out])
            part[out] = crossed.crossing(height)
            points[out], ended[out], lost[out] = self._meet(crossed.at(part[out]), lines[out])
        jumped = out
        if self.passing is not None:  # forward lines have no business out there
            image, far = self.capacitor.mirror(points)
            far &= ~out
            points[far] = image[far]
            self.region[lines[far]] = self._region(image[far, -1])
            jumped = out | far
        return Arrival(points, ended, jumped, lost, part)

    def _region(self, z: Tensor) -> Tensor:
        behind = torch.where(z > self.capacitor.plate_distance, BEHIND_TARGET, BETWEEN)
        return torch.where(z < 0, BEHIND_SOURCE, behind)

    def _meet(self, points: Tensor, lines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lines that meet a plate at ``points``: where they go on, which end there, which are lost.

        Between the plates E_z > 0: a line that comes back to z = 0 from there is none of a field.
        """
        region = self.region[lines]
        at_target = points[:, -1] > self.capacitor.plate_distance / 2
        arriving = (region == BETWEEN) & at_target
        lost = (region == BETWEEN) & ~at_target
        passing = torch.zeros_like(arriving)
        if bool(arriving.any()):
            passing[arriving] = self._passes(points[arriving, :-1], lines[arriving])
        ended = (region == BEHIND_TARGET) | (arriving & ~passing)
        self.passed[lines[passing]] = True
        goes_on = torch.where(passing, BEHIND_TARGET, BETWEEN)
        self.region[lines] = torch.where(ended | lost, region, goes_on)
        low, high = self.low[goes_on].to(points), self.high[goes_on].to(points)
        z = points[:, -1]
        z = torch.where(ended | lost, z, z.clamp(low, high))
        return torch.cat([points[:, :-1], z[:, None]], dim=1), ended, lost

    def _passes(self, x: Tensor, lines: Tensor) -> Tensor:
        if self.passing is None:
            return torch.zeros_like(lines, dtype=torch.bool)
        self.arrivals += len(x)
        left, right = at_plate(self.field, x, self.capacitor.plate_distance, self.offset)
        return right > self.passing[lines] * left.clamp_min(0)


FLOWS = {
    "field_backward": "share of the lines that leave backward",
    "field_passed": "share of the lines that pass the target plate",
    "field_stretch": "length of the lines over the distance of their ends, in R^{D+1}",
}


class Followed(NamedTuple):
    """Lines from the source plate, and which way they went."""

    traced: Traced
    backward: Tensor  # (B,) bool: started away from the target
    passed: Tensor  # (B,) bool: went through the target plate


def follow(
    field: Field,
    capacitor: Capacitor,
    start: Tensor,
    rule: Rule,
    crossing: Crossing,
    offset: float,
    rng: torch.Generator,
    rtol: float,
    atol: float,
    max_steps: int,
    path: bool = False,
) -> Followed:
    """The lines of the source samples ``start`` (B, D).

    Args:
        field: the field, with its magnitude unless ``rule = forward``.
        capacitor: where the plates are.
        start: where the lines start on the plate z = 0.
        rule: ``forward``, away from the plate towards the target and no farther than z = L;
            ``stop_rule``, through the target plate where ``crossing`` says so; ``two_sided``,
            also backward, by the flux.
        crossing: lines pass the target plate where E_z(L+) > 0 (``sign``), or with the
            probability E_z(L+) / E_z(L-) (``flux``).
        offset: height over the plates where lines start and land.
        rng: decides which way lines go.
        rtol, atol, max_steps, path: as :func:`trace`.
    """
    leave, pass_on = even_uniforms(len(start), start, rng)
    backward = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    evaluations = 0
    if rule == "two_sided":
        backward = leave < backward_share(field, start, offset)
        evaluations += EVALUATIONS_AT_PLATE * len(start)
    passing = None if rule == "forward" else (pass_on if crossing == "flux" else 0 * pass_on)
    guide = CapacitorLines(field, capacitor, offset, backward, passing)
    z = torch.where(backward, -offset, offset).to(start)
    traced = trace(
        guide, torch.cat([start, z[:, None]], dim=1), offset, rtol, atol, max_steps, path
    )
    evaluations += traced.evaluations + EVALUATIONS_AT_PLATE * guide.arrivals
    return Followed(traced._replace(evaluations=evaluations), backward, guide.passed)


def at_plate(field: Field, x: Tensor, height: float, offset: float) -> tuple[Tensor, Tensor]:
    """E_z (B,) just below and just above the plate at ``height``, both over one positive scale.

    The jump E_z(+e) - E_z(-e) across a plate of charges holds its density smoothed over e, with a
    tail of first order in e from all charges farther away; the mean of both sides is even in e. So
    both are extrapolated to e = 0 from ``offset`` and twice that: without, most of the flux that
    arrives between the modes of a target would seem to end there.
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
    """The share (B,) of the flux of source samples x (B, D) that leaves away from the target.

    -E_z(0-) / (E_z(0+) - E_z(0-)); zero where E_z(0-) >= 0. The field is looked at no nearer
    than ``offset`` to the plate.
    """
    below, above = at_plate(field, x, 0.0, offset)
    backward, forward = (-below).clamp_min(0), above.clamp_min(0)
    return backward / (backward + forward).clamp_min(torch.finfo(x.dtype).tiny)


def even_uniforms(count: int, like: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two sets of ``count`` numbers in float64, each uniform on [0, 1), more evenly than by chance.

    Points k (1/g, 1/g^2) mod 1 of a lattice, g^3 = g + 1, under one random shift and in random
    order: in their own order they would go with the coordinates of Sobol starts.

    References:
        Roberts, The Unreasonable Effectiveness of Quasirandom Sequences, 2018.
    """
    g = 1.32471795724474602596
    shift = torch.rand(2, generator=rng, device=rng.device, dtype=torch.float64).to(like.device)
    k = torch.randperm(count, generator=rng, device=rng.device).to(like.device, torch.float64)
    first, second = ((shift[i] + k / g ** (i + 1)).frac() for i in range(2))
    return first, second
