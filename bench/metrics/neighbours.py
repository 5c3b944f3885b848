"""Metrics of nearest neighbours: fidelity and diversity, and what was learned by heart.

Those with balls mean nothing for data of few or repeated values: balls of radius 0 hold nothing.
"""

import numpy as np
from torch import Tensor

from bench.metrics.base import Array, blocks, metric, squared_distances, to_numpy

NEIGHBOURS = 5
"""k of the balls around samples."""


def _radii(x: Array) -> Array:
    """Squared distance of each row (n, D) to its ``NEIGHBOURS``-th neighbour in the set, (n,)."""
    k, parts = min(NEIGHBOURS, len(x) - 1), blocks(len(x), len(x))
    found = [np.partition(squared_distances(x[rows], x), k, axis=1)[:, k].copy() for rows in parts]
    return np.concatenate(found)


def _inside(points: Array, centres: Array) -> Array:
    """How many of the balls around ``centres`` hold each of the ``points``, shape (n,)."""
    radii = _radii(centres)
    rows = blocks(len(points), len(centres))
    return np.concatenate(
        [(squared_distances(points[part], centres) < radii).sum(1) for part in rows]
    )


@metric("knn_precision", "precision", "distance", better="higher", ideal=1.0)
def precision(samples: Tensor, target: Tensor) -> float:
    """Share of samples inside some ball of a target sample with its k = 5 nearest; fidelity.

    1 is ideal, higher is better; no unit. One far target sample makes a large ball: read
    :func:`density` beside it. In high dimension balls overlap, and it says little.

    Args:
        samples: shape (n, D).
        target: shape (m, D).

    References:
        Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models,
        NeurIPS 2019.
    """
    return float((_inside(to_numpy(samples), to_numpy(target)) > 0).mean())


@metric("knn_recall", "recall", "distance", better="higher", ideal=1.0)
def recall(samples: Tensor, target: Tensor) -> float:
    """Share of target samples inside some ball of a sample with its k = 5 nearest; diversity.

    1 is ideal, higher is better; no unit. Scattered samples have large balls and a high recall:
    read :func:`coverage` beside it.

    Args:
        samples: shape (n, D).
        target: shape (m, D).

    References:
        Kynkaanniemi et al., NeurIPS 2019.
    """
    return precision(target, samples)


@metric("density", "density", "distance", better="nearest", ideal=1.0)
def density(samples: Tensor, target: Tensor) -> float:
    """Mean number of target balls that hold a sample, over k = 5; fidelity.

    1 is ideal, and what the target itself has; below it samples are off the data, above it they
    crowd where the data are dense. No unit.

    Args:
        samples: shape (n, D).
        target: shape (m, D).

    References:
        Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, ICML 2020.
    """
    k = min(NEIGHBOURS, len(target) - 1)
    return float(_inside(to_numpy(samples), to_numpy(target)).mean() / k)


@metric("coverage", "coverage", "distance", better="higher", ideal=1.0)
def coverage(samples: Tensor, target: Tensor) -> float:
    """Share of target balls (k = 5) that hold a sample; diversity.

    1 is ideal, higher is better; two equally large sets of one law have 1 - 2^{-k} = .97. No unit.

    Args:
        samples: shape (n, D).
        target: shape (m, D).

    References:
        Naeem et al., ICML 2020.
    """
    return float((np.square(nearest(target, samples)) < _radii(to_numpy(target))).mean())


def nearest(points: Tensor, others: Tensor) -> Array:
    """Distance of each of the points (n, D) to the next of the others (N, D), shape (n,)."""
    x, y = to_numpy(points), to_numpy(others)
    parts = [x[rows] for rows in blocks(len(x), len(y))]
    distances: Array = np.sqrt(np.concatenate([squared_distances(z, y).min(1) for z in parts]))
    return distances


@metric(
    "memorised",
    "memorised share",
    "memory",
    "1/2, by symmetry: fresh data are as near to the one as to the other",
    better="nearest",
    ideal=0.5,
)
def memorised(samples: Tensor, target: Tensor, train: Tensor) -> float:
    """Share of samples that are nearer to a training sample than to a held-out one.

    Both sets are cut to one size. 1/2 is ideal: 1 is a method that repeats its data. No unit. It
    means nothing for samples far from both.

    Args:
        samples: shape (n, D).
        target: held-out samples, shape (m, D).
        train: training samples, shape (N, D), in random order.

    References:
        Meehan, Chaudhuri and Dasgupta, A Non-Parametric Test to Detect Data-Copying in Generative
        Models, AISTATS 2020.
    """
    size = min(len(target), len(train))
    return float((nearest(samples, train[:size]) < nearest(samples, target[:size])).mean())
