"""What a metric is, and the table of all metrics."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

Array = NDArray[np.float64]
Kind = Literal["distance", "coupling", "radial", "path", "memory", "law", "known", "label"]
FeatureMap = Literal["classifier", "classes", "colour", "inception", "moments"]
Better = Literal["lower", "higher", "nearest"]

BLOCK = 2**22
"""Entries of a matrix of pairs that are in memory at a time: 32 MB, and some copies of it."""

TWO_TARGETS = "the same metric between two fresh target sets"


@dataclass(frozen=True)
class Metric:
    """A pure function of samples, and what is needed to read its value.

    ``kind`` says of what:

    * ``distance``: f(samples (n, D), target (m, D));
    * ``memory``: f(samples, target, training samples (N, D)), for data sets;
    * ``law``: f(samples, target, law), where the law of the target is known;
    * ``coupling``: f(source (n, D), samples (n, D)), row by row the same line;
    * ``radial``: likewise, for methods whose lines start at the image of the source on a prior of
      their own;
    * ``known``: f(source, samples, known), where the optimal map is known;
    * ``path``: f(path (T+1, n, D));
    * ``label``: f(class probabilities of the samples (n, K), classes of the target).

    ``features`` says through which map of images the sets are seen (:mod:`bench.features`): D is
    then the number of features; None for the samples as they are.

    ``better`` says which values are: lower, higher, or nearest to ``ideal``. ``floor`` says what
    stands beside the value: for distances, laws and labels the same metric of a fresh target set.
    ``error(value, n)`` is the standard error of a value of n samples, where that is known;
    elsewhere intervals come from resampling.
    """

    name: str
    label: str
    kind: Kind
    function: Callable[..., float]
    floor: str
    max_dim: int | None = None
    """Above this dimension the metric is left out, because sampling noise is all it shows."""
    better: Better = "lower"
    ideal: float = 0.0
    error: Callable[[float, int], float] | None = None
    features: FeatureMap | None = None

    def __call__(self, *arguments: Any) -> float:
        return self.function(*arguments)

    def meaningful(self, dim: int) -> bool:
        """Whether the metric means something for data of dimension ``dim``."""
        return self.max_dim is None or dim <= self.max_dim

    def loss(self, values: Any) -> Any:
        """Values, or columns of them, such that smaller is better."""
        if self.better == "nearest":
            return abs(values - self.ideal)
        # Nothing is better than the ideal: what is below it is there by chance, or by copying.
        return np.maximum(values, self.ideal) if self.better == "lower" else -values


METRICS: dict[str, Metric] = {}
"""Every metric by its name."""


def metric(
    name: str, label: str, kind: Kind, floor: str = TWO_TARGETS, **more: Any
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Decorator: makes a function known as the metric ``name``; see :class:`Metric`."""

    def add(function: Callable[..., float]) -> Callable[..., float]:
        METRICS[name] = Metric(name, label, kind, function, floor, **more)
        return function

    return add


def to_numpy(samples: Tensor) -> Array:
    """float64 on the CPU."""
    array: Array = samples.detach().to("cpu").double().numpy()
    return array


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix (rows, columns), each of at most ``BLOCK`` entries."""
    size = max(1, math.floor(BLOCK / columns))
    return (slice(start, start + size) for start in range(0, rows, size))


FEW_DIMENSIONS = 8


def squared_distances(x: Array, y: Array) -> Array:
    """|x - y|^2 of all pairs of rows, shape (n, m).

    Above ``FEW_DIMENSIONS`` as |x|^2 + |y|^2 - 2 x^T y: four times as fast at D = 64, and exact to
    about 1e-15 of the squared norms, counted from the mean of y.
    """
    if x.shape[1] <= FEW_DIMENSIONS:
        return np.asarray(cdist(x, y, "sqeuclidean"))
    centre = y.mean(0)
    x, y = x - centre, y - centre
    squared: Array = x @ y.T
    squared *= -2
    squared += np.square(x).sum(1)[:, None]
    squared += np.square(y).sum(1)
    return np.maximum(squared, 0, out=squared)
