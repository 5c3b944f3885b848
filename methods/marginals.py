r"""The exact velocities that Flow Matching methods regress, for stored samples.

Given a pair k, the path of :class:`methods.fm.GaussianPath` is Gaussian around the segment, and
so is its source if it is known as a density: N(0, I), or stored samples blurred by a width h. The
velocity that a perfect network would learn is the mean of the pairs' own, weighted with
their densities at x.

References:
    Lipman et al., Flow Matching for Generative Modeling, ICLR 2023, theorem 1,
    https://arxiv.org/abs/2210.02747
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from methods.base import ExactMethod, Transport, normal, register, seeded, transported
from methods.coupling import optimal_pairs
from methods.electrostatics import BLOCK_PAIRS
from methods.fm import GaussianPath
from methods.ifm import bell
from methods.networks import NetworkFactory
from methods.solvers import Solver

REST = 1e-3
"""Lines are integrated up to t = 1 - REST, and go on to t = 1 in one step."""


class ExactVelocityMethod(ExactMethod, GaussianPath):
    """Samples follow the exact marginal velocity of ``charges`` stored pairs; nothing is trained.

    Every line ends on a stored target sample where sigma = 0 or the path narrows to a point. The
    velocity changes fast near both ends, where single samples are told apart: the grid is fine
    there.

    Stored source samples are blurred by N(0, ``bandwidth``^2 I), since fresh ones start between
    them; lines start with that blur, so that with s(0) = 0 their law is the one the velocity is
    for. (With s(0) > 0 they lack that noise, as the lines of the learned methods do.)
    """

    @property
    @abstractmethod
    def blur(self) -> float | None:
        """The bandwidth; None where the source is known to be N(0, I)."""

    @abstractmethod
    def stored(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The ends a_k and b_k of the pairs, each (K, D)."""

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        chosen = source[: self.charges], target[: self.charges]
        return MarginalVelocity(self, *self.stored(*chosen), self.blur or 1.0)

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        def velocity(t: Tensor, x: Tensor) -> Tensor:
            marginal: Tensor = model(x, t.expand(len(x)))
            return marginal

        x0, last = start, 1 - REST
        if self.blur is not None:
            x0 = start + self.blur * normal(start.shape, start, seeded(rng, start))
        solution = solver.integrate(velocity, x0, 0.0, last, grid="cosine", path=path)
        way = REST * velocity(start.new_tensor(last), solution.x)
        result = transported(solution, solution.x + way)
        if result.path is None or x0 is start:
            return result
        return result._replace(path=torch.cat([start[None], result.path]))


class MarginalVelocity(nn.Module):
    r"""E[dx/dt | x, t] over stored pairs.

    .. math:: v(x, t) = \sum_k w_k \Big[ b_k - a_k + \frac{V'}{2 V} (x - m_k) \Big], \quad
              w_k \propto \exp\Big(-\frac{|x - m_k|^2}{2 V}\Big)

    with m_k = (1 - t) a_k + t b_k and V(t) = (1 - t)^2 h^2 + s(t)^2.
    """

    def __init__(self, method: GaussianPath, a: Tensor, b: Tensor, blur: float) -> None:
        super().__init__()
        self.width, self.blur = method.width, blur
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.a: Tensor
        self.b: Tensor

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) in [0, 1) -> velocity (B, D); in double precision within."""
        rows = max(1, BLOCK_PAIRS // len(self.b))
        blocks = zip(torch.split(x, rows), torch.split(t, rows), strict=True)
        return torch.cat([self._velocity(*block) for block in blocks])

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        dtype = x.dtype
        x, t, a, b = x.double(), t.double()[:, None], self.a.double(), self.b.double()
        s, slope = self.width(t)
        variance = ((1 - t) * self.blur) ** 2 + s**2
        growth = (s * slope - (1 - t) * self.blur**2) / variance  # V' / (2 V)
        squared = (  # |x - m_k|^2 but for |x|^2, which all k share
            (1 - t) ** 2 * a.square().sum(1)
            + t**2 * b.square().sum(1)
            + 2 * t * (1 - t) * (a * b).sum(1)
            - 2 * (1 - t) * (x @ a.T)
            - 2 * t * (x @ b.T)
        )
        weight = torch.softmax(-squared / (2 * variance), dim=1)
        start, end = weight @ a, weight @ b
        velocity = end - start + growth * (x - torch.lerp(start, end, t))
        return velocity.to(dtype)


class IndependentPairs(ExactVelocityMethod):
    """Independent coupling with N(0, I), or with stored source samples.

    With ``source = gaussian`` each stored target sample is paired with all of N(0, I). Data on both
    sides (``source = samples``) are paired one to one: the velocity is that of these pairs, and so
    rough that mode counts are as uneven as those of independent draws.
    """

    source: Literal["gaussian", "samples"] = "gaussian"
    bandwidth: float | None = Field(0.1, gt=0)

    @field_validator("bandwidth")
    @classmethod
    def _only_samples_are_blurred(
        cls, bandwidth: float | None, info: ValidationInfo
    ) -> float | None:
        if info.data.get("source") == "gaussian":
            return None
        if bandwidth is None:
            raise ValueError("a number is needed with source = samples")
        return bandwidth

    @property
    def blur(self) -> float | None:
        return self.bandwidth

    @classmethod
    def defaults(cls, dim: int, noise_source: bool) -> dict[str, Any]:
        return {} if noise_source else {"source": "samples"}

    def skip(self, dim: int, noise_source: bool) -> str | None:
        if self.source == "gaussian" and not noise_source:
            return f"{self.name} with source = gaussian cannot start from data"
        return super().skip(dim, noise_source)

    def stored(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(target) if self.source == "gaussian" else source, target


@register
class ExactFlowMatching(IndependentPairs):
    """The velocity that Flow Matching with independent coupling learns."""

    name: ClassVar[str] = "fm-exact"
    title: ClassVar[str] = "Exact marginal velocity of Flow Matching"
    reference: ClassVar[str] = "Lipman et al., ICLR 2023, https://arxiv.org/abs/2210.02747"


@register
class ExactInteractionField(IndependentPairs):
    """The velocity along the field that Interaction Field Matching learns."""

    name: ClassVar[str] = "ifm-exact"
    title: ClassVar[str] = "Exact interaction field"
    reference: ClassVar[str] = "Manukhov et al., ICLR 2026, https://arxiv.org/abs/2506.02950"

    sigma: float = Field(0.5, ge=0)

    def width(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return bell(t, self.sigma)


@register
class ExactOptimalTransportFlow(ExactVelocityMethod):
    """The velocity that OT-CFM learns, from stored pairs coupled in blocks as in training."""

    name: ClassVar[str] = "ot-cfm-exact"
    title: ClassVar[str] = "Exact marginal velocity of OT-CFM"
    reference: ClassVar[str] = "Tong et al., TMLR 2024, https://arxiv.org/abs/2302.00482"

    block: int = Field(128, ge=1, le=4096)
    bandwidth: float = Field(0.1, gt=0)

    @property
    def blur(self) -> float | None:
        return self.bandwidth

    def stored(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return source, optimal_pairs(source, target, self.block)
