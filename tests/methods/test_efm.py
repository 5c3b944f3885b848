"""The options of EFM and of the exact field: each does what it says."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import optimize, special, stats
from torch import Tensor, nn

from bench.metrics.distances import w2
from datasets.gaussians import StandardNormal
from datasets.toy import EightGaussians
from methods import METHODS
from methods.base import Draw
from methods.capacitor import diagnostics
from methods.capacitor.diagnostics import ERRORS, field_errors
from methods.capacitor.models import FieldModel, PlateModel, TwoPlates, as_columns, from_columns
from methods.capacitor.points import LinePool, on_segments
from methods.efm import ElectrostaticFieldMatching, ExactElectrostaticField
from methods.electrostatics import capacitor_field, poisson_field, superpose
from methods.networks import NetworkSettings
from methods.solvers import Solver

EFM, Exact = ElectrostaticFieldMatching, ExactElectrostaticField
L = 6.0


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def draw(dim: int, seed: int, shift: float = 0.0) -> Draw:
    generator = rng(seed)
    return lambda k: shift + torch.randn(k, dim, generator=generator, dtype=torch.float64)


class Kept:
    """A draw that keeps what it handed out."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.batches: list[Tensor] = []

    def __call__(self, k: int) -> Tensor:
        self.batches.append(self.draw(k))
        return self.batches[-1]


def length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


# --- Where the field is learned ------------------------------------------------------------------


def points_of(dim: int, **settings: Any) -> tuple[Tensor, Tensor]:
    method = EFM.create(dim, L=L, **settings)
    x, z, *_ = method.regression(draw(dim, 1), draw(dim, 2, shift=3.0), 4000, rng())
    return x, z


@pytest.mark.parametrize("dim", [2, 16])
def test_mesh_is_uniform_in_a_box_behind_both_plates(dim: int) -> None:
    source, target = Kept(draw(dim, 1)), Kept(draw(dim, 2, shift=3.0))
    method = EFM.create(dim, L=L, points="mesh", charges=4000)
    x, z, *_ = method.regression(source, target, 4000, rng())
    assert stats.kstest(z / L, stats.uniform(-0.5, 2).cdf).pvalue > 1e-3
    charges = torch.cat([source.batches[0], target.batches[0]])
    low, high = charges.amin(0) - L / 2, charges.amax(0) + L / 2
    assert ((x >= low) & (x <= high)).all()
    # The box is that of the pairs that were drawn, hardly smaller than that of all charges.
    share = (x[:, 0] - low[0]) / (high[0] - low[0])
    assert stats.kstest(share, stats.uniform.cdf).pvalue > 1e-6


@pytest.mark.parametrize("lines", ["forward", "two_sided"])
def test_poisson_points_are_off_the_plates_on_the_sides_where_lines_go(lines: str) -> None:
    _, z = points_of(2, points="poisson", lines=lines)
    near = torch.minimum(z.abs(), (z - L).abs()) < 0.1  # from here it is clear which plate
    source, target = z[near & (z < L / 2)], z[near & (z > L / 2)]
    assert min(len(source), len(target)) > 500
    if lines == "forward":
        # From the other plate a few steps come this far.
        assert (source > 0).double().mean() > 0.97
        assert (target < L).double().mean() > 0.97
    else:
        assert stats.binomtest(int((source > 0).sum()), len(source)).pvalue > 1e-3
        assert stats.binomtest(int((target > L).sum()), len(target)).pvalue > 1e-3
    # Heights are spread over the decades from sigma up to 2 L.
    height = torch.minimum(z.abs(), (z - L).abs()).clamp_min(1e-9).log10()
    assert ((height > -2) & (height < -1)).double().mean() > 0.1
    assert ((height > -1) & (height < 0)).double().mean() > 0.1


@pytest.mark.slow
def test_lines_are_half_around_charges_and_half_near_exact_lines() -> None:
    source, target = draw(2, 1), EightGaussians(5.0, 0.316).sample(30_000, rng(3)).double()
    places = iter(range(0, 30_000, 1))
    method = EFM.create(2, L=L, points="lines", lines="two_sided", charges=64)

    def eight(k: int) -> Tensor:
        first = next(places)
        return target[first * k % 20_000 :][:k] if k < 10_000 else target[:k]

    assert len(method.regression(source, eight, 1000, rng()).points) == 1000
    pool = LinePool(EFM(L=L, lines="two_sided"), source, eight, rng())
    near, height = pool(20_000, rng())
    # Lines that leave backward are long: points behind the plates and far out are among them.
    assert (height < 0).double().mean() > 0.02
    assert (height > L).double().mean() > 0.02
    assert (length(near) > 15).double().mean() > 0.01
    forward = LinePool(EFM(L=L), source, eight, rng())
    near, height = forward(20_000, rng())
    assert ((height > -1) & (height < L + 1)).double().mean() > 0.98
    # Half-way they are as far out as lines are.
    method = Exact(L=L, charges=1000)
    model = exact(method, source(1000), eight(1000))
    lines = method.transport(model, source(300), Solver(solver_steps=40), path=True)
    assert lines.path is not None
    radius = length(near[(height - L / 2).abs() < 0.3]).median()
    assert 0.8 < radius / length(lines.path[20]).median() < 1.25


# --- The released scheme --------------------------------------------------------------------------


def released(dim: int, **settings: Any) -> ElectrostaticFieldMatching:
    return EFM.create(dim, L=L, points="released", **settings)


@pytest.mark.parametrize("dim", [2, 64])
def test_released_points_bring_the_settings_of_the_released_code(dim: int) -> None:
    method = released(dim)
    assert (method.sigma, method.target, method.gamma) == (0.1, "per_plate", 5.0)
    assert (method.variable, method.offset, method.endpoints) == ("log_z", 1e-3, "included")
    assert released(dim, sigma=0.3, gamma=1.0, variable="z").gamma == 1.0
    assert released(dim, target="superposition").gamma is None
    assert EFM.create(dim).gamma is None
    assert EFM.create(dim, target="per_plate").gamma == 0
    for wrong, words in (
        ({"sigma": 0.0}, "sigma must be above 0 and below L = 6 .*, got 0$"),
        ({"sigma": 7.0}, "got 7$"),
        ({"lines": "two_sided"}, "lines must be forward with points = released, got two_sided"),
        ({"gamma": None}, "gamma must have a value with the other settings, got none"),
        ({"gamma": -1.0}, "greater than or equal to 0"),
    ):
        with pytest.raises(ValidationError, match=words.replace("$", "(?m:$| )")):
            released(dim, **wrong)


@pytest.mark.parametrize("dim", [2, 64])
def test_released_points_are_on_the_segments_at_log_like_heights(dim: int) -> None:
    n, sigma = 20_000, 0.1
    p, q = normal(n, dim), 3 + normal(n, dim, seed=1)
    x, z = on_segments(p, q, L, sigma, rng())
    h = L - z
    torch.testing.assert_close(x, p * (h / L)[:, None] + q * (1 - h / L)[:, None])

    def below(height: np.ndarray) -> np.ndarray:
        """P(|eps| (L / sigma)^u < h), u uniform: a mean of half-normal distributions."""
        scales = sigma * (L / sigma) ** ((np.arange(1000) + 0.5) / 1000)
        return special.erf(np.atleast_1d(height)[:, None] / scales / math.sqrt(2)).mean(1)

    assert stats.kstest(h.numpy(), below).pvalue > 1e-3
    assert stats.kstest(L * np.random.default_rng(0).random(2000), below).pvalue < 1e-6
    assert 0.02 < float((h > L).double().mean()) < 0.1
    assert float(h.max()) < 5 * L


@pytest.mark.parametrize("gamma", [5.0, 0.3])
@pytest.mark.parametrize("dim", [2, 16])
def test_the_released_target_is_that_of_the_released_code(dim: int, gamma: float) -> None:
    source, target = Kept(draw(dim, 1)), Kept(draw(dim, 2, shift=3.0))
    method = released(dim, gamma=gamma, charges=50)
    x, z, f, _ = method.regression(source, target, 200, rng())

    def plate(charges: Tensor, height: float) -> Tensor:
        at = torch.cat([charges, torch.full((len(charges), 1), height)], 1).double()
        apart = torch.cat([x, z[:, None]], 1).double()[:, None] - at
        distance = length(apart)
        share = (distance.amin(1, keepdim=True) / distance) ** (dim + 1)
        mean = (share[..., None] * apart).sum(1) / share.sum(1)[:, None]
        return math.sqrt(dim + 1) * mean / (length(mean)[:, None] + gamma)

    expected = plate(source.batches[0], 0.0) - plate(target.batches[0], L)
    torch.testing.assert_close(f, expected.to(f), rtol=1e-6, atol=1e-9)
    direction = released(dim, gamma=0.0, charges=50).regression(source, target, 200, rng()).target
    torch.testing.assert_close(length(direction) ** 2, torch.full((200,), dim + 1.0).double())


def test_lines_in_log_z_are_those_in_z() -> None:
    """Of a smooth field, and to the fourth order of the solver."""
    source, target = normal(300, 2), 2 + normal(300, 2, seed=1)
    start = normal(50, 2, seed=4)

    def ends(variable: str, steps: int) -> Tensor:
        method = Exact(L=L, variable=variable, offset=1.0)
        solver = Solver(solver="rk4", solver_steps=steps)
        result = method.transport(exact(method, source, target), start, solver, path=True)
        assert result.landed.all()
        assert result.heights is not None
        torch.testing.assert_close(result.heights[0], torch.full((50,), 1.0).double())
        torch.testing.assert_close(result.heights[-1], torch.full((50,), L - 1).double())
        assert (result.heights.diff(dim=0) > 0).all()
        return result.end

    fine = ends("z", 200)
    errors = [float(length(ends("log_z", steps) - fine).max()) for steps in (10, 20, 100)]
    assert errors[2] < 1e-6
    assert errors[0] / errors[1] > 8


def test_log_z_needs_an_offset() -> None:
    with pytest.raises(ValidationError, match=r"offset must be above .* variable = log_z, got 0"):
        EFM(variable="log_z", offset=0.0)


@pytest.mark.slow
def test_released_scheme_learns_to_carry_noise_near_the_data() -> None:
    """A tiny run in the plane: from N(0, I) to a narrow cluster."""
    generator, centre = rng(1), torch.tensor([3.0, -1.0])

    def source(k: int) -> Tensor:
        return torch.randn(k, 2, generator=generator)

    def target(k: int) -> Tensor:
        return centre + 0.3 * source(k)

    method = released(2, charges=128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = method.model(NetworkSettings(width=64).factory(2), source(1000), target(1000))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    batches = method.batches(source, target, 256, rng())
    for batch in itertools.islice(batches, 600):
        loss = (model(batch.points, batch.scalar) - batch.target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    start = source(500)
    with torch.no_grad():
        result = method.transport(model, start, Solver(solver="dopri5"))
    assert result.landed.double().mean() > 0.95
    assert length(result.end - centre).median() < 0.25 * length(start - centre).median()
    assert w2(result.end, target(500)) < 0.4 * w2(start, target(500))


# --- Which field is learned ----------------------------------------------------------------------


def regression_of(dim: int, **settings: Any) -> tuple[Any, Kept, Kept]:
    source, target = Kept(draw(dim, 1)), Kept(draw(dim, 2, shift=1.0))
    method = EFM.create(dim, L=L, charges=16, **settings)
    return method.regression(source, target, 200, rng()), source, target


@pytest.mark.parametrize("dim", [2, 64])
def test_target_per_plate_adds_directions_instead_of_fields(dim: int) -> None:
    (x, z, f, _), source, target = regression_of(dim, target="per_plate")
    p, q = source.batches[0], target.batches[0]
    total = poisson_field(x, z, p)[0] - poisson_field(x, z - L, q)[0]
    torch.testing.assert_close(f, math.sqrt(dim + 1) * total / length(total)[:, None])
    cosine = torch.linalg.vecdot(f / length(f)[:, None], capacitor_field(x, z, p, q, L)[0])
    assert cosine.mean() < 0.99


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("lines", ["forward", "stop_rule"])
def test_endpoints_included_or_independent(dim: int, lines: str) -> None:
    """Whether a point of a segment without noise lies on a segment between two charges."""
    nearest = {}
    for endpoints in ("included", "independent"):
        settings = {"points": "uniform", "sigma": 0.0, "lines": lines, "endpoints": endpoints}
        (x, z, f, _), source, target = regression_of(dim, **settings)
        p, q = source.batches[0], target.batches[0]
        assert len(p) == len(q) == 16
        on_segment = torch.lerp(p[:, None], q[None], (z / L)[:, None, None, None])
        nearest[endpoints] = length(x[:, None, None] - on_segment).flatten(1).amin(1)
        direction, _ = capacitor_field(x, z, p, q, L)
        scale = math.sqrt(dim + 1) if lines == "forward" else 1.0
        torch.testing.assert_close(f[:, : dim + 1], scale * direction)
    assert nearest["included"].max() < 1e-9
    assert nearest["independent"].median() > 1e-2


@pytest.mark.parametrize("endpoints", ["included", "independent"])
@pytest.mark.parametrize("dim", [2, 64])
def test_pairs_of_the_optimal_coupling(dim: int, endpoints: str) -> None:
    """Points without noise lie on the segments that scipy's assignment pairs; E is that of all."""
    settings = {"points": "uniform", "sigma": 0.0, "endpoints": endpoints}
    (x, z, f, _), source, target = regression_of(dim, coupling="ot", **settings)
    p, q = source.batches[-1], target.batches[-1]
    _, order = optimize.linear_sum_assignment(torch.cdist(p, q).square())
    own = torch.lerp(p[None], q[order][None], (z / L)[:, None, None])
    apart = length(x[:, None] - own)
    assert apart.amin(1).max() < 1e-9
    assert len(apart.argmin(1).unique()) > len(p) // 3
    direction, _ = capacitor_field(x, z, source.batches[0], target.batches[0], L)
    torch.testing.assert_close(f, math.sqrt(dim + 1) * direction)


def test_both_sides_learn_each_plate_and_the_superposition() -> None:
    (x, z, f, weight), source, target = regression_of(2, lines="two_sided", points="log")
    p, q = source.batches[0], target.batches[0]
    plates = poisson_field(x, z, p), poisson_field(x, z - L, q)
    torch.testing.assert_close(f, as_columns(*plates))
    direction, log_norm = capacitor_field(x, z, p, q, L)
    for found, expected in zip(from_columns(f), (direction, log_norm), strict=True):
        torch.testing.assert_close(found, expected)
    assert weight is not None
    assert (weight == 1).all()
    assert ((z < 0).any(), (z > L).any()) == (True, True)


def test_a_point_on_a_charge_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """There log|E| is infinite; the other points keep their weight."""

    class OnCharges:
        def __init__(self, *arguments: Any) -> None:
            pass

        def __call__(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            return torch.zeros(n, 2).double(), torch.zeros(n).double()

    monkeypatch.setattr("methods.efm.LinePool", OnCharges)
    method = EFM.create(2, L=L, charges=1, lines="two_sided")
    assert method.points == "lines"

    def at(value: float) -> Draw:
        return lambda k: torch.full((k, 2), value).double()

    *_, target, weight = method.regression(at(0.0), at(1.0), 4, rng())
    assert weight is not None
    assert weight.tolist() == [1, 1, 0, 0]
    assert target.isfinite().all()


# --- Models --------------------------------------------------------------------------------------


def test_superpose_is_the_difference_of_the_fields() -> None:
    x, z, p, q = normal(50, 3), 3 * normal(50, seed=1), normal(9, 3, seed=2), normal(7, 3, seed=3)
    found = superpose(poisson_field(x, z, p), poisson_field(x, z - L, q))
    for part, expected in zip(found, capacitor_field(x, z, p, q, L), strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("dim", [2, 16])
def test_far_away_a_plate_model_is_the_field_of_a_point_charge(dim: int) -> None:
    """Whatever the network says; direction to 1/r^2, and log|E| with the constant 1/S."""
    samples = normal(500, dim).float() + 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = PlateModel(NetworkSettings(width=16, depth=2).factory(dim), samples).double()
    away = normal(20, dim + 1, seed=4)
    for reach in (1e3, 1e4):
        points = reach * away / length(away)[:, None]
        x, h = 2 + points[:, :-1], points[:, -1]
        direction, log_norm = model(x, h)
        expected, log_expected = poisson_field(x, h, samples.double().mean(0)[None])
        bound = 300 * dim / reach**2
        torch.testing.assert_close(direction, expected, rtol=0, atol=bound)
        torch.testing.assert_close(log_norm, log_expected, rtol=0, atol=bound)


def test_plate_models_are_odd_in_the_height() -> None:
    samples = normal(100, 2).float()
    model = PlateModel(NetworkSettings(width=16, depth=2).factory(2), samples)
    x, h = samples[:20], torch.linspace(0.01, 3, 20)
    (above, log_above), (below, log_below) = model(x, h), model(x, -h)
    torch.testing.assert_close(above[:, :-1], below[:, :-1])
    torch.testing.assert_close(above[:, -1], -below[:, -1])
    torch.testing.assert_close(log_above, log_below)


# --- Transport -----------------------------------------------------------------------------------


def exact(method: Exact, source: Tensor, target: Tensor) -> nn.Module:
    return method.model(NetworkSettings().factory(source.shape[1]), source, target)


def test_forward_lines_by_arc_length_are_those_in_z() -> None:
    source, target = normal(300, 2), EightGaussians(5.0, 0.316).sample(300, rng(1)).double()
    start = normal(100, 2, seed=4)
    ends = []
    for variable, solver in (
        ("z", Solver(solver_steps=400)),
        ("arc_length", Solver(rtol=1e-6, atol=1e-6)),
    ):
        method = Exact(L=L, variable=variable, offset=0.1)
        result = method.transport(exact(method, source, target), start, solver)
        assert result.landed.all()
        ends.append(result.end)
    distance = length(ends[0] - ends[1])
    assert distance.median() < 1e-3
    assert distance.quantile(0.9) < 0.02  # a line beside a charge turns within the grid's step


def test_charges_says_how_many_samples_are_kept() -> None:
    samples = normal(100, 2)
    model = exact(Exact(charges=7), samples, samples + 1)
    expected = capacitor_field(samples, samples[:, 0], samples[:7], samples[:7] + 1, 30.0)
    torch.testing.assert_close(model(samples, samples[:, 0])[:, :-1], expected[0])


@pytest.mark.parametrize("lines", ["forward", "two_sided"])
def test_landing_on_a_charge(lines: str) -> None:
    source, target = normal(50, 2), normal(50, 2, seed=1) + 1
    start = normal(40, 2, seed=2)
    results = {}
    for landing in ("plate", "charge"):
        method = Exact(L=L, lines=lines, landing=landing, charges=50)
        model = exact(method, source, target)
        results[landing] = method.transport(model, start, Solver(), path=True)
    plate, charge = results["plate"], results["charge"]
    assert torch.equal(plate.landed, charge.landed)
    to_charges = torch.cdist(plate.end, target)
    assert torch.equal(charge.end[charge.landed], target[to_charges.argmin(1)][charge.landed])
    assert to_charges.amin(1).max() > 1e-3
    assert charge.path is not None
    assert torch.equal(charge.path[-1], charge.end)


@pytest.mark.slow
def test_flows_are_counted() -> None:
    """Two equal Gaussians: nearly half of the flux leaves backward, and comes back far around."""
    source, target = normal(1000, 2), normal(1000, 2, seed=1)
    start = normal(200, 2, seed=2)
    flows = {}
    for lines in ("forward", "stop_rule", "two_sided"):
        method = Exact(L=20.0, lines=lines)
        model = exact(method, source, target)
        result = method.transport(model, start, Solver(), path=True)
        assert result.landed.all()
        flows[lines] = result.diagnostics
        assert result.heights is not None
        went_back = (result.heights < -0.06).any(0).double().mean()
        assert abs(float(went_back) - result.diagnostics["field_backward"]) < 1e-6
    assert flows["forward"]["field_backward"] == flows["stop_rule"]["field_backward"] == 0
    assert 0.4 < flows["two_sided"]["field_backward"] < 0.5
    assert flows["forward"]["field_passed"] == 0
    assert flows["two_sided"]["field_passed"] > 0.4
    assert flows["two_sided"]["field_stretch"] > 2 * flows["forward"]["field_stretch"] > 2


def test_stretch_of_straight_lines_is_one_and_grows_with_the_distance() -> None:
    p = normal(400, 2)
    q = EightGaussians(5.0, 0.316).sample(400, rng(1)).double()
    stretch = []
    for distance in (3.0, 60.0):
        method = Exact(L=distance)
        result = method.transport(exact(method, p, q), normal(100, 2, seed=3), Solver(), path=True)
        stretch.append(result.diagnostics["field_stretch"])
    assert 1 < stretch[0] < stretch[1]
    single = Exact(L=L)
    charge = torch.zeros(1, 2, dtype=torch.float64)
    axis = single.transport(exact(single, charge, charge), charge, Solver(), path=True)
    assert axis.diagnostics["field_stretch"] == pytest.approx(1.0)


@pytest.mark.slow
def test_the_flux_fills_what_the_rule_of_the_signs_leaves_empty() -> None:
    """A target three times as wide as the source, near to it: in its centre E_z(L+) > 0.

    The rule of the signs lets every line pass there, though the charges there must end their
    share of the flux.
    """
    distribution = StandardNormal((2,))
    source, target = (
        scale * distribution.low_variance(2048, rng(k)) for k, scale in ((0, 1), (1, 3))
    )
    fresh = 3 * distribution.low_variance(1000, rng(3))
    start = distribution.low_variance(1000, rng(2))
    inner, distance = {}, {}
    for crossing in ("sign", "flux"):
        method = Exact(L=1.0, lines="two_sided", crossing=crossing)
        end = method.transport(exact(method, source, target), start, Solver()).end
        inner[crossing] = float((length(end) < 1).double().mean())
        distance[crossing] = w2(end, fresh)
    expected = 1 - math.exp(-1 / 18)
    assert inner["sign"] < 0.2 * expected
    assert abs(inner["flux"] - expected) < 0.3 * expected
    assert distance["flux"] < 0.7 * distance["sign"]


# --- Diagnostics ---------------------------------------------------------------------------------


def test_field_errors_of_the_exact_field_and_of_a_turned_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diagnostics, "CHARGES", 500)
    monkeypatch.setattr(diagnostics, "LINES", 256)
    p, q = normal(1000, 2), normal(1000, 2, seed=1) + 1

    def draws() -> tuple[Draw, Draw]:
        source = iter([p[:500], p[500:756]])
        return lambda k: next(source)[:k], lambda k: q[:k]

    def field(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return capacitor_field(x, z, p[:500], q[:500], L)

    right = field_errors(field, *draws(), L, 0.05)
    assert set(right) == set(ERRORS)
    # acos near 1 keeps half of the digits.
    assert all(value < 1e-4 for value in right.values())

    def turned(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        direction, log_norm = field(x, z)
        across = torch.linalg.cross(direction, direction.roll(1, 1))
        across = across / length(across)[:, None]
        near = (z < L / 2)[:, None]
        return torch.where(near, across, -direction), log_norm

    wrong = field_errors(turned, *draws(), L, 0.05)
    angles = [wrong[name] for name in ERRORS if "angle" in name]
    assert angles == pytest.approx([90, 90, 180, 180, 180], abs=1e-3)
    assert wrong["field_reversed"] >= 0.6


def test_every_efm_cell_has_its_diagnostics() -> None:
    samples = normal(300, 2).float()
    method = EFM.create(2, L=L)
    model = method.model(NetworkSettings(width=8, depth=1).factory(2), samples, samples)
    with torch.no_grad():
        found = method.diagnose(model, lambda k: torch.randn(k, 2), lambda k: torch.randn(k, 2))
    assert set(found) == set(ERRORS)
    for kind in METHODS.values():
        assert all(name.startswith("field_") for name in kind.diagnostics)


# --- Settings ------------------------------------------------------------------------------------


def test_settings_that_do_not_apply_are_not_axes() -> None:
    assert EFM(lines="forward", crossing="sign") == EFM(lines="forward", crossing="flux")
    assert EFM(lines="two_sided", crossing="sign") != EFM(lines="two_sided", crossing="flux")
    assert EFM(lines="two_sided", variable="z") == EFM(lines="two_sided", variable="arc_length")
    assert EFM(lines="two_sided", target="per_plate") == EFM(lines="two_sided")
    assert EFM(variable="arc_length", min_slope=0.1) == EFM(variable="arc_length")
    for scheme in ("log", "mesh", "poisson", "lines"):
        assert EFM(points=scheme, sigma=0.1) == EFM(points=scheme, sigma=2.0)
    for scheme in ("uniform", "capacitor", "mix"):
        assert EFM(points=scheme, sigma=0.1) != EFM(points=scheme, sigma=2.0)


def test_lines_on_both_sides_have_defaults_of_their_own() -> None:
    both = EFM.create(2, lines="two_sided")
    assert (both.points, both.endpoints, both.charges) == ("lines", "independent", 1024)
    given = EFM.create(2, lines="two_sided", points="mix", endpoints="included", charges=5)
    assert (given.points, given.endpoints, given.charges) == ("mix", "included", 5)
    assert EFM.create(64, lines="two_sided").points == EFM.create(64).points
    assert EFM.create(2).endpoints == "included"


def test_models_by_lines() -> None:
    samples = normal(100, 2).float()
    network = NetworkSettings(width=8, depth=1).factory(2)
    assert isinstance(EFM(lines="forward").model(network, samples, samples), FieldModel)
    assert isinstance(EFM(lines="stop_rule").model(network, samples, samples), TwoPlates)
