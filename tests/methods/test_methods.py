"""Every method under one contract, and each against its closed forms."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ot
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from scipy import integrate, stats
from torch import Tensor, nn

import methods.capacitor.points
import methods.pfgm
from bench import run
from datasets import TASKS
from datasets.toy import EightGaussians, SwissRoll
from methods import METHODS, Method, register
from methods.base import Draw
from methods.capacitor.points import LinePool
from methods.efm import ElectrostaticFieldMatching
from methods.electrostatics import capacitor_field, mean_displacement, poisson_field
from methods.fm import FlowMatching
from methods.networks import NetworkSettings
from methods.pfgm import PoissonFlow
from methods.solvers import Solver

NAMES = sorted(METHODS)
TRAINED = [name for name in NAMES if METHODS[name].trained]
BOTH_SIDES: dict[str, dict[str, Any]] = {
    "efm stop_rule": {"lines": "stop_rule"},
    "efm two_sided": {"lines": "two_sided"},
    "efm-exact two_sided": {"lines": "two_sided", "charges": 200},
    "efm-exact arc_length": {"variable": "arc_length", "charges": 200},
}
"""Methods whose lines are traced by arc length."""
DIMS = [2, 64]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ACCURATE = Solver(solver="rk4", solver_steps=400)
EFM = ElectrostaticFieldMatching


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def gaussian(dim: int, seed: int, shift: float = 0.0, dtype: torch.dtype = torch.float32) -> Draw:
    generator = rng(seed)
    return lambda k: shift + torch.randn(k, dim, generator=generator, dtype=dtype)


def constant(*point: float) -> Draw:
    """A distribution of one point."""
    return lambda k: torch.tensor(point, dtype=torch.float64).repeat(k, 1)


class Recorded:
    """Hands out samples and remembers them."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.batches: list[Tensor] = []

    def __call__(self, k: int) -> Tensor:
        self.batches.append(self.draw(k))
        return self.batches[-1]


class Counted(nn.Module):
    """A model that counts its calls, from a module or a function."""

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.points = 0

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        self.points += len(x)
        assert s.shape == x.shape[:1]
        return self.model(x, s)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def same_distribution(samples: Tensor | np.ndarray, distribution: Any) -> bool:
    """Kolmogorov and Smirnov's test of ``samples`` against a CDF or other samples.

    With fixed seeds the tests give the same p value every time; a wrong distribution
    of the sizes used here is far below the bound.
    """
    reference = distribution if callable(distribution) else np.asarray(distribution)
    return bool(stats.kstest(np.asarray(samples).ravel(), reference).pvalue > 1e-3)


def length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of exact lines cost seconds; what they hold is tested in test_efm.py."""
    monkeypatch.setattr(LinePool, "LINES", 32)
    monkeypatch.setattr(LinePool, "CHARGES", 128)
    monkeypatch.setattr(LinePool, "SOLVER", Solver(solver_steps=1, rtol=1e-3, atol=1e-3))


# --- The contract -------------------------------------------------------------------------------


def build(name: str, dim: int) -> tuple[Method, nn.Module]:
    kind = METHODS[name.split()[0]]
    method = kind.create(dim, **BOTH_SIDES.get(name, {}))
    network = NetworkSettings(width=16, depth=2).factory(dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        samples = gaussian(dim, 1)(500), gaussian(dim, 2, shift=1)(500)
        return method, method.model(network, *samples)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", [*TRAINED, "efm stop_rule", "efm two_sided"])
def test_regression_contract(name: str, dim: int) -> None:
    method, model = build(name, dim)
    state = torch.get_rng_state()

    def batch(seed: int) -> tuple[Tensor | None, ...]:
        return method.regression(gaussian(dim, 3), gaussian(dim, 4, shift=1), 33, rng(seed))

    points, scalar, target, weight = batch(0)
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"
    assert points.shape == (33, dim)
    assert scalar.shape == (33,)
    assert weight is None or weight.shape == (33,)
    for part in (points, scalar, target):
        assert part.dtype == torch.float32
        assert part.isfinite().all()
        assert not part.requires_grad
    assert model(points, scalar).shape == target.shape
    for part, again in zip((points, scalar, target), batch(0), strict=False):
        assert torch.equal(part, again)
    assert not torch.equal(points, batch(1)[0])
    batches = method.batches(gaussian(dim, 3), gaussian(dim, 4, shift=1), 33, rng())
    assert torch.equal(next(batches).points, points)
    assert not torch.equal(next(batches).points, points)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TRAINED)))
def test_what_is_not_trained_has_no_batches_and_no_parameters(name: str) -> None:
    method, model = build(name, 2)
    assert not list(model.parameters())
    with pytest.raises(TypeError, match=f"^{name} has nothing to learn$"):
        method.regression(gaussian(2, 3), gaussian(2, 4), 5, rng())
    with pytest.raises(TypeError):
        next(method.batches(gaussian(2, 3), gaussian(2, 4), 5, rng()))


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("solver", ["euler", "heun", "dopri5"])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", [*NAMES, *BOTH_SIDES])
def test_transport_contract(name: str, dim: int, solver: str, path: bool) -> None:
    method, model = build(name, dim)
    counted = Counted(model)
    x0 = gaussian(dim, 5)(20)
    start = method.start(x0)
    assert start.shape == x0.shape
    assert start.dtype == x0.dtype
    with torch.no_grad():
        traced = getattr(method, "variable", None) == "arc_length"
        steps = 2 if traced else 8  # of a traced line 80 times as many
        settings = Solver(solver=solver, solver_steps=steps, rtol=0.1, atol=0.1)
        result = method.transport(counted, start, settings, path=path)
        again = method.transport(model, start, settings, path=path)
    assert result.nfe == math.ceil(counted.points / len(x0))
    assert torch.equal(result.end, again.end)
    assert set(result.diagnostics) <= set(method.diagnostics)
    assert result.end.shape == x0.shape
    assert result.end.dtype == x0.dtype
    assert result.landed.shape == (20,)
    assert result.landed.dtype == torch.bool
    assert result.end.isfinite().all()
    if not path:
        assert result.path is None
        return
    assert result.path is not None
    assert result.path.shape[1:] == x0.shape
    if not traced:
        # Eight steps, for some methods one more to the end, and a blurred start.
        assert 9 <= len(result.path) <= 11
    if result.heights is not None:
        assert result.heights.shape == result.path.shape[:2]
    assert torch.equal(result.path[0], start)
    assert torch.equal(result.path[-1], result.end)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*NAMES, "efm two_sided"])
def test_devices_and_dtypes_are_those_of_the_data(
    name: str, dtype: torch.dtype, device: str
) -> None:
    method, model = build(name, 2)
    model = model.to(device, dtype)
    place = {"device": torch.device(device), "dtype": dtype}
    generator = torch.Generator(device).manual_seed(0)

    def draw(k: int) -> Tensor:
        return torch.randn(k, 2, generator=generator, **place)

    tensors = [method.start(draw(9))]
    with torch.no_grad():
        result = method.transport(model, tensors[0], Solver(solver_steps=2), True, generator)
    assert result.path is not None
    tensors += [result.end, result.path]
    if method.trained:
        batch = method.regression(draw, draw, 7, generator)
        tensors += [*batch[:3], model(batch.points, batch.scalar)]
        assert batch.weight is None or batch.weight.device.type == device
    assert {(x.device.type, x.dtype) for x in tensors} == {(device, dtype)}


@pytest.mark.parametrize("name", NAMES)
def test_lost_lines_are_not_landed(name: str) -> None:
    method, model = build(name, 2)

    def broken(x: Tensor, s: Tensor) -> Tensor:
        field = model(x, s)
        field[3] = math.nan
        return field

    with torch.no_grad():
        result = method.transport(Counted(broken), gaussian(2, 0)(6), Solver(solver_steps=4))
    assert result.landed.tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_round_trip(name: str, dim: int) -> None:
    method = METHODS[name].create(dim)
    settings = method.hyperparameters()
    assert METHODS[name](**json.loads(json.dumps(settings))) == method
    for field, value in settings.items():
        if isinstance(value, float):
            changed = METHODS[name].create(dim, **{field: value * 1.5 + 0.01})
            assert changed != method
            assert changed.hyperparameters()[field] == value * 1.5 + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_unknown_and_infinite_hyperparameters_are_named(name: str) -> None:
    settings = METHODS[name].create(2).hyperparameters()
    wrong: list[tuple[str, Any]] = [("sigmaa", 1.0)]
    wrong += [
        (k, bad)
        for k, v in settings.items()
        if isinstance(v, float)
        for bad in BAD
        if not (k == "P_mean" and bad == -1.0)  # the mean of a logarithm
    ]
    for field, value in wrong:
        with pytest.raises(ValidationError) as raised:
            METHODS[name].create(2, **{field: value})
        assert [e["loc"] for e in raised.value.errors()] == [(field,)]


BAD = (math.nan, math.inf, -1.0, "wide")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("efm", "L", 0.0),
        ("efm", "points", "mixed"),
        ("efm", "charges", 0),
        ("efm", "charges", 2.5),
        ("efm", "min_slope", 0.0),
        ("efm", "min_slope", 1.0),
        ("efm", "plate_distance", 3.0),
        ("pfgm", "z_max", 0.0),
        ("pfgm", "sigma", 0.0),
        ("pfgm", "charges", 0),
    ],
)
def test_out_of_range_hyperparameters_are_named(name: str, field: str, value: object) -> None:
    with pytest.raises(ValidationError) as raised:
        METHODS[name].create(2, **{field: value})
    assert [e["loc"] for e in raised.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("efm", {"L": 1.0, "offset": 0.5}, "L must be above"),
        (
            "efm",
            {"points": "mix", "sigma": None},
            "sigma must have a value with",
        ),
        ("pfgm", {"z_min": 2.0, "z_max": 1.0}, "z_min must be below z_max"),
    ],
)
def test_settings_that_exclude_each_other(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        METHODS[name].create(2, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_skip_gives_a_reason_exactly_for_what_needs_noise(name: str) -> None:
    assert METHODS[name].create(2).skip(2, noise_source=True) is None
    reason = METHODS[name].create(2, noise_source=False).skip(2, noise_source=False)
    assert (reason is not None) is METHODS[name].noise_only
    if reason is not None:
        assert name in reason
        assert "prior" in reason


def test_which_methods_need_noise() -> None:
    from_data = {"efm", "fm", "ot-cfm", "ifm"}
    from_noise = {"pfgm", "pfgmpp", "vp", "edm"}
    assert {name for name in NAMES if METHODS[name].noise_only} == {
        *from_noise,
        *(f"{name}-exact" for name in from_noise),
    }
    assert {name for name in TRAINED if not METHODS[name].noise_only} == from_data


def test_every_method_has_an_exact_counterpart() -> None:
    """The ceiling rows of the tables."""
    assert {f"{name}-exact" for name in TRAINED} == set(NAMES) - set(TRAINED)


def test_two_methods_of_one_name_are_refused() -> None:
    class Impostor(FlowMatching):
        pass

    with pytest.raises(ValueError, match="'fm' is registered already"):
        register(Impostor)
    assert METHODS["fm"] is FlowMatching
    assert register(FlowMatching) is FlowMatching


def test_a_new_file_in_a_subpackage_is_a_new_method(tmp_path: Path) -> None:
    shutil.copytree(methods.__path__[0], tmp_path / "methods")
    new = """
from methods import register
from methods.fm import FlowMatching

@register
class New(FlowMatching):
    name = "new"
"""
    (tmp_path / "methods" / "capacitor" / "new.py").write_text(new)
    code = "import methods; print('new' in methods.METHODS)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_method_without_an_equation_says_so() -> None:
    class Lost(FlowMatching):
        name = "lost"
        flow = Method.flow

    model = build("fm", 2)[1]
    with pytest.raises(NotImplementedError, match=r"^lost must define flow, or a transport of its"):
        Lost().transport(model, normal(3, 2), Solver())


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_tables_and_pictures_name_exist(name: str) -> None:
    kind = METHODS[name]
    method = kind.create(2)
    assert {*kind.named_settings, *kind.picture_settings} <= set(method.hyperparameters())
    assert bool(kind.picture_settings) is (method.picture(2) is not None)
    assert kind.named_settings == (("recipe", "endpoints") if name == "efm" else ())


def test_pictures_of_capacitors() -> None:
    """With the exact counterpart: the settings that both have, and 1,024 charges."""
    given: dict[str, Any] = {"L": 7.0, "lines": "two_sided", "crossing": "flux", "offset": 0.01}
    picture = EFM.create(2, **given).picture(2)
    assert picture[:3] == (7.0, True, 0.01)
    assert picture.exact == METHODS["efm-exact"].create(2, **given, charges=1024)
    picture = EFM.create(2, points="released").picture(2)
    assert picture[:3] == (30.0, False, 1e-3)
    exact = METHODS["efm-exact"].create(2, variable="log_z", offset=1e-3, charges=1024)
    assert picture.exact == exact
    assert exact.picture(2).exact is None


@pytest.mark.parametrize("task", ["gaussian_to_8gaussians", "gaussian_to_digits", "digits_3_to_2"])
def test_every_method_runs_flat_vectors_and_images(task: str, tmp_path: Path) -> None:
    """Through the harness: skipped for what needs noise, else done, with all that was asked."""
    shape = TASKS[task]().target().shape
    assert (len(shape) == 3) is (task != "gaussian_to_8gaussians")
    rows = run(
        methods=NAMES,
        tasks=[task],
        seeds=[0],
        out=tmp_path,
        steps=2,
        batch=8,
        device="cpu",
        **{"eval.n": 20, "sample.solver_steps": 3, "network.width": 8, "sigma": 0.3},
    )
    assert sorted(rows["method"]) == NAMES
    noise_source = TASKS[task].noise_source
    for row in rows.to_dict("records"):
        kind = METHODS[row["method"]]
        skipped = kind.noise_only and not noise_source
        assert row["status"] == ("skipped" if skipped else "done"), row["reason"]
        if "sigma" in kind.model_fields:
            method = kind.create(TASKS[task].dim, noise_source, sigma=0.3)
            recorded = {key: row[key] for key in method.hyperparameters()}
            assert recorded["sigma"] == 0.3 or pd.isna(recorded["sigma"])
        if not skipped:
            assert row["nfe"] > 0
            assert 0 <= row["landed"] <= 1
            assert ("radial_transport_cost" if kind.noise_only else "transport_cost") in row
            cost = row["radial_transport_cost" if kind.noise_only else "transport_cost"]
            assert math.isfinite(cost)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_ten_times_the_training_does_not_make_it_worse(name: str, tmp_path: Path) -> None:
    rows = run(
        methods=[name],
        tasks=["gaussian_to_8gaussians"],
        seeds=[0],
        out=tmp_path,
        steps=[200, 2000],
        batch=128,
        device="cpu",
        **{"eval.n": 1000},
    )
    short, long = (
        rows.loc[rows["steps"] == steps, "energy_distance"].item() for steps in (200, 2000)
    )
    assert long <= 1.05 * short


# --- Flow Matching between Gaussians -------------------------------------------------------------

M0 = torch.tensor([1.0, -0.5], dtype=torch.float64)
M1 = torch.tensor([-2.0, 3.0], dtype=torch.float64)
S0 = torch.diag(torch.tensor([0.1, 4.0], dtype=torch.float64))
TURN = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
S1 = TURN @ torch.diag(torch.tensor([4.0, 0.1], dtype=torch.float64)) @ TURN.T


def between(mean: Tensor, covariance: Tensor, seed: int) -> Draw:
    root = torch.linalg.cholesky(covariance)
    return lambda k: mean + normal(k, 2, seed=seed) @ root.T


def gaussian_velocity(sigma: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact velocity of the path from N(M0, S0) to N(M1, S1)."""
    eye = torch.eye(2, dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        s = t[0]
        covariance = (1 - s) ** 2 * S0 + s**2 * S1 + sigma**2 * eye
        matrix = (s * S1 - (1 - s) * S0) @ torch.linalg.inv(covariance)
        return M1 - M0 + (x - torch.lerp(M0, M1, s)) @ matrix.T

    return velocity


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.9])
def test_fm_regresses_the_velocity_between_gaussians(
    sigma: float, t: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one time the target is linear in x on average: least squares finds that map."""
    assert not torch.allclose(S0 @ S1, S1 @ S0)
    monkeypatch.setattr("methods.flow.uniform", lambda shape, like, rng: like.new_full(shape, t))
    method = FlowMatching(sigma=sigma)
    points, scalar, target, _ = method.regression(
        between(M0, S0, 1), between(M1, S1, 2), 200_000, rng()
    )
    assert (scalar == t).all()
    design = torch.cat([points, torch.ones(len(points), 1)], 1)
    fit = torch.linalg.lstsq(design, target).solution
    probe = torch.lerp(M0, M1, t) + 2 * normal(50, 2, seed=3)
    fitted = torch.cat([probe, torch.ones(50, 1)], 1) @ fit
    exact = gaussian_velocity(sigma)(probe, scalar[:50])
    spread = target.std()
    assert (fitted - exact).abs().max() < 0.02 * spread * max(1, probe.abs().max())
    # The points themselves have the moments of the path.
    covariance = (1 - t) ** 2 * S0 + t**2 * S1 + sigma**2 * torch.eye(2)
    torch.testing.assert_close(points.T.cov(), covariance, rtol=0.02, atol=0.02)
    torch.testing.assert_close(points.mean(0), torch.lerp(M0, M1, t), rtol=0, atol=0.02)


def test_fm_times_are_uniform() -> None:
    scalar = FlowMatching().regression(gaussian(2, 0), gaussian(2, 1), 5000, rng()).scalar
    assert same_distribution(scalar, stats.uniform.cdf)


@pytest.mark.parametrize("solver", [Solver(solver_steps=60), ACCURATE])
def test_fm_transports_gaussians_along_the_exact_velocity(solver: Solver) -> None:
    """The map is affine: the images of three points give it, and it has the target's moments."""
    model = Counted(gaussian_velocity(0.0))
    corners = M0 + torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    corners = torch.cat([corners, M0 + normal(5, 2, seed=1)])
    end = FlowMatching().transport(model, corners, solver).end
    matrix = (end[1:3] - end[0]).T
    torch.testing.assert_close(end[0], M1, rtol=0, atol=1e-8)
    torch.testing.assert_close(end - M1, (corners - M0) @ matrix.T, rtol=0, atol=1e-7)
    atol = 1e-6 if solver is ACCURATE else 0.02
    torch.testing.assert_close(matrix @ S0 @ matrix.T, S1, rtol=0, atol=atol)


# --- EFM: where it learns ------------------------------------------------------------------------


@pytest.mark.parametrize("points", ["uniform", "capacitor", "log", "mix"])
@pytest.mark.parametrize("dim", DIMS)
def test_efm_learns_the_direction_of_the_field_of_its_charges(points: str, dim: int) -> None:
    source = Recorded(gaussian(dim, 1, dtype=torch.float64))
    target = Recorded(gaussian(dim, 2, shift=1, dtype=torch.float64))
    method = EFM.create(dim, points=points, L=6.0, charges=32)
    x, z, f, weight = method.regression(source, target, 101, rng())
    assert [len(batch) for batch in source.batches + target.batches] == [32, 32]
    direction, _ = capacitor_field(x, z, source.batches[0], target.batches[0], 6.0)
    torch.testing.assert_close(length(f), torch.full((101,), math.sqrt(dim + 1)).double())
    torch.testing.assert_close(f / math.sqrt(dim + 1), direction)
    assert weight is None
    inside = (z > 0) & (z < 6)
    assert inside.sum() > 5
    assert (f[inside, -1] > 0).all()


@pytest.mark.parametrize("dim", DIMS)
def test_efm_uniform_points_without_noise_lie_on_segments_between_charges(dim: int) -> None:
    source = Recorded(gaussian(dim, 1, dtype=torch.float64))
    target = Recorded(gaussian(dim, 2, shift=3, dtype=torch.float64))
    method = EFM(points="uniform", sigma=0.0, L=5.0, charges=6)
    x, z, *_ = method.regression(source, target, 2000, rng())
    p, q = source.batches[0], target.batches[0]
    t = z[:, None, None, None] / 5
    segments = (1 - t) * p[:, None] + t * q[None]  # (B, 6, 6, D)
    distance = length(x[:, None, None] - segments).flatten(1)
    assert distance.min(1).values.max() < 1e-9
    pair = distance.argmin(1)
    assert stats.chisquare(pair.bincount(minlength=36)).pvalue > 1e-3  # independent, uniform
    assert same_distribution(z / 5, stats.uniform.cdf)


def steps_of(points: str, dim: int, sigma: float, L: float, patch: pytest.MonkeyPatch) -> Tensor:
    """The steps from the segment to the points: all segments are held at t = 0, in the origin."""
    patch.setattr(
        methods.capacitor.points, "uniform", lambda shape, like, rng: like.new_zeros(shape)
    )
    origin = constant(*[0.0] * dim)
    method = EFM(points=points, sigma=sigma, L=L, charges=2)
    x, z, *_ = method.regression(origin, origin, 4000, rng())
    return torch.cat([x, z[:, None]], 1)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("points", "L"), [("uniform", 6.0), ("capacitor", 3.0)])
def test_efm_noise(points: str, L: float, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """|eps| of N(mean, sigma^2 I) in R^{D+1}, in a uniform direction."""
    n, sigma = dim + 1, 0.7
    step = steps_of(points, dim, sigma, L, monkeypatch)
    radius = length(step)
    if points == "uniform":
        assert same_distribution(radius / sigma, stats.chi(n).cdf)
    else:
        assert same_distribution((radius / sigma) ** 2, stats.ncx2(n, n * (L / 2 / sigma) ** 2).cdf)
    direction = step / radius[:, None]
    for axis in (0, dim):
        assert same_distribution(
            (1 + direction[:, axis]) / 2, stats.beta((n - 1) / 2, (n - 1) / 2).cdf
        )
    assert same_distribution(direction[:, 0] * direction[:, dim] > 0, [0, 1] * 2000)
    assert stats.spearmanr(radius, direction[:, dim]).pvalue > 1e-3


FAR = 1000.0


def around(dim: int, L: float) -> tuple[Tensor, Tensor]:
    """Steps of ``log`` from a charge p in the origin and a charge q out of reach of it."""
    q = [FAR] + [0.0] * (dim - 1)
    method = EFM(points="log", L=L, charges=1)
    x, z, *_ = method.regression(constant(*[0.0] * dim), constant(*q), 4000, rng())
    at_target = x[:, 0] > FAR / 2
    charge = at_target[:, None] * torch.tensor([*q, L], dtype=torch.float64)
    return torch.cat([x, z[:, None]], 1) - charge, at_target


@pytest.mark.parametrize("L", [6.0, 30.0])
@pytest.mark.parametrize("dim", DIMS)
def test_efm_log_points(dim: int, L: float) -> None:
    step, at_target = around(dim, L)
    assert stats.binomtest(int(at_target.sum()), len(at_target)).pvalue > 1e-3
    for side in (at_target, ~at_target):
        radius = length(step[side])
        assert same_distribution(radius, stats.loguniform(0.02, 2 * L).cdf)
        axis = step[side, -1] / radius
        assert same_distribution((1 + axis) / 2, stats.beta(dim / 2, dim / 2).cdf)


def test_efm_mix_is_half_uniform_half_log() -> None:
    method = EFM(points="mix", sigma=0.0, L=6.0, charges=1)
    x, z, *_ = method.regression(constant(0.0, 0.0), constant(FAR, 0.0), 4000, rng())
    on_segment = (length(x - torch.tensor([FAR, 0.0]) * z[:, None] / 6) < 1e-6) & (z > 0) & (z < 6)
    assert int(on_segment.sum()) == 2000
    assert same_distribution(z[on_segment] / 6, stats.uniform.cdf)
    x, z = x[~on_segment], z[~on_segment]
    at_target = x[:, 0] > FAR / 2
    radius = torch.hypot(
        length(x - torch.tensor([FAR, 0.0]) * at_target[:, None]), z - 6 * at_target
    )
    assert same_distribution(radius, stats.loguniform(0.02, 12).cdf)
    points = method.regression(constant(0.0, 0.0), constant(FAR, 0.0), 7, rng()).points
    assert points.shape == (7, 2)


def test_efm_log_has_no_sigma() -> None:
    assert EFM(points="log").sigma is None
    assert EFM(points="log", sigma=0.3).hyperparameters()["sigma"] is None
    assert EFM(points="log", sigma=0.3) == EFM(points="log", sigma=0.5)
    assert EFM(points="mix", sigma=0.3).hyperparameters()["sigma"] == 0.3


def test_efm_defaults() -> None:
    low, high = EFM.create(2), EFM.create(64)
    assert (low.plate_distance, low.sigma, low.points) == (30, 1, "mix")
    assert (high.plate_distance, high.points) == (6, "uniform")
    assert high.sigma is not None
    assert high.sigma <= 0.1
    given = EFM.create(64, L=30.0, points="mix")
    assert (given.plate_distance, given.points, given.sigma) == (30, "mix", high.sigma)
    assert PoissonFlow.create(2).gamma < PoissonFlow.create(64).gamma


# --- EFM: along the lines of an exact field ------------------------------------------------------


def exact_capacitor(positive: Tensor, negative: Tensor, L: float, factor: float = 1.0) -> Counted:
    return Counted(lambda x, z: factor * capacitor_field(x, z, positive, negative, L)[0])


def enclosed(angle: Tensor, dim: int) -> Tensor:
    """The share of a charge's flux within ``angle`` of the axis in R^{D+1}."""
    half = torch.from_numpy(stats.beta(dim / 2, 0.5).cdf(torch.sin(angle) ** 2)) / 2
    return torch.where(angle < math.pi / 2, half, 1 - half)


@pytest.mark.parametrize("dim", [1, 2, 3, 16])
def test_efm_keeps_the_flux_function_of_a_dipole(dim: int) -> None:
    """The flux that a circle around the axis encloses is the same all along a field line."""
    L, offset = 6.0, 0.05
    charge = torch.zeros(1, dim, dtype=torch.float64)
    ray = normal(1, dim)
    start = torch.linspace(0.02, 0.1, 10).double()[:, None] * ray / length(ray)
    method = EFM(L=L, offset=offset)
    result = method.transport(exact_capacitor(charge, charge, L), start, ACCURATE, path=True)
    # The lines of the dipole are symmetric to its mid-plane.
    torch.testing.assert_close(result.end, start, rtol=0, atol=1e-4)
    assert result.path is not None
    assert (length(result.path[200]) > 1.5 * length(start)).all()
    heights = offset + (L - 2 * offset) * (1 - torch.cos(torch.linspace(0, math.pi, 401))) / 2
    r, z = length(result.path), heights[:, None].double()
    flux = enclosed(torch.atan2(r, z), dim) + enclosed(torch.atan2(r, L - z), dim)
    if dim == 2:  # solid angles: the textbook form
        cosines = z / torch.hypot(r, z) + (L - z) / torch.hypot(r, L - z)
        torch.testing.assert_close(1 - cosines / 2, flux, rtol=0, atol=1e-9)
    torch.testing.assert_close(flux, flux[0].expand_as(flux), rtol=1e-3, atol=0)
    assert (flux[0].diff() > 0).all()
    assert flux[0, -1] > flux[0, 0] + 0.02  # the lines are told apart


def test_efm_transport_needs_the_direction_alone() -> None:
    p, q = normal(8, 2), normal(8, 2, seed=1)
    start = normal(20, 2, seed=2)
    ends = [
        EFM(L=6.0).transport(exact_capacitor(p, q, 6.0, factor), start, Solver()).end
        for factor in (1.0, 17.0)
    ]
    torch.testing.assert_close(*ends)


def test_efm_exact_field_of_many_charges_reaches_the_swiss_roll() -> None:
    generator = rng()
    target = SwissRoll(0.8)
    p = torch.randn(1024, 2, generator=generator)
    q = target.sample(1024, generator)
    start = torch.randn(1000, 2, generator=generator)
    result = EFM(L=6.0).transport(exact_capacitor(p, q, 6.0), start, Solver())
    fresh = target.sample(1000, generator)
    squared = torch.cdist(result.end, fresh).square().double().numpy()
    assert result.nfe == 50
    assert math.sqrt(ot.emd2([], [], squared)) < 0.45


@pytest.mark.parametrize("slope", [1e-2, 0.3])
def test_efm_floor_under_the_slope(slope: float) -> None:
    """A model whose f_z is negative moves at the speed of the floor, not backward or at once."""
    constant_field = torch.tensor([0.6, -0.8, 0.0, -1.0])
    model = Counted(lambda x, z: constant_field.double().expand(len(x), 4))
    method = EFM(L=6.0, offset=0.1, min_slope=slope)
    start = normal(5, 3)
    end = method.transport(model, start, Solver(solver="euler")).end
    speed = 1 / (slope * math.sqrt(2))
    expected = start + 5.8 * speed * constant_field[:3].double()
    torch.testing.assert_close(end, expected)


def test_efm_lines_held_up_by_the_floor_are_not_landed() -> None:
    def model(x: Tensor, z: Tensor) -> Tensor:
        field = torch.ones(len(x), 3)
        field[2, -1] = -1.0  # backward between the plates: no line of a capacitor
        return field

    result = EFM(L=6.0).transport(Counted(model), normal(4, 2), Solver(solver_steps=3))
    assert result.landed.tolist() == [True, True, False, True]


def test_efm_has_even_steps_for_euler_and_short_ones_at_the_plates_for_heun() -> None:
    def heights(solver: Solver) -> Tensor:
        seen: list[float] = []

        def model(x: Tensor, z: Tensor) -> Tensor:
            seen.append(float(z[0]))
            return torch.ones(len(x), 3, dtype=torch.float64)

        EFM(L=4.0).transport(Counted(model), normal(3, 2), solver)
        return torch.tensor(seen, dtype=torch.float64).unique()

    even = heights(Solver(solver="euler", solver_steps=10)).diff()
    torch.testing.assert_close(even, torch.full((9,), 0.39).double())
    steps = heights(Solver(solver="heun", solver_steps=10)).diff()
    assert (steps[:5].diff() > 0).all()
    torch.testing.assert_close(steps, steps.flip(0))
    torch.testing.assert_close(
        heights(Solver(solver="heun", solver_steps=10, grid="uniform")).diff(),
        torch.full((10,), 0.39).double(),
    )


def test_efm_zero_offset_starts_on_the_plate() -> None:
    seen: list[float] = []

    def model(x: Tensor, z: Tensor) -> Tensor:
        seen.append(float(z[0]))
        return torch.ones(len(x), 3, dtype=torch.float64)

    for offset in (0.0, 0.25):
        seen.clear()
        method = EFM(L=4.0, offset=offset)
        end = method.transport(Counted(model), normal(3, 2), Solver(solver_steps=8)).end
        assert (min(seen), max(seen)) == (offset, 4 - offset)
        # f_x = f_z: the line rises at 45 degrees
        torch.testing.assert_close(end, normal(3, 2) + 4 - 2 * offset)


# --- PFGM: where it learns -----------------------------------------------------------------------


def perturbed(dim: int, **settings: float) -> tuple[Tensor, Tensor]:
    """20,000 perturbed points x and z, with y in the origin."""
    method, generator = PoissonFlow(charges=1, **settings), rng()
    batches = [
        method.regression(constant(0.0), constant(*[0.0] * dim), 100, generator) for _ in range(200)
    ]
    return torch.cat([b.points for b in batches]), torch.cat([b.scalar for b in batches])


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("m", [0.0, 0.4, 1.0])
def test_pfgm_perturbation_at_one_exponent(
    dim: int, m: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s (1 + tau)^M = 3 z_max; what starts within s/2 of the plate grows by 0.7 m only."""
    z_max, s = 40.0, 0.02
    monkeypatch.setattr(methods.pfgm, "uniform", lambda shape, like, rng: like.new_full(shape, m))
    x, z = perturbed(dim, z_max=z_max, sigma=s)
    assert (z > 0).all()
    growth = (3 * z_max / s) ** m
    small = (3 * z_max / s) ** (0.7 * m)
    height = stats.halfnorm(scale=s)
    near = float(height.cdf(s / 2))

    def height_cdf(a: np.ndarray) -> np.ndarray:
        low = height.cdf(np.minimum(a / small, s / 2))
        return low + np.maximum(height.cdf(a / growth) - near, 0)

    def radius_cdf(a: np.ndarray) -> np.ndarray:
        chi = stats.chi(dim, scale=s)
        return near * chi.cdf(a / small) + (1 - near) * chi.cdf(a / growth)

    assert same_distribution(z, height_cdf)
    assert same_distribution(length(x), radius_cdf)


@pytest.mark.parametrize("dim", [2, 16])
def test_pfgm_perturbation(dim: int) -> None:
    z_max, s = 30.0, 0.01
    x, z = perturbed(dim, z_max=z_max, sigma=s)
    radius = length(x)
    # The growth cancels in the ratio: of a chi with D degrees of freedom to a half normal.
    assert same_distribution(radius**2 / (dim * z**2), stats.f(dim, 1).cdf)
    axis = x[:, 0] / radius
    assert same_distribution((1 + axis) / 2, stats.beta((dim - 1) / 2, (dim - 1) / 2).cdf)
    # log z = log |eps_z| + m log(1 + tau) with m log(1 + tau) uniform
    reach = math.log(3 * z_max / s)
    eps = np.abs(s * np.random.default_rng(1).standard_normal(200_000))
    exponent = np.random.default_rng(2).random(200_000) * np.where(eps < s / 2, 0.7, 1) * reach
    assert same_distribution(z.log(), np.log(eps) + exponent)


@pytest.mark.parametrize("charges", [16, 300])
def test_pfgm_target_is_the_normalised_field_of_the_batch(charges: int) -> None:
    dim, gamma, n = 5, 2.0, 200
    target = Recorded(gaussian(dim, 2, shift=1, dtype=torch.float64))
    method = PoissonFlow(charges=charges, gamma=gamma)
    x, z, f, weight = method.regression(gaussian(dim, 1), target, n, rng())
    (batch,) = target.batches
    assert len(batch) == charges
    direction, _ = poisson_field(x, z, batch)
    # E has the direction of the field and the height z: so its length is z / direction_z.
    norm = z / direction[:, -1]
    expected = math.sqrt(dim) * direction * (norm / (norm + gamma))[:, None]
    torch.testing.assert_close(f, expected, rtol=1e-9, atol=1e-9)
    assert weight is None


def test_pfgm_perturbs_its_own_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without growth each point lies at the distance sigma from a charge of its own."""
    monkeypatch.setattr(methods.pfgm, "uniform", lambda shape, like, rng: like.new_zeros(shape))
    target = Recorded(gaussian(3, 2, dtype=torch.float64))
    method = PoissonFlow(charges=300, sigma=1e-4)
    x, z, *_ = method.regression(gaussian(3, 1), target, 200, rng())
    nearest = torch.cdist(x, target.batches[0]).min(1)
    assert nearest.values.max() < 1e-3
    assert z.max() < 1e-3
    assert len(nearest.indices.unique()) == 200


def test_pfgm_single_charge_target() -> None:
    """Of one charge the field is the displacement itself, at every distance."""
    method = PoissonFlow(charges=1, gamma=3.0)
    x, z, f, _ = method.regression(constant(0.0), constant(1.0, -2.0), 500, rng())
    offset = torch.cat([x - torch.tensor([1.0, -2.0]), z[:, None]], 1)
    expected = math.sqrt(2) * offset / (length(offset)[:, None] + 3)
    torch.testing.assert_close(f, expected)


# --- PFGM: the prior and the flow ----------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 16, 64])
def test_pfgm_prior(dim: int) -> None:
    z_max = 25.0
    x0 = normal(5000, dim)
    prior = PoissonFlow(z_max=z_max, max_radius=1e12).start(x0)
    radius = length(prior)
    torch.testing.assert_close(prior / radius[:, None], x0 / length(x0)[:, None])
    share = radius**2 / (radius**2 + z_max**2)
    assert same_distribution(share, stats.beta(dim / 2, 0.5).cdf)
    order = length(x0).argsort()
    assert (radius[order].diff() > 0).all()  # quantile to quantile


def test_pfgm_prior_is_heavy_tailed_in_two_dimensions() -> None:
    """P(R > c z_max) = 1 / sqrt(1 + c^2); and |x0|^2 = -2 log(1 - quantile) at D = 2."""
    c = torch.tensor([0.1, 1.0, 10.0, 1e3], dtype=torch.float64)
    quantile = 1 - 1 / torch.sqrt(1 + c**2)
    x0 = torch.sqrt(-2 * torch.log1p(-quantile))[:, None] * torch.tensor([[0.6, -0.8]])
    prior = PoissonFlow(z_max=7.0, max_radius=1e12).start(x0.double())
    torch.testing.assert_close(length(prior), 7 * c, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dim", [1, 2, 5, 64])
def test_pfgm_prior_is_the_flux_of_a_point_charge(dim: int) -> None:
    """Half of a unit charge's flux crosses the plane z = z_max, with the density E_z."""
    z_max = 3.0
    charge = torch.zeros(1, dim, dtype=torch.float64)
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)

    def flux_density(log_r: float) -> float:
        """2 E_z times the area of the circle of radius r, per unit of log r."""
        x = torch.zeros(1, dim, dtype=torch.float64)
        x[0, 0] = math.exp(log_r)
        direction, log_norm = poisson_field(x, torch.tensor([z_max]).double(), charge)
        return 2 * float(direction[0, -1]) * math.exp(float(log_norm) + log_area + dim * log_r)

    grid = np.linspace(math.log(1e-6), math.log(1e6), 4001)
    density = np.array([flux_density(u) for u in grid])
    cdf = integrate.cumulative_simpson(density, x=grid, initial=0)
    assert cdf[-1] == pytest.approx(1, abs=1e-4)
    prior = PoissonFlow(z_max=z_max, max_radius=1e12).start(normal(5000, dim, seed=1))
    assert same_distribution(length(prior).log(), lambda u: np.interp(u, grid, cdf))


def test_pfgm_flows_straight_to_a_single_charge() -> None:
    charge = normal(1, 3)
    method = PoissonFlow(z_max=20.0, z_min=0.01)
    start = method.start(normal(50, 3, seed=1))
    model = Counted(lambda x, z: 5 * mean_displacement(x, z, charge))
    end = method.transport(model, start, ACCURATE).end
    torch.testing.assert_close(end - charge, (start - charge) * 0.01 / 20, rtol=1e-6, atol=1e-9)


def test_pfgm_exact_field_gives_every_mode_its_share() -> None:
    """The lines of the prior end on the charges, on all of them alike."""
    generator = rng()
    data = EightGaussians(5.0, 0.316)
    charges = data.low_variance(256, generator)
    method = PoissonFlow.create(2)
    start = method.start(torch.randn(2000, 2, generator=generator))
    model = Counted(lambda x, z: mean_displacement(x, z, charges))
    result = method.transport(model, start, Solver(solver_steps=100))
    distance = torch.cdist(result.end, charges).min(1)
    assert distance.values.median() < 0.005
    assert distance.values.quantile(0.99) < 0.2
    angle = torch.atan2(charges[:, 1], charges[:, 0])
    mode = (angle / (2 * math.pi / 8)).round().long() % 8
    counts = mode[distance.indices].bincount(minlength=8)
    assert stats.chisquare(counts).pvalue > 1e-3
    per_charge = distance.indices.bincount(minlength=256)
    assert stats.chisquare(per_charge).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_pfgm_velocity_leads_away_from_the_mean_charge(seed: int) -> None:
    """z E_x / E_z = x - y, where only the direction of the model's output counts."""
    charges = normal(40, 4, seed=seed)
    start = 3 * normal(10, 4, seed=seed + 10)
    method = PoissonFlow(z_max=2.0, z_min=1.9)
    solver = Solver(solver="euler", solver_steps=1)
    model = Counted(lambda x, z: poisson_field(x, z, charges)[0])
    end = method.transport(model, start, solver).end
    distance = torch.sqrt(torch.cdist(start, charges) ** 2 + 4)
    weight = torch.softmax(-5 * distance.log(), dim=1)
    expected = start + math.log(1.9 / 2) * (start - weight @ charges)
    torch.testing.assert_close(end, expected)
