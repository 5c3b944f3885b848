"""Flow Matching with independent coupling.

References:
    Lipman et al., Flow Matching for Generative Modeling, ICLR 2023,
    https://arxiv.org/abs/2210.02747
    Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal
    Transport, TMLR 2024, https://arxiv.org/abs/2302.00482
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import Draw, Method, Regression, Transport, normal, register, uniform
from methods.networks import CosineEmbedding, NetworkFactory
from methods.solvers import Solver


@register
class FlowMatching(Method):
    r"""Regression of the velocity along straight segments.

    .. math:: x = (1 - t) x_0 + t x_1 + \sigma \epsilon, \quad t \sim U(0, 1), \quad
              v(x, t) \approx x_1 - x_0

    and transport by dx/dt = v from t = 0 to t = 1. ``sigma = 0`` is Lipman's path with
    sigma_min = 0 (rectified flow); ``sigma > 0`` is the Gaussian path of Tong et al.
    """

    name: ClassVar[str] = "fm"
    title: ClassVar[str] = "Flow Matching"
    reference: ClassVar[str] = "Lipman et al., ICLR 2023, https://arxiv.org/abs/2210.02747"

    sigma: float = Field(0.0, ge=0)

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return VelocityModel(network, source, target)

    def regression(self, source: Draw, target: Draw, n: int, rng: torch.Generator) -> Regression:
        x0, x1 = source(n), target(n)
        t = uniform((n,), x0, rng)
        x = torch.lerp(x0, x1, t[:, None])
        if self.sigma > 0:
            x = x + self.sigma * normal(x0.shape, x0, rng)
        return Regression(x, t, x1 - x0)

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
        landed = solution.x.isfinite().all(1)
        return Transport(solution.x, solution.nfe, landed, solution.path)


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
