"""Means over pairs of samples X (n, D) and target Y (m, D); computed in blocks of rows."""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import pdist
from torch import Tensor

from bench.metrics.base import EVERYWHERE, Array, blocks, metric, squared_distances, to_numpy
from datasets import Distribution

MEDIAN_SAMPLES = 1000  # target samples whose distances give the bandwidth
SCALES = 5  # Gaussian kernels in the MMD


def mean_kernel(kernel: Callable[[Array, Array], Array], x: Array, y: Array) -> float:
    """Mean of ``kernel`` over all pairs."""
    sums = [kernel(x[rows], y).sum() for rows in blocks(len(x), len(y))]
    return float(np.sum(sums) / (len(x) * len(y)))


def bandwidth(target: Tensor) -> float:
    """The median distance between two of the first ``MEDIAN_SAMPLES`` target samples."""
    return float(np.median(pdist(to_numpy(target[:MEDIAN_SAMPLES]))))


@metric("energy_distance", "energy distance", "distance", main=3, headline="plain", **EVERYWHERE)
def energy_distance(samples: Tensor, target: Tensor) -> float:
    """sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|), means over all pairs (V-statistic).

    0 is ideal; its floor is above it. Agrees with ``scipy.stats.energy_distance`` in one dimension;
    units are the square root of the data's. Meaningful in every dimension.

    Tasks of vectors are ranked by it, because W2 is decided by mode counts and single samples. A
    share e of the samples at a distance r from where they should be adds e r^2 to W2^2, hence
    sqrt(e) r to W2, but e r to W1 and about e sqrt(2 r) here: one of 2,000 samples 20 units away
    makes a W2 of .45 where two sets from the 8 Gaussians have .10, and an energy distance of .003
    beside .021. An exact map of 2,000 start points, with 3 of 250 too many in some modes, has a W2
    of .24 and an energy distance of .019. W1 would do as well in the plane, and means nothing
    above a few dimensions.

    References:
        Szekely and Rizzo, Energy statistics, JSPI 2013.
    """

    def distance(a: Array, b: Array) -> Array:
        return np.asarray(np.sqrt(squared_distances(a, b)))

    x, y = to_numpy(samples), to_numpy(target)
    squared = 2 * mean_kernel(distance, x, y) - mean_kernel(distance, x, x)
    squared -= mean_kernel(distance, y, y)
    return float(np.sqrt(np.maximum(squared, 0)))  # NaN stays NaN


@metric("mmd", "MMD", "distance")
def mmd(samples: Tensor, target: Tensor) -> float:
    """sqrt(E k(X, X') + E k(Y, Y') - 2 E k(X, Y)), means over all pairs (V-statistic); no unit.

    k is the mean of five Gaussian kernels exp(-|x - y|^2 / (2 h^2)), h = 1/4, 1/2, 1, 2 and 4 times
    the median distance between target samples: of modes and of what lies between them. 0 is ideal,
    sqrt(2) the most. Meaningful in every dimension.

    References:
        Gretton et al., A Kernel Two-Sample Test, JMLR 2012.
    """
    widest = bandwidth(target) * 2.0 ** (SCALES // 2)

    def kernel(a: Array, b: Array) -> Array:
        power: Array = np.exp(squared_distances(a, b) / (-2 * widest**2))
        total = power.copy()
        for _ in range(SCALES - 1):
            np.square(power, out=power)  # the kernel of half the bandwidth is the fourth power
            np.square(power, out=power)
            total += power
        return total / SCALES

    x, y = to_numpy(samples), to_numpy(target)
    squared = mean_kernel(kernel, x, x) + mean_kernel(kernel, y, y) - 2 * mean_kernel(kernel, x, y)
    return float(np.sqrt(np.maximum(squared, 0)))


@metric("stein", "Stein discrepancy", "distribution")
def stein_discrepancy(samples: Tensor, target: Tensor, distribution: Distribution) -> float:
    """sqrt(E u(X, X')) over all pairs, from the exact score s = grad log q of the target.

    u(x, y) = s(x)^T s(y) k + s(x)^T grad_y k + s(y)^T grad_x k + tr grad_x grad_y k, with k(x, y) =
    (1 + |x - y|^2 / h^2)^{-1/2} and h the median distance between target samples. It compares with
    the distribution itself, not with samples of it; units 1 / data, 0 is ideal. Blind to the
    weights of modes far apart: there the score is that of a single mode. NaN if the score is not
    known; the target samples are for h alone.

    References:
        Gorham and Mackey, Measuring Sample Quality with Kernels, ICML 2017.
    """
    scores = distribution.score(samples.double())
    if scores is None:
        return float("nan")
    x, s = to_numpy(samples), to_numpy(scores)
    h2, dim = bandwidth(target) ** 2, x.shape[1]
    total = 0.0
    for rows in blocks(len(x), len(x)):
        squared = squared_distances(x[rows], x)
        base = 1 + squared / h2
        # grad_x k = -r / (h^2 base^{3/2}) with r = x - y, and grad_y k = -grad_x k.
        along = np.sum(s[rows] * x[rows], 1)[:, None] - s[rows] @ x.T  # s(x)^T r
        along -= x[rows] @ s.T - np.sum(s * x, 1)  # - s(y)^T r
        pull = along / (h2 * base**1.5)
        trace = dim / (h2 * base**1.5) - 3 * squared / (h2**2 * base**2.5)
        total += float((s[rows] @ s.T / np.sqrt(base) + pull + trace).sum())
    return float(np.sqrt(max(total, 0.0)) / len(x))
