"""The classifier two-sample test of samples (n, D) and target (m, D)."""

import math

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor

from bench.metrics.base import metric, to_numpy

FOLDS, SEED = 5, 0
SMALLEST = 25  # samples below which no tree is split
LARGEST_DIM = 512  # above it trees take long (9 s for two values at D = 768) and tell all apart


def c2st_error(accuracy: float, n: int) -> float:
    """Standard error of the accuracy of 2 n answers: sqrt(a (1 - a) / 2n)."""
    return math.sqrt(accuracy * (1 - accuracy) / (2 * n))


@metric(
    "c2st", "C2ST", "distance", max_dim=LARGEST_DIM, ideal=0.5, error=c2st_error, headline="plain"
)
def c2st(samples: Tensor, target: Tensor) -> float:
    """Accuracy of a classifier that tells samples from target, cross-validated; 1/2 is ideal.

    Lower is better, but not below 1/2: low-variance draws keep apart from each other, so that near
    a sample of one set those of the other are more likely, and .43 to .48 is common; copies of the
    target have .2. The standard error is that of independent draws.

    Gradient-boosted trees of scikit-learn and ``FOLDS`` folds; each sample is classified once, by
    trees that were not trained on it. They see shifts, spreads and gaps along axes, and
    correlations less: 1/2 says that *this* classifier saw no difference. Near 1 says little
    where the data are whole numbers, such as pixels, and samples are not. Sets of different size
    are cut to the smaller; NaN below ``SMALLEST`` samples.

    References:
        Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017.
    """
    size = min(len(samples), len(target))
    if size < SMALLEST:
        return math.nan
    rows = np.concatenate([to_numpy(samples[:size]), to_numpy(target[:size])])
    labels = np.repeat([0, 1], size)
    trees = HistGradientBoostingClassifier(
        max_iter=20, learning_rate=0.2, max_leaf_nodes=15, early_stopping=False, random_state=SEED
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    return float((cross_val_predict(trees, rows, labels, cv=folds) == labels).mean())
