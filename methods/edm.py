r"""The diffusion of Karras et al., whose variance explodes, and what PFGM++ takes from it.

The forward SDE adds noise to data, dx = sqrt(2 sigma) dw, with the noise level sigma as its time.
A denoiser D(x, sigma) is the mean of the data y given y + noise of level sigma = x. Samples follow
the probability-flow ODE

.. math:: dx/d\sigma = (x - D(x, \sigma)) / \sigma

from ``sigma_max`` to ``sigma_min``, or the reverse SDE, and then go to D. The noise is Gaussian
(diffusion) or a multivariate Student t (PFGM++).
"""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from methods.base import MODEL_SAMPLES, Draw, ExactMethod, Method, Regression, at, register
from methods.draws import normal
from methods.electrostatics import in_blocks
from methods.networks import NetworkFactory, NetworkSettings, ScaledNetwork, Standardised
from methods.solvers import Flow

Sampler = Literal["ode", "sde"]


class DenoisingMethod(Method):
    """Noise levels from ``sigma_max`` to ``sigma_min``, in units of the data, on Karras' grid."""

    noise_only: ClassVar[bool] = True

    # Those of Karras et al., table 1.
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)

    def check(self) -> None:
        if self.sigma_min >= self.sigma_max:
            most, least = self.sigma_max, self.sigma_min
            raise ValueError(f"sigma_min must be below sigma_max = {most:g}, got {least:g}")

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the noise, a multivariate Student t: infinite for a Gaussian."""
        return math.inf

    def flow(self, model: nn.Module) -> Flow:
        denoised, high, low = at(model), self.sigma_max, self.sigma_min

        def velocity(sigma: Tensor, x: Tensor) -> Tensor:
            return (x - denoised(sigma, x)) / sigma

        return Flow(velocity, high, low, "rho", last=lambda x: denoised(x.new_tensor(low), x))


class LearnedDenoiser(DenoisingMethod):
    """A denoiser trained as by Karras et al.

    log(sigma / (2 sigma_data)) ~ N(``P_mean``, ``P_std``^2): the paper's values are for
    sigma_data = 1/2. The weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 makes all levels
    count alike, sigma being the :func:`effective_level`.
    """

    P_mean: float = -1.2
    P_std: float = Field(1.2, gt=0)

    def perturb(self, y: Tensor, sigma: Tensor, rng: Generator) -> Tensor:
        """``y`` (B, D) with noise of the levels ``sigma`` (B,): Gaussian, unless overridden."""
        return y + sigma[:, None] * normal(y.shape, y, rng)

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return Denoiser(self, network, target)

    def unused_network(self, network: NetworkSettings, dim: int) -> tuple[str, ...]:
        return ("far_field",)

    def batches(self, source: Draw, target: Draw, n: int, rng: Generator) -> Iterator[Regression]:
        data = target(MODEL_SAMPLES)
        mean, sigma_data = data.mean(0), data.std(0).mean()
        while True:
            y = target(n)
            sigma = 2 * sigma_data * (self.P_mean + self.P_std * normal((n,), y, rng)).exp()
            x = self.perturb(y, sigma, rng)
            level = effective_level((x - mean) / sigma_data, sigma / sigma_data, self.freedom)
            weight = (level**2 + 1) / (sigma_data * level) ** 2
            yield Regression(x, sigma, y, weight)


class ExactDenoiser(ExactMethod, DenoisingMethod):
    """The denoiser of ``charges`` stored samples; nothing is trained."""

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return PosteriorMean(target[: self.charges], self.freedom)


def effective_level(v: Tensor, sigma: Tensor, freedom: float) -> Tensor:
    r"""The level of Gaussian noise that means as much as Student's t noise at points v, shape (B,).

    .. math:: \tilde\sigma^2 = \max\Big(\sigma^2, \frac{N \sigma^2 + d^2}{N + D}\Big), \quad
              d = \max(0, |v| - 3 \sqrt D)

    for points v (B, D) and levels sigma (B,), in standard deviations of the data; N = ``freedom``.
    The likelihood (d^2 + N sigma^2)^{-(D+N)/2} of data at the distance d falls with d as that of
    Gaussian noise of the second level does, which matters far outside of the data only.
    """
    if math.isinf(freedom):
        return sigma
    dim = v.shape[1]
    outside = torch.linalg.vector_norm(v, dim=1) - 3 * math.sqrt(dim)  # data are within 3 radii
    squared = (freedom * sigma**2 + outside.clamp_min(0) ** 2) / (freedom + dim)
    return torch.maximum(sigma, squared.sqrt())


class Denoiser(Standardised):
    r"""D(x, sigma) with the preconditioning of Karras et al.

    .. math:: D = c_{skip}\, x + c_{out}\, F(c_{in}\, x, \log\sigma), \quad
              c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
              c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
              c_{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}

    around the mean of the data; sigma_d is their standard deviation, and sigma in the coefficients
    the :func:`effective_level`. With ``network.precondition = off`` D = sigma_d F.
    """

    def __init__(self, method: DenoisingMethod, network: NetworkFactory, target: Tensor) -> None:
        super().__init__(target)
        self.freedom = method.freedom
        self.preconditioned = network.settings.precondition == "on"
        # Karras et al. show the network log(sigma) / 4.
        ends = math.log(method.sigma_min) / 4, math.log(method.sigma_max) / 4
        self.network = ScaledNetwork(network, target.shape[1], ends)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (B, D), sigma (B,) -> the denoised x, (B, D)."""
        v, s = self.standardise(x), sigma.log() / 4  # from here on in units of sigma_d
        level = effective_level(v, sigma / self.scale, self.freedom)[:, None]
        spread = torch.sqrt(level**2 + 1)
        denoised: Tensor = self.network(x, v / spread, s)
        if self.preconditioned:
            denoised = v / spread**2 + level / spread * denoised
        return self.shift + self.scale * denoised


class PosteriorMean(nn.Module):
    r"""The denoiser of stored samples, D(x, sigma) = sum_i w_i y_i.

    .. math:: w_i \propto \exp\Big(-\frac{|x - y_i|^2}{2 \sigma^2}\Big), \quad\text{or}\quad
              w_i \propto \Big(|x - y_i|^2 + N \sigma^2\Big)^{-(D + N) / 2}

    for Gaussian noise and for the noise of N extra dimensions.
    """

    def __init__(self, charges: Tensor, aug_dim: float = math.inf) -> None:
        super().__init__()
        self.aug_dim = aug_dim
        self.charges = nn.Buffer(charges)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (B, D), sigma (B,) -> (B, D); in double precision within."""
        return in_blocks(self._mean, x, sigma, len(self.charges))

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


class EdmMethod(DenoisingMethod):
    """The prior, and under ``sampler = sde`` Euler-Maruyama steps of the reverse SDE.

    These need more steps, and of the solver only ``solver_steps`` and ``grid`` apply to them.
    """

    reference: ClassVar[str] = "Karras et al., NeurIPS 2022, https://arxiv.org/abs/2206.00364"

    sampler: Sampler = "ode"

    def start(self, x0: Tensor) -> Tensor:
        """The prior N(0, sigma_max^2 I)."""
        return self.sigma_max * x0

    def flow(self, model: nn.Module) -> Flow:
        flow, denoised = super().flow(model), at(model)
        if self.sampler == "ode":
            return flow
        return flow._replace(
            velocity=lambda sigma, x: 2 * (x - denoised(sigma, x)) / sigma,
            noise=lambda sigma: torch.sqrt(2 * sigma),
        )


@register
class ElucidatedDiffusion(LearnedDenoiser, EdmMethod):
    """Diffusion with the noise levels, preconditioning, weights and grid of Karras et al."""

    name: ClassVar[str] = "edm"
    title: ClassVar[str] = "Diffusion (EDM)"
    search: ClassVar = {"P_mean": "-2:0", "P_std": "0.8:2"}


@register
class ExactElucidatedDiffusion(ExactDenoiser, EdmMethod):
    """The denoiser that EDM learns."""

    name: ClassVar[str] = "edm-exact"
    title: ClassVar[str] = "Exact denoiser of diffusion (EDM)"
