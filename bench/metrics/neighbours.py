"""Metrics of nearest neighbours: fidelity and diversity, and what was learned by heart.

Of samples (n, D) and target (m, D). Those with balls mean nothing for data of few or repeated
values: balls of radius 0 hold nothing.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from bench.metrics.base import SHARE, Array, blocks, metric, squared_distances, to_numpy

AROUND_ONE: dict[str, Any] = {"better": "nearest", "ideal": 1.0}
NEIGHBOURS = 5  # k of the balls around samples
CLOSE = 0.05  # this part of the held-out samples is close to a training sample


def _radii(x: Array) -> Array:
    """Squared distance of each row (n, D) to its ``NEIGHBOURS``-th neighbour in the set, (n,)."""
    k, parts = min(NEIGHBOURS, len(x) - 1), blocks(len(x), len(x))
    found = [np.partition(squared_distances(x[rows], x), k, axis=1)[:, k].copy() for rows in parts]
    return np.concatenate(found)


def _inside(points: Array, centres: Array) -> Array:
    """How many of the balls around ``centres`` hold each of the ``points``, shape (n,)."""
    radii, parts = _radii(centres), blocks(len(points), len(centres))
    found = [(squared_distances(points[rows], centres) < radii).sum(1) for rows in parts]
    return np.concatenate(found)


@metric("knn_precision", "precision", "distance", **SHARE)
@metric(
    "classifier_precision", "precision (classifier)", "distance", features="classifier", **SHARE
)
def precision(samples: Tensor, target: Tensor) -> float:
    """Share of samples inside some ball of a target sample with its k = 5 nearest; fidelity.

    1 is ideal, higher is better; no unit. One far target sample makes a large ball: read
    :func:`density` beside it. In high dimension balls overlap, and it says little.

    References:
        Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models,
        NeurIPS 2019.
    """
    return float((_inside(to_numpy(samples), to_numpy(target)) > 0).mean())


@metric("knn_recall", "recall", "distance", **SHARE)
@metric("classifier_recall", "recall (classifier)", "distance", features="classifier", **SHARE)
def recall(samples: Tensor, target: Tensor) -> float:
    """Share of target samples inside some ball of a sample with its k = 5 nearest; diversity.

    1 is ideal, higher is better; no unit. Scattered samples have large balls and a high recall:
    read :func:`coverage` beside it.

    References:
        Kynkaanniemi et al., NeurIPS 2019.
    """
    return precision(target, samples)


@metric("density", "density", "distance", **AROUND_ONE)
@metric(
    "classifier_density", "density (classifier)", "distance", features="classifier", **AROUND_ONE
)
def density(samples: Tensor, target: Tensor) -> float:
    """Mean number of target balls that hold a sample, over k = 5; fidelity.

    1 is ideal, and what the target itself has; below it samples are off the data, above it they
    crowd where the data are dense. No unit.

    References:
        Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, ICML 2020.
    """
    k = min(NEIGHBOURS, len(target) - 1)
    return float(_inside(to_numpy(samples), to_numpy(target)).mean() / k)


@metric("coverage", "coverage", "distance", headline="plain", **SHARE)
@metric(
    "classifier_coverage",
    "coverage (classifier)",
    "distance",
    features="classifier",
    headline="images",
    **SHARE,
)
def coverage(samples: Tensor, target: Tensor) -> float:
    """Share of target balls (k = 5) that hold a sample; diversity.

    1 is ideal, higher is better; two equally large sets of one distribution have 1 - 2^{-k} = .97.
    No unit.

    References:
        Naeem et al., ICML 2020.
    """
    return float((np.square(nearest(target, samples)) < _radii(to_numpy(target))).mean())


def nearest(points: Tensor, others: Tensor) -> Array:
    """Distance of each of the points (n, D) to the next of the others (N, D), shape (n,)."""
    x, y = to_numpy(points), to_numpy(others)
    found = [squared_distances(x[rows], y).min(1) for rows in blocks(len(x), len(y))]
    return np.asarray(np.sqrt(np.concatenate(found)))


def copied_error(share: float, samples: Tensor, *others: Tensor) -> float:
    """Standard error of :func:`copied` for n samples and n held-out ones: both shares are drawn.

    At least that of held-out data: a share that is small by chance has no small error.
    """
    own = max(share, CLOSE)
    return math.sqrt((own * (1 - own) + CLOSE * (1 - CLOSE)) / len(samples))


COPIED: dict[str, Any] = {
    "better": "nearest",
    "ideal": CLOSE,
    "floor": ".05, held-out data",
    "error": copied_error,
}


@metric("copied", "copied", "memory", headline="both", quick=True, **COPIED)
@metric("feature_copied", "copied (classifier)", "memory", features="classifier", **COPIED)
def copied(samples: Tensor, target: Tensor, train: Tensor) -> float:
    """Share of samples closer to the training set than nearly all held-out samples are.

    Of training samples (N, D), all of them, and held-out ones: closer to the nearest training
    sample than the 5% quantile of the held-out samples' distances. .05 is ideal; a method that
    repeats its data has 1, one that repeats them in a tenth of its samples .14. Lower than .05:
    farther from the data than data are. No unit.

    The idea is of Meehan et al., who compare the ranks of all distances within cells of the space
    by a z score. A share needs no cells, counts copies among samples of another kind, and its size
    does not grow with n. Nor does it depend on how much larger than the held-out set the training
    set is, as does the share of samples that are nearer to the one than to the other.

    References:
        Meehan, Chaudhuri and Dasgupta, A Non-Parametric Test to Detect Data-Copying in Generative
        Models, AISTATS 2020.
    """
    close = np.quantile(nearest(target, train), CLOSE)
    return float((nearest(samples, train) <= close).mean())
