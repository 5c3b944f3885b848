r"""PFGM++: Poisson flow with any number of extra dimensions, between PFGM and diffusion.

Data are charges on the plane r = 0 of R^{D+N}, r the length of N extra coordinates. Their field is
that of PFGM for N = 1, and for N -> infinity with r = sigma sqrt(N) the score of diffusion.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from methods.base import register
from methods.draws import normal
from methods.edm import DenoisingMethod, ExactDenoiser, LearnedDenoiser
from methods.pfgm import radial_prior

ExtraDimensions = Annotated[int, Field(ge=1, le=1_000_000)] | Literal["inf"]


class PoissonPlusMethod(DenoisingMethod):
    r"""The prior and the flow of PFGM++ in ``aug_dim`` = N extra dimensions.

    In the noise level sigma = r / sqrt(N) field lines obey dx/dsigma = (x - D) / sigma with
    D(x, sigma) the mean of the data, weighted with (|x - y|^2 + r^2)^{-(D+N)/2}. Perturbations are
    at most ``max_radius`` r long: the authors' code has B <= 1 - 1e-3. It also has B >= 1e-3, which
    says nothing for images, and would move one draw in sixteen at D = 2 and N = 128.
    """

    reference: ClassVar[str] = "Xu et al., ICML 2023, https://arxiv.org/abs/2302.04265"

    aug_dim: ExtraDimensions = 128  # the best of the paper on FFHQ; on CIFAR-10 2048
    max_radius: float | None = Field(math.sqrt(999), gt=0)

    def idle(self) -> dict[str, Any]:
        return {"max_radius": None} if self.aug_dim == "inf" else {}

    @property
    def freedom(self) -> float:
        return math.inf if self.aug_dim == "inf" else self.aug_dim

    def start(self, x0: Tensor) -> Tensor:
        """The perturbation of a charge in the origin at sigma_max, as a map of N(0, I)."""
        if self.aug_dim == "inf" or self.max_radius is None:
            return self.sigma_max * x0
        r = self.sigma_max * math.sqrt(self.aug_dim)
        return radial_prior(x0, r, self.aug_dim, self.max_radius)


@register
class PoissonFlowPlus(LearnedDenoiser, PoissonPlusMethod):
    r"""PFGM++ with the noise levels, preconditioning, weights and grid of EDM, as in the paper.

    Perturbation of a data point y at r = sigma sqrt(N): y + R u with u a uniform direction and
    R = r sqrt(B / (1 - B)), B ~ Beta(D/2, N/2). That is sigma times a multivariate Student t with N
    degrees of freedom.

    Its targets are single data points. With one or two extra dimensions their noise is
    heavy-tailed and learning slow; ``pfgm``, whose targets are means over batches, is better there.
    """

    name: ClassVar[str] = "pfgmpp"
    title: ClassVar[str] = "PFGM++"
    search: ClassVar = {
        "aug_dim": "8|32|128|2048|inf",
        "P_mean": "-2:0",
        "P_std": "0.8:2",
    }

    def perturb(self, y: Tensor, sigma: Tensor, rng: Generator) -> Tensor:
        if self.aug_dim == "inf" or self.max_radius is None:
            return super().perturb(y, sigma, rng)
        noise = normal(y.shape, y, rng)
        # A chi-squared variable of N degrees of freedom is twice a gamma variable. torch's public
        # distributions take no generator.
        shape = torch.full_like(sigma, self.aug_dim / 2)
        chi_squared = 2 * torch._standard_gamma(shape, generator=rng)
        cut = torch.maximum(chi_squared, noise.square().sum(1) / self.max_radius**2)
        return y + noise * (sigma / torch.sqrt(cut / self.aug_dim))[:, None]


@register
class ExactPoissonFlowPlus(ExactDenoiser, PoissonPlusMethod):
    """The denoiser that PFGM++ learns."""

    name: ClassVar[str] = "pfgmpp-exact"
    title: ClassVar[str] = "Exact field of PFGM++"
