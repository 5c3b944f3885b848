"""Transport distances and moments of samples x (n, D) and target y (m, D); 0 for equal sets."""

import functools
import warnings
from typing import Any, NamedTuple

import numpy as np
import ot
from scipy.spatial.distance import cdist
from torch import Tensor

from bench.metrics.base import EVERYWHERE, Array, metric, squared_distances, to_numpy

PROJECTIONS = 256
ASCENT_STARTS, ASCENT_STEPS = 4, 30
MAX_SIMPLEX_ITERATIONS = 10_000_000
SINKHORN_SAMPLES, SINKHORN_FAR_SAMPLES = 1000, 300
SINKHORN_BLUR = 0.5
SINKHORN_ITERATIONS, SINKHORN_FAR_ITERATIONS = 1000, 100
LARGEST_EXPONENT = 500.0  # of the kernel exp(-C / e) in double precision


@metric("w2", "W2", "distance", max_dim=3, main=2, headline="plain", **EVERYWHERE)
def w2(samples: Tensor, target: Tensor) -> float:
    """2-Wasserstein distance of the empirical measures, sqrt(min_plan mean |x - y|^2).

    Exact, by POT's network simplex (on the line by sorting), in units of the data; 0 is ideal, and
    the floor what can be reached. Meaningful up to a few dimensions: at D = 16 two sets of 2,000
    samples of one distribution are already 3 standard deviations apart.
    """
    return float(np.sqrt(optimal_cost(samples, target)))


@metric("w1", "W1", "distance", max_dim=3, headline="plain")
def w1(samples: Tensor, target: Tensor) -> float:
    """1-Wasserstein distance of the empirical measures, min_plan mean |x - y|.

    Exact, by POT's network simplex (on the line by sorting), in units of the data; 0 is ideal; less
    moved by few far samples than :func:`w2`. Meaningful up to a few dimensions.
    """
    return _cost(samples, target, power=1)


def optimal_cost(source: Tensor, target: Tensor) -> float:
    """min over couplings of mean |x - y|^2, with uniform weights; x (n, D), y (m, D).

    Raises:
        RuntimeError: the network simplex did not converge.
    """
    return _cost(source, target, power=2)


class Plan(NamedTuple):
    """The least mean of a cost c over couplings, and the potentials that prove it the least.

    cost = mean f + mean g, and f(x) + g(y) <= c(x, y) for all pairs.
    """

    cost: float
    first: Array  # (n,) f at x
    second: Array  # (m,) g at y


def optimal_plan(source: Tensor, target: Tensor, power: int = 2) -> Plan:
    """The optimal coupling of x (n, D) and y (m, D) for the cost |x - y|^power, 1 or 2.

    Raises:
        RuntimeError: the network simplex did not converge.
    """
    # For n = 2,000 three to five times as fast as scipy's linear_sum_assignment.
    costs = cdist(to_numpy(source), to_numpy(target), "euclidean" if power == 1 else "sqeuclidean")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # POT only warns when it gives up
        try:
            least, log = ot.emd2([], [], costs, numItermax=MAX_SIMPLEX_ITERATIONS, log=True)
        except UserWarning as warning:
            raise RuntimeError(f"optimal transport did not converge: {warning}") from warning
    return Plan(max(float(least), 0.0), log["u"], log["v"])


def _cost(x: Tensor, y: Tensor, power: int) -> float:
    """min over couplings of mean |x - y|^power, for a power of 1 or 2."""
    if x.shape[1] == 1:
        line, other = to_numpy(x)[:, 0], to_numpy(y)[:, 0]
        return float(ot.wasserstein_1d(line, other, p=power))
    return optimal_plan(x, y, power).cost


@functools.cache
def directions(dim: int) -> Array:
    """The random unit vectors (D, P) on which sets are projected, always the same."""
    return np.asarray(ot.sliced.get_random_projections(dim, PROJECTIONS, seed=0))


@metric("sliced_w2", "sliced W2", "distance", main=1, headline="both", **EVERYWHERE)
def sliced_w2(samples: Tensor, target: Tensor) -> float:
    """sqrt(mean over directions u of W2^2 between the projections on u).

    The same ``PROJECTIONS`` random directions every time. Units of the data, 0 is ideal. Meaningful
    in every dimension, but a difference in one direction is diluted: a shift d has the value |d| /
    sqrt(D).

    References:
        Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, JMIV 2015.
    """
    x, y = to_numpy(samples), to_numpy(target)
    return float(np.sqrt(projected_costs(x, y, directions(x.shape[1])).mean()))


def projected_costs(x: Array, y: Array, units: Array) -> Array:
    """W2^2 between the projections of x (n, D) and y (m, D) on each of the ``units`` (D, P)."""
    first, second = x @ units, y @ units
    if len(x) == len(y):  # eight times as fast as POT
        costs = np.square(np.sort(first, axis=0) - np.sort(second, axis=0)).mean(0)
    else:
        costs = ot.wasserstein_1d(first, second, p=2)
    return np.asarray(costs)


@metric("max_sliced_w2", "max-sliced W2", "distance")
def max_sliced_w2(samples: Tensor, target: Tensor) -> float:
    """sqrt(max over directions u of W2^2 between the projections on u): what differs most.

    Of samples x (n, D) and target y (m, D), by ascent from the difference of the means and the best
    of the random directions: with the pairs of the sorted projections held, the value is u^T M u, M
    = mean (x - y)(x - y)^T, and u <- M u / |M u| follows its gradient. The largest value met is a
    lower bound of the maximum. Units of the data, 0 is ideal; a shift d has the value |d|. In high
    dimension noise alone has large values: read it with its floor. Sets of different size are cut
    to the smaller.

    References:
        Deshpande et al., Max-Sliced Wasserstein Distance and its use for GANs, CVPR 2019.
    """
    size = min(len(samples), len(target))
    x, y = to_numpy(samples[:size]), to_numpy(target[:size])
    random = directions(x.shape[1])
    values = projected_costs(x, y, random)
    best = random[:, values.argsort()[-ASCENT_STARTS:]]
    mean = x.mean(0) - y.mean(0)
    if np.linalg.norm(mean) > 0:
        best = np.column_stack([best, mean / np.linalg.norm(mean)])
    largest = values.max()
    for _ in range(ASCENT_STEPS):
        orders = zip((x @ best).argsort(0).T, (y @ best).argsort(0).T, strict=True)
        pairs = [x[i] - y[j] for i, j in orders]
        along = [np.einsum("nd,d->n", pair, u) for pair, u in zip(pairs, best.T, strict=True)]
        largest = max(largest, *(np.square(a).mean() for a in along))
        steps = np.stack([p.T @ a for p, a in zip(pairs, along, strict=True)], axis=1)
        norms = np.linalg.norm(steps, axis=0)
        if not norms.all():
            break  # equal sets
        best = steps / norms
    return float(np.sqrt(largest))


@metric("sinkhorn", "Sinkhorn divergence", "distance")
def sinkhorn_divergence(samples: Tensor, target: Tensor) -> float:
    """S(x, y) = OT_e(x, y) - OT_e(x, x) / 2 - OT_e(y, y) / 2, units of the data squared.

    OT_e = min_plan <plan, C> + e KL(plan | product) with C = |x - y|^2 and e = ``SINKHORN_BLUR``
    times the mean of C between target samples (e is the sum of the target's variances), by POT. 0
    is ideal. Between W2^2 (small e) and a kernel distance (large e): with this e noise is small
    also at D = 64; at a tenth of it two sets of 2,000 samples of one distribution (of total
    variance 69) are 52 apart there, and a shift by 1 adds 1. A shift d has the value |d|^2. Of at
    most the first ``SINKHORN_SAMPLES`` of each set; ``SINKHORN_FAR_SAMPLES`` if one is so far away
    that logarithms are needed. Iterations end at ``SINKHORN_ITERATIONS`` or
    ``SINKHORN_FAR_ITERATIONS``: then it is the value of dual potentials that are nearly best.

    References:
        Feydy et al., Interpolating between Optimal Transport and MMD using Sinkhorn Divergences,
        AISTATS 2019.
    """
    x, y = to_numpy(samples[:SINKHORN_SAMPLES]), to_numpy(target[:SINKHORN_SAMPLES])
    epsilon = SINKHORN_BLUR * squared_distances(y, y).mean()
    far = max(squared_distances(a, b).max() for a, b in ((x, y), (x, x), (y, y)))
    logarithms = bool(far > LARGEST_EXPONENT * epsilon)
    if logarithms:  # ten times as slow
        x, y = x[:SINKHORN_FAR_SAMPLES], y[:SINKHORN_FAR_SAMPLES]
    across, first, second = (
        _regularised_transport(squared_distances(a, b), epsilon, logarithms)
        for a, b in ((x, y), (x, x), (y, y))
    )
    return float(across - (first + second) / 2)


def _regularised_transport(cost: Array, epsilon: float, logarithms: bool) -> float:
    """min_plan <plan, C> + e KL(plan | a x b) for uniform a, b: the value of its dual."""
    a, b = (np.full(size, 1 / size) for size in cost.shape)
    most = SINKHORN_FAR_ITERATIONS if logarithms else SINKHORN_ITERATIONS
    options: dict[str, Any] = {"numItermax": most, "stopThr": 1e-6}
    options |= {"method": "sinkhorn_log" if logarithms else "sinkhorn", "warn": False}
    with np.errstate(over="ignore"):  # POT gives exp of the logarithms too
        _, log = ot.sinkhorn(a, b, cost, epsilon, log=True, **options)
    potentials = (log[f"log_{k}"] if logarithms else np.log(log[k]) for k in "uv")
    f, g = (epsilon * (p - np.log(w)) for p, w in zip(potentials, (a, b), strict=True))
    return float(a @ f + b @ g)


@metric("frechet", "Fréchet distance squared", "distance", headline="plain", **EVERYWHERE)
def frechet(samples: Tensor, target: Tensor) -> float:
    """Squared Fréchet (Bures-Wasserstein) distance of means and covariances.

    |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2}), units of the data squared.
    With S_1 = A^T A and S_2 = B^T B the last trace is the nuclear norm of A B^T, a matrix of min(n,
    D) by min(m, D): exact, also for singular covariances, and without a matrix root; 0 is ideal. It
    sees two moments only; two sets of n samples of one distribution have about D / 2n of the
    variance; n, m > 1.

    References:
        Dowson and Landau, The Frechet distance between multivariate normal distributions, 1982.
    """
    return frechet_of_moments(moments_of(samples), moments_of(target))


class Moments(NamedTuple):
    """Mean and covariance of samples, the latter as a root of it."""

    n: int
    mean: Array  # (D,)
    root: Array  # (k, D), k <= D: root^T root is the sum of (x - mean) (x - mean)^T


def moments_of(samples: Tensor) -> Moments:
    """The moments of samples (n, D)."""
    x = to_numpy(samples)
    return Moments(len(x), x.mean(0), _reduced(x - x.mean(0)))


def merged(first: Moments, second: Moments) -> Moments:
    r"""The moments of both sets of samples together.

    .. math:: S = S_1 + S_2 + \frac{n_1 n_2}{n_1 + n_2} (m_2 - m_1) (m_2 - m_1)^T

    for the sums S of the products, so the rows of both roots and one of the means' difference make
    a root: no covariance is formed, and nothing cancels.

    References:
        Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983.
    """
    n, shift = first.n + second.n, second.mean - first.mean
    between = np.sqrt(first.n * second.n / n) * shift
    rows = np.concatenate([first.root, second.root, between[None]])
    return Moments(n, first.mean + shift * (second.n / n), _reduced(rows))


def frechet_of_moments(first: Moments, second: Moments) -> float:
    """:func:`frechet` of two sets of samples whose moments are known."""
    roots = [one.root / np.sqrt(one.n - 1) for one in (first, second)]
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    shift = np.square(first.mean - second.mean).sum()
    spread = sum(np.square(root).sum() for root in roots) - 2 * overlap
    return float(np.maximum(shift + spread, 0))


def _reduced(rows: Array) -> Array:
    """At most D rows with the same product A^T A as these (n, D), by QR."""
    return np.asarray(np.linalg.qr(rows, mode="r")) if len(rows) > rows.shape[1] else rows
