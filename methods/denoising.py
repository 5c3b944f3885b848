r"""Denoisers, and the flow from noise to data that they give.

A denoiser D(x, sigma) is the mean of the data y given y + noise of level sigma = x. Samples follow

.. math:: dx/d\sigma = (x - D(x, \sigma)) / \sigma

from ``sigma_max`` to ``sigma_min``, and then go to D. The noise is Gaussian (diffusion) or a
multivariate Student t (PFGM++).

References:
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022,
    https://arxiv.org/abs/2206.00364
    Xu et al., PFGM++: Unlocking the Potential of Physics-Inspired Generative Models, ICML 2023,
    https://arxiv.org/abs/2302.04265
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods.base import MODEL_SAMPLES, Draw, Method, Regression, Transport, normal, transported
from methods.electrostatics import BLOCK_PAIRS
from methods.networks import CosineEmbedding, NetworkFactory
from methods.solvers import Solver

DATA_RADII, NOISE_RADII = 10.0, 3.0
"""Inputs are shortened to that many radii, sqrt(D) standard deviations, of data and of noise."""


class DenoisingMethod(Method):
    """What methods have in common whose noise levels go from ``sigma_max`` to ``sigma_min``.

    The levels are in units of the data. The grid is that of Karras et al. (rho = 7).
    """

    noise_only: ClassVar[bool] = True

    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)

    @model_validator(mode="after")
    def _goes_down(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min must be below sigma_max = {self.sigma_max:g}, got {self.sigma_min:g}"
            )
        return self

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        def velocity(sigma: Tensor, x: Tensor) -> Tensor:
            denoised: Tensor = model(x, sigma.expand(len(x)))
            return (x - denoised) / sigma

        levels = self.sigma_max, self.sigma_min
        solution = solver.integrate(velocity, start, *levels, grid="rho", path=path)
        return transported(solution, model(solution.x, start.new_full((len(start),), levels[1])))


class LearnedDenoiser(DenoisingMethod):
    r"""A denoiser trained as by Karras et al.

    log(sigma / (2 sigma_data)) ~ N(``P_mean``, ``P_std``^2), so that the paper's values, which are
    for sigma_data = 1/2, mean the same for data of any scale; weight
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, with which all levels count alike.
    """

    P_mean: float = -1.2
    P_std: float = Field(1.2, gt=0)

    @abstractmethod
    def perturb(self, y: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
        """``y`` (B, D) with noise of the levels ``sigma`` (B,)."""

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return Denoiser(network, target, self.sigma_min, self.sigma_max)

    def batches(
        self, source: Draw, target: Draw, n: int, rng: torch.Generator
    ) -> Iterator[Regression]:
        sigma_data = target(MODEL_SAMPLES).std(0).mean()
        while True:
            y = target(n)
            level = self.P_mean + self.P_std * normal((n,), y, rng)
            sigma = 2 * sigma_data * level.exp()
            weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
            yield Regression(self.perturb(y, sigma, rng), sigma, y, weight)


class Denoiser(nn.Module):
    r"""D(x, sigma) with the preconditioning of Karras et al.

    .. math:: D = c_{skip}\, x + c_{out}\, F(c_{in}\, x, \log\sigma), \quad
              c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
              c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
              c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}

    around the mean of the data; sigma_d is their standard deviation. Points farther out than ten
    radii of the data and three of the noise, where Gaussian noise hardly ever is and the heavy
    tails of few extra dimensions are, are seen at that distance: D stays near the data.
    """

    def __init__(
        self, network: NetworkFactory, target: Tensor, sigma_min: float, sigma_max: float
    ) -> None:
        super().__init__()
        self.register_buffer("shift", target.mean(0))
        self.register_buffer("scale", target.std(0).mean())
        self.shift: Tensor
        self.scale: Tensor
        self.ends = math.log(sigma_min), math.log(sigma_max)
        self.embedding = CosineEmbedding()
        self.network = network(self.embedding.size, target.shape[1])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (B, D), sigma (B,) -> the denoised x, (B, D)."""
        low, high = self.ends
        level = self.embedding((sigma.log() - low) / (high - low))
        sigma = sigma[:, None] / self.scale
        spread = torch.sqrt(sigma**2 + 1)  # all in units of sigma_d
        v = (x - self.shift) / self.scale
        radii = torch.linalg.vector_norm(v, dim=1, keepdim=True) / math.sqrt(x.shape[1])
        inputs = v / (radii / (DATA_RADII + NOISE_RADII * sigma)).clamp_min(1) / spread
        denoised = inputs / spread + sigma / spread * self.network(inputs, level)
        centred: Tensor = self.scale * denoised
        return self.shift + centred


class PosteriorMean(nn.Module):
    r"""The denoiser of stored samples, D(x, sigma) = sum_i w_i y_i.

    .. math:: w_i \propto \exp\Big(-\frac{|x - y_i|^2}{2 \sigma^2}\Big), \quad\text{or}\quad
              w_i \propto \Big(|x - y_i|^2 + N \sigma^2\Big)^{-(D + N) / 2}

    for Gaussian noise and for the noise of N extra dimensions.
    """

    def __init__(self, charges: Tensor, aug_dim: float = math.inf) -> None:
        super().__init__()
        self.aug_dim = aug_dim
        self.register_buffer("charges", charges)
        self.charges: Tensor

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (B, D), sigma (B,) -> (B, D); in double precision within."""
        rows = max(1, BLOCK_PAIRS // len(self.charges))
        blocks = zip(torch.split(x, rows), torch.split(sigma, rows), strict=True)
        return torch.cat([self._mean(*block) for block in blocks])

    def _mean(self, x: Tensor, sigma: Tensor) -> Tensor:
        y = self.charges.double()
        variance = sigma.double().square()[:, None]
        squared = torch.cdist(x.double(), y).square()
        if math.isinf(self.aug_dim):
            log_weight = -squared / (2 * variance)
        else:
            power = (x.shape[1] + self.aug_dim) / 2
            log_weight = -power * torch.log1p(squared / (self.aug_dim * variance))
        return (torch.softmax(log_weight, dim=1) @ y).to(x.dtype)
