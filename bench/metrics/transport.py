"""What the map from source samples to end points costs, and how straight its lines are."""

import math

import torch
from torch import Tensor

from bench.metrics.base import metric
from bench.metrics.distances import optimal_cost


@metric("transport_cost", "transport cost", "coupling", "the optimal cost to the held-out target")
def transport_cost(source: Tensor, samples: Tensor) -> float:
    """mean |x - T(x)|^2, units of the data squared.

    To be read together with a distance to the target: a map that shrinks looks cheap.

    Args:
        source: start points, shape (n, D).
        samples: their images T(x) in the same order, shape (n, D).
    """
    return float((samples.double() - source.double()).square().sum(1).mean())


@metric(
    "radial_transport_cost",
    "radial transport cost",
    "radial",
    "the optimal cost to the held-out target",
)
def radial_transport_cost(source: Tensor, samples: Tensor) -> float:
    """mean |x - T(r(x))|^2 of a method with a prior of its own, units of the data squared.

    r maps N(0, I) onto the prior, radius to radius by quantiles in the same direction
    (``Method.start``), and T is the method. The cost from the prior itself says nothing (it is
    infinite for PFGM at D <= 2); this one can be set beside :func:`transport_cost`, but belongs to
    the map T o r, of which the method chose only T. If T is random (a reverse SDE) it is the cost
    of that random coupling.

    Args:
        source: draws x of N(0, I), shape (n, D).
        samples: their images in the same order, shape (n, D).
    """
    return transport_cost(source, samples)


@metric("coupling_ratio", "coupling ratio", "coupling", "1, an optimal coupling")
def coupling_ratio(source: Tensor, samples: Tensor) -> float:
    """mean |x - T(x)|^2 over the optimal cost between the same two sets; 1 is optimal.

    It judges the coupling alone, not whether the end points follow the target. NaN if nothing
    moved.

    Args:
        source: start points, shape (n, D).
        samples: their images T(x) in the same order, shape (n, D).
    """
    optimal = optimal_cost(source, samples)
    return transport_cost(source, samples) / optimal if optimal > 0 else math.nan


@metric("straightness", "straightness", "path", "1, straight lines")
def straightness(path: Tensor) -> float:
    """Mean length of the lines over the mean distance of their ends; 1 is straight.

    The length is that of the polygon through the solver's grid points, in data space.

    Args:
        path: states along the lines, shape (T+1, n, D).
    """
    path = path.double()
    length = torch.linalg.vector_norm(path.diff(dim=0), dim=2).sum(0).mean()
    distance = torch.linalg.vector_norm(path[-1] - path[0], dim=1).mean()
    return float(length / distance) if distance > 0 else math.nan
