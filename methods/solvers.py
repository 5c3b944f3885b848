"""ODE solvers behind one call; the method chooses the variable and the grid, the user the solver.

Euler and Heun are written out, because their network calls are what budgets count; every
other name is handed to torchdiffeq. Stochastic equations have Euler and Maruyama's steps.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
import torchdiffeq
from pydantic import BaseModel, ConfigDict, Field
from torch import Generator, Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(t, x)``: dx/dt at the scalar tensor t, for x of shape (B, D)."""

GridName = Literal["uniform", "cosine", "log", "rho"]
SolverName = Literal[
    "euler", "heun", "midpoint", "rk4", "bosh3", "dopri5", "dopri8", "adaptive_heun"
]


class Flow(NamedTuple):
    """dx = velocity(s, x) ds + noise(s) dw from s = start to s = end; without noise an ODE.

    ``end < start`` goes backward, and dw is then a Wiener process in that direction.
    """

    velocity: Velocity
    start: float
    end: float
    grid: GridName = "uniform"  # unless the user names one
    noise: Callable[[Tensor], Tensor] | None = None  # the scalar in front of dw
    first: Callable[[Tensor, Generator], Tensor] | None = None  # a random step before, of x (B, D)
    last: Callable[[Tensor], Tensor] | None = None  # a step after; it costs one more evaluation


class Solution(NamedTuple):
    """End point, number of velocity evaluations and, on request, the states on the grid."""

    x: Tensor  # (B, D)
    nfe: int
    path: Tensor | None  # (steps+1, B, D)
    times: Tensor  # (steps+1,): the grid


class Solver(BaseModel):
    """How an equation is solved.

    ``solver_steps`` is the number of grid intervals. The adaptive solvers (bosh3, dopri5, dopri8,
    adaptive_heun) choose their own steps by ``rtol`` and ``atol``; for them the grid only says
    where a path is recorded. ``grid = auto`` leaves the grid to the method.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    solver: SolverName = "heun"
    solver_steps: int = Field(25, ge=1, le=10_000)
    grid: Literal["auto"] | GridName = "auto"
    rtol: float = Field(1e-4, gt=0)
    atol: float = Field(1e-4, gt=0)

    @property
    def adaptive(self) -> bool:
        return self.solver in ("bosh3", "dopri5", "dopri8", "adaptive_heun")

    def integrate(
        self, flow: Flow, x0: Tensor, path: bool = False, rng: Generator | None = None
    ) -> Solution:
        """Solves the equation of ``flow`` from x0 (B, D), without its first and last step.

        Stochastic equations have Euler and Maruyama's steps, of weak order 1,

            x <- x + (t' - t) velocity(t, x) + sqrt(|t' - t|) noise(t) xi, xi ~ N(0, I).

        For them only ``solver_steps`` and ``grid`` apply; another ``solver`` than Euler's or the
        default is a ValueError, as is a logarithmic grid on an interval that contains zero.
        ``path`` says whether to keep the states on the grid, ``rng`` is where noise comes from.
        """
        grid = flow.grid if self.grid == "auto" else self.grid
        times = make_grid(grid, flow.start, flow.end, self.solver_steps).to(x0)
        calls = 0

        def counted(t: Tensor, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return flow.velocity(t, x)

        if flow.noise is not None and self.solver not in ("euler", Solver().solver):
            raise ValueError(
                f"solver = {self.solver} is for ODEs: sampler = sde takes Euler-Maruyama steps"
            )
        states: Iterable[Tensor]
        if self.solver in ("euler", "heun"):
            heun = self.solver == "heun" and flow.noise is None
            states = _fixed_steps(flow._replace(velocity=counted), x0, times, heun, rng)
        else:
            states = self._torchdiffeq(counted, x0, times, path)
        if not path:
            for state in states:  # one at a time in memory
                x0 = state
            return Solution(x0, calls, None, times)
        whole = torch.stack(list(states))
        return Solution(whole[-1], calls, whole, times)

    def _torchdiffeq(self, velocity: Velocity, x0: Tensor, times: Tensor, path: bool) -> Tensor:
        low, high = times.aminmax()

        def clamped(t: Tensor, x: Tensor) -> Tensor:
            # Rounding may put a stage past the end, where the velocity need not exist.
            return velocity(t.clamp(low, high), x)

        # A step must land on the end: by default the last one passes it and is interpolated.
        options = {"step_t": times[-1:]} if self.adaptive else None
        if self.adaptive and not path:
            times = times[[0, -1]]
        states: Tensor = torchdiffeq.odeint(
            clamped, x0, times, rtol=self.rtol, atol=self.atol, method=self.solver, options=options
        )
        return states


def _fixed_steps(
    flow: Flow, x: Tensor, times: Tensor, heun: bool, rng: Generator | None
) -> Iterator[Tensor]:
    """The states at all times: Euler's steps, Heun's, or with noise Euler and Maruyama's."""
    yield x
    for t, t_next in itertools.pairwise(times):
        step = t_next - t
        slope = flow.velocity(t, x)
        if heun:
            slope = (slope + flow.velocity(t_next, x + step * slope)) / 2
        x = x + step * slope
        if flow.noise is not None:
            xi = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
            x = x + step.abs().sqrt() * flow.noise(t) * xi
        yield x


def make_grid(name: GridName, start: float, end: float, steps: int) -> Tensor:
    """``steps + 1`` points from ``start`` to ``end``, float64.

    ``uniform``: equal steps. ``cosine``: start + (end - start) (1 - cos(pi u)) / 2, fine at both
    ends. ``log``: equal steps of the logarithm. ``rho``: equal steps of t^(1/7), between the two
    (Karras et al., NeurIPS 2022).
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if name == "uniform":
        grid = start + (end - start) * u
    elif name == "cosine":
        grid = start + (end - start) * (1 - torch.cos(math.pi * u)) / 2
    elif name == "log":
        if start * end <= 0:
            raise ValueError(f"grid = log needs an interval without zero, got [{start}, {end}]")
        grid = start * (end / start) ** u
    elif name == "rho":
        first, last = (math.copysign(abs(t) ** (1 / 7), t) for t in (start, end))
        grid = (first + (last - first) * u) ** 7  # 7 is odd
        grid[0] = start
    else:
        raise ValueError(f"grid must be uniform, cosine, log or rho, got {name!r}")
    grid[-1] = end  # to the last bit, so that nothing is evaluated beyond it
    return grid
