"""Metrics: pure functions of samples, each with what it means and its floor."""

import math
from dataclasses import dataclass

from torch import Tensor

from bench.metrics.base import METRICS, Metric
from bench.metrics.distances import energy_distance, frechet, optimal_cost, sliced_w2, w2
from bench.metrics.transport import (
    coupling_ratio,
    radial_transport_cost,
    straightness,
    transport_cost,
)


@dataclass(frozen=True)
class Evaluation:
    """What one cell is judged by; all on the CPU, in the units of the task."""

    source: Tensor  # (n, D) start points, held out
    samples: Tensor  # (n, D) their end points
    target: Tensor  # (n, D) held-out target samples
    second_target: Tensor  # (n, D) target samples disjoint from those, for the floors
    path: Tensor  # (T+1, n, D)
    native: bool  # the lines start at ``source``, not at a prior of the method's own


def evaluate(data: Evaluation) -> dict[str, float]:
    """Every metric that means something here, each with its ``<metric>_floor``.

    The floor of a distance is the same metric between two fresh target sets: what a perfect
    sampler would get on average. The floor of the transport cost is the optimal cost from the
    source to the held-out target; of the ratios it is 1. Methods with a prior of their own have
    no coupling with the source, and no cost but the radial one: these are left out, and so is a
    ratio that is not defined (nothing moved).
    """
    dim = data.target.shape[1]
    values: dict[str, float] = {}
    for name, metric in METRICS.items():
        if not metric.meaningful(dim):
            continue
        if metric.kind == "distance":
            values[name] = metric(data.samples, data.target)
            values[f"{name}_floor"] = metric(data.second_target, data.target)
        elif (metric.kind == "radial") is not data.native:
            sets = (data.path,) if metric.kind == "path" else (data.source, data.samples)
            values[name] = metric(*sets)
            values[f"{name}_floor"] = 1.0
    cost = "transport_cost" if data.native else "radial_transport_cost"
    values[f"{cost}_floor"] = optimal_cost(data.source, data.target)
    return {name: value for name, value in values.items() if not math.isnan(value)}


__all__ = [
    "METRICS",
    "Evaluation",
    "Metric",
    "coupling_ratio",
    "energy_distance",
    "evaluate",
    "frechet",
    "optimal_cost",
    "radial_transport_cost",
    "sliced_w2",
    "straightness",
    "transport_cost",
    "w2",
]
