"""Flow Matching with independent coupling.

References:
    Lipman et al., Flow Matching for Generative Modeling, ICLR 2023,
    https://arxiv.org/abs/2210.02747
    Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal
    Transport, TMLR 2024, https://arxiv.org/abs/2302.00482
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import (
    Draw,
    Method,
    Regression,
    Transport,
    normal,
    register,
    transported,
    uniform,
)
from methods.networks import CosineEmbedding, NetworkFactory
from methods.solvers import Solver


class GaussianPath(Method):
    r"""Paths along the segments of pairs, x = (1 - t) x_0 + t x_1 + s(t) epsilon."""

    sigma: float = Field(0.0, ge=0)

    def width(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s(t) and its derivative, shapes of t: ``sigma``, unless overridden."""
        return torch.full_like(t, self.sigma), torch.zeros_like(t)


class VelocityMethod(GaussianPath):
    r"""What the methods have in common that learn the velocity of Gaussian paths.

    .. math:: x = (1 - t) x_0 + t x_1 + s(t) \epsilon, \quad t \sim U(0, 1), \quad
              v(x, t) \approx x_1 - x_0 + s'(t) \epsilon

    and transport by dx/dt = v from t = 0 to t = 1. Methods differ in the :meth:`pairs` and in the
    :meth:`width`.
    """

    def pairs(
        self, source: Draw, target: Draw, n: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """x_0 and x_1, each (n, D): independent, unless overridden."""
        return source(n), target(n)

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return VelocityModel(network, source, target)

    def regression(self, source: Draw, target: Draw, n: int, rng: torch.Generator) -> Regression:
        x0, x1 = self.pairs(source, target, n, rng)
        t = uniform((n,), x0, rng)
        x, velocity = torch.lerp(x0, x1, t[:, None]), x1 - x0
        if self.sigma > 0:
            s, slope = self.width(t)
            noise = normal(x0.shape, x0, rng)
            x = x + s[:, None] * noise
            velocity = velocity + slope[:, None] * noise
        return Regression(x, t, velocity)

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        solution = solver.integrate(
            lambda t, x: model(x, t.expand(len(x))), start, 0.0, 1.0, grid="uniform", path=path
        )
        return transported(solution)


@register
class FlowMatching(VelocityMethod):
    """Pairs are independent and the width is ``sigma``.

    ``sigma = 0`` is Lipman's path with sigma_min = 0 (rectified flow); ``sigma > 0`` is the
    Gaussian path of Tong et al.
    """

    name: ClassVar[str] = "fm"
    title: ClassVar[str] = "Flow Matching"
    reference: ClassVar[str] = "Lipman et al., ICLR 2023, https://arxiv.org/abs/2210.02747"
    search: ClassVar[Mapping[str, str]] = {"sigma": "0:0.3"}


class VelocityModel(nn.Module):
    """v(x, t) with inputs and outputs in units of the data's standard deviation."""

    def __init__(self, network: NetworkFactory, source: Tensor, target: Tensor) -> None:
        super().__init__()
        samples = torch.cat([source, target])
        self.register_buffer("shift", samples.mean(0))
        self.register_buffer("scale", samples.std(0).mean())
        self.shift: Tensor
        self.scale: Tensor
        self.embedding = CosineEmbedding()
        self.network = network(self.embedding.size, source.shape[1])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) -> velocity (B, D)."""
        velocity: Tensor = self.network((x - self.shift) / self.scale, self.embedding(t))
        return velocity * self.scale
