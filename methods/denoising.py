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

DATA_RADII = 3.0
"""Data are within that many radii, sqrt(D) standard deviations, of their mean."""


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

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the noise, a multivariate Student t: infinite for a Gaussian."""
        return math.inf

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
    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, with which all levels count alike, sigma being
    the :func:`effective_level`.
    """

    P_mean: float = -1.2
    P_std: float = Field(1.2, gt=0)

    @abstractmethod
    def perturb(self, y: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
        """``y`` (B, D) with noise of the levels ``sigma`` (B,)."""

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return Denoiser(network, target, (self.sigma_min, self.sigma_max), self.freedom)

    def batches(
        self, source: Draw, target: Draw, n: int, rng: torch.Generator
    ) -> Iterator[Regression]:
        data = target(MODEL_SAMPLES)
        mean, sigma_data = data.mean(0), data.std(0).mean()
        while True:
            y = target(n)
            sigma = 2 * sigma_data * (self.P_mean + self.P_std * normal((n,), y, rng)).exp()
            x = self.perturb(y, sigma, rng)
            level = effective_level((x - mean) / sigma_data, sigma / sigma_data, self.freedom)
            weight = (level**2 + 1) / (sigma_data * level) ** 2
            yield Regression(x, sigma, y, weight)


def effective_level(v: Tensor, sigma: Tensor, freedom: float) -> Tensor:
    r"""The level of Gaussian noise that means as much as Student's t noise at points v, shape (B,).

    .. math:: \tilde\sigma^2 = \max\Big(\sigma^2, \frac{N \sigma^2 + d^2}{N + D}\Big), \quad
              d = \max(0, |v| - 3 \sqrt D)

    Data at the distance d have the likelihood (d^2 + N sigma^2)^{-(D+N)/2}, which falls with the
    distance as that of Gaussian noise of the second level does. It counts far outside of the data
    only, where the heavy tails of few degrees of freedom N throw samples. Since it depends on the
    point and on sigma alone, weighting by it leaves the minimiser of the loss as it is.

    Args:
        v: points in standard deviations of the data, from their mean, shape (B, D).
        sigma: noise levels in the same unit, shape (B,).
        freedom: N; for infinity the level is sigma.
    """
    if math.isinf(freedom):
        return sigma
    dim = v.shape[1]
    outside = torch.linalg.vector_norm(v, dim=1) - DATA_RADII * math.sqrt(dim)
    squared = (freedom * sigma**2 + outside.clamp_min(0) ** 2) / (freedom + dim)
    return torch.maximum(sigma, squared.sqrt())


class Denoiser(nn.Module):
    r"""D(x, sigma) with the preconditioning of Karras et al.

    .. math:: D = c_{skip}\, x + c_{out}\, F(c_{in}\, x, \log\sigma), \quad
              c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
              c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
              c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}

    around the mean of the data; sigma_d is their standard deviation, and sigma in the coefficients
    the :func:`effective_level`: with it the tails of few degrees of freedom are seen near the data.
    """

    def __init__(
        self,
        network: NetworkFactory,
        target: Tensor,
        levels: tuple[float, float],
        freedom: float = math.inf,
    ) -> None:
        super().__init__()
        self.register_buffer("shift", target.mean(0))
        self.register_buffer("scale", target.std(0).mean())
        self.shift: Tensor
        self.scale: Tensor
        self.ends = math.log(levels[0]), math.log(levels[1])
        self.freedom = freedom
        self.embedding = CosineEmbedding()
        self.network = network(self.embedding.size, target.shape[1])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (B, D), sigma (B,) -> the denoised x, (B, D)."""
        low, high = self.ends
        embedding = self.embedding((sigma.log() - low) / (high - low))
        v = (x - self.shift) / self.scale  # from here on in units of sigma_d
        level = effective_level(v, sigma / self.scale, self.freedom)[:, None]
        spread = torch.sqrt(level**2 + 1)
        denoised = v / spread**2 + level / spread * self.network(v / spread, embedding)
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
