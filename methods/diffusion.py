r"""Diffusion models: the forward SDE dx = f(t) x dt + g(t) dw makes noise of data.

With the score s = grad log p_t of the noisy data, samples follow from t = T down to almost 0

* the probability-flow ODE, dx/dt = f x - g^2 s / 2;
* or the reverse SDE, dx = (f x - g^2 s) dt + g dw, with w a Wiener process backward in time,

and then go to the mean of the data given x (Tweedie's formula).

References:
    Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
    ICLR 2021, https://arxiv.org/abs/2011.13456
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022,
    https://arxiv.org/abs/2206.00364
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods.base import (
    Draw,
    ExactMethod,
    Method,
    Regression,
    Transport,
    normal,
    register,
    seeded,
    transported,
    uniform,
)
from methods.denoising import DenoisingMethod, LearnedDenoiser, PosteriorMean
from methods.networks import CosineEmbedding, NetworkFactory
from methods.solvers import Solver, Velocity

Sampler = Literal["ode", "sde"]


# --- EDM: the variance explodes ------------------------------------------------------------------


class EdmMethod(DenoisingMethod):
    r"""dx = sqrt(2 sigma) dw, with time sigma: f = 0, g^2 = 2 sigma, s = (D - x) / sigma^2.

    ``sampler = ode`` is the flow of :mod:`methods.denoising`; ``sde`` has the Euler-Maruyama steps
    of the reverse SDE on the same grid. These need more steps, and only ``solver_steps`` and
    ``grid`` apply to them.
    """

    sampler: Sampler = "ode"

    def start(self, x0: Tensor) -> Tensor:
        """The prior N(0, sigma_max^2 I)."""
        return self.sigma_max * x0

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        if self.sampler == "ode":
            return super().transport(model, start, solver, path, rng)

        def denoised(x: Tensor, sigma: Tensor) -> Tensor:
            mean: Tensor = model(x, sigma.expand(len(x)))
            return mean

        solution = solver.integrate_sde(
            lambda sigma, x: 2 * (x - denoised(x, sigma)) / sigma,
            lambda sigma: torch.sqrt(2 * sigma),
            start,
            self.sigma_max,
            self.sigma_min,
            seeded(rng, start),
            grid="rho",
            path=path,
        )
        return transported(solution, denoised(solution.x, start.new_tensor(self.sigma_min)))


@register
class ElucidatedDiffusion(LearnedDenoiser, EdmMethod):
    """Diffusion with the noise levels, preconditioning, weights and grid of Karras et al."""

    name: ClassVar[str] = "edm"
    title: ClassVar[str] = "Diffusion (EDM)"
    reference: ClassVar[str] = "Karras et al., NeurIPS 2022, https://arxiv.org/abs/2206.00364"
    search: ClassVar[Mapping[str, str]] = {"P_mean": "-2:0", "P_std": "0.8:2"}

    def perturb(self, y: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
        return y + sigma[:, None] * normal(y.shape, y, rng)


@register
class ExactElucidatedDiffusion(ExactMethod, EdmMethod):
    """The denoiser that EDM learns, of ``charges`` stored samples; nothing is trained."""

    name: ClassVar[str] = "edm-exact"
    title: ClassVar[str] = "Exact denoiser of diffusion (EDM)"
    reference: ClassVar[str] = "Karras et al., NeurIPS 2022, https://arxiv.org/abs/2206.00364"

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return PosteriorMean(target[: self.charges])


# --- VP: the variance is preserved ---------------------------------------------------------------


class VpMethod(Method):
    r"""dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw, beta(t) = beta_min + t (beta_max - beta_min).

    .. math:: x_t = \alpha x_0 + \sigma \epsilon, \quad
              \alpha = \exp\Big(-\tfrac12 \int_0^t \beta\Big), \quad \sigma^2 = 1 - \alpha^2

    The model gives epsilon(x, t), the mean of the noise given x: s = -epsilon / sigma. Sampling
    goes from t = 1, where x is N(0, I) but for alpha = .007, to ``t_min``. Under ``sampler = sde``
    only ``solver_steps`` and ``grid`` of the solver apply.
    """

    noise_only: ClassVar[bool] = True

    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)
    t_min: float = Field(1e-3, gt=0, lt=1)
    sampler: Sampler = "ode"

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.beta_min > self.beta_max:
            raise ValueError(
                f"beta_min must be at most beta_max = {self.beta_max:g}, got {self.beta_min:g}"
            )
        return self

    def beta(self, t: Tensor) -> Tensor:
        """The rate of the SDE, shape of t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, shapes of t."""
        exponent = t * (self.beta_min + self.beta(t)) / 2  # the integral of beta
        return torch.exp(-exponent / 2), torch.sqrt(-torch.expm1(-exponent))

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        def noise(x: Tensor, t: Tensor) -> Tensor:
            epsilon: Tensor = model(x, t.expand(len(x)))
            return epsilon

        def drift(share: float) -> Velocity:
            """f x - share g^2 s."""
            return lambda t, x: self.beta(t) * (share * noise(x, t) / self.schedule(t)[1] - x / 2)

        if self.sampler == "ode":
            solution = solver.integrate(drift(0.5), start, 1.0, self.t_min, path=path)
        else:
            solution = solver.integrate_sde(
                drift(1.0),
                lambda t: self.beta(t).sqrt(),
                start,
                1.0,
                self.t_min,
                seeded(rng, start),
                path=path,
            )
        t = start.new_tensor(self.t_min)
        alpha, sigma = self.schedule(t)
        return transported(solution, (solution.x - sigma * noise(solution.x, t)) / alpha)


@register
class VariancePreservingDiffusion(VpMethod):
    """Noise is predicted at times t ~ U(t_first, 1), t_first = t_min / 100, all weighted alike."""

    name: ClassVar[str] = "vp"
    title: ClassVar[str] = "Diffusion (VP)"
    reference: ClassVar[str] = "Song et al., ICLR 2021, https://arxiv.org/abs/2011.13456"
    search: ClassVar[Mapping[str, str]] = {"beta_max": "12:30", "t_min": "1e-4:1e-2:log"}

    @property
    def t_first(self) -> float:
        """The shortest time of training."""
        return self.t_min / 100

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return NoiseModel(self, network, target)

    def regression(self, source: Draw, target: Draw, n: int, rng: torch.Generator) -> Regression:
        x0 = target(n)
        t = torch.lerp(x0.new_tensor(self.t_first), x0.new_tensor(1.0), uniform((n,), x0, rng))
        alpha, sigma = self.schedule(t)
        epsilon = normal(x0.shape, x0, rng)
        return Regression(alpha[:, None] * x0 + sigma[:, None] * epsilon, t, epsilon)


class NoiseModel(nn.Module):
    """epsilon(x, t), with inputs of unit variance and the log of the noise-to-signal ratio."""

    def __init__(
        self, method: VariancePreservingDiffusion, network: NetworkFactory, target: Tensor
    ) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("shift", target.mean(0))
        self.register_buffer("scale", target.std(0).mean())
        self.shift: Tensor
        self.scale: Tensor
        ends = self._log_ratio(torch.tensor([method.t_first, 1.0], dtype=torch.float64))
        self.low, self.range = float(ends[0]), float(ends[1] - ends[0])
        self.embedding = CosineEmbedding()
        self.network = network(self.embedding.size, target.shape[1])

    def _log_ratio(self, t: Tensor) -> Tensor:
        alpha, sigma = self.method.schedule(t)
        return torch.log(sigma / alpha)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) -> epsilon (B, D)."""
        alpha, sigma = (part[:, None] for part in self.method.schedule(t))
        inputs = (x - alpha * self.shift) / torch.sqrt((alpha * self.scale) ** 2 + sigma**2)
        level = (self._log_ratio(t) - self.low) / self.range
        epsilon: Tensor = self.network(inputs, self.embedding(level))
        return epsilon


@register
class ExactVariancePreservingDiffusion(ExactMethod, VpMethod):
    """The noise that VP learns to predict, of ``charges`` stored samples; nothing is trained."""

    name: ClassVar[str] = "vp-exact"
    title: ClassVar[str] = "Exact noise of diffusion (VP)"
    reference: ClassVar[str] = "Song et al., ICLR 2021, https://arxiv.org/abs/2011.13456"

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
