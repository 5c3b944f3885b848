"""Electrostatic Field Matching.

Source samples are positive charges on the plate z = 0 of a capacitor, target samples negative
charges on the plate z = L. The direction of their field in R^{D+1} is learned between the
plates, and samples move along its lines.

References:
    Kolesov et al., Field Matching: an Electrostatic Paradigm to Generate and Transfer Data,
    ICML 2025, https://arxiv.org/abs/2502.02367
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from methods.base import LOW_DIM, Draw, Method, Regression, Transport, register, seeded
from methods.base import Field as CapacitorField
from methods.coupling import optimal_pairs
from methods.diagnostics import ERRORS, field_errors
from methods.electrostatics import poisson_field, superpose
from methods.fields import FieldModel, TwoPlates, ZEmbedding, as_columns, from_columns
from methods.lines import FLOWS, Capacitor, Crossing, Rule, follow
from methods.networks import NetworkFactory
from methods.points import LinePool, along_segments, around_charges, in_box, perturbed
from methods.solvers import Solver

PointScheme = Literal["uniform", "capacitor", "log", "mix", "mesh", "poisson", "lines"]
WITH_SIGMA = ("uniform", "capacitor", "mix")
"""The schemes that have a sigma, and points near the segments of pairs."""

STEPS_PER_SOLVER_STEP = 80
"""By arc length a line may take that many steps for each of ``solver_steps``; then it is lost.

Lines of few charges in high dimension slide along the borders between nearest charges: at
D = 12288 and L = 500 they take 1,000 steps.
"""


SMALLEST_OFFSET = 1e-6
"""In units of L: nearer to z = L than that a float32 cannot tell the sides of the plate apart."""


class CapacitorMethod(Method):
    r"""What methods along the lines of a capacitor's field have in common: the transport.

    ``lines`` says which lines samples move along (:mod:`methods.lines`):

    * ``forward``: from z = 0 straight to z = L, Algorithm 2 of the paper;
    * ``stop_rule``: a line stops at z = L where ``crossing`` says so; otherwise it goes on behind
      the plate and lands from the right. ``sign``, the paper's rule: it stops where E_z(L+) < 0.
      ``flux``: where E_z(L+) > 0 the part 1 - E_z(L+)/E_z(L-) of the lines stops all the same, as
      the charges there demand; this needs a field that is accurate where the target has none;
    * ``two_sided``: it may also start backward, away from the target, with the share of the
      flux that does. This is the method that the paper's theorem is about.

    Lines start and land ``offset`` off the plates, where the field of finitely many charges is
    rough. ``forward`` lines are integrated in z with the user's solver, dx/dz = E_x / E_z with E_z
    kept above ``min_slope`` |E|, or by arc length (``variable``), like all others: with a step of
    its own for each line, to the solver's tolerances, and at most ``STEPS_PER_SOLVER_STEP`` for
    each of ``solver_steps``. A line that is lost stays in the scores where it was left.
    """

    diagnostics: ClassVar[Mapping[str, str]] = FLOWS

    plate_distance: float = Field(30.0, gt=0, alias="L")
    lines: Rule = "forward"
    crossing: Crossing | None = "sign"
    variable: Literal["z", "arc_length"] = "z"
    offset: float = Field(0.05, ge=0)
    min_slope: float | None = Field(1e-2, gt=0, lt=1)

    @field_validator("crossing")
    @classmethod
    def _forward_lines_stop_at_the_plate(
        cls, crossing: Crossing | None, info: ValidationInfo
    ) -> Crossing | None:
        return None if info.data.get("lines") == "forward" else crossing

    @field_validator("variable")
    @classmethod
    def _others_have_no_function_of_z(cls, variable: str, info: ValidationInfo) -> str:
        return variable if info.data.get("lines") == "forward" else "arc_length"

    @field_validator("min_slope")
    @classmethod
    def _arc_length_needs_no_slope(cls, slope: float | None, info: ValidationInfo) -> float | None:
        return slope if info.data.get("variable") == "z" else None

    @model_validator(mode="after")
    def _plates_apart(self) -> Self:
        if 2 * self.offset >= self.plate_distance:
            raise ValueError(
                f"L must be above 2 offset = {2 * self.offset:g}, got {self.plate_distance:g}"
            )
        smallest = SMALLEST_OFFSET * self.plate_distance
        if self.offset <= smallest and self.variable == "arc_length":
            raise ValueError(
                f"offset must be above {smallest:g} with L = {self.plate_distance:g} and"
                f" variable = arc_length, got {self.offset:g}"
            )
        if self.crossing is None and self.lines != "forward":
            raise ValueError(f"crossing must be sign or flux with lines = {self.lines}, got none")
        if self.min_slope is None and self.variable == "z":
            raise ValueError("min_slope must be a number with variable = z, got none")
        return self

    @abstractmethod
    def field(self, model: nn.Module) -> CapacitorField:
        """Direction and log|E| that the model gives; log|E| is zero if it does not know."""

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        if self.variable == "z":
            return self._along_z(model, start, solver, path)
        return self._by_arc_length(model, start, solver, path, seeded(rng, start))

    def _along_z(self, model: nn.Module, start: Tensor, solver: Solver, path: bool) -> Transport:
        field = self.field(model)
        slope = self.min_slope
        assert slope is not None
        held = torch.zeros(len(start), dtype=torch.bool, device=start.device)

        def velocity(z: Tensor, x: Tensor) -> Tensor:
            direction, _ = field(x, z.expand(len(x)))
            held.logical_or_(direction[:, -1] < slope)
            return direction[:, :-1] / direction[:, -1:].clamp_min(slope)

        solution = solver.integrate(
            velocity,
            start,
            self.offset,
            self.plate_distance - self.offset,
            # Heun wants the short steps at the plates, where lines turn; Euler's error there is
            # the smaller, the more evenly its steps lie.
            grid="uniform" if solver.solver == "euler" else "cosine",
            path=path,
        )
        # Where the field's E_z was lifted to the floor, the line is not one of the field.
        landed = solution.x.isfinite().all(1) & ~held
        flows = {"field_backward": 0.0, "field_passed": 0.0}
        heights = None
        if solution.path is not None:
            heights = solution.times.to(solution.path)[:, None].expand(-1, len(start))
            points = torch.cat([solution.path, heights[..., None]], dim=2)
            length = torch.linalg.vector_norm(points.diff(dim=0), dim=2).sum(0).mean()
            straight = torch.linalg.vector_norm(points[-1] - points[0], dim=1).mean()
            flows["field_stretch"] = float(length / straight)
        return Transport(solution.x, solution.nfe, landed, solution.path, flows, heights)

    def _by_arc_length(
        self, model: nn.Module, start: Tensor, solver: Solver, path: bool, rng: torch.Generator
    ) -> Transport:
        capacitor = model.capacitor
        assert isinstance(capacitor, Capacitor)
        followed = follow(
            self.field(model),
            capacitor,
            start,
            self.lines,
            self.crossing or "sign",
            self.offset,
            rng,
            rtol=solver.rtol,
            atol=solver.atol,
            max_steps=STEPS_PER_SOLVER_STEP * solver.solver_steps,
            path=path,
        )
        traced = followed.traced
        states = None if traced.path is None else traced.path[..., :-1]
        nfe = math.ceil(traced.evaluations / len(start))
        straight = torch.linalg.vector_norm(traced.end - traced.start, dim=1)
        flows = {
            "field_backward": float(followed.backward.double().mean()),
            "field_passed": float(followed.passed.double().mean()),
            "field_stretch": float(traced.length.mean() / straight.mean()),
        }
        heights = None if traced.path is None else traced.path[..., -1]
        return Transport(traced.end[:, :-1], nfe, traced.ended, states, flows, heights)


@register
class ElectrostaticFieldMatching(CapacitorMethod):
    r"""Algorithms 1 and 2 of the paper, with the exact superposition field as target.

    Training: charges p_1..p_N from the source at z = 0 and q_1..q_N from the target at z = L;
    at points x~ of R^{D+1}

    .. math:: f(\tilde x) \approx \sqrt{D + 1}\, E(\tilde x) / |E(\tilde x)|.

    With ``lines`` other than ``forward`` the flux is needed on both sides of both plates: then
    direction and log-norm of each plate's field are learned, by a network for each plate
    (:class:`~methods.fields.TwoPlates`), and the direction of their superposition with them. This
    is made for low dimension: log|E| of a plate grows with D, and with it its part in the loss.

    ``points`` says where the field is learned. Each point starts from a charge pair (p, q):

    * ``uniform``: (1 - t/L) p + t/L q at z = t, t ~ U(0, L), plus a step of length \|eps\| in a
      uniform direction of R^{D+1}, eps ~ N(0, sigma^2 I) in R^{D+1} (Algorithm 1);
    * ``capacitor``: the same with eps ~ N(L/2, sigma^2 I), which covers the space beside and
      behind the plates;
    * ``log``: at a log-uniform distance in [0.02, 2 L] of p or q, in a uniform direction;
    * ``mix``: half ``uniform``, half ``log``;
    * ``mesh``: uniform in a box that reaches L/2 beyond the charges;
    * ``poisson``: PFGM's perturbation of p or q;
    * ``lines``: half ``log``, half near exact lines of the field (:class:`LinePool`).

    In two dimensions field lines bulge far out of the data and ``uniform`` misses them; from D of
    about 16 on they do not, and ``uniform`` with a small sigma is best. Only ``uniform``,
    ``capacitor`` and ``mix`` have a sigma.

    ``endpoints`` says whether p and q are among the charges whose field is learned. If they are
    (``included``), in high dimension that field is nearly the field of the pair alone: a
    normalised conditional matching rather than the field of the plates.

    ``coupling`` says which p and q are a pair: ``independent`` ones, as published, or those of the
    optimal coupling of the charges (``ot``). The field knows of no pairs; but where the points are
    near segments and their own pairs among the charges, the field at a point is that of its pair,
    and samples follow the coupling: with ``ot`` a translation keeps what near pairs have in common.

    ``target = per_plate`` adds the plates' directions instead of their fields, as the authors'
    released code does; kept for comparison.
    """

    name: ClassVar[str] = "efm"
    title: ClassVar[str] = "Electrostatic Field Matching"
    reference: ClassVar[str] = "Kolesov et al., ICML 2025, https://arxiv.org/abs/2502.02367"
    diagnostics: ClassVar[Mapping[str, str]] = {**ERRORS, **FLOWS}
    search: ClassVar[Mapping[str, str]] = {"L": "3:60:log", "sigma": "0.01:3:log"}

    points: PointScheme = "mix"
    sigma: float | None = Field(1.0, ge=0)
    charges: int = Field(256, ge=1, le=100_000)
    endpoints: Literal["included", "independent"] = "included"
    coupling: Literal["independent", "ot"] = "independent"
    target: Literal["superposition", "per_plate"] = "superposition"
    z_embedding: ZEmbedding = "plates"

    @classmethod
    def defaults(cls, dim: int, noise_source: bool) -> dict[str, Any]:
        if dim <= LOW_DIM:
            return {}
        # A point sigma sqrt(D) off its segment sees its own charge radially, not along the line, up
        # to about that height: sigma sqrt(D) stays below the distances between data.
        return {"L": 6.0, "sigma": 0.02, "points": "uniform"}

    @classmethod
    def create(cls, dim: int, noise_source: bool = True, **settings: Any) -> Self:
        """As :meth:`Method.create`; lines on both sides of the plates have defaults of their own.

        They need the field of the plates, not of the batch, wherever lines go.
        """
        if settings.get("lines", "forward") != "forward":
            settings = {"endpoints": "independent", "charges": 1024, **settings}
            if dim <= LOW_DIM:
                settings = {"points": "lines", **settings}
        return super().create(dim, noise_source, **settings)

    @field_validator("sigma")
    @classmethod
    def _some_schemes_have_no_sigma(cls, sigma: float | None, info: ValidationInfo) -> float | None:
        return sigma if info.data.get("points") in WITH_SIGMA else None

    @field_validator("coupling")
    @classmethod
    def _some_schemes_have_no_pairs(cls, coupling: str, info: ValidationInfo) -> str:
        return coupling if info.data.get("points") in WITH_SIGMA else "independent"

    @field_validator("target", "z_embedding")
    @classmethod
    def _plate_by_plate_there_is_one(cls, value: str, info: ValidationInfo) -> str:
        """Learned plate by plate, the target is the superposition, z the distance to the plate."""
        if info.data.get("lines") == "forward" or info.field_name is None:
            return value
        return str(cls.model_fields[info.field_name].default)

    @model_validator(mode="after")
    def _sigma_given(self) -> Self:
        if self.sigma is None and self.points in WITH_SIGMA:
            raise ValueError(f"sigma must be a number with points = {self.points}, got none")
        return self

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        if self.lines == "forward":
            return FieldModel(network, source, target, self.plate_distance, self.z_embedding)
        return TwoPlates(network, source, target, self.plate_distance)

    def field(self, model: nn.Module) -> CapacitorField:
        def learned(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            output: Tensor = model(x, z)
            if self.lines != "forward":
                return from_columns(output)
            norm = torch.linalg.vector_norm(output, dim=1)
            direction = output / norm.clamp_min(torch.finfo(output.dtype).tiny)[:, None]
            return direction, torch.zeros_like(norm)

        return learned

    def diagnose(self, model: nn.Module, source: Draw, target: Draw) -> dict[str, float]:
        return field_errors(self.field(model), source, target, self.plate_distance, self.offset)

    def batches(
        self, source: Draw, target: Draw, n: int, rng: torch.Generator
    ) -> Iterator[Regression]:
        pool = None
        if self.points == "lines":
            crossing = self.crossing or "sign"
            pool = LinePool(
                source, target, self.plate_distance, self.lines, crossing, self.offset, rng
            )
        while True:
            yield self._batch(source, target, n, rng, pool)

    def _batch(
        self, source: Draw, target: Draw, n: int, rng: torch.Generator, pool: LinePool | None
    ) -> Regression:
        positive, negative = source(self.charges), target(self.charges)
        p, q = positive, negative
        if self.endpoints == "independent":
            p, q = source(n), target(n)
        pair = torch.randint(len(p), (2, n), generator=rng, device=rng.device)
        if self.coupling == "ot":
            q, pair[1] = optimal_pairs(p, q, len(p)), pair[0]
        x, z = self._points(p[pair[0]], q[pair[1]], rng, pool)
        plates = [
            poisson_field(x.double(), z.double() - height, charges)
            for charges, height in ((positive, 0.0), (negative, self.plate_distance))
        ]
        if self.lines != "forward":
            columns = as_columns(plates[0], plates[1])
            weight = columns.isfinite().all(1)  # not so on a charge
            return Regression(x, z, columns.nan_to_num(0, 0, 0).to(x), weight.to(x))
        if self.target == "per_plate":
            plates = [(direction, torch.zeros_like(norm)) for direction, norm in plates]
        direction, _ = superpose(plates[0], plates[1])
        return Regression(x, z, math.sqrt(x.shape[1] + 1) * direction.to(x))

    def _points(
        self, p: Tensor, q: Tensor, rng: torch.Generator, pool: LinePool | None
    ) -> tuple[Tensor, Tensor]:
        distance, sigma = self.plate_distance, self.sigma or 0.0
        half = len(p) // 2
        if self.points == "log":
            return around_charges(p, q, distance, rng)
        if self.points == "mesh":
            return in_box(p, q, distance, rng)
        if self.points == "poisson":
            return perturbed(p, q, distance, self.lines != "forward", rng)
        if self.points == "mix":
            near = around_charges(p[:half], q[:half], distance, rng)
            return _joined(near, along_segments(p[half:], q[half:], distance, 0.0, sigma, rng))
        if self.points == "lines":
            assert pool is not None
            near = around_charges(p[:half], q[:half], distance, rng)
            return _joined(near, pool(len(p) - half, rng))
        mean = distance / 2 if self.points == "capacitor" else 0.0
        return along_segments(p, q, distance, mean, sigma, rng)


def _joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, z = (torch.cat(parts) for parts in zip(first, second, strict=True))
    return x, z
