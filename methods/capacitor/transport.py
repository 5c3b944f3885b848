"""Transport along the lines of a capacitor's field: in the height z, or by arc length."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from methods.base import METHODS, FieldPicture, Method, Transport
from methods.base import Field as CapacitorField
from methods.capacitor.lines import Capacitor, CapacitorLines, backward_share, even_uniforms, trace
from methods.draws import seeded
from methods.solvers import Flow, Solver

FLOWS = {
    "field_backward": "share of the lines that leave backward",
    "field_passed": "share of the lines that pass the target plate",
    "field_stretch": "length of the lines over the distance of their ends, in R^{D+1}",
}
# By arc length a line may take that many steps for each of ``solver_steps``; then it is lost. In
# high dimension lines slide along the borders between nearest charges: 1,000 steps at D = 12288.
STEPS_PER_SOLVER_STEP = 80


class CapacitorMethod(Method):
    r"""What methods along the lines of a capacitor's field have in common: the transport.

    ``lines`` says which lines samples move along (:mod:`methods.capacitor.lines`):

    * ``forward``: from z = 0 straight to z = L, Algorithm 2 of the paper;
    * ``stop_rule``: a line stops at z = L where ``crossing`` says so; otherwise it goes on behind
      the plate and lands from the right. ``sign``, the paper's rule: it stops where E_z(L+) < 0.
      ``flux``: where E_z(L+) > 0 the part 1 - E_z(L+)/E_z(L-) of the lines stops all the same, as
      the charges there demand; this needs a field that is accurate where the target has none;
    * ``two_sided``: it may also start backward, away from the target, with the share of the
      flux that does. This is the method that the paper's theorem is about.

    Lines start and land ``offset`` off the plates, where the field of finitely many charges is
    rough. ``forward`` lines are integrated with the user's solver in ``variable``: in z, dx/dz =
    E_x / E_z with E_z kept above ``min_slope`` |E|; in ``log_z``, the logarithm of the height
    h = L - z over the target plate, dx/dlog h = -h E_x / E_z, which has most steps near the target;
    or by ``arc_length``, like all others: with a step of its own for each line, whose error is at
    most ``tolerance`` times 1 + its length; without ``tolerance``, to the solver's tolerances. A
    line that is lost stays in the scores where it was left.
    """

    diagnostics: ClassVar = FLOWS
    picture_settings: ClassVar[tuple[str, ...]] = ("L", "lines")

    plate_distance: float = Field(30.0, gt=0, alias="L")
    lines: Literal["forward", "stop_rule", "two_sided"] = "forward"
    crossing: Literal["sign", "flux"] | None = "sign"
    variable: Literal["z", "log_z", "arc_length"] = "z"
    offset: float = Field(0.05, ge=0)
    min_slope: float | None = Field(1e-2, gt=0, lt=1)
    tolerance: float | None = Field(None, gt=0)

    def idle(self) -> dict[str, Any]:
        idle: dict[str, Any] = {"crossing": None}
        if self.lines != "forward":
            idle = {"variable": "arc_length"}  # they are no functions of z
        if "variable" in idle or self.variable == "arc_length":
            idle["min_slope"] = None
        else:
            idle["tolerance"] = None
        return idle

    def check(self) -> None:
        offset, distance = self.offset, self.plate_distance
        if 2 * offset >= distance:
            raise ValueError(f"L must be above 2 offset = {2 * offset:g}, got {distance:g}")
        smallest = 1e-6 * distance  # nearer to z = L a float32 cannot tell the sides apart
        if offset <= smallest and self.variable != "z":
            raise ValueError(
                f"offset must be above {smallest:g} with L = {distance:g} and"
                f" variable = {self.variable}, got {offset:g}"
            )

    @abstractmethod
    def field(self, model: nn.Module) -> CapacitorField:
        """Direction and log|E| that the model gives; log|E| is zero if it does not know."""

    def picture(self, dim: int) -> FieldPicture:
        """The exact counterpart is ``<name>-exact`` with the settings that both have."""
        kind = METHODS.get(f"{self.name}-exact")
        exact: Method | None = None
        if kind is not None and self.trained:
            names = [field.alias or name for name, field in kind.model_fields.items()]
            settings = {k: v for k, v in self.hyperparameters().items() if k in names}
            exact = kind.create(dim, **{**settings, "charges": 1024})
        return FieldPicture(self.plate_distance, self.lines != "forward", self.offset, exact)

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: Generator | None = None,
    ) -> Transport:
        if self.variable != "arc_length":
            return self.land(model, self._by_height(model, start, solver, path))
        capacitor, rng = model.capacitor, seeded(rng, start)
        assert isinstance(capacitor, Capacitor)
        traced = self.by_arc_length(self.field(model), capacitor, start, solver, rng, path)
        return self.land(model, traced)

    def land(self, model: nn.Module, result: Transport) -> Transport:
        """What becomes of lines at the target plate: they end, unless overridden."""
        return result

    def _by_height(self, model: nn.Module, start: Tensor, solver: Solver, path: bool) -> Transport:
        field, slope, distance = self.field(model), self.min_slope, self.plate_distance
        assert slope is not None
        held = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        log = self.variable == "log_z"

        def velocity(s: Tensor, x: Tensor) -> Tensor:
            z = distance - s.exp() if log else s
            direction, _ = field(x, z.expand(len(x)))
            held.logical_or_(direction[:, -1] < slope)
            dx_dz = direction[:, :-1] / direction[:, -1:].clamp_min(slope)
            return -s.exp() * dx_dz if log else dx_dz

        start_s, end_s = self.offset, distance - self.offset
        if log:
            start_s, end_s = math.log(end_s), math.log(start_s)
        # In z Heun wants the short steps at the plates, where lines turn; Euler's error there is
        # the smaller, the more evenly its steps lie.
        even = log or solver.solver == "euler"
        flow = Flow(velocity, start_s, end_s, grid="uniform" if even else "cosine")
        x, nfe, states, times = solver.integrate(flow, start, path)
        # Where the field's E_z was lifted to the floor, the line is not one of the field.
        landed = x.isfinite().all(1) & ~held
        flows, heights = {"field_backward": 0.0, "field_passed": 0.0}, None
        if states is not None:
            z = distance - times.exp() if log else times
            heights = z.to(states)[:, None].expand(-1, len(start))
            points = torch.cat([states, heights[..., None]], dim=2)
            length = torch.linalg.vector_norm(points.diff(dim=0), dim=2).sum(0).mean()
            straight = torch.linalg.vector_norm(points[-1] - points[0], dim=1).mean()
            flows["field_stretch"] = float(length / straight)
        return Transport(x, nfe, landed, states, flows, heights)

    def by_arc_length(
        self,
        field: CapacitorField,
        capacitor: Capacitor,
        start: Tensor,
        solver: Solver,
        rng: Generator,
        path: bool = False,
    ) -> Transport:
        """The lines of a field from ``start`` (B, D); ``rng`` decides which way they go."""
        evaluations = 0

        def counted(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal evaluations
            evaluations += len(x)
            return field(x, z)

        leave, u = even_uniforms(len(start), start, rng)
        backward = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        if self.lines == "two_sided":
            backward = leave < backward_share(counted, start, self.offset)
        passing = None if self.lines == "forward" else (u if self.crossing == "flux" else 0 * u)
        guide = CapacitorLines(counted, capacitor, self.offset, backward, passing)
        z = torch.where(backward, -self.offset, self.offset).to(start)
        points = torch.cat([start, z[:, None]], dim=1)
        most = STEPS_PER_SOLVER_STEP * solver.solver_steps
        rtol, atol = self.tolerance or solver.rtol, self.tolerance or solver.atol
        traced = trace(guide, points, self.offset, rtol, atol, most, path)
        straight = torch.linalg.vector_norm(traced.end - points, dim=1)
        flows = {
            "field_backward": float(backward.double().mean()),
            "field_passed": float(guide.passed.double().mean()),
            "field_stretch": float(traced.length.mean() / straight.mean()),
        }
        nfe = math.ceil(evaluations / len(start))
        result = Transport(traced.end[:, :-1], nfe, traced.ended, None, flows)
        if traced.path is None:
            return result
        return result._replace(path=traced.path[..., :-1], heights=traced.path[..., -1])
