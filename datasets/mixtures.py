"""Mixtures of Gaussians: their modes can be counted, and their score is known."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import ndtr, ndtri
from torch import Tensor

from datasets.base import Distribution, Known, Task, register
from datasets.exact import Components
from datasets.gaussians import FromNoise

FAR = 9.0  # standard deviations beyond which a Gaussian has no mass in double precision

Array = NDArray[np.float64]


class Mixture(Distribution):
    """sum_k w_k N(m_k, s_k^2 I), of means (K, D), standard deviations (K,) and weights (K,)."""

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor) -> None:
        self.shape = (means.shape[1],)
        self.means, self.stds, self.weights = means, stds, weights

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.around(torch.multinomial(self.weights, n, True, generator=rng), rng)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """n w_k samples of each mode, the remainder at random."""
        return self.around(even_modes(n, self.weights, rng), rng)

    def around(self, mode: Tensor, rng: torch.Generator) -> Tensor:
        """A sample of each of these modes (n,), shape (n, D)."""
        noise = torch.randn(len(mode), self.dim, generator=rng)
        return self.means[mode] + self.stds[mode, None] * noise

    def log_parts(self, x: Tensor) -> Tensor:
        """log (w_k N(x; m_k, s_k^2 I)) up to a common constant, shape (B, K), in float64."""
        means, stds = self.means.to(x.device).double(), self.stds.to(x.device).double()
        squared = torch.cdist(x.double(), means, compute_mode="donot_use_mm_for_euclid_dist")
        weights = self.weights.to(x.device).double().log() - self.dim * stds.log()
        return weights - squared.square() / (2 * stds.square())

    def mode(self, x: Tensor) -> Tensor:
        """The mode of the largest posterior probability at x (B, D), shape (B,)."""
        return self.log_parts(x).argmax(1)

    def score(self, x: Tensor) -> Tensor:
        """sum_k p(k | x) (m_k - x) / s_k^2."""
        pull = self.log_parts(x).softmax(1) / self.stds.to(x.device).double().square()
        score = pull @ self.means.to(x.device).double() - pull.sum(1, keepdim=True) * x.double()
        return score.to(x)

    def components(self) -> Components:
        stds = self.stds.double()[:, None].expand(-1, self.dim)
        return Components(self.means.double(), stds, self.weights.double())


def even_modes(n: int, weights: Tensor, rng: torch.Generator) -> Tensor:
    """Mode of each of ``n`` samples in random order: floor(n w_k) each.

    The remainder goes to modes drawn without replacement, with probabilities n w_k - floor(n w_k).
    """
    share = n * weights.double()
    counts = (share + 1e-6).floor().long()  # 1000 x .3 is 299.99999
    rest = n - int(counts.sum())
    if rest:
        left = (share - counts).clamp(min=1e-9)
        counts[torch.multinomial(left, rest, generator=rng)] += 1
    modes = torch.repeat_interleave(torch.arange(len(weights)), counts)
    return modes[torch.randperm(n, generator=rng)]


@cache
def mixtures(dim: int) -> tuple[Mixture, Mixture]:
    """Source and target of ``mixture_to_mixture_<dim>``: 3 and 5 modes, of unequal weights.

    In the plane three modes on a small circle and five on a large one; above, modes at fixed
    random places whose distances from the origin have root mean square 2 and 5.
    """
    places = []
    rng = torch.Generator().manual_seed(0)
    for modes, radius in ((3, 2.0), (5, 5.0)):
        angle = 2 * torch.pi * torch.arange(modes) / modes
        circle = torch.stack([angle.cos(), angle.sin()], dim=1)
        anywhere = torch.randn(modes, dim, generator=rng) / dim**0.5
        places.append(radius * (circle if dim == 2 else anywhere))
    three = torch.tensor([[0.4, 0.6, 0.8], [0.5, 0.3, 0.2]])  # standard deviations and weights
    five = torch.tensor([[0.3, 0.4, 0.5, 0.6, 0.7], [0.3, 0.25, 0.2, 0.15, 0.1]])
    return Mixture(places[0], *three), Mixture(places[1], *five)


class MixtureToMixture(Task):
    """Three modes to five, see :func:`mixtures`: data to data, with known scores."""

    def source(self) -> Distribution:
        return mixtures(self.dim)[0]

    def target(self) -> Distribution:
        return mixtures(self.dim)[1]


@register
class MixtureToMixture2(MixtureToMixture):
    """In the plane."""

    name, title, dim = "mixture_to_mixture_2", "Mixture to mixture, D = 2", 2


@register
class MixtureToMixture16(MixtureToMixture):
    """D = 16."""

    name, title, dim = "mixture_to_mixture_16", "Mixture to mixture, D = 16", 16


@register
class GaussianToMixture1(FromNoise):
    """N(0, 1) to three modes on the line, where sorting is optimal transport."""

    name, title, dim = "gaussian_to_mixture_1", "Gaussian to mixture, D = 1", 1

    def target(self) -> Mixture:
        means, stds, weights = torch.tensor([[-2.0, 1.0, 4.0], [0.4, 0.6, 0.3], [0.3, 0.5, 0.2]])
        return Mixture(means[:, None], stds, weights)

    def known(self) -> Known:
        return _known_on_the_line()


@cache
def _known_on_the_line() -> Known:
    """The increasing map F_Q^{-1} o F_P, and int_0^1 (F_P^{-1} - F_Q^{-1})^2 du."""
    target = GaussianToMixture1().target()

    def optimal_map(x: Tensor) -> Tensor:
        return torch.from_numpy(quantile(target, ndtr(x.double().numpy()))).to(x)

    def cost(x: float) -> float:
        image = quantile(target, ndtr(np.array([x])))[0]
        return float((x - image) ** 2 * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))

    # The map jumps from mode to mode where F_P reaches the sum of their weights.
    jumps = ndtri(target.weights.double().cumsum(0)[:-1].numpy())
    optimal_cost = quad(cost, -FAR, FAR, points=jumps, limit=500, epsabs=1e-9)[0]
    # On a line the map of a flow is increasing, and there is one such map: FM's is the optimal one.
    return Known(optimal_cost, optimal_map, optimal_map, optimal_cost)


def quantile(mixture: Mixture, probability: Array) -> Array:
    """F^{-1} of a mixture on the line, by bisection; the shape of ``probability``."""
    means, stds = mixture.means[:, 0].double().numpy(), mixture.stds.double().numpy()
    weights = mixture.weights.double().numpy()
    weights = weights / weights.sum()
    low = np.full(probability.shape, (means - FAR * stds).min())
    high = np.full(probability.shape, (means + FAR * stds).max())
    for _ in range(60):
        middle = (low + high) / 2
        below = ndtr((middle[..., None] - means) / stds) @ weights < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)
