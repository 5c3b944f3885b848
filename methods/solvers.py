"""ODE solvers behind one call; the method chooses the variable and the grid, the user the solver.

Euler and Heun are written out, because their network calls are what budgets count; every
other name is handed to torchdiffeq. Stochastic equations have Euler and Maruyama's steps.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torchdiffeq
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(t, x)``: dx/dt at the scalar tensor t, for x of shape (B, D)."""

GridName = Literal["uniform", "cosine", "log", "rho"]
SolverName = Literal[
    "euler", "heun", "midpoint", "rk4", "bosh3", "dopri5", "dopri8", "adaptive_heun"
]


RHO = 7
"""The exponent of the grid ``rho``, that of Karras et al."""


class Solution(NamedTuple):
    """End point, number of velocity evaluations and, on request, the states on the grid."""

    x: Tensor  # (B, D)
    nfe: int
    path: Tensor | None  # (steps+1, B, D)
    times: Tensor  # (steps+1,): the grid


class Solver(BaseModel):
    """How an ODE is solved.

    ``steps`` is the number of grid intervals. The adaptive solvers (bosh3, dopri5, dopri8,
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
        """Whether the solver chooses its own steps."""
        return self.solver in ("bosh3", "dopri5", "dopri8", "adaptive_heun")

    def integrate(
        self,
        velocity: Velocity,
        x0: Tensor,
        start: float,
        end: float,
        grid: GridName = "uniform",
        path: bool = False,
    ) -> Solution:
        """Solves dx/dt = velocity(t, x) from x(start) = x0 to t = end.

        Args:
            velocity: the right-hand side.
            x0: initial states, shape (B, D).
            start, end: the interval; ``end < start`` integrates backward.
            grid: the method's grid, used unless the user names one.
            path: whether to keep the states on the grid.

        Raises:
            ValueError: a logarithmic grid on an interval that contains zero.
        """
        times = make_grid(grid if self.grid == "auto" else self.grid, start, end, self.solver_steps)
        calls = 0

        def counted(t: Tensor, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return velocity(t, x)

        times = times.to(x0)
        if self.solver in ("euler", "heun"):
            x, states = _fixed_steps(counted, x0, times, heun=self.solver == "heun", path=path)
        else:
            x, states = self._torchdiffeq(counted, x0, times, path)
        return Solution(x, calls, states, times)

    def integrate_sde(
        self,
        drift: Velocity,
        noise: Callable[[Tensor], Tensor],
        x0: Tensor,
        start: float,
        end: float,
        rng: torch.Generator,
        grid: GridName = "uniform",
        path: bool = False,
    ) -> Solution:
        """Samples dx = drift(t, x) dt + noise(t) dw by the Euler-Maruyama method.

        x <- x + (t' - t) drift(t, x) + sqrt(|t' - t|) noise(t) xi, xi ~ N(0, I): weak order 1. With
        ``end < start`` time runs backward, and dw is a Wiener process in that direction. Of
        the settings only ``solver_steps`` and ``grid`` apply; ``solver`` is left as it is or
        ``euler``.

        Args:
            drift: shape (B, D) for a scalar t and x of shape (B, D).
            noise: the scalar in front of dw, at the scalar t.
            x0: initial states, shape (B, D).
            start, end: the interval.
            rng: where the noise comes from.
            grid: the method's grid, used unless the user names one.
            path: whether to keep the states on the grid.

        Raises:
            ValueError: another solver is asked for.
        """
        if self.solver not in ("euler", Solver().solver):
            raise ValueError(
                f"solver = {self.solver} is for ODEs: sampler = sde takes Euler-Maruyama steps"
            )
        times = make_grid(grid if self.grid == "auto" else self.grid, start, end, self.solver_steps)
        times = times.to(x0)
        x, states = x0, [x0]
        for t, t_next in itertools.pairwise(times):
            xi = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
            step = t_next - t
            x = x + step * drift(t, x) + step.abs().sqrt() * noise(t) * xi
            if path:
                states.append(x)
        return Solution(x, self.solver_steps, torch.stack(states) if path else None, times)

    def _torchdiffeq(
        self, velocity: Velocity, x0: Tensor, times: Tensor, path: bool
    ) -> tuple[Tensor, Tensor | None]:
        low, high = times.aminmax()

        def clamped(t: Tensor, x: Tensor) -> Tensor:
            # Rounding may put a stage past the end, where the velocity need not exist.
            return velocity(t.clamp(low, high), x)

        adaptive = self.solver in ("bosh3", "dopri5", "dopri8", "adaptive_heun")
        # A step must land on the end: by default the last one passes it and is interpolated.
        options = {"step_t": times[-1:]} if adaptive else None
        if adaptive and not path:
            times = times[[0, -1]]
        states = torchdiffeq.odeint(
            clamped,
            x0,
            times,
            method=self.solver,
            rtol=self.rtol,
            atol=self.atol,
            options=options,
        )
        return states[-1], states if path else None


def make_grid(name: GridName, start: float, end: float, steps: int) -> Tensor:
    """``steps + 1`` points from ``start`` to ``end``, float64.

    ``uniform``: equal steps. ``cosine``: start + (end - start) (1 - cos(pi u)) / 2, fine at both
    ends. ``log``: equal steps of the logarithm. ``rho``: equal steps of t^(1/7), between the two
    (Karras et al., Elucidating the Design Space of Diffusion Models, NeurIPS 2022).
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
        roots = [math.copysign(abs(t) ** (1 / RHO), t) for t in (start, end)]  # RHO is odd
        grid = (roots[0] + (roots[1] - roots[0]) * u) ** RHO
        grid[0] = start
    else:
        raise ValueError(f"grid must be uniform, cosine, log or rho, got {name!r}")
    grid[-1] = end  # to the last bit, so that nothing is evaluated beyond it
    return grid


def _fixed_steps(
    velocity: Velocity, x: Tensor, times: Tensor, heun: bool, path: bool
) -> tuple[Tensor, Tensor | None]:
    states = [x]
    for t, t_next in itertools.pairwise(times):
        step = t_next - t
        slope = velocity(t, x)
        if heun:
            slope = (slope + velocity(t_next, x + step * slope)) / 2
        x = x + step * slope
        if path:
            states.append(x)
    return x, torch.stack(states) if path else None
