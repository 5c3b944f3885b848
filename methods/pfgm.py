"""Poisson Flow Generative Models.

Data are charges on the plate z = 0 of R^{D+1}. Far away their field is that of one point charge,
so a uniform distribution on a large hemisphere flows down the field lines to the data.
"""

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from scipy.special import betaincinv, gammaincc
from torch import Generator, Tensor, nn

from methods.base import LOW_DIM, Draw, ExactMethod, Method, Regression, at, register
from methods.draws import directions, normal, uniform
from methods.electrostatics import mean_displacement, softened
from methods.networks import (
    NetworkFactory,
    NetworkSettings,
    ScaledNetwork,
    Standardised,
    bounded,
)
from methods.solvers import Flow

LOWEST = 1e-3  # height, in standard deviations of the data, below which none is told from zero


class PoissonMethod(Method):
    r"""The prior and the flow of PFGM.

    Sampling starts on z = ``z_max`` and solves dx/dt' = z E_x / E_z in t' = log z down to
    z = ``z_min``. The prior is heavy-tailed, P(R > c z_max) = 1 / sqrt(1 + c^2) at D = 2, so its
    radius is cut at ``max_radius`` z_max: the authors' code has R <= 3000 for z_max = 40.
    """

    reference: ClassVar[str] = "Xu et al., NeurIPS 2022, https://arxiv.org/abs/2209.11178"
    noise_only: ClassVar[bool] = True

    # As the authors have them for CIFAR-10, but in the units of the data.
    z_max: float = Field(40.0, gt=0)
    z_min: float = Field(1e-3, gt=0)
    max_radius: float = Field(75.0, gt=0)

    def check(self) -> None:
        if self.z_min >= self.z_max:
            raise ValueError(f"z_min must be below z_max = {self.z_max:g}, got {self.z_min:g}")

    def start(self, x0: Tensor) -> Tensor:
        """The prior on z = z_max, as a map of N(0, I)."""
        return radial_prior(x0, self.z_max, 1, self.max_radius)

    def flow(self, model: nn.Module) -> Flow:
        field = at(model)

        def velocity(log_z: Tensor, x: Tensor) -> Tensor:
            z = log_z.exp()
            e = field(z, x)
            return z * e[:, :-1] / e[:, -1:]

        return Flow(velocity, math.log(self.z_max), math.log(self.z_min))


@register
class PoissonFlow(PoissonMethod):
    r"""The Poisson field of the data, learned where the flow passes.

    Perturbation of a data point y, with m ~ U[0, M] and s = ``sigma``:

    .. math:: z = |\epsilon_z| (1 + \tau)^m, \quad
              x = y + \|\epsilon_x\| (1 + \tau)^m u, \quad
              \epsilon \sim N(0, s^2 I_{D+1}), \; u \text{ uniform on the sphere}

    Target sqrt(D) E / (|E| + gamma) with E the weighted mean of x~ - y~ over ``charges`` data
    points, weights proportional to |x~ - y~|^{-(D+1)}.

    M is such that s (1 + tau)^M = 3 z_max: the training points reach beyond the prior's plate, and
    the growth is log-uniform in [1, 3 z_max / s] whatever tau is (.03 in the paper).
    """

    name: ClassVar[str] = "pfgm"
    title: ClassVar[str] = "Poisson Flow Generative Model"
    search: ClassVar = {"z_max": "10:100:log", "gamma": "0.3:10:log"}

    # sigma and gamma of the paper; as many charges as our batch has points.
    sigma: float = Field(0.01, gt=0)
    gamma: float = Field(5.0, ge=0)
    charges: int = Field(512, ge=1, le=100_000)

    @classmethod
    def defaults(cls, dim: int, noise_source: bool, data_set: bool) -> dict[str, Any]:
        # The paper's gamma = 5 is for images, whose charges are tens of units apart; 1 and 5 are
        # compared on validation draws in results/parametrisation.
        return {"gamma": 1.0} if dim <= LOW_DIM else {}

    def check(self) -> None:
        super().check()
        if self.sigma >= 3 * self.z_max:
            raise ValueError(f"sigma must be below 3 z_max, got {self.sigma:g}")

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return PoissonModel(network, target, self.gamma, self.z_max)

    def unused_network(self, network: NetworkSettings, dim: int) -> tuple[str, ...]:
        return ("precondition",) if network.far_field == "off" else ()

    def regression(self, source: Draw, target: Draw, n: int, rng: Generator) -> Regression:
        charges = target(self.charges)
        own = torch.arange(n, device=charges.device) % self.charges
        x, z = perturb(charges[own], self.sigma, 3 * self.z_max / self.sigma, rng)
        field = mean_displacement(x, z, charges)
        return Regression(x, z, softened(field, self.gamma, math.sqrt(x.shape[1])))


@register
class ExactPoissonFlow(ExactMethod, PoissonMethod):
    """The field of ``charges`` stored samples; nothing is trained."""

    name: ClassVar[str] = "pfgm-exact"
    title: ClassVar[str] = "Exact field of PFGM"

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return PoissonField(target[: self.charges])


class PoissonField(nn.Module):
    """E(x, z) of stored charges, up to its length."""

    def __init__(self, charges: Tensor) -> None:
        super().__init__()
        self.charges = nn.Buffer(charges)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> (B, D+1)."""
        return mean_displacement(x, z, self.charges)


def radial_prior(x0: Tensor, r: float, aug_dim: int, most: float) -> Tensor:
    """The field of a charge in the origin, cut at r, as a map of N(0, I) (B, D).

    R = r sqrt(B / (1 - B)), B ~ Beta(D/2, aug_dim/2), and at most r times ``most``: same direction,
    quantile to quantile.
    """
    dim = x0.shape[1]
    squared = x0.double().square().sum(1)
    above = gammaincc(dim / 2, (squared / 2).cpu().numpy())  # P(chi^2_D > |x0|^2)
    rest = torch.from_numpy(betaincinv(aug_dim / 2, dim / 2, above)).to(squared)  # 1 - B
    radius = r * torch.sqrt((1 - rest) / rest).clamp_max(most)
    return (x0 * (radius / squared.sqrt())[:, None]).to(x0)


def perturb(y: Tensor, sigma: float, reach: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """Training points (x, z), z >= 0, around the charges ``y`` (B, D) of the plate z = 0.

    The steps of :class:`PoissonFlow` with noise ``sigma`` and (1 + tau)^M = ``reach``.
    """
    m = uniform((len(y),), y, rng)  # in units of M
    noise = sigma * normal((len(y), y.shape[1] + 1), y, rng)
    # Starting this near, a large step would almost only go along the plate (Appendix B.1.1).
    too_near = noise[:, -1].abs() < sigma / 2
    growth = torch.where(too_near, reach ** (0.7 * m), reach**m)
    u = directions(len(y), y.shape[1], y, rng)
    radius = torch.linalg.vector_norm(noise[:, :-1], dim=1) * growth
    return y + radius[:, None] * u, noise[:, -1].abs() * growth


class PoissonModel(Standardised):
    r"""The learned field f(x, z) ~ sqrt(D) E / (|E| + gamma), through the mean charge.

    The field with normalised weights is E = (x - y, z) with y(x, z) the weighted mean of the
    charges. The network gives y, and f follows: so f_z has the right size however small it is,
    z f_x / f_z is x - y, and far away, where y is bounded, the field is that of a point charge.
    Preconditioned, y is a gated x (close to the data the nearest charge is) plus the network,
    bounded like data. With ``network.far_field = off`` the network gives f itself.
    """

    def __init__(self, network: NetworkFactory, target: Tensor, gamma: float, z_max: float) -> None:
        super().__init__(target)
        self.gamma, self.dim = gamma, target.shape[1]
        self.far_field = network.settings.far_field != "off"
        self.preconditioned = network.settings.precondition == "on"
        span = math.log(LOWEST), math.log(3 * z_max / float(self.scale))
        self.network = ScaledNetwork(network, self.dim + (not self.far_field), span)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> f (B, D+1)."""
        if not self.far_field:
            return self._network(x, z)[0]
        field = torch.cat([x - self.mean_charge(x, z), z[:, None]], dim=1)
        return softened(field, self.gamma, math.sqrt(self.dim))

    def mean_charge(self, x: Tensor, z: Tensor) -> Tensor:
        """y(x, z) = sum_i w_i y_i, shape (B, D)."""
        output, v, height = self._network(x, z)
        if not self.preconditioned:
            return self.shift + self.scale * bounded(output)
        outside = v.square().sum(1, keepdim=True) / (9 * self.dim)  # 1 at three radii
        skip = 1 / (1 + height**2 + outside**2)
        return self.shift + self.scale * (skip * v + torch.sqrt(1 - skip) * bounded(output))

    def _network(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The network's output, standardised points (B, D) and heights (B, 1)."""
        v, height = self.standardise(x), (z / self.scale)[:, None]
        return self.network(x, v, torch.log(height[:, 0] + LOWEST), height), v, height
