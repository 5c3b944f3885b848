"""The solvers on equations with known solutions: order, grids, direction, cost."""

import itertools
import math
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from methods.solvers import Flow, GridName, Solution, Solver, SolverName, make_grid

SOLVERS = get_args(SolverName)
GRIDS = get_args(GridName)
START, END = 0.5, 2.0
X0 = torch.tensor([[1.0, -2.0], [0.3, 0.1]], dtype=torch.float64)


def velocity(t: Tensor, x: Tensor) -> Tensor:
    """dx/dt = x cos t, with the solution :func:`exact`."""
    return x * torch.cos(t)


def exact(x0: Tensor, start: float, end: float) -> Tensor:
    return x0 * math.exp(math.sin(end) - math.sin(start))


def error(solver: str, grid: GridName, steps: int, start: float, end: float) -> float:
    """Error on dx/dt = x t, where the errors of the steps do not cancel."""
    flow = Flow(lambda t, x: x * t, start, end, grid)
    solution = Solver(solver=solver, solver_steps=steps).integrate(flow, X0)
    return float((solution.x - X0 * math.exp((end**2 - start**2) / 2)).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("start", "end"), [(START, END), (END, START)])
def test_order_by_slope(solver: str, order: int, grid: GridName, start: float, end: float) -> None:
    errors = [error(solver, grid, steps, start, end) for steps in (80, 160, 320)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_forward_and_back_is_the_identity(solver: str) -> None:
    settings = Solver(solver=solver, solver_steps=400, rtol=1e-7, atol=1e-7)
    there = settings.integrate(Flow(velocity, START, END), X0).x
    back = settings.integrate(Flow(velocity, END, START), there).x
    bound = 2e-2 if solver == "euler" else 2e-5
    assert (there - exact(X0, START, END)).abs().max() < bound
    assert (back - X0).abs().max() < bound
    assert (there - X0).abs().max() > 0.3  # it went somewhere


@pytest.mark.parametrize("solver", ["adaptive_heun", "bosh3", "dopri5", "dopri8"])
@pytest.mark.parametrize("path", [False, True])
def test_adaptive_solvers_reach_the_tolerance(solver: str, path: bool) -> None:
    errors = []
    for tolerance in (1e-4, 1e-7):
        settings = Solver(solver=solver, rtol=tolerance, atol=tolerance)
        solution = settings.integrate(Flow(velocity, START, END), X0, path)
        errors.append(float((solution.x - exact(X0, START, END)).abs().max()))
        assert errors[-1] < 10 * tolerance
    assert errors[1] < errors[0]


def test_rk4_is_of_fourth_order() -> None:
    errors = [error("rk4", "uniform", steps, START, END) for steps in (8, 16)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("start", "end"), [(0.1, 7.3), (7.3, 0.1), (-3.0, -0.01)])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_grid_is_monotone_between_its_ends(
    grid: GridName, start: float, end: float, steps: int
) -> None:
    times = make_grid(grid, start, end, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert float(times[0]) == start
    assert float(times[-1]) == end
    assert (times.diff() * math.copysign(1, end - start) > 0).all()


def test_grid_spacing() -> None:
    uniform, cosine, log, rho = (make_grid(grid, 1.0, 9.0, 4).tolist() for grid in GRIDS)
    assert uniform == pytest.approx([1, 3, 5, 7, 9])
    assert cosine == pytest.approx([1, 5 - 4 / math.sqrt(2), 5, 5 + 4 / math.sqrt(2), 9])
    assert log == pytest.approx([1, math.sqrt(3), 3, 3 * math.sqrt(3), 9])
    roots = [t ** (1 / 7) for t in rho]
    assert [b - a for a, b in itertools.pairwise(roots)] == pytest.approx([(roots[-1] - 1) / 4] * 4)


@pytest.mark.parametrize(("start", "end"), [(-1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_log_grid_through_zero_raises(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="without zero"):
        make_grid("log", start, end, 5)
    with pytest.raises(ValueError, match="without zero"):
        Solver(grid="log").integrate(Flow(velocity, start, end), X0)


def test_unknown_grid_is_named() -> None:
    with pytest.raises(ValueError, match="'sine'"):
        make_grid("sine", 0.0, 1.0, 5)  # type: ignore[arg-type]


def test_the_grid_is_the_methods_unless_the_user_names_one() -> None:
    def times(solver: Solver) -> list[float]:
        seen: list[float] = []

        def recorded(t: Tensor, x: Tensor) -> Tensor:
            seen.append(float(t))
            return velocity(t, x)

        solver.integrate(Flow(recorded, START, END, "cosine"), X0)
        return [*seen, END]

    auto = Solver(solver="euler", solver_steps=7)
    assert times(auto) == make_grid("cosine", START, END, 7).tolist()
    log = Solver(solver="euler", solver_steps=7, grid="log")
    assert times(log) == make_grid("log", START, END, 7).tolist()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contract(solver: str, path: bool, dtype: torch.dtype) -> None:
    calls = 0

    def counting(t: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert t.shape == ()
        assert t.dtype == x.dtype == dtype
        return velocity(t, x)

    x0 = X0.to(dtype)
    settings = Solver(solver=solver, solver_steps=40, rtol=1e-6, atol=1e-6)
    solution = settings.integrate(Flow(counting, START, END), x0, path)
    assert solution.nfe == calls
    per_step = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}
    if solver in per_step:
        assert solution.nfe == per_step[solver] * 40
    assert solution.x.dtype == dtype
    assert torch.equal(x0, X0.to(dtype))
    if not path:
        assert solution.path is None
        return
    assert solution.path is not None
    assert solution.path.shape == (41, *x0.shape)
    assert torch.equal(solution.path[0], x0)
    assert torch.equal(solution.path[-1], solution.x)
    times = make_grid("uniform", START, END, 40)
    expected = torch.stack([exact(X0, START, float(t)) for t in times])
    assert (solution.path - expected).abs().max() < (0.1 if solver == "euler" else 0.01)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (-1.0, 0.0)])
def test_nothing_is_evaluated_outside_of_the_interval(
    solver: str, path: bool, start: float, end: float
) -> None:
    """sqrt of the distance to the end: past the end there is no velocity."""

    def guarded(t: Tensor, x: Tensor) -> Tensor:
        if not min(start, end) <= float(t) <= max(start, end):
            raise ValueError(f"evaluated at {float(t)}")
        return torch.ones_like(x) * torch.sqrt(t.abs())

    solution = Solver(solver=solver, solver_steps=50).integrate(Flow(guarded, start, end), X0, path)
    expected = X0 + math.copysign(2 / 3, end - start)
    assert (solution.x - expected).abs().max() < 0.02


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("solver", "eular"),
        ("solver_steps", 0),
        ("solver_steps", -3),
        ("grid", "sine"),
        ("rtol", 0.0),
        ("rtol", math.nan),
        ("atol", -1e-3),
        ("atol", math.inf),
        ("steps", 10),
    ],
)
def test_wrong_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as raised:
        Solver(**{field: value})
    assert {e["loc"][0] for e in raised.value.errors()} == {field}


# --- Stochastic equations ------------------------------------------------------------------------

MANY = torch.zeros(100_000, 1, dtype=torch.float64)


def sde(drift: float, x0: Tensor, steps: int, start: float, end: float, seed: int = 0) -> Solution:
    """dx = drift x dt + t dw."""
    flow = Flow(lambda t, x: drift * x, start, end, noise=lambda t: t)
    return Solver(solver_steps=steps).integrate(flow, x0, True, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("start", "end"), [(0.5, 2.0), (2.0, 0.5)])
def test_noise_adds_up_in_both_directions_of_time(start: float, end: float) -> None:
    """Without drift the variance is the integral of t^2, whichever way time runs."""
    solution = sde(0.0, MANY, 100, start, end)
    assert float(solution.x.var()) == pytest.approx((2**3 - 0.5**3) / 3, rel=0.03)
    assert stats.kstest((solution.x / solution.x.std()).numpy().ravel(), "norm").pvalue > 1e-3
    assert solution.nfe == 100
    assert solution.path is not None
    increments = solution.path.diff(dim=0)[:, :, 0].cov()
    correlated = increments - torch.diag(increments.diagonal())
    assert correlated.abs().max() < 0.03 * increments.diagonal().max()


def test_euler_maruyama_is_weakly_of_first_order() -> None:
    """The mean of dx = x dt + t dw from 1 is exp(t); the noise is the same with and without x."""
    start = torch.ones(4000, 1, dtype=torch.float64)
    errors = []
    for steps in (20, 40, 80):
        both = [sde(1.0, x0, steps, 0.0, 1.0).x.mean() for x0 in (start, 0 * start)]
        errors.append(math.e - float(both[0] - both[1]))  # the equation is linear
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes == pytest.approx([1, 1], abs=0.1)


def test_the_noise_is_that_of_the_generator() -> None:
    once, again, other = (sde(-1.0, MANY[:5], 7, 0.0, 1.0, seed).x for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    solution = sde(-1.0, MANY[:5] + 1, 7, 0.0, 1.0)
    assert solution.path is not None
    assert solution.path.shape == (8, 5, 1)
    assert torch.equal(solution.path[-1], solution.x)
    assert torch.equal(solution.times, make_grid("uniform", 0.0, 1.0, 7))
