"""Normal distributions, and tasks between two of them, where all that is measured is known.

The covariances S_0 and S_1 do not commute: with common axes Flow Matching would be optimal
transport, and nothing could distinguish the two.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.stats import ortho_group
from torch import Tensor

from datasets.base import Distribution, Known, Map, Task, register
from datasets.exact import Components, standard_normal

Matrix = NDArray[np.float64]
SINGULAR = 1e-10  # eigenvalues below this part of the largest are zero up to rounding


class StandardNormal(Distribution):
    """N(0, I) in R^D."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(n, self.dim, generator=rng)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """Scrambled Sobol points through the normal quantile function."""
        seed = int(torch.randint(2**62, (), generator=rng))
        sobol: Any = torch.quasirandom.SobolEngine  # untyped in torch
        points: Tensor = sobol(self.dim, scramble=True, seed=seed).draw(n, dtype=torch.float64)
        # Points lie on a grid of 2^-30 that includes 0: its cells' middles have finite quantiles.
        normal: Tensor = torch.special.ndtri(points.clamp(max=1 - 2.0**-30) + 2.0**-31)
        return normal.float()

    def score(self, x: Tensor) -> Tensor:
        return -x

    def components(self) -> Components | None:
        return standard_normal(self.dim)


class Gaussian(StandardNormal):
    """N(0, S) in R^D: draws of N(0, I) times the symmetric root of S."""

    def __init__(self, covariance: Matrix) -> None:
        super().__init__((len(covariance),))
        self.root = torch.from_numpy(square_root(covariance))
        self.precision = torch.from_numpy(np.linalg.inv(covariance))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return (super().sample(n, rng).double() @ self.root).float()

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        return (super().low_variance(n, rng).double() @ self.root).float()

    def score(self, x: Tensor) -> Tensor:
        return -(x.double() @ self.precision).to(x)

    def components(self) -> None:  # its axes are turned
        return None


def square_root(covariance: Matrix) -> Matrix:
    """The symmetric root S^{1/2} of a covariance; negative rounding errors count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def optimal_matrix(source: Matrix, target: Matrix) -> Matrix:
    """The optimal map x -> A x: A = S_0^{-1/2} (S_0^{1/2} S_1 S_0^{1/2})^{1/2} S_0^{-1/2}.

    Of a singular S_0 the part in its range, with any root R of S_0 = R R^T in place of S_0^{1/2}.

    References:
        Dowson and Landau, The Frechet distance between multivariate normal distributions, 1982.
    """
    values, vectors = np.linalg.eigh(source)
    seen = values > SINGULAR * values[-1]
    roots, vectors = np.sqrt(values[seen]), vectors[:, seen]
    root, inverse = vectors * roots, vectors / roots
    return np.asarray(inverse @ square_root(root.T @ target @ root) @ inverse.T)


def linear_map(source: Tensor | None, target: Tensor) -> Map:
    """The optimal map between the normal distributions with the moments of two sets of samples.

    x -> m_1 + A (x - m_0), A as in :func:`optimal_matrix`; samples (n, D) and (m, D), n, m > 1.
    ``source`` None is N(0, I). A lives in the span of the source's samples, or of the target's for
    N(0, I), so fewer samples than dimensions need no matrix (D, D).
    """
    seen = (target if source is None else source).double()
    basis = torch.linalg.qr((seen - seen.mean(0)).T).Q  # (D, min(n, D))
    identity = np.eye(basis.shape[1])
    spreads = [identity if x is None else _covariance(x.double() @ basis) for x in (source, target)]
    first = 0.0 if source is None else source.double().mean(0)
    second, turn = target.double().mean(0), _linear(optimal_matrix(*spreads))
    return lambda x: (second + turn((x.double() - first) @ basis) @ basis.T).to(x)


def _covariance(samples: Tensor) -> Matrix:
    return np.atleast_2d(np.cov(samples.numpy(), rowvar=False))


def flow_matrix(source: Matrix, target: Matrix, sigma: float = 0.0) -> Matrix:
    """The map x -> M x of Flow Matching with independent pairs and width ``sigma``.

    The marginal of its paths at time t is N(0, S_t), and the velocity A_t x is linear:
    dM/dt = A_t M, M(0) = I, A_t = (t S_1 - (1 - t) S_0) S_t^{-1},
    S_t = (1 - t)^2 S_0 + t^2 S_1 + sigma^2 I. With ``sigma`` > 0 M maps N(0, S_0 + sigma^2 I)
    to N(0, S_1 + sigma^2 I).
    """
    dim = len(source)

    def slope(t: float, flat: Matrix) -> Matrix:
        spread = (1 - t) ** 2 * source + t**2 * target + sigma**2 * np.eye(dim)
        velocity = np.linalg.solve(spread, t * target - (1 - t) * source).T  # all symmetric
        return np.asarray(velocity @ flat.reshape(dim, dim)).ravel()

    solution = solve_ivp(slope, (0, 1), np.eye(dim).ravel(), "DOP853", rtol=1e-10, atol=1e-12)
    return np.asarray(solution.y[:, -1]).reshape(dim, dim)


def linear_cost(source: Matrix, matrix: Matrix) -> float:
    """E|x - M x|^2 for x ~ N(0, S_0): tr (I - M) S_0 (I - M)^T."""
    rest = np.eye(len(source)) - matrix
    return float(np.trace(rest @ source @ rest.T))


@cache
def covariances(dim: int) -> tuple[Matrix, Matrix]:
    """S_0 and S_1: eigenvalues .1 to 4, in geometric progression, on axes that differ.

    In the plane the target is turned by 45 degrees; above, both are, at random with a fixed seed.
    """
    values = np.diag(np.geomspace(0.1, 4.0, dim))
    if dim == 2:
        turns = [np.eye(2), np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)]
    else:
        turns = [ortho_group.rvs(dim, random_state=seed) for seed in (2 * dim, 2 * dim + 1)]
    source, target = (turn @ values @ turn.T for turn in turns)
    return (source + source.T) / 2, (target + target.T) / 2


@cache
def _known(dim: int) -> Known:
    source, target = covariances(dim)
    optimal, flow = optimal_matrix(source, target), flow_matrix(source, target)
    cost, flow_cost = linear_cost(source, optimal), linear_cost(source, flow)
    return Known(cost, _linear(optimal), _linear(flow), flow_cost)


def _linear(matrix: Matrix) -> Map:
    transposed = torch.from_numpy(matrix.T.copy())
    return lambda x: (x.double() @ transposed).to(x)


class FromNoise(Task):
    """What the tasks from N(0, I) share."""

    noise_source, data_set_source = True, False

    def source(self) -> Distribution:
        return StandardNormal(self.shape)


class GaussianToGaussian(Task):
    """N(0, S_0) to N(0, S_1), see :func:`covariances`."""

    def source(self) -> Distribution:
        return Gaussian(covariances(self.dim)[0])

    def target(self) -> Distribution:
        return Gaussian(covariances(self.dim)[1])

    def known(self) -> Known:
        return _known(self.dim)


@register
class GaussianToGaussian2(GaussianToGaussian):
    """In the plane: variances .1 and 4, the target turned by 45 degrees."""

    name, title, dim = "gaussian_to_gaussian_2", "Gaussian to Gaussian, D = 2", 2


@register
class GaussianToGaussian16(GaussianToGaussian):
    """D = 16, axes turned at random."""

    name, title, dim = "gaussian_to_gaussian_16", "Gaussian to Gaussian, D = 16", 16


@register
class GaussianToGaussian64(GaussianToGaussian):
    """D = 64, axes turned at random."""

    name, title, dim = "gaussian_to_gaussian_64", "Gaussian to Gaussian, D = 64", 64
