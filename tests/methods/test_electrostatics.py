"""The exact fields against brute force, Gauss's law and the symmetries of Coulomb's law."""

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import roots_chebyu, roots_legendre, softmax
from torch import Tensor

from methods import electrostatics
from methods.electrostatics import (
    capacitor_field,
    log_sphere_area,
    mean_displacement,
    poisson_field,
)

L = 6.0
DIMS = [2, 16, 64, 784, 3072]
LOW_AND_HIGH = [2, 16]  # sums by coordinate and sums by matrix product


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=torch.float64)


def capacitor(dim: int, seed: int = 0, positive: int = 5, negative: int = 7) -> tuple[Tensor, ...]:
    """Random charges on both plates; the plates hold different numbers of them."""
    return normal(positive, dim, seed=seed), 0.7 * normal(negative, dim, seed=seed + 1) + 0.3


def brute_force(
    x: Tensor, z: Tensor, plates: list[tuple[Tensor, float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Direction and log-norm from explicit differences in long double.

    A plate is (charges, height, total charge). Distances are counted in the smallest one,
    which moves its power out of the sum: nothing overflows.
    """
    points = np.concatenate([x.double().numpy(), z.double().numpy()[:, None]], 1)
    n = points.shape[1]
    differences, totals = [], []
    for charges, height, total in plates:
        y = np.concatenate([charges.double().numpy(), np.full((len(charges), 1), height)], 1)
        differences.append(points[:, None].astype(np.longdouble) - y[None].astype(np.longdouble))
        totals.append(np.full(len(charges), np.longdouble(total) / len(charges)))
    difference, charge = np.concatenate(differences, 1), np.concatenate(totals)
    distance = np.sqrt((difference**2).sum(2))
    nearest = distance.min(1, keepdims=True)
    field = ((charge * (nearest / distance) ** n)[:, :, None] * difference).sum(1)
    norm = np.sqrt((field**2).sum(1))
    log_area = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)
    return field / norm[:, None], np.log(norm) - n * np.log(nearest[:, 0]) - log_area


def probes(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Points between, beside and behind the plates, and 1e-3 from a charge of either."""
    dim = positive.shape[1]
    p, q = positive[:4], negative[:4]
    step = normal(4, dim + 1, seed=9)
    step = 1e-3 * step / torch.linalg.vector_norm(step, dim=1, keepdim=True)
    beside = normal(4, dim, seed=8)
    beside = 10 * math.sqrt(dim) * beside / torch.linalg.vector_norm(beside, dim=1, keepdim=True)
    groups = [
        ((p + q) / 2, torch.full((4,), L / 2)),  # equally far from a p and a q
        ((positive[:4] + positive[1:5]) / 2, torch.tensor([0.1, 1.0, 3.0, 5.9])),
        (normal(4, dim, seed=7), torch.tensor([-4.0, -0.1, L + 0.1, L + 4])),
        (beside, torch.tensor([-5.0, 0.5, 3.0, 8.0])),
        (p + step[:, :-1], step[:, -1]),
        (q + step[:, :-1], L + step[:, -1]),
    ]
    return torch.cat([x for x, _ in groups]), torch.cat([z.double() for _, z in groups])


def with_copies(charges: Tensor, copies: int) -> Tensor:
    """The first two charges ``copies`` times, the others once."""
    return torch.cat([charges, charges[:2].repeat(copies - 1, 1)])


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("copies", [1, 3, 6])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.float64, 1e-10)])
def test_direction_is_brute_force(dim: int, copies: int, dtype: torch.dtype, bound: float) -> None:
    positive, negative = capacitor(dim)
    points = (*probes(positive, negative), with_copies(positive, copies), with_copies(negative, 2))
    x, z, positive, negative = (t.to(dtype) for t in points)
    direction, log_norm = capacitor_field(x, z, positive, negative, L)
    expected, _ = brute_force(x, z, [(positive, 0.0, 1.0), (negative, L, -1.0)])
    assert direction.dtype == log_norm.dtype == dtype
    error = np.linalg.norm(direction.double().numpy() - expected, axis=1)
    assert error.max() < bound


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("copies", [1, 3, 6])
def test_log_norm_is_brute_force(dim: int, copies: int) -> None:
    positive, negative = capacitor(dim)
    x, z = probes(positive, negative)
    positive, negative = with_copies(positive, copies), with_copies(negative, copies)
    _, log_norm = capacitor_field(x, z, positive, negative, L)
    _, expected = brute_force(x, z, [(positive, 0.0, 1.0), (negative, L, -1.0)])
    assert np.abs(log_norm.numpy() - expected).max() < 1e-8


@pytest.mark.parametrize("dim", DIMS)
def test_poisson_field_is_brute_force(dim: int) -> None:
    charges, _ = capacitor(dim)
    x, z = probes(charges, charges + 1)
    direction, log_norm = poisson_field(x, z, charges)
    expected, expected_log = brute_force(x, z, [(charges, 0.0, 1.0)])
    assert np.linalg.norm(direction.numpy() - expected.astype(float), axis=1).max() < 1e-10
    assert np.abs(log_norm.numpy() - expected_log).max() < 1e-8


def test_sphere_areas() -> None:
    areas = [math.exp(log_sphere_area(n)) for n in (1, 2, 3, 4)]
    assert areas == pytest.approx([2, 2 * math.pi, 4 * math.pi, 2 * math.pi**2], rel=1e-14)


@pytest.mark.parametrize(("dim", "area"), [(1, 2 * math.pi), (2, 4 * math.pi)])
def test_single_charge_is_coulomb(dim: int, area: float) -> None:
    offset = normal(20, dim + 1, seed=3)
    charge = torch.full((1, dim), 1.5, dtype=torch.float64)
    direction, log_norm = poisson_field(charge + offset[:, :-1], offset[:, -1], charge)
    r = torch.linalg.vector_norm(offset, dim=1)
    torch.testing.assert_close(direction, offset / r[:, None], rtol=0, atol=1e-14)
    torch.testing.assert_close(log_norm.exp(), 1 / (area * r**dim), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dim", [2, 16, 784])
def test_mid_plane_of_a_dipole_is_axial(dim: int) -> None:
    p = normal(1, dim)
    x = p + normal(30, dim, seed=1)
    direction, _ = capacitor_field(x, torch.full((30,), L / 2).double(), p, p, L)
    axis = torch.zeros(30, dim + 1, dtype=torch.float64)
    axis[:, -1] = 1
    torch.testing.assert_close(direction, axis, rtol=0, atol=1e-12)


# --- Gauss's law -----------------------------------------------------------------------------


def sphere_rule(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes on the unit sphere of R^n, n = 2, 3, 4, and weights that sum to its area."""
    k = 80
    angle = 2 * math.pi * np.arange(k) / k
    nodes = np.stack([np.cos(angle), np.sin(angle)], 1)
    weights = np.full(k, 2 * math.pi / k)
    if n >= 3:
        nodes, weights = _with_axis(nodes, weights, *roots_legendre(40))
    if n == 4:
        nodes, weights = _with_axis(nodes, weights, *roots_chebyu(40))
    return nodes, weights


def _with_axis(
    nodes: np.ndarray, weights: np.ndarray, cosine: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sine = np.sqrt(1 - cosine**2)
    inner = (sine[:, None, None] * nodes).reshape(-1, nodes.shape[1])
    axis = np.repeat(cosine, len(nodes))[:, None]
    return np.concatenate([inner, axis], 1), (w[:, None] * weights).ravel()


def flux(
    field: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], centre: Tensor, r: float
) -> float:
    """Integral of E.n over the sphere of radius r around ``centre`` in R^n."""
    n = len(centre)
    if n <= 4:
        nodes, weights = (torch.from_numpy(a) for a in sphere_rule(n))
    else:
        nodes = normal(100_000, n, seed=11)
        nodes = nodes / torch.linalg.vector_norm(nodes, dim=1, keepdim=True)
        weights = torch.full((len(nodes),), math.exp(log_sphere_area(n)) / len(nodes)).double()
    points = centre + r * nodes
    direction, log_norm = field(points[:, :-1], points[:, -1])
    scaled = (log_norm + (n - 1) * math.log(r)).exp()
    return float((weights * scaled * (direction * nodes).sum(1)).sum())


@pytest.mark.parametrize(("dim", "tolerance"), [(1, 1e-8), (2, 1e-8), (3, 1e-8), (16, 0.02)])
def test_gauss_law(dim: int, tolerance: float) -> None:
    """The flux out of a sphere is the charge inside: quadrature, by Monte Carlo at D = 16."""
    far = 40.0  # charges outside of the spheres below
    size = 0.5 / math.sqrt(dim)
    positive = torch.cat([normal(3, dim, scale=size), far + normal(1, dim, seed=2)])
    negative = torch.cat([normal(2, dim, seed=1, scale=size), far + normal(3, dim, seed=3)])
    plate_distance = 8.0

    def field(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return capacitor_field(x, z, positive, negative, plate_distance)

    def at(z: float) -> Tensor:
        return torch.tensor([0.0] * dim + [z], dtype=torch.float64)

    assert flux(field, at(0.1), 2.5) == pytest.approx(3 / 4, abs=tolerance)
    assert flux(field, at(7.9), 2.5) == pytest.approx(-2 / 5, abs=tolerance)
    assert flux(field, at(4.0), 1.5) == pytest.approx(0, abs=tolerance)
    if dim > 4:  # a sphere around both has too large a variance
        return
    assert flux(field, at(4.0), 12.0) == pytest.approx(3 / 4 - 2 / 5, abs=1e-4)
    assert flux(lambda x, z: poisson_field(x, z, positive[:3]), at(0), 2) == pytest.approx(1)


# --- Differential form, symmetries, asymptotics ------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 9, 16])
def test_field_is_free_of_divergence_and_curl(dim: int) -> None:
    positive, negative = capacitor(dim)
    points = torch.cat([normal(6, dim, seed=5), torch.tensor([-1, 0.5, 2, 3, 5, 7.0])[:, None]], 1)
    n, h = dim + 1, 1e-4
    steps = h * torch.eye(n, dtype=torch.float64)
    shifted = torch.cat([points[:, None] + steps, points[:, None] - steps], 1)  # (6, 2n, n)
    flat = shifted.reshape(-1, n)
    direction, log_norm = capacitor_field(flat[:, :-1], flat[:, -1], positive, negative, L)
    log_norm = log_norm.reshape(6, -1)
    log_norm = log_norm - log_norm.mean(1, keepdim=True)  # each point in units of its own field
    field = (direction.reshape(6, 2 * n, n)) * log_norm.exp()[:, :, None]
    jacobian = (field[:, :n] - field[:, n:]) / (2 * h)  # d E_j / d x_i
    size = torch.linalg.matrix_norm(jacobian)
    divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    curl = torch.linalg.matrix_norm(jacobian - jacobian.mT)
    assert (divergence.abs() < 1e-5 * size).all()
    assert (curl < 1e-5 * size).all()


def random_points(dim: int, count: int = 30) -> tuple[Tensor, Tensor]:
    z = torch.linspace(-3, L + 3, count, dtype=torch.float64)
    return 1.5 * normal(count, dim, seed=21), z


@pytest.mark.parametrize("dim", LOW_AND_HIGH)
def test_swapping_the_plates_and_mirroring_flips_the_field(dim: int) -> None:
    positive, negative = capacitor(dim)
    x, z = random_points(dim)
    direction, log_norm = capacitor_field(x, z, positive, negative, L)
    mirrored, mirrored_log = capacitor_field(x, L - z, negative, positive, L)
    mirrored[:, -1] *= -1
    torch.testing.assert_close(mirrored, -direction, rtol=0, atol=1e-11)
    torch.testing.assert_close(mirrored_log, log_norm, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dim", LOW_AND_HIGH)
def test_translation_and_rotation(dim: int) -> None:
    positive, negative = capacitor(dim)
    x, z = random_points(dim)
    direction, log_norm = capacitor_field(x, z, positive, negative, L)
    rotation, _ = torch.linalg.qr(normal(dim, dim, seed=4))
    shift = normal(1, dim, seed=5, scale=10)
    moved, moved_log = capacitor_field(
        x @ rotation + shift, z, positive @ rotation + shift, negative @ rotation + shift, L
    )
    expected = torch.cat([direction[:, :-1] @ rotation, direction[:, -1:]], 1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(moved_log, log_norm, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dim", LOW_AND_HIGH)
@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_scaling_all_lengths_scales_the_field_by_the_power_minus_dim(
    dim: int, scale: float
) -> None:
    positive, negative = capacitor(dim)
    x, z = random_points(dim)
    direction, log_norm = capacitor_field(x, z, positive, negative, L)
    scaled, scaled_log = capacitor_field(
        scale * x, scale * z, scale * positive, scale * negative, scale * L
    )
    torch.testing.assert_close(scaled, direction, rtol=0, atol=1e-10)
    torch.testing.assert_close(scaled_log, log_norm - dim * math.log(scale), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_far_field_falls_like_a_monopole_and_a_dipole(dim: int) -> None:
    positive, negative = capacitor(dim)
    ray = normal(8, dim + 1, seed=6)
    ray = ray / torch.linalg.vector_norm(ray, dim=1, keepdim=True)

    def slope(field: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        near, far = (field(r * ray[:, :-1], r * ray[:, -1])[1] for r in (1e4, 1e5))
        return (far - near) / math.log(10)

    monopole = slope(lambda x, z: poisson_field(x, z, positive))
    dipole = slope(lambda x, z: capacitor_field(x, z, positive, negative, L))
    assert (monopole + dim).abs().max() < 0.01
    assert (dipole + dim + 1).abs().max() < 0.02


@pytest.mark.parametrize("dim", [2, 9, 64])
def test_field_points_forward_between_the_plates(dim: int) -> None:
    positive, negative = capacitor(dim, positive=64, negative=64)
    x = torch.cat([2 * normal(500, dim, seed=3), positive, negative])
    z = torch.rand(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = (0.01 + 0.98 * z) * L
    direction, _ = capacitor_field(x, z, positive, negative, L)
    assert (direction[:, -1] > 0).all()


# --- On a charge, in blocks, out of range ------------------------------------------------------


@pytest.mark.parametrize("dim", LOW_AND_HIGH)
@pytest.mark.parametrize("duplicates", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_charge(dim: int, duplicates: int, dtype: torch.dtype) -> None:
    positive, negative = (plate.repeat(duplicates, 1).to(dtype) for plate in capacitor(dim))
    x = torch.cat([positive[:2], negative[:2], positive[:1]])
    z = torch.tensor([0, 0, L, L, 1.0], dtype=dtype)
    direction, log_norm = capacitor_field(x, z, positive, negative, L)
    assert torch.equal(direction[:4], torch.zeros(4, dim + 1, dtype=dtype))
    assert torch.equal(log_norm[:4], torch.full((4,), math.inf, dtype=dtype))
    # The last point is off the charges, and its neighbours in the batch do not disturb it.
    assert torch.linalg.vector_norm(direction[4]) == pytest.approx(1, abs=1e-6)
    assert log_norm[4].isfinite()
    displacement = mean_displacement(x[:2], z[:2], positive)
    assert torch.equal(displacement, torch.zeros(2, dim + 1, dtype=dtype))


@pytest.mark.parametrize("dim", LOW_AND_HIGH)
@pytest.mark.parametrize("pairs", [1, 23])
def test_blocks_do_not_change_the_result(
    dim: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    positive, negative = capacitor(dim)
    x, z = random_points(dim)
    direction, log_norm = capacitor_field(x, z, positive, negative, L)
    displacement = mean_displacement(x, z, positive)
    monkeypatch.setattr(electrostatics, "BLOCK_PAIRS", pairs)
    in_blocks, in_blocks_log = capacitor_field(x, z, positive, negative, L)
    torch.testing.assert_close(in_blocks, direction, rtol=0, atol=1e-12)
    torch.testing.assert_close(in_blocks_log, log_norm, rtol=0, atol=1e-11)
    torch.testing.assert_close(mean_displacement(x, z, positive), displacement, rtol=0, atol=1e-12)


@pytest.mark.parametrize("plate_distance", [0.0, -1.0, math.nan, math.inf])
def test_plate_distance_out_of_range(plate_distance: float) -> None:
    positive, negative = capacitor(2)
    with pytest.raises(ValueError, match=r"plate_distance .* got"):
        capacitor_field(*random_points(2), positive, negative, plate_distance)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("x", (30,)),
        ("x", (30, 2, 1)),
        ("z", (29,)),
        ("z", (30, 1)),
        ("positive", (5, 3)),
        ("positive", (0, 2)),
        ("negative", (2,)),
        ("negative", (0, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_named(argument: str, shape: tuple[int, ...]) -> None:
    x, z = random_points(2)
    positive, negative = capacitor(2)
    arguments = {"x": x, "z": z, "positive": positive, "negative": negative}
    arguments[argument] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"\b{argument}\b.*{shape[0]}"):
        capacitor_field(**arguments, plate_distance=L)


@pytest.mark.parametrize("field", [poisson_field, mean_displacement])
def test_charges_that_do_not_fit_are_named(field: Callable[..., object]) -> None:
    for charges in (torch.zeros(0, 2), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match="charges must have shape"):
            field(*random_points(2), charges)


# --- The displacement to the mean charge -------------------------------------------------------


@pytest.mark.parametrize("dim", DIMS)
def test_mean_displacement(dim: int) -> None:
    charges, _ = capacitor(dim, positive=7)
    x, z = probes(charges, charges)
    displacement = mean_displacement(x, z, charges)
    torch.testing.assert_close(displacement[:, -1], z, rtol=1e-12, atol=0)

    differences = x.numpy()[:, None] - charges.numpy()[None]
    distance = np.sqrt((differences**2).sum(2) + z.numpy()[:, None] ** 2)
    weight = softmax(-(dim + 1) * np.log(distance), axis=1)
    expected = (weight[:, :, None] * differences).sum(1)
    np.testing.assert_allclose(displacement[:, :-1].numpy(), expected, rtol=0, atol=1e-9)

    direction, _ = poisson_field(x, z, charges)
    unit = displacement / torch.linalg.vector_norm(displacement, dim=1, keepdim=True)
    torch.testing.assert_close(unit, direction, rtol=0, atol=1e-12)
    # PFGM's field is PFGM++ with one extra dimension: E_x / E_z = (x - sum_i w_i y_i) / z.
    mean_charge = torch.from_numpy(weight @ charges.numpy())
    ratio = direction[:, :-1] / direction[:, -1:]
    torch.testing.assert_close(z[:, None] * ratio, x - mean_charge, rtol=0, atol=1e-9)


# --- Cost ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_and_speed_at_image_size() -> None:
    """No (B, N, D) tensor: little memory, and far faster than forming the differences."""
    script = """
        import math, time, torch
        from methods.electrostatics import capacitor_field

        torch.set_num_threads(1)
        b, N, D = 64, 1024, 3072
        rng = torch.Generator().manual_seed(0)
        positive, negative = (torch.randn(N, D, generator=rng) for _ in range(2))
        x, z = torch.randn(b, D, generator=rng), 6 * torch.rand(b, generator=rng)
        capacitor_field(x[:2], z[:2], positive[:8], negative[:8], 6.0)  # warm up

        def status(key):
            line = next(l for l in open("/proc/self/status") if l.startswith(key))
            return int(line.split()[1]) / 1024

        def seconds(function):
            start = time.perf_counter()
            function()
            return time.perf_counter() - start

        def naive():
            fields, scale = [], None
            for charges, height, sign in ((positive, 0.0, 1), (negative, 6.0, -1)):
                difference = x[:, None].double() - charges[None].double()
                h = (z - height).double()[:, None]
                squared = difference.square().sum(2) + h.square()
                log_weight = -(D + 1) / 2 * squared.log()
                if scale is None:
                    scale = log_weight.amax(1, keepdim=True)
                weight = sign * (log_weight - scale).exp() / N
                field_x = (weight[:, :, None] * difference).sum(1)
                fields.append(torch.cat([field_x, (weight.sum(1, keepdim=True) * h)], 1))
            return sum(fields)

        before = status("VmRSS")
        ours = min(seconds(lambda: capacitor_field(x, z, positive, negative, 6.0))
                   for _ in range(3))
        growth = status("VmHWM") - before
        print(growth, seconds(naive) / ours)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    megabytes, speed_up = map(float, run.stdout.split())
    assert megabytes < 150, f"{megabytes:.0f} MB above the inputs"
    assert speed_up > 25, f"only {speed_up:.0f} times faster than forming the differences"
