r"""What methods share that move samples along Gaussian paths: velocities, and optimal pairs.

Given a pair k, the path is Gaussian around the segment, and so is its source if it is known as a
density: N(0, I), or stored samples blurred by a width h. The velocity that a perfect network would
learn is the mean of the pairs' own, weighted with their densities at x (Lipman et al., ICLR 2023,
https://arxiv.org/abs/2210.02747, theorem 1).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import ot
import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from methods.base import LOW_DIM, Draw, ExactMethod, Method, Regression, at
from methods.draws import normal, seeded, uniform
from methods.electrostatics import in_blocks
from methods.networks import NetworkFactory, NetworkSettings, ScaledNetwork, Standardised
from methods.solvers import Flow

Width = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``width(t)``: s(t) and its derivative, in the shape of t."""


class GaussianPath(Method):
    r"""Paths along the segments of pairs, x = (1 - t) x_0 + t x_1 + s(t) epsilon."""

    sigma: float = Field(0.0, ge=0)

    @classmethod
    def defaults(cls, dim: int, noise_source: bool, data_set: bool) -> dict[str, Any]:
        # Between two small data sets the paths without noise are a few segments, and starts that
        # were not among them find no velocity that was learned (results/parametrisation).
        return {"sigma": 0.1} if dim > LOW_DIM and data_set else {}

    def width(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s(t) and its derivative, shapes of t: ``sigma``, unless overridden."""
        return torch.full_like(t, self.sigma), torch.zeros_like(t)


class VelocityMethod(GaussianPath):
    r"""The velocity of Gaussian paths, learned.

    .. math:: x = (1 - t) x_0 + t x_1 + s(t) \epsilon, \quad t \sim U(0, 1), \quad
              v(x, t) \approx x_1 - x_0 + s'(t) \epsilon

    and transport by dx/dt = v from t = 0 to t = 1. Methods differ in the :meth:`pairs` and in the
    :meth:`width`.
    """

    def pairs(self, source: Draw, target: Draw, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """x_0 and x_1, each (n, D): independent, unless overridden."""
        return source(n), target(n)

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        n = min(len(source), len(target))
        pairs = self.pairs(lambda k: source[:k], lambda k: target[:k], n, seeded(None, source))
        return VelocityModel(network, *pairs, self.width)

    def unused_network(self, network: NetworkSettings, dim: int) -> tuple[str, ...]:
        return ("far_field",)

    def regression(self, source: Draw, target: Draw, n: int, rng: Generator) -> Regression:
        x0, x1 = self.pairs(source, target, n, rng)
        t = uniform((n,), x0, rng)
        x, velocity = torch.lerp(x0, x1, t[:, None]), x1 - x0
        if self.sigma > 0:
            s, slope = self.width(t)
            noise = normal(x0.shape, x0, rng)
            x = x + s[:, None] * noise
            velocity = velocity + slope[:, None] * noise
        return Regression(x, t, velocity)

    def flow(self, model: nn.Module) -> Flow:
        return Flow(at(model), 0.0, 1.0)


def optimal_pairs(x0: Tensor, x1: Tensor, block: int) -> Tensor:
    r"""``x1`` in the order that pairs it optimally with ``x0``, block by block.

    Within each ``block`` rows of ``x0`` and ``x1`` (B, D) the permutation that minimises the sum of
    |x_0 - x_1|^2 (Tong et al., TMLR 2024, https://arxiv.org/abs/2302.00482, section 3.2): an
    optimal plan between two sets of equal size and weight is one (Birkhoff). The cost grows with
    about the third power of the block. The last block may be smaller.
    """
    parts = zip(torch.split(x0, block), torch.split(x1, block), strict=True)
    return torch.cat([_paired(a, b) for a, b in parts])


def _paired(x0: Tensor, x1: Tensor) -> Tensor:
    cost = torch.cdist(x0.double(), x1.double()).square().cpu().numpy()
    # scipy's linear_sum_assignment finds the same pairs in about the same time.
    plan = ot.emd([], [], cost, numItermax=10_000_000)  # POT's own limit is too low
    # A plan of the simplex method is a corner of the polytope: one entry 1/B in each row.
    return x1[torch.from_numpy(plan.argmax(1)).to(x1.device)]


class Segments(nn.Module):
    r"""Moments of Gaussian paths x = (1 - t) x_0 + t x_1 + s(t) epsilon and of their velocity.

    With the means m_0 and m_1 of the ends of the pairs, and the variances p, q and the covariance r
    of these ends, means over coordinates,

    .. math:: E x = (1 - t) m_0 + t m_1, \quad V = (1 - t)^2 p + t^2 q + 2 t (1 - t) r + s^2, \quad
              C = \mathrm{Cov}(\dot x, x) = t q - (1 - t) p + (1 - 2 t) r + s s', \quad
              W = \mathrm{Var}\, \dot x = p + q - 2 r + s'^2

    The best linear guess of the velocity is m_1 - m_0 + C / V (x - E x), and what it leaves has the
    variance W - C^2 / V: the preconditioning of Karras et al. (NeurIPS 2022, table 1), whose noise
    has the covariance r = 0 with the data, for any two ends.
    """

    def __init__(self, x0: Tensor, x1: Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Buffer(x0.mean(0)), nn.Buffer(x1.mean(0))  # (D,)
        a, b = x0 - self.first, x1 - self.last
        self.p, self.q = nn.Buffer(a.square().mean()), nn.Buffer(b.square().mean())
        self.r = nn.Buffer((a * b).mean())

    def precondition(
        self, x: Tensor, t: Tensor, width: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x - E x) / sqrt(V), the linear guess of the velocity, both (B, D), and its error (B, 1).

        For x (B, D) at t (B, 1), and s(t) and s'(t) (B, 1).
        """
        s, slope = width
        p, q, r = self.p, self.q, self.r
        tiny = torch.finfo(x.dtype).tiny
        variance = (1 - t) ** 2 * p + t**2 * q + 2 * t * (1 - t) * r + s**2
        covariance = t * q - (1 - t) * p + (1 - 2 * t) * r + s * slope
        rest = p + q - 2 * r + slope**2 - covariance**2 / variance.clamp_min(tiny)
        offset = x - torch.lerp(self.first, self.last, t)
        guess = self.last - self.first + covariance / variance.clamp_min(tiny) * offset
        # Where all is linear, rounding is left, and something must be learned.
        least = 1e-6 * (p + q)
        return offset / variance.clamp_min(tiny).sqrt(), guess, torch.maximum(rest, least).sqrt()


class VelocityModel(Standardised):
    """v(x, t), from pairs x_0, x_1 (N, D) for its units; ``width`` gives s(t) and s'(t)."""

    def __init__(self, network: NetworkFactory, x0: Tensor, x1: Tensor, width: Width) -> None:
        super().__init__(torch.cat([x0, x1]))
        self.width, self.segments = width, Segments(x0, x1)
        self.preconditioned = network.settings.precondition == "on"
        self.network = ScaledNetwork(network, x0.shape[1])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) -> velocity (B, D)."""
        if not self.preconditioned:
            velocity: Tensor = self.network(x, self.standardise(x), t)
            return velocity * self.scale
        column = t[:, None]
        v, guess, error = self.segments.precondition(x, column, self.width(column))
        corrected: Tensor = guess + error * self.network(x, v, t)
        return corrected


class ExactVelocityMethod(ExactMethod, GaussianPath):
    """Samples follow the exact marginal velocity of ``charges`` stored pairs; nothing is trained.

    Every line ends on a stored target sample where sigma = 0 or the path narrows to a point. Near
    both ends, where samples are told apart, the grid is fine; the last step is from t = .999.

    Stored source samples are blurred by N(0, ``bandwidth``^2 I), since fresh ones start between
    them (there is no bandwidth where the source is known to be N(0, I)); lines start with that
    blur, but without the noise of s(0) > 0, as the lines of the learned methods do.
    """

    bandwidth: float | None = Field(0.1, gt=0)

    @abstractmethod
    def stored(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The ends a_k and b_k of the pairs, each (K, D)."""

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        a, b = self.stored(source[: self.charges], target[: self.charges])
        return MarginalVelocity(self, a, b, self.bandwidth or 1.0)

    def flow(self, model: nn.Module) -> Flow:
        velocity, rest, blur = at(model), 1e-3, self.bandwidth
        end = 1 - rest

        def last(x: Tensor) -> Tensor:
            return x + rest * velocity(x.new_tensor(end), x)

        flow = Flow(velocity, 0.0, end, grid="cosine", last=last)
        if blur is None:
            return flow
        return flow._replace(first=lambda x, rng: x + blur * normal(x.shape, x, rng))


class MarginalVelocity(nn.Module):
    r"""E[dx/dt | x, t] over stored pairs.

    .. math:: v(x, t) = \sum_k w_k \Big[ b_k - a_k + \frac{V'}{2 V} (x - m_k) \Big], \quad
              w_k \propto \exp\Big(-\frac{|x - m_k|^2}{2 V}\Big)

    with m_k = (1 - t) a_k + t b_k and V(t) = (1 - t)^2 h^2 + s(t)^2.
    """

    def __init__(self, method: GaussianPath, a: Tensor, b: Tensor, blur: float) -> None:
        super().__init__()
        self.width, self.blur = method.width, blur
        self.a, self.b = nn.Buffer(a), nn.Buffer(b)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, D), t (B,) in [0, 1) -> velocity (B, D); in double precision within."""
        return in_blocks(self._velocity, x, t, len(self.b))

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        dtype = x.dtype
        x, t, a, b = x.double(), t.double()[:, None], self.a.double(), self.b.double()
        s, slope = self.width(t)
        variance = ((1 - t) * self.blur) ** 2 + s**2
        growth = (s * slope - (1 - t) * self.blur**2) / variance  # V' / (2 V)
        squared = (  # |x - m_k|^2 but for |x|^2, which all k share
            (1 - t) ** 2 * a.square().sum(1)
            + t**2 * b.square().sum(1)
            + 2 * t * (1 - t) * (a * b).sum(1)
            - 2 * (1 - t) * (x @ a.T)
            - 2 * t * (x @ b.T)
        )
        weight = torch.softmax(-squared / (2 * variance), dim=1)
        start, end = weight @ a, weight @ b
        velocity = end - start + growth * (x - torch.lerp(start, end, t))
        return velocity.to(dtype)


class IndependentPairs(ExactVelocityMethod):
    """Each stored target sample paired with all of N(0, I), or with a stored source sample.

    The velocity of such pairs of data (``source = samples``) is so rough that mode counts are as
    uneven as those of independent draws.
    """

    source: Literal["gaussian", "samples"] = "gaussian"

    def idle(self) -> dict[str, Any]:
        return {"bandwidth": None} if self.source == "gaussian" else {}

    @classmethod
    def defaults(cls, dim: int, noise_source: bool, data_set: bool) -> dict[str, Any]:
        found = super().defaults(dim, noise_source, data_set)
        return found if noise_source else {**found, "source": "samples"}

    def skip(self, dim: int, noise_source: bool) -> str | None:
        if self.source == "gaussian" and not noise_source:
            return f"{self.name} with source = gaussian cannot start from data"
        return super().skip(dim, noise_source)

    def stored(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(target) if self.source == "gaussian" else source, target
