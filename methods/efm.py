"""Electrostatic Field Matching.

Source samples are positive charges on the plate z = 0 of a capacitor, target samples negative
charges on the plate z = L. The direction of their field in R^{D+1} is learned between the
plates, and samples move along its lines.

References:
    Kolesov et al., Field Matching: an Electrostatic Paradigm to Generate and Transfer Data,
    ICML 2025, https://arxiv.org/abs/2502.02367
"""

import math
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from methods.base import LOW_DIM, Draw, Method, Regression, Transport, normal, register, uniform
from methods.electrostatics import capacitor_field
from methods.networks import NetworkFactory, radial_inputs
from methods.solvers import Solver

PointScheme = Literal["uniform", "capacitor", "log", "mix"]

MIN_RADIUS = 0.02
"""Smallest radius of the scheme ``log``, in the units of the data."""

PLATE_LAYER = 0.05
"""Height over a plate, in standard deviations of the data, that the network resolves."""


@register
class ElectrostaticFieldMatching(Method):
    r"""Algorithms 1 and 2 of the paper, with the exact superposition field as target.

    Training: charges p_1..p_N from the source at z = 0 and q_1..q_N from the target at z = L;
    at points x~ of R^{D+1}

    .. math:: f(\tilde x) \approx \sqrt{D + 1}\, E(\tilde x) / |E(\tilde x)|.

    Sampling: dx/dz = f_x / f_z from z = 0 to z = L. Between the plates E_z > 0 always, so f_z is
    kept above ``min_slope`` |f|. Lines start and land ``offset`` off the plates, where the field
    of finitely many charges is rough.

    ``points`` says where the field is learned. Each point starts from a charge pair (p, q):

    * ``uniform``: (1 - t/L) p + t/L q at z = t, t ~ U(0, L), plus a step of length \|eps\| in a
      uniform direction of R^{D+1}, eps ~ N(0, sigma^2 I) in R^{D+1} (Algorithm 1);
    * ``capacitor``: the same with eps ~ N(L/2, sigma^2 I), which covers the space beside and
      behind the plates;
    * ``log``: at a log-uniform distance in [0.02, 2 L] of p or q, in a uniform direction; it has
      no sigma;
    * ``mix``: half ``uniform``, half ``log``.

    In two dimensions field lines bulge far out of the data and ``mix`` is needed; from D of
    about 16 on they do not, and ``uniform`` with a small sigma is best.

    The pairs are drawn from the charges: a point's own endpoints are among the charges of its
    field (``endpoints = included``). In high dimension that field is then nearly the field of
    the pair alone, a normalised conditional matching rather than the field of the plates.
    """

    name: ClassVar[str] = "efm"
    title: ClassVar[str] = "Electrostatic Field Matching"
    reference: ClassVar[str] = "Kolesov et al., ICML 2025, https://arxiv.org/abs/2502.02367"

    plate_distance: float = Field(30.0, gt=0, alias="L")
    points: PointScheme = "mix"
    sigma: float | None = Field(1.0, ge=0)
    charges: int = Field(256, ge=1, le=100_000)
    offset: float = Field(0.05, ge=0)
    min_slope: float = Field(1e-2, gt=0, lt=1)
    endpoints: Literal["included"] = "included"

    @classmethod
    def defaults(cls, dim: int) -> dict[str, Any]:
        if dim <= LOW_DIM:
            return {}
        # A point sigma sqrt(D) off its segment sees its own charge radially, not along the line, up
        # to about that height: sigma sqrt(D) stays below the distances between data.
        return {"L": 6.0, "sigma": 0.02, "points": "uniform"}

    @field_validator("sigma")
    @classmethod
    def _log_has_no_sigma(cls, sigma: float | None, info: ValidationInfo) -> float | None:
        return None if info.data.get("points") == "log" else sigma

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sigma is None and self.points != "log":
            raise ValueError(f"sigma must be a number with points = {self.points}, got none")
        if 2 * self.offset >= self.plate_distance:
            raise ValueError(
                f"L must be above 2 offset = {2 * self.offset:g}, got {self.plate_distance:g}"
            )
        return self

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return FieldModel(network, source, target, self.plate_distance)

    def regression(self, source: Draw, target: Draw, n: int, rng: torch.Generator) -> Regression:
        positive, negative = source(self.charges), target(self.charges)
        pair = torch.randint(self.charges, (2, n), generator=rng, device=rng.device)
        x, z = self._points(positive[pair[0]], negative[pair[1]], rng)
        direction, _ = capacitor_field(x, z, positive, negative, self.plate_distance)
        return Regression(x, z, math.sqrt(x.shape[1] + 1) * direction)

    def transport(
        self, model: nn.Module, start: Tensor, solver: Solver, path: bool = False
    ) -> Transport:
        held = torch.zeros(len(start), dtype=torch.bool, device=start.device)

        def velocity(z: Tensor, x: Tensor) -> Tensor:
            field: Tensor = model(x, z.expand(len(x)))
            slope = self.min_slope * torch.linalg.vector_norm(field, dim=1)
            held.logical_or_(field[:, -1] < slope)
            return field[:, :-1] / torch.maximum(field[:, -1], slope)[:, None]

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
        # Where the network's f_z was lifted to the floor, the line is not one of its field.
        landed = solution.x.isfinite().all(1) & ~held
        return Transport(solution.x, solution.nfe, landed, solution.path)

    def _points(self, p: Tensor, q: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.points == "log":
            return self._around_charges(p, q, rng)
        if self.points == "mix":
            half = len(p) // 2
            near = self._around_charges(p[:half], q[:half], rng)
            between = self._along_segments(p[half:], q[half:], 0.0, rng)
            x, z = (torch.cat(parts) for parts in zip(near, between, strict=True))
            return x, z
        mean = self.plate_distance / 2 if self.points == "capacitor" else 0.0
        return self._along_segments(p, q, mean, rng)

    def _along_segments(
        self, p: Tensor, q: Tensor, mean: float, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        t = uniform((len(p),), p, rng)
        n = p.shape[1] + 1
        assert self.sigma is not None  # only points = log has none
        noise = mean + self.sigma * normal((len(p), n), p, rng)
        step = torch.linalg.vector_norm(noise, dim=1, keepdim=True) * _directions(len(p), n, p, rng)
        return torch.lerp(p, q, t[:, None]) + step[:, :-1], t * self.plate_distance + step[:, -1]

    def _around_charges(self, p: Tensor, q: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        at_target = uniform((len(p),), p, rng) < 0.5
        log_low, log_high = math.log(MIN_RADIUS), math.log(2 * self.plate_distance)
        radius = torch.exp(log_low + (log_high - log_low) * uniform((len(p), 1), p, rng))
        step = radius * _directions(len(p), p.shape[1] + 1, p, rng)
        x = torch.where(at_target[:, None], q, p) + step[:, :-1]
        return x, at_target * self.plate_distance + step[:, -1]


class FieldModel(nn.Module):
    r"""The learned direction f(x, z) ~ sqrt(D + 1) E / |E|.

    z enters as asinh of the distances to both plates, which resolves the layers at the plates at
    every L. In low dimension, where lines leave the data far behind, the network is a
    correction to the field of two point charges at the centres of the plates,

    .. math:: f = \sqrt{D + 1}\, e(\tilde x) + g\, N(\tilde x), \quad
              g = 1 / \min(\rho_P, \rho_Q), \quad
              \rho_P^2 = 1 + |\tilde x - \tilde c_P|^2 / s_P^2,

    with c the mean of a plate and s its root mean square radius. Centred charges have no dipole
    moment; far from both plates their quadrupoles are left, of first order beside the dipole of
    the pair, like g.
    """

    def __init__(
        self, network: NetworkFactory, source: Tensor, target: Tensor, plate_distance: float
    ) -> None:
        super().__init__()
        samples = torch.cat([source, target])
        self.plate_distance = plate_distance
        self.dim = source.shape[1]
        self.far_field = self.dim <= LOW_DIM
        self.register_buffer("shift", samples.mean(0))
        self.register_buffer("scale", samples.std(0).mean())
        self.register_buffer("centres", torch.stack([source.mean(0), target.mean(0)]))
        self.register_buffer("radii", torch.stack([rms_radius(source), rms_radius(target)]))
        self.shift: Tensor
        self.scale: Tensor
        self.centres: Tensor  # (2, D)
        self.radii: Tensor  # (2,)
        if self.far_field:
            self.network = network(3, self.dim + 1, extra_inputs=self.dim)
        else:
            self.network = network(2, self.dim + 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> f (B, D+1)."""
        v = (x - self.shift) / self.scale
        unit = PLATE_LAYER * self.scale
        heights = torch.stack([z, self.plate_distance - z], dim=1)
        embedding = torch.asinh(heights / unit)
        if not self.far_field:
            correction: Tensor = self.network(v, embedding)
            return correction
        inputs, log_radius = radial_inputs(v)
        correction = self.network(inputs, torch.cat([embedding, log_radius], dim=1))
        direction, rho = self._point_charges(x, z)
        gate = 1 / rho.amin(1, keepdim=True)
        return math.sqrt(self.dim + 1) * direction + gate * correction

    def _point_charges(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Direction of the field of the two centres, softened by their radii; rho (B, 2)."""
        offsets = [
            torch.cat([x - centre, (z - height)[:, None]], dim=1)
            for centre, height in zip(self.centres, (0.0, self.plate_distance), strict=True)
        ]
        squared = torch.stack([offset.square().sum(1) for offset in offsets], dim=1)  # (B, 2)
        rho = torch.sqrt(1 + squared / self.radii**2)
        distance = rho * self.radii
        weight = (distance.amin(1, keepdim=True) / distance) ** (self.dim + 1)
        field = weight[:, :1] * offsets[0] - weight[:, 1:] * offsets[1]
        norm = torch.linalg.vector_norm(field, dim=1, keepdim=True)
        return field / norm.clamp_min(torch.finfo(x.dtype).tiny), rho


def rms_radius(samples: Tensor) -> Tensor:
    """Root mean square distance of the samples (N, D) from their mean."""
    radius: Tensor = samples.var(0).sum().sqrt()
    return radius


def _directions(count: int, n: int, like: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform directions in R^n, shape (count, n)."""
    m = normal((count, n), like, rng)
    directions: Tensor = m / torch.linalg.vector_norm(m, dim=1, keepdim=True)
    return directions
