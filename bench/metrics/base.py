"""What a metric is, and the table of all metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["distance", "coupling", "radial", "path"]


@dataclass(frozen=True)
class Metric:
    """A pure function of samples, and what is needed to read its value.

    ``kind`` says of what: ``distance`` f(samples (n, D), target (m, D)); ``coupling``
    f(source (n, D), samples (n, D)), row by row the same line; ``radial`` likewise, for methods
    whose lines start at the image of the source on a prior of their own; ``path``
    f(path (T+1, n, D)). For all of them smaller is better.

    ``floor`` says what stands beside the value: for a distance the same metric between two fresh
    target sets.
    """

    name: str
    label: str
    kind: Kind
    function: Callable[..., float]
    floor: str
    max_dim: int | None = None
    """Above this dimension the metric is left out, because sampling noise is all it shows."""

    def __call__(self, *samples: Tensor) -> float:
        return self.function(*samples)

    def meaningful(self, dim: int) -> bool:
        """Whether the metric means something for data of dimension ``dim``."""
        return self.max_dim is None or dim <= self.max_dim


METRICS: dict[str, Metric] = {}
"""Every metric by its name."""


def metric(
    name: str, label: str, kind: Kind, floor: str, max_dim: int | None = None
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Decorator: makes a function known as the metric ``name``."""

    def add(function: Callable[..., float]) -> Callable[..., float]:
        METRICS[name] = Metric(name, label, kind, function, floor, max_dim)
        return function

    return add
