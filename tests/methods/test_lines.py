"""Field lines on both sides of both plates: the theorem of EFM, and what decides where lines go."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from datasets.toy import EightGaussians
from methods.base import Field, Transport
from methods.capacitor.lines import (
    FAR,
    Arrival,
    Capacitor,
    CapacitorLines,
    Step,
    _bogacki_shampine,
    at_plate,
    backward_share,
    even_uniforms,
    trace,
)
from methods.capacitor.points import LinePool
from methods.draws import directions
from methods.efm import ExactElectrostaticField
from methods.electrostatics import capacitor_field
from methods.networks import NetworkSettings
from methods.solvers import Solver


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def arrival(points: Tensor, ended: Tensor, jumped: Tensor) -> Arrival:
    return Arrival(points, ended, jumped, torch.zeros_like(ended), torch.ones(len(points)).double())


class Capture:
    """Guides lines through all of space until they come within ``radius`` of a negative charge."""

    def __init__(self, positive: Tensor, negative: Tensor, L: float, radius: float) -> None:
        self.charges = positive, negative, L
        self.capacitor = Capacitor.of(L, positive, negative)
        self.sinks = torch.cat([negative, torch.full((len(negative), 1), L).to(negative)], 1)
        self.radius = radius

    def direction(self, points: Tensor, lines: Tensor) -> Tensor:
        return capacitor_field(points[:, :-1], points[:, -1], *self.charges)[0]

    def arrive(self, step: Step, lines: Tensor) -> Arrival:
        ended = torch.cdist(step.after, self.sinks).amin(1) < self.radius
        image, far = self.capacitor.mirror(step.after)
        return arrival(torch.where(far[:, None], image, step.after), ended, far)


def captured(positive: Tensor, negative: Tensor, L: float, lines: int, forward: bool) -> Tensor:
    """How many of the lines from all positive charges end on each negative charge."""
    count, dim = positive.shape
    step = 1e-3 * directions(lines, dim + 1, positive, rng(5))
    if forward:
        step[:, -1] = step[:, -1].abs()
    home = torch.cat([positive, torch.zeros(count, 1).double()], 1)[torch.arange(lines) % count]
    guide = Capture(positive, negative, L, radius=0.02)
    traced = trace(guide, home + step, 1e-3, rtol=1e-4, atol=1e-5, max_steps=2000)
    assert traced.ended.double().mean() >= 0.97
    nearest = torch.cdist(traced.end[traced.ended], guide.sinks).argmin(1)
    return nearest.bincount(minlength=len(negative))


def spread(counts: Tensor) -> float:
    """chi^2 over its degrees of freedom, against equal shares."""
    return float(stats.chisquare(counts.numpy()).statistic) / (len(counts) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("charges", [16, 64])
def test_discrete_theorem(charges: int) -> None:
    """Lines from every charge in uniform directions end on every charge equally often."""
    L = 6.0
    positive = normal(charges, 2)
    negative = EightGaussians(5.0, 0.316).sample(charges, rng(1)).double()
    assert spread(captured(positive, negative, L, 4000, forward=False)) <= 2.2
    assert spread(captured(positive, negative, L, 4000, forward=True)) >= 5


def test_a_method_may_have_a_tolerance_of_its_own() -> None:
    """Fewer evaluations with a larger one, whatever the solver's; without, the solver's counts."""
    source, target = normal(200, 2), EightGaussians(5.0, 0.316).sample(200, rng(1)).double()
    start, spent = normal(50, 2, seed=2), {}
    for tolerance, solver in ((None, 1e-2), (1e-2, 1e-5), (1e-3, 1e-2), (None, 1e-3)):
        method = ExactElectrostaticField(L=6.0, lines="two_sided", tolerance=tolerance)
        model = method.model(NetworkSettings().factory(2), source, target)
        result = method.transport(model, start, Solver(rtol=solver, atol=solver), rng=rng(3))
        spent[tolerance, solver] = result.nfe
    assert spent[None, 1e-2] == spent[1e-2, 1e-5] < spent[1e-3, 1e-2] == spent[None, 1e-3]


# --- The tracer ----------------------------------------------------------------------------------


class Circling:
    """Unit speed on circles around the z axis, until half a turn is done."""

    def direction(self, points: Tensor, lines: Tensor) -> Tensor:
        x, y, _ = points.unbind(1)
        return torch.stack([-y, x, 0 * x], 1) / torch.hypot(x, y)[:, None]

    def arrive(self, step: Step, lines: Tensor) -> Arrival:
        crossed = (step.before[:, 1] > 0) & (step.after[:, 1] <= 0)
        return arrival(step.after, crossed, torch.zeros_like(crossed))


def test_trace_error_follows_the_tolerance() -> None:
    """On a circle the radius is kept; the error is of the third order in the step."""
    start = torch.tensor([[1.0, 1e-9, 0.0], [5.0, 1e-9, 1.0]]).double()
    errors = []
    for rtol in (1e-2, 1e-4, 1e-6):
        traced = trace(Circling(), start, 0.01, rtol, 0.0, max_steps=10_000)
        radius = torch.linalg.vector_norm(traced.end[:, :2], dim=1)
        assert traced.ended.all()
        errors.append(float((radius / start[:, 0] - 1).abs().max()))
        assert errors[-1] < 10 * rtol
        # Length of the arc up to the end of the last step, which lies beyond half a turn.
        turned = math.pi + torch.atan2(-traced.end[:, 1], -traced.end[:, 0])
        torch.testing.assert_close(traced.length, turned * start[:, 0], rtol=10 * rtol, atol=0)
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_a_step_is_of_the_third_order_and_its_estimate_of_the_second() -> None:
    """Halving a step of a spiral divides its error by 16 or more, the estimate by 8."""

    class Spiral(Circling):
        def direction(self, points: Tensor, lines: Tensor) -> Tensor:
            turning = super().direction(points, lines) + torch.tensor([0.0, 0.0, 0.7])
            return turning / torch.linalg.vector_norm(turning, dim=1, keepdim=True)

    guide, start, line = Spiral(), torch.tensor([[1.0, 0.0, 0.0]]).double(), torch.tensor([0])
    errors, estimates = [], []
    for h in (0.1, 0.05):
        size = torch.tensor([h]).double()
        step, estimate = _bogacki_shampine(guide, start, guide.direction(start, line), size, line)
        angle = h / math.hypot(1, 0.7)
        exact = torch.tensor([[math.cos(angle), math.sin(angle), 0.7 * angle]]).double()
        errors.append(float(torch.linalg.vector_norm(step.after - exact)))
        estimates.append(float(estimate))
    assert errors[0] / errors[1] > 13
    assert 6.5 < estimates[0] / estimates[1] < 10


def test_trace_gives_up_after_max_steps_where_the_line_is() -> None:
    start = torch.tensor([[1.0, 1e-9, 0.0]]).double()
    traced = trace(Circling(), start, 0.01, 1e-4, 0.0, max_steps=5, path=True)
    assert not traced.ended.any()
    assert traced.path is not None
    assert torch.equal(traced.path[0], start)
    assert torch.equal(traced.path[-1], traced.end)
    assert 0 < traced.length.item() < math.pi


def test_a_line_that_is_not_a_number_is_lost_and_harms_no_other() -> None:
    class Broken(Circling):
        def direction(self, points: Tensor, lines: Tensor) -> Tensor:
            return super().direction(points, lines).masked_fill((lines == 1)[:, None], math.nan)

    start = torch.tensor([[1.0, 1e-9, 0.0]] * 3).double()
    traced = trace(Broken(), start, 0.01, 1e-4, 0.0, max_steps=200)
    assert traced.ended.tolist() == [True, False, True]
    assert torch.equal(traced.end[0], traced.end[2])


def test_crossing_lies_on_the_height_and_on_the_curve() -> None:
    """A step along a parabola: Hermite's cubic is exact."""
    before, after = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[2.0, 4.0]]).double()
    slopes = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 4.0]]).double()
    step = Step(before, after, *slopes, torch.tensor([2.0]).double())
    expected = torch.tensor([[math.sqrt(2), 2.0]]).double()
    part = step.crossing(torch.tensor([2.0]).double())
    torch.testing.assert_close(step.at(part), expected)


# --- Where lines go ------------------------------------------------------------------------------


def gaussian_plate_field(h: float) -> float:
    """E_z on the axis of a unit plate N(0, I) in the plane, at height h: an integral over rings."""

    def ring(r: float) -> float:
        density = math.exp(-r * r / 2) / (2 * math.pi)
        return 2 * math.pi * r * density * h / (4 * math.pi * (r * r + h * h) ** 1.5)

    return float(integrate.quad(ring, 0, 12, points=[h])[0])


@pytest.mark.slow
@pytest.mark.parametrize("L", [1.0, 3.0, 20.0])
def test_backward_share_of_two_gaussian_plates(L: float) -> None:
    """E_z(0+-) = +-q / 2 + the other plate's field; q = 1 / (2 pi) in the centre."""
    offset = 0.05
    own, other = gaussian_plate_field(offset), gaussian_plate_field
    forward, backward = own + other(L - offset), own - other(L + offset)
    charges = torch.randn(200_000, 2, generator=rng(1), dtype=torch.float64)

    def field(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return capacitor_field(x, z, charges, charges, L)

    # The mean over a small disc smooths the few charges below each point.
    x = 0.15 * normal(400, 2)
    found = backward_share(field, x, offset).mean()
    assert abs(float(found) - backward / (forward + backward)) < 0.01


def test_even_uniforms_are_uniform_and_even() -> None:
    for numbers in even_uniforms(4000, torch.zeros(1).double(), rng()):
        assert ((numbers >= 0) & (numbers < 1)).all()
        counts = (numbers * 100).long().bincount(minlength=100)
        assert (counts - 40).abs().max() <= 3  # by chance the largest would be about 16
    pairs = torch.stack(even_uniforms(4000, torch.zeros(1).double(), rng()))
    assert abs(float(pairs.corrcoef()[0, 1])) < 0.01
    # Not tied to the order of the lines: starts may be ordered too.
    neighbours = torch.stack([pairs[0, :-1], pairs[0, 1:]])
    assert abs(float(neighbours.corrcoef()[0, 1])) < 0.05
    other = even_uniforms(4000, torch.zeros(1).double(), rng(1))[0]
    assert not torch.equal(pairs[0], other)


def rising(left: float, right: float, L: float = 4.0):  # type: ignore[no-untyped-def]
    """A field along z whose strength falls from ``left`` to ``right`` at the plate z = L."""

    def field(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        e = torch.where(z < L, left, right)
        direction = torch.zeros(len(x), x.shape[1] + 1).to(x)
        direction[:, -1] = e.sign()
        return direction, e.abs().log()

    return field


def followed(field: Field, start: Tensor, steps: int = 1, **settings: str) -> Transport:
    """By arc length, with at most 80 ``steps``."""
    method = ExactElectrostaticField(L=4.0, offset=0.05, **settings)
    plates = Capacitor.of(4.0, start, start)
    solver = Solver(solver_steps=steps, rtol=1e-3, atol=1e-4)
    return method.by_arc_length(field, plates, start, solver, rng(), path=True)


@pytest.mark.parametrize(
    ("crossing", "right", "passed"),
    [("flux", 0.3, 0.15), ("sign", 0.3, 1.0), ("flux", -0.3, 0.0), ("sign", -0.3, 0.0)],
)
def test_lines_pass_the_target_plate_by_flux_or_by_sign(
    crossing: str, right: float, passed: float
) -> None:
    start = normal(1000, 2)
    lines = followed(rising(2.0, right), start, lines="stop_rule", crossing=crossing)
    assert lines.path is not None
    assert lines.heights is not None
    assert abs(lines.diagnostics["field_passed"] - passed) < 0.005
    through = lines.heights[-1] > 4
    assert abs(float(through.double().mean()) - passed) < 0.005
    assert torch.equal(lines.landed, ~through)  # behind, this field never turns
    landed = lines.heights[-1, lines.landed]
    torch.testing.assert_close(landed, torch.full((len(landed),), 3.95).double())
    assert lines.diagnostics["field_backward"] == 0
    assert followed(rising(2.0, right), start, lines="forward").landed.all()


def test_the_length_of_a_straight_line_ends_at_the_plate() -> None:
    start = torch.tensor([[0.0, 0.0, 0.05]] * 3).double()
    none = torch.zeros(3, dtype=torch.bool)
    plates = Capacitor.of(4.0, start[:, :2], start[:, :2])
    guide = CapacitorLines(rising(1.0, -1.0), plates, 0.05, none, torch.zeros(3).double())
    traced = trace(guide, start, 0.05, rtol=1e-3, atol=1e-3, max_steps=100)
    assert traced.ended.all()
    torch.testing.assert_close(traced.length, torch.full((3,), 3.9).double())


@pytest.mark.parametrize("field", ["zero", "back"])
def test_a_line_that_goes_nowhere_is_given_up_at_once(field: str) -> None:
    """Of no direction, or back to the source plate from between the plates."""

    def wrong(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        direction = torch.zeros(len(x), 3).to(x)
        if field == "back":
            direction[:, -1] = torch.where(z < 1, 1.0, -1.0)
            direction[:, -1] = torch.where(x[:, 0] > 0.5, -1.0, direction[:, -1])
            direction[:, 0] = 0.5
        return direction / length(direction), torch.zeros(len(x)).to(x)

    def length(vectors: Tensor) -> Tensor:
        return torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(1e-300)

    lines = followed(wrong, torch.zeros(5, 2, dtype=torch.float64), steps=6)
    assert not lines.landed.any()
    assert lines.end.isfinite().all()
    assert lines.nfe < 400


def test_forward_lines_are_not_mirrored() -> None:
    """A field that goes out sideways for ever: such a line is lost, and does not land."""

    def sideways(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        direction = torch.zeros(len(x), 3).to(x)
        direction[:, 0] = 1.0
        return direction, torch.zeros(len(x)).to(x)

    lines = followed(sideways, torch.zeros(2, 2, dtype=torch.float64))
    assert lines.heights is not None
    assert not lines.landed.any()
    assert (lines.end[:, 0] > FAR * 4).all()
    assert lines.diagnostics["field_stretch"] == pytest.approx(1)
    torch.testing.assert_close(lines.heights[-1], torch.full((2,), 0.05).double())


def test_far_from_each_other_plates_are_not_far_away() -> None:
    """The size of a capacitor holds the distance of its centres, along the plates too."""
    source, target = normal(50, 2), normal(50, 2, seed=1) + 200
    capacitor = Capacitor.of(1.0, source, target)
    start = torch.cat([source, torch.full((50, 1), 0.05).double()], 1)
    assert not capacitor.mirror(start)[1].any()


def test_long_paths_are_thinned_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    start = torch.tensor([[1.0, 1e-9, 0.0]] * 4).double()
    whole = trace(Circling(), start, 0.01, 1e-5, 0.0, max_steps=100, path=True).path
    monkeypatch.setattr("methods.capacitor.lines.MAX_PATH_BYTES", 10 * 4 * 3 * 8)
    thinned = trace(Circling(), start, 0.01, 1e-5, 0.0, max_steps=100, path=True).path
    assert whole is not None
    assert thinned is not None
    assert len(thinned) <= 11 < len(whole)
    assert torch.equal(thinned[0], whole[0])
    assert torch.equal(thinned[-1], whole[-1])


@pytest.mark.parametrize("outside", [0.0, 0.02, -0.05])
def test_the_flux_at_a_smooth_plate_is_extrapolated_to_it(outside: float) -> None:
    """Over the middle of a plate N(0, I) in the plane, in a field from elsewhere.

    E_z(0+) = p(0) / 2 = -E_z(0-) with p(0) = 1 / 2 pi. At a height of .05 it is a sixteenth less.
    """

    def flux(h: float) -> float:
        def ring(r: float) -> float:
            density = math.exp(-(r**2) / 2) / (2 * math.pi)
            return density * h * r / (2 * (r**2 + h**2) ** 1.5)

        value = 2 * integrate.quad(ring, 0, math.inf, limit=400)[0] / 2
        return value + outside

    def field(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.tensor([flux(float(h)) for h in z], dtype=torch.float64)
        direction = torch.zeros(len(z), 3, dtype=torch.float64)
        direction[:, 2] = values.sign()
        return direction, values.abs().log()

    at_height = flux(0.05) - outside
    assert at_height < 0.95 / (4 * math.pi)
    below, above = at_plate(field, torch.zeros(1, 2, dtype=torch.float64), 0.0, 0.05)
    half = 1 / (4 * math.pi)
    expected = (outside + half) / (outside - half)
    assert float(above / below) == pytest.approx(expected, rel=0.03)


def test_points_near_lines_are_off_by_half_a_step() -> None:
    """A normal step of half the length of the line's, in R^3: a third of it along each axis."""
    pool = LinePool.__new__(LinePool)
    pool.before = torch.tensor([[0.0, 0.0, 0.0]])
    pool.after = torch.tensor([[0.0, 0.0, 4.0]])
    x, z = pool(20_000, rng(5))
    assert x.std(0).tolist() == pytest.approx([2 / math.sqrt(3)] * 2, rel=0.03)
    assert float(z.var()) == pytest.approx(16 / 12 + 4 / 3, rel=0.03)  # along it, and off it
