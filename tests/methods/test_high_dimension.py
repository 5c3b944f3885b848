"""Image size in float32: the field, its log-norm and the lines at D = 32x32x3 and 64x64x3, L = 500.

There every weight |x~ - y_i|^{-(D+1)} is far outside of the float64 range, and log|E| reaches 1e5.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import METHODS, Regression, Transport, efm
from methods.capacitor.models import LOG_WEIGHT
from methods.electrostatics import capacitor_field
from methods.solvers import Solver

L = 500.0
OFFSET = 0.05
SIDES = [32, 64]  # D = 3072 and 12288
ROUNDING = 2.0**-24  # of one float32 number, relative

IN_Z = {"variable": "z"}
BY_ARC_LENGTH = {"variable": "arc_length"}
STOP_RULE = {"lines": "stop_rule"}
TWO_SIDED = {"lines": "two_sided"}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


def images(count: int, side: int, seed: int) -> Tensor:
    """Smooth colour images with values in [-1, 1] and a little noise, shape (count, 3 side^2)."""
    coarse = torch.randn(count, 3, 4, 4, generator=rng(seed))
    fine = torch.nn.functional.interpolate(coarse, side, mode="bilinear").flatten(1)
    return torch.tanh(fine + 0.1 * normal(*fine.shape, seed=seed + 1000))


def plates(side: int, charges: int) -> tuple[Tensor, Tensor]:
    return images(charges, side, seed=1), images(charges, side, seed=2)


def noise(count: int, n: int, length: float, seed: int) -> Tensor:
    step = normal(count, n, seed=seed)
    return length * step / torch.linalg.vector_norm(step, dim=1, keepdim=True)


# --- The field against brute force in extended precision ----------------------------------------


def log_area(n: int) -> np.longdouble:
    """log of the area of the unit sphere in R^n, from S_1 = 2, S_2 = 2 pi, S_n = 2 pi S_{n-2} /
    (n - 2).
    """
    first = np.log(np.longdouble(2)) + (0 if n % 2 else np.log(np.longdouble(math.pi)))
    k = np.arange(1 + (n + 1) % 2, n - 1, 2).astype(np.longdouble)
    return first + np.log(2 * np.longdouble(math.pi) / k).sum()


def reference(
    x: Tensor, z: Tensor, charged: list[tuple[Tensor, float, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Direction and log-norm in long double, from the differences to every charge, in logs.

    ``charged`` holds (charges, height, sign) of each plate; all numbers are taken as they are.
    """
    directions, log_norms = [], []
    n = x.shape[1] + 1
    for row, height in zip(x.double().numpy(), z.double().numpy(), strict=True):
        differences, logs, signs = [], [], []
        for charges, level, sign in charged:
            d = row.astype(np.longdouble) - charges.double().numpy().astype(np.longdouble)
            d = np.concatenate([d, np.full((len(d), 1), np.longdouble(height) - level)], 1)
            differences.append(d)
            logs.append(-np.log((d * d).sum(1)) * n / 2 - np.log(np.longdouble(len(d))))
            signs.append(np.full(len(d), np.longdouble(sign)))
        log = np.concatenate(logs)
        weight = np.concatenate(signs) * np.exp(log - log.max())
        field = weight @ np.concatenate(differences)
        norm = np.sqrt((field * field).sum())
        directions.append(field / norm)
        log_norms.append(log.max() + np.log(norm) - log_area(n))
    return np.stack(directions), np.array(log_norms)


def errors(
    found: tuple[Tensor, Tensor], expected: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Norm of the error of each direction, and of the error of its log-norm."""
    direction = found[0].double().numpy() - expected[0]
    return np.sqrt((direction**2).sum(1)), np.abs(found[1].double().numpy() - expected[1])


def probes(positive: Tensor, negative: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Two points of each kind: at the plates, at charges, on segments, halfway, far away."""
    p, q, fresh = positive[:2], negative[:2], images(2, side, seed=3)
    n = p.shape[1] + 1
    kinds = [
        (p, torch.tensor([OFFSET, -OFFSET])),
        (q, torch.tensor([L - OFFSET, L + OFFSET])),
        (fresh, torch.tensor([OFFSET, -OFFSET])),
        (fresh, torch.tensor([L - OFFSET, L + OFFSET])),
        (fresh, torch.tensor([L / 2, 0.9 * L])),
        ((p + positive[2:4]) / 2, torch.tensor([OFFSET, 1.0])),  # as far from either charge
        ((q + negative[2:4]) / 2, torch.tensor([L - OFFSET, L + 1])),
        ((p + q) / 2, torch.full((2,), L / 2)),  # as far from either plate
        (noise(2, n - 1, 10 * math.sqrt(n), seed=4), torch.tensor([-L, 2 * L])),
    ]
    for k, t in enumerate((0.0, 0.1, 0.5, 0.9, 1.0)):
        step = noise(2, n, 1e-3 if t in (0, 1) else OFFSET * math.sqrt(n), seed=10 + k)
        kinds.append((torch.lerp(p, q, t) + step[:, :-1], t * L + step[:, -1]))
    return torch.cat([x for x, _ in kinds]), torch.cat([z for _, z in kinds])


@pytest.mark.parametrize(
    ("side", "charges"),
    [(32, 256), (64, 64), pytest.param(64, 256, marks=pytest.mark.slow)],
)
def test_field_is_that_of_extended_precision(side: int, charges: int) -> None:
    """In float32 the rounding of the answer is all; the sums are right to 1e-8.

    Halfway between two charges of a plate their fields cancel to 1e-3: there it is 2e-9.
    """
    positive, negative = plates(side, charges)
    x, z = probes(positive, negative, side)
    assert x.dtype == z.dtype == positive.dtype == torch.float32
    expected = reference(x, z, [(positive, 0.0, 1), (negative, L, -1)])
    assert np.abs(expected[1]).max() > 8 * x.shape[1]

    direction, log_norm = capacitor_field(x, z, positive, negative, L)
    assert direction.dtype == log_norm.dtype == torch.float32
    angle, log_error = errors((direction, log_norm), expected)
    assert angle.max() < 1.5 * ROUNDING
    assert (log_error / np.abs(expected[1])).max() < 1.01 * ROUNDING

    same_numbers = capacitor_field(x.double(), z.double(), positive, negative, L)
    angle, log_error = errors(same_numbers, expected)
    assert angle.max() < 1e-8
    assert log_error.max() < 1e-9


@pytest.mark.parametrize("side", SIDES)
def test_where_the_plates_balance_the_distance_to_the_target_is_not_rounded(side: int) -> None:
    """Under z = L/2, where p and q are equally far, L - z need not be a float32 number.

    Its rounding, up to 1.5e-5, times (D+1) / L is the error of the balance of the two plates.
    """
    positive, negative = plates(side, 64)
    away = negative[:1] - positive[:1]
    x = negative[:1] + (1e4 / away.square().sum()) * away
    to_p, to_q = ((x.double() - y.double()).square().sum(1).min() for y in (positive, negative))
    middle = float((L * L + to_q - to_p) / (2 * L))
    assert middle < L - 256
    z = torch.linspace(middle - 0.1, middle + 0.1, 9)
    x = x.expand(len(z), -1)
    expected = reference(x, z, [(positive, 0.0, 1), (negative, L, -1)])
    angle, _ = errors(capacitor_field(x, z, positive, negative, L), expected)
    assert angle.max() < 1.5 * ROUNDING


# --- One pair ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_pair_above_each_other_is_its_closed_form(side: int) -> None:
    """On the axis |E| = |a^-D +- b^-D| / S; in the mid-plane E = L / (S r^n) along the axis."""
    p = images(1, side, seed=1)
    dim = p.shape[1]
    area = float(log_area(dim + 1))

    z = torch.tensor([-40.0, -OFFSET, OFFSET, 100, L / 2, 400, L - OFFSET, L + OFFSET, L + 40])
    direction, log_norm = capacitor_field(p.expand(len(z), -1), z, p, p, L)
    axis = torch.zeros(len(z), dim + 1)
    sign = torch.where((z > 0) & (z < L), 1.0, -1.0)
    axis[:, -1] = sign
    assert torch.equal(direction, axis)
    to_p, to_q = -dim * z.double().abs().log(), -dim * (z.double() - L).abs().log()
    near, far = torch.maximum(to_p, to_q), torch.minimum(to_p, to_q)
    on_axis = near + torch.log1p(sign.double() * (far - near).exp()) - area
    torch.testing.assert_close(log_norm.double(), on_axis, rtol=1.1 * ROUNDING, atol=0)

    x = p + noise(6, dim, 1.0, seed=5) * torch.tensor([1e-3, 0.1, 10, 100, 1e3, 1e4])[:, None]
    direction, log_norm = capacitor_field(x, torch.full((6,), L / 2), p, p, L)
    axis = torch.eye(dim + 1)[-1:].expand(6, -1)
    torch.testing.assert_close(direction, axis, rtol=0, atol=1e-9)
    r2 = (x.double() - p.double()).square().sum(1) + (L / 2) ** 2
    in_middle = math.log(L) - (dim + 1) / 2 * r2.log() - area
    torch.testing.assert_close(log_norm.double(), in_middle, rtol=1.1 * ROUNDING, atol=0)


def images_in_the_mirror(start: Tensor, up: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Where the lines of one pair end, in closed form: x (B, D), and whether above the plate.

    The field is symmetric under reflection in the plane halfway between the charges, and on either
    side of that plane the charge there outweighs the other by the power D of the distances: its
    lines are straight. So the line that leaves p in direction d arrives at q along d's image.
    """
    z = torch.where(up, OFFSET, -OFFSET)[:, None].double()
    d = torch.cat([start.double() - p.double(), z], 1)
    axis = torch.cat([(q - p)[0].double(), torch.tensor([L]).double()])
    axis = axis / torch.linalg.vector_norm(axis)
    d = d - 2 * (d @ axis)[:, None] * axis
    return q.double() + OFFSET * d[:, :-1] / d[:, -1:].abs(), d[:, -1] > 0


def exact_lines(
    positive: Tensor, negative: Tensor, start: Tensor, solver: Solver, **settings: Any
) -> Transport:
    """The lines of ``start`` by ``efm-exact``; the parts of the answer fit each other."""
    dim = start.shape[1]
    settings = {"lines": "forward", "L": L, "charges": len(positive)} | settings
    method = METHODS["efm-exact"].create(dim, **settings)
    model = method.model(None, positive, negative)  # type: ignore[arg-type]
    result = method.transport(model, start, solver, path=True, rng=rng(3))
    assert result.path is not None
    assert result.heights is not None
    assert result.end.shape == start.shape
    assert result.end.dtype == result.path.dtype == torch.float32
    assert result.landed.shape == (len(start),)
    for part in (result.end, result.path, result.heights):
        assert part.isfinite().all()
    assert torch.equal(result.path[0], start)
    assert torch.equal(result.path[-1], result.end)
    assert all(math.isfinite(value) for value in result.diagnostics.values())
    return result


def landed_off_the_plate(result: Transport) -> Tensor:
    """How far above (+) or below the target plate the lines ended, in ``OFFSET``."""
    assert result.heights is not None
    return (result.heights[-1] - L) / OFFSET


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("settings", [BY_ARC_LENGTH, TWO_SIDED])
def test_lines_of_one_pair_arrive_as_they_left(side: int, settings: dict[str, Any]) -> None:
    """Lines within 60 degrees of the plate's normal, on both sides of the source if asked."""
    p, q = images(1, side, seed=1), images(1, side, seed=2)
    start = p + noise(8, p.shape[1], OFFSET * math.sqrt(3), seed=6) * torch.rand(
        8, 1, generator=rng(7)
    )
    start[0] = p
    result = exact_lines(p, q, start, Solver(), **settings)
    assert result.landed.all()
    assert result.heights is not None
    up = result.heights[0] > 0
    assert 3 <= up.sum() <= 5 if settings == TWO_SIDED else up.all()
    end, above = images_in_the_mirror(start, up, p, q)
    assert torch.equal(above, ~up)
    miss = torch.linalg.vector_norm(result.end.double() - end, dim=1)
    assert miss.max() < 1e-3, "2% of the offset; the tolerance of the solver is 1e-4"
    side_of_plate = torch.where(above, 1.0, -1.0)
    torch.testing.assert_close(landed_off_the_plate(result), side_of_plate, rtol=0, atol=2e-3)


@pytest.mark.parametrize("side", SIDES)
def test_forward_lines_of_one_pair_in_z(side: int) -> None:
    p, q = images(1, side, seed=1), images(1, side, seed=2)
    start = p + noise(8, p.shape[1], 1e-4, seed=6)
    start[0] = p
    result = exact_lines(p, q, start, Solver())
    assert result.landed.all()
    assert result.nfe == 50
    end, above = images_in_the_mirror(start, torch.ones(8, dtype=torch.bool), p, q)
    assert not above.any()
    miss = torch.linalg.vector_norm(result.end.double() - end, dim=1)
    assert miss.max() < 0.1 * OFFSET
    torch.testing.assert_close(landed_off_the_plate(result), -torch.ones(8), rtol=0, atol=2e-3)


# --- Few charges, few lines ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        *itertools.product([32], [IN_Z, BY_ARC_LENGTH, STOP_RULE, TWO_SIDED]),
        (64, IN_Z),
        *(
            pytest.param(64, settings, marks=pytest.mark.slow)
            for settings in (BY_ARC_LENGTH, STOP_RULE, TWO_SIDED)
        ),
    ],
)
def test_lines_from_charges_end_at_charges(side: int, settings: dict[str, Any]) -> None:
    """Upward from a charge straight to the height where the nearest of the q takes over."""
    positive, negative = plates(side, 16)
    start = positive[:8]
    result = exact_lines(positive, negative, start, Solver(rtol=1e-3, atol=1e-3), **settings)
    assert result.landed.all()
    assert result.heights is not None
    distance = torch.cdist(result.end.double(), negative.double())
    assert distance.amin(1).max() < 2 * OFFSET
    up = result.heights[0] > 0
    assert 3 <= up.sum() <= 5 if settings == TWO_SIDED else up.all()
    nearest = torch.cdist(start.double(), negative.double()).argmin(1)
    assert torch.equal(distance.argmin(1)[up], nearest[up])
    # Those that left upward arrive from below, the others come back from above.
    arrived = torch.where(up, -1.0, 1.0)
    torch.testing.assert_close(landed_off_the_plate(result), arrived, rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("settings", [IN_Z, BY_ARC_LENGTH, STOP_RULE, TWO_SIDED])
def test_lines_from_fresh_images_are_accounted_for(side: int, settings: dict[str, Any]) -> None:
    """Off all charges the field is nearly along the plate: E_z / |E| is below a hundredth.

    In z that is below the floor, and no such line counts as landed; by arc length all arrive.
    They slide along the borders between the nearest charges, where the equation is stiff: the
    steps grow like D, whatever the tolerance.
    """
    positive, negative = plates(side, 16)
    start = images(8, side, seed=3)
    direction, _ = capacitor_field(start, torch.full((8,), OFFSET), positive, negative, L)
    assert (direction[:, -1] > 0).all()
    assert (direction[:, -1] < 0.01).all()
    solver = Solver(rtol=1e-2, atol=1e-2, solver_steps=100)
    result = exact_lines(positive, negative, start, solver, **settings)
    assert not result.landed.any() if settings == IN_Z else result.landed.all()
    arrived = landed_off_the_plate(result)
    torch.testing.assert_close(arrived.abs(), torch.ones(8), rtol=0, atol=2e-3)
    if settings in (IN_Z, BY_ARC_LENGTH):
        assert (arrived < 0).all()
    backward = result.diagnostics["field_backward"]
    assert 0.3 < backward < 0.7 if settings == TWO_SIDED else backward == 0


def test_lines_out_of_steps_are_not_landed() -> None:
    positive, negative = plates(32, 16)
    start = torch.cat([positive[:1], images(3, 32, seed=3)])
    result = exact_lines(positive, negative, start, Solver(solver_steps=3), **BY_ARC_LENGTH)
    assert result.landed.tolist() == [True, False, False, False]
    assert result.heights is not None
    assert (result.heights[-1] < L - 1)[1:].all()


# --- The regression of efm -----------------------------------------------------------------------


def batch(side: int, n: int, **settings: Any) -> tuple[Regression, Tensor, Tensor]:
    """A batch whose charges are known."""
    charges = 32
    positive, negative = plates(side, charges)
    method = METHODS["efm"].create(3 * side**2, L=L, charges=charges, **settings)
    draws = [lambda k, plate=plate: plate[:k] for plate in (positive, negative)]
    return method.regression(draws[0], draws[1], n, rng(8)), positive, negative


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_regression_gives_unit_directions(side: int, sigma: float) -> None:
    regression, positive, negative = batch(side, 64, points="uniform", sigma=sigma)
    x, z, target, weight = regression
    dim = x.shape[1]
    assert weight is None
    assert target.shape == (64, dim + 1)
    assert target.dtype == torch.float32
    assert target.isfinite().all()
    length = torch.linalg.vector_norm(target.double(), dim=1) / math.sqrt(dim + 1)
    assert (length - 1).abs().max() < 4 * ROUNDING
    between = (z > 0) & (z < L)
    assert between.sum() >= 63
    assert (target[between, -1] > 0).all()
    expected, _ = reference(x[:4], z[:4], [(positive, 0.0, 1), (negative, L, -1)])
    error = target[:4].double().numpy() / math.sqrt(dim + 1) - expected
    assert np.sqrt((error**2).sum(1)).max() < 4 * ROUNDING
    if sigma == 0:  # on the segments between charges; their slope is 500 to about 60 at D = 12288
        steepest = torch.cdist(positive.double(), negative.double()).max() / L
        assert target[:, -1].min() > 0.5 * math.sqrt(dim + 1) / math.hypot(1, steepest)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("points", ["uniform", "mix"])
def test_regression_of_both_plates_is_finite(side: int, points: str) -> None:
    """Three unit directions and two log-norms, of which some are beyond -1e4."""
    regression, positive, negative = batch(side, 16, points=points, sigma=0.05, lines="two_sided")
    x, z, target, weight = regression
    n = x.shape[1] + 1
    assert target.shape == (16, 3 * n + 2)
    assert target.dtype == torch.float32
    assert target.isfinite().all()
    assert weight is not None
    assert torch.equal(weight, torch.ones(16))
    starts = [0, n, 2 * n + 1]
    for start in starts:
        length = torch.linalg.vector_norm(target[:, start : start + n].double(), dim=1)
        assert (length - 1).abs().max() < 4 * ROUNDING
    both = [(positive, 0.0, 1), (negative, L, -1)]
    rows = [0, 1, 14, 15]
    for start, plate in zip(starts, [both, both[:1], [(negative, L, 1)]], strict=True):
        expected, log_norm = reference(x[rows], z[rows], plate)
        found = target[rows][:, start : start + n].double().numpy()
        assert np.sqrt(((found - expected) ** 2).sum(1)).max() < 4 * ROUNDING
        if len(plate) == 1:
            found_log = target[rows, start + n].double().numpy() / LOG_WEIGHT
            assert (np.abs(found_log - log_norm) / np.abs(log_norm)).max() < 4 * ROUNDING
            assert np.abs(log_norm).max() > n


@pytest.mark.parametrize("lines", ["forward", "two_sided"])
def test_regression_where_the_plates_balance(lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-norms of 1e4 in float32 are right to 1e-3 only; the plates are added before that."""

    def balanced(p: Tensor, q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        """As far from p as from q, up to twice the field, and 100 beside the segment."""
        away = torch.nn.functional.normalize(q - p)
        beside = noise(len(p), p.shape[1], 100, seed=9)
        beside = beside - (beside * away).sum(1, keepdim=True) * away
        return (p + q) / 2 + beside, torch.linspace(L / 2 - 0.01, L / 2 + 0.01, len(p))

    monkeypatch.setattr(efm.schemes, "along_segments", balanced)
    regression, positive, negative = batch(64, 8, points="uniform", sigma=0.0, lines=lines)
    x, z, target, _ = regression
    expected, _ = reference(x, z, [(positive, 0.0, 1), (negative, L, -1)])
    found = target[:, : x.shape[1] + 1].double()
    found = found / torch.linalg.vector_norm(found, dim=1, keepdim=True)
    error = np.sqrt(((found.numpy() - expected) ** 2).sum(1))
    assert error.max() < 4 * ROUNDING


def test_reference_areas() -> None:
    """The areas behind the reference: circle, sphere, and the factor 2 pi / (n - 2) after that."""
    assert math.exp(log_area(1)) == pytest.approx(2)
    assert math.exp(log_area(2)) == pytest.approx(2 * math.pi)
    assert math.exp(log_area(3)) == pytest.approx(4 * math.pi)
    for n in itertools.chain(range(3, 9), [3073]):
        ratio = math.exp(log_area(n) - log_area(n - 2)) if n > 2 else 1
        assert ratio == pytest.approx(2 * math.pi / (n - 2))
