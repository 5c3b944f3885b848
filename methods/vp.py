r"""Diffusion whose variance is preserved: the forward SDE dx = f x dt + g dw makes noise of data.

With the score s = grad log p_t of the noisy data, samples follow from t = 1 down to almost 0 the
probability-flow ODE, dx/dt = f x - g^2 s / 2, or the reverse SDE, dx = (f x - g^2 s) dt + g dw,
with w a Wiener process backward in time, and then go to the mean of the data given x (Tweedie).
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from methods.base import Draw, ExactMethod, Method, Regression, at, register
from methods.draws import normal, uniform
from methods.edm import PosteriorMean, Sampler
from methods.networks import NetworkFactory, NetworkSettings, ScaledNetwork, Standardised
from methods.solvers import Flow, Velocity


class VpMethod(Method):
    r"""dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw, beta(t) = beta_min + t (beta_max - beta_min).

    .. math:: x_t = \alpha x_0 + \sigma \epsilon, \quad
              \alpha = \exp\Big(-\tfrac12 \int_0^t \beta\Big), \quad \sigma^2 = 1 - \alpha^2

    The model gives epsilon(x, t), the mean of the noise given x: s = -epsilon / sigma. Sampling
    goes from t = 1, where x is N(0, I) but for alpha = .007, to ``t_min``. Under ``sampler = sde``
    only ``solver_steps`` and ``grid`` of the solver apply.
    """

    reference: ClassVar[str] = "Song et al., ICLR 2021, https://arxiv.org/abs/2011.13456"
    noise_only: ClassVar[bool] = True

    # Song et al., appendix C; they sample down to t_min = 1e-3.
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)
    t_min: float = Field(1e-3, gt=0, lt=1)
    sampler: Sampler = "ode"

    def check(self) -> None:
        least, most = self.beta_min, self.beta_max
        if least > most:
            raise ValueError(f"beta_min must be at most beta_max = {most:g}, got {least:g}")

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, shapes of t."""
        exponent = t * (self.beta_min + self.beta(t)) / 2  # the integral of beta
        return torch.exp(-exponent / 2), torch.sqrt(-torch.expm1(-exponent))

    def flow(self, model: nn.Module) -> Flow:
        epsilon = at(model)

        def drift(share: float) -> Velocity:  # f x - share g^2 s
            return lambda t, x: self.beta(t) * (share * epsilon(t, x) / self.schedule(t)[1] - x / 2)

        def tweedie(x: Tensor) -> Tensor:
            t = x.new_tensor(self.t_min)
            alpha, sigma = self.schedule(t)
            return (x - sigma * epsilon(t, x)) / alpha

        if self.sampler == "ode":
            return Flow(drift(0.5), 1.0, self.t_min, last=tweedie)
        return Flow(drift(1.0), 1.0, self.t_min, noise=lambda t: self.beta(t).sqrt(), last=tweedie)


@register
class VariancePreservingDiffusion(VpMethod):
    """Noise is predicted at times t ~ U(t_min / 100, 1), all weighted alike."""

    name: ClassVar[str] = "vp"
    title: ClassVar[str] = "Diffusion (VP)"
    search: ClassVar = {"beta_max": "12:30", "t_min": "1e-4:1e-2:log"}

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return NoiseModel(self, network, target)

    def unused_network(self, network: NetworkSettings, dim: int) -> tuple[str, ...]:
        return ("far_field",)

    def regression(self, source: Draw, target: Draw, n: int, rng: Generator) -> Regression:
        x0 = target(n)
        first = x0.new_tensor(self.t_min / 100)
        t = torch.lerp(first, x0.new_tensor(1.0), uniform((n,), x0, rng))
        alpha, sigma = self.schedule(t)
        epsilon = normal(x0.shape, x0, rng)
        return Regression(alpha[:, None] * x0 + sigma[:, None] * epsilon, t, epsilon)


class NoiseModel(Standardised):
    r"""epsilon(x, t), with inputs of unit variance and the log of the noise-to-signal ratio.

    .. math:: \epsilon = \frac{\sigma}{V} (x - \alpha m) + \frac{\alpha s}{\sqrt V} F, \quad
              V = \alpha^2 s^2 + \sigma^2

    with the mean m and the standard deviation s of the data; with ``network.precondition = off``
    epsilon = F.
    """

    def __init__(self, method: VpMethod, network: NetworkFactory, target: Tensor) -> None:
        super().__init__(target)
        self.method = method
        ends = self._log_ratio(torch.tensor([method.t_min / 100, 1.0], dtype=torch.float64)) / 4
        self.preconditioned = network.settings.precondition == "on"
        self.network = ScaledNetwork(network, target.shape[1], (float(ends[0]), float(ends[1])))

    def _log_ratio(self, t: Tensor) -> Tensor:
        alpha, sigma = self.method.schedule(t)
        return torch.log(sigma / alpha)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) -> epsilon (B, D)."""
        alpha, sigma = (part[:, None] for part in self.method.schedule(t))
        spread = torch.sqrt((alpha * self.scale) ** 2 + sigma**2)
        v = (x - alpha * self.shift) / spread
        epsilon: Tensor = self.network(x, v, self._log_ratio(t) / 4)
        if self.preconditioned:
            epsilon = (sigma * v + alpha * self.scale * epsilon) / spread
        return epsilon


@register
class ExactVariancePreservingDiffusion(ExactMethod, VpMethod):
    """The noise that VP learns to predict, of ``charges`` stored samples; nothing is trained."""

    name: ClassVar[str] = "vp-exact"
    title: ClassVar[str] = "Exact noise of diffusion (VP)"

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return ExactNoise(self, target[: self.charges])


class ExactNoise(nn.Module):
    """epsilon(x, t) = (x - alpha D(x / alpha, sigma / alpha)) / sigma of stored samples."""

    def __init__(self, method: VpMethod, charges: Tensor) -> None:
        super().__init__()
        self.method = method
        self.mean = PosteriorMean(charges)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) -> epsilon (B, D)."""
        alpha, sigma = self.method.schedule(t)
        mean = self.mean(x / alpha[:, None], sigma / alpha)
        noise: Tensor = (x - alpha[:, None] * mean) / sigma[:, None]
        return noise
