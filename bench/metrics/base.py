"""What a metric is, and the table of all metrics."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy.spatial.distance import cdist
from torch import Tensor

Array = NDArray[np.float64]
Function = Callable[..., float]
Kind = Literal["distance", "distribution", "memory", "label", "coupling", "radial", "known", "path"]
FeatureMap = Literal["classifier", "classes", "colour", "inception", "moments", "custom"]
FloorKind = Literal["measured", "ideal", "cost", "none"]
FLOORS: dict[str, str] = {
    "measured": "the same metric between two fresh target sets",
    "ideal": "the ideal",
    "cost": "the optimal cost to the held-out target",
    "none": "not known",
}
"""The words that stand for a kind of floor where a metric has none of its own."""

# What the most important distances have in common, and shares of the samples that should be all.
EVERYWHERE: dict[str, Any] = {"plotted": True, "quick": True, "curve": True}
SHARE: dict[str, Any] = {"better": "higher", "ideal": 1.0}

BLOCK = 2**22
"""Entries of a matrix of pairs that are in memory at a time: 32 MB, and some copies of it."""
FEW_DIMENSIONS = 8


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Metric:
    """A pure function of samples, and all that is needed to measure, to show and to read it."""

    name: str
    """The name of its column."""
    label: str
    """How tables and plots for reading call it."""
    kind: Kind
    """What it is a function of:

    * ``distance``: f(samples x (n, D), target y (m, D));
    * ``distribution``: f(samples, target, distribution of the target), for what compares with more
      than samples of the target: its score, say, or its modes;
    * ``memory``: f(samples, target, training samples (N, D)), for data sets;
    * ``label``: f(class probabilities of the samples (n, K), classes of the target);
    * ``coupling``: f(source x (n, D), samples T(x) (n, D)), row by row the same line;
    * ``radial``: likewise, for methods whose lines start at the image of the source on a prior of
      their own;
    * ``known``: f(source, samples, known), where the optimal map is known;
    * ``path``: f(path (T+1, n, D)).
    """
    function: Function
    """NaN says that the metric is not defined for these samples: it is left out."""
    floor: str = ""
    """What stands beside the value, in words."""
    floor_kind: FloorKind = "ideal"
    """Where the floor is from: the metric of a second target set, the ideal, the optimal cost."""
    better: Literal["lower", "higher", "nearest"] = "lower"
    """Which values are better; ``nearest`` to the ideal."""
    ideal: float = 0.0
    ranked: bool = True
    """Rows are ordered by it. Costs are not: a map that shrinks is cheap, and not better."""
    max_dim: int | None = None
    """Above this dimension the metric is left out, because sampling noise is all it shows."""
    features: FeatureMap | None = None
    """The map of images through which the sets are seen (:mod:`bench.features`): D is then the
    number of features. None for the samples as they are."""
    error: Callable[..., float] | None = None
    """``error(value, *arguments)``: the standard error of a value of the metric of these arguments,
    where that is known; elsewhere intervals come from resampling."""
    main: int = 0
    """A task is ranked by the metric with the largest number that all its rows have; 0 is never."""
    headline: Literal["none", "plain", "images", "both"] = "none"
    """Tables for reading show it, of tasks ranked by features of images, of others, or of both."""
    plotted: bool = False
    """There are bars of it."""
    quick: bool = False
    """``eval.metrics = main`` keeps it."""
    curve: bool = False
    """It is measured at every point of a curve of quality against cost."""

    def __call__(self, *arguments: Any) -> float:
        return float(self.function(*arguments))

    @property
    def summary(self) -> str:
        """The first line of the function's docstring; the label where it has none."""
        return next(iter((self.function.__doc__ or "").strip().splitlines()), self.label)

    def shown(self, images: bool) -> bool:
        """Whether tables for reading show it, of tasks ranked by features of images or others."""
        return self.headline == "both" or self.headline == ("images" if images else "plain")

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


def metric(name: str, label: str, kind: Kind, **more: Any) -> Callable[[Function], Function]:
    """Decorator: makes a function known as the metric ``name``; ``more`` as in :class:`Metric`.

    ``@metric("mine", "My distance", "distance")`` suffices. What compares with the target is
    measured on a second target set too, for the floor; the floor of anything else is the ideal.

    Raises:
        ValueError: an attribute that there is not, a value that it cannot have, or a name that is
            taken.
    """
    compares = kind in ("distance", "distribution", "label")
    floor_kind = more.setdefault("floor_kind", "measured" if compares else "ideal")
    more.setdefault("floor", FLOORS.get(floor_kind, ""))

    def add(function: Function) -> Function:
        if name in METRICS:
            raise ValueError(f"a metric named {name!r} is registered already")
        METRICS[name] = Metric(name=name, label=label, kind=kind, function=function, **more)
        return function

    return add


def main_metrics() -> list[str]:
    """The metrics that tasks may be ranked by, those that come first first."""
    found = [name for name, metric in METRICS.items() if metric.main]
    return sorted(found, key=lambda name: -METRICS[name].main)


def to_numpy(samples: Tensor) -> Array:
    """float64 on the CPU."""
    array: Array = samples.detach().to("cpu").double().numpy()
    return array


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix (rows, columns), each of at most ``BLOCK`` entries."""
    size = max(1, math.floor(BLOCK / columns))
    return (slice(start, start + size) for start in range(0, rows, size))


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
