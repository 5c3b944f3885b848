"""What the map from source samples to end points costs, and how straight its lines are.

Of source points x (n, D) and samples, their images T(x) (n, D) in the same order; or of the states
along the lines, path (T+1, n, D).
"""

import math
from typing import Any

import torch
from torch import Tensor

from bench.metrics.base import metric, to_numpy
from bench.metrics.distances import optimal_cost, optimal_plan
from datasets import Known

COUPLING, FLOW, STRAIGHT = "1, an optimal coupling", "0, the exact map of FM", "1, straight lines"
OPTIMAL = "0, the optimal map"
COST: dict[str, Any] = {"floor_kind": "cost", "ranked": False}
READ: dict[str, Any] = {"headline": "both", "quick": True}
SHOWN: dict[str, Any] = {"headline": "plain", "quick": True}


@metric("transport_cost", "transport cost", "coupling", plotted=True, **COST, **READ)
def transport_cost(source: Tensor, samples: Tensor) -> float:
    """mean |x - T(x)|^2, units of the data squared; the optimal cost is ideal, lower is better.

    To be read together with a distance to the target: a map that shrinks looks cheap.
    """
    return float((samples.double() - source.double()).square().sum(1).mean())


@metric("radial_transport_cost", "radial transport cost", "radial", **COST, **READ)
def radial_transport_cost(source: Tensor, samples: Tensor) -> float:
    """mean |x - T(r(x))|^2 of a method with a prior of its own, units of the data squared.

    Of draws x (n, D) of N(0, I) and samples, their images (n, D) in the same order. The optimal
    cost is ideal, lower is better. r maps N(0, I) onto the prior, radius to radius by quantiles in
    the same direction (``Method.start``), and T is the method. The cost from the prior itself says
    nothing (it is infinite for PFGM at D <= 2); this one can be set beside :func:`transport_cost`,
    but belongs to the map T o r, of which the method chose only T. If T is random (a reverse SDE)
    it is the cost of that random coupling.
    """
    return transport_cost(source, samples)


def coupling_error(ratio: float, source: Tensor, samples: Tensor) -> float:
    """Standard error of :func:`coupling_ratio`, from the optimal potentials f and g.

    By the central limit theorem for empirical transport costs the optimal cost O varies as the
    mean of f(x_i) + g(T(x_i)), and the ratio R by the delta method as that of
    (|x_i - T(x_i)|^2 - R (f(x_i) + g(T(x_i)))) / O. Parts of the samples say nothing of it: their
    optimal costs are larger, and more so the closer the two distributions are.

    References:
        del Barrio and Loubes, Central limit theorems for empirical transportation cost in general
        dimension, Annals of Probability 2019.
    """
    plan = optimal_plan(source, samples)
    costs = to_numpy((samples.double() - source.double()).square().sum(1))
    varying = costs - ratio * (plan.first + plan.second)
    return float(varying.std() / math.sqrt(len(costs)) / plan.cost)


@metric(
    "coupling_ratio",
    "coupling ratio",
    "coupling",
    floor=COUPLING,
    ideal=1.0,
    max_dim=3,
    headline="plain",
    error=coupling_error,
)
def coupling_ratio(source: Tensor, samples: Tensor) -> float:
    """mean |x - T(x)|^2 over the optimal cost between the same two sets; 1 is optimal.

    It measures the coupling alone, not whether the end points follow the target. A lower bound of
    the ratio of the distributions, and above a few dimensions useless: there x is nearest to its
    own T(x) among the samples, and every map has 1 (FM's exact map between Gaussians has 1.19 at D
    = 16). On a line every increasing map has 1. NaN if nothing moved.
    """
    optimal = optimal_cost(source, samples)
    return transport_cost(source, samples) / optimal if optimal > 0 else math.nan


@metric("excess_cost", "excess cost", "known", floor=OPTIMAL, better="nearest", **SHOWN)
def excess_cost(source: Tensor, samples: Tensor, known: Known) -> float:
    """(mean |x - T(x)|^2 - mean |x - T*(x)|^2) / C*, over the exact optimal cost C*; no unit.

    Of source points x (n, D), samples, their images T(x) (n, D), and what is known: the optimal map
    T* and its cost. 0 is ideal. The mean cost of T* at the same points takes the noise of the draw
    away. Below zero only for a map that misses the target, so the nearest to zero is the best.
    """
    optimal = transport_cost(source, known.optimal_map(source))
    return (transport_cost(source, samples) - optimal) / known.optimal_cost


@metric("excess_flow_cost", "excess over FM's cost", "known", floor=FLOW, ranked=False, **SHOWN)
def excess_flow_cost(source: Tensor, samples: Tensor, known: Known) -> float:
    """(mean |x - T(x)|^2 - mean |x - T_FM(x)|^2) / C_FM, over the exact cost of FM; no unit.

    Of source points x (n, D), samples, their images T(x) (n, D), and what is known of FM; NaN if
    nothing is. T_FM is the exact map of Flow Matching with independent pairs and sigma = 0: 0 is
    ideal for FM, negative a method that transports more cheaply.
    """
    if known.flow_map is None or known.flow_cost is None:
        return math.nan
    exact = transport_cost(source, known.flow_map(source))
    return (transport_cost(source, samples) - exact) / known.flow_cost


@metric("map_error", "map error", "known", floor=OPTIMAL, quick=True)
def map_error(source: Tensor, samples: Tensor, known: Known) -> float:
    """mean |T(x) - T*(x)|^2 over the variance of the target: the unexplained part; no unit.

    Of source points x (n, D), samples, their images T(x) (n, D), and the known optimal map T*. 0 is
    ideal. The variance is that of the images T*(x). Large for a method whose map is another one by
    design, such as Flow Matching.

    References:
        Korotin et al., Do Neural Optimal Transport Solvers Work?, NeurIPS 2021 (L2-UVP).
    """
    images = known.optimal_map(source).double()
    error = (samples.double() - images).square().sum(1).mean()
    return float(error / images.var(0).sum())


@metric("path_energy", "path energy", "path", **COST)
def path_energy(path: Tensor) -> float:
    """Mean squared length of the lines, units of the data squared.

    The optimal cost is ideal, lower is better. The energy int |dx/dt|^2 dt of a line at constant
    speed, the smallest of any pace: not less than the transport cost, and equal to it for straight
    lines. Lines of all methods are measured alike, whatever their own time is. The length is that
    of the polygon through the solver's grid points.
    """
    return float(lengths(path).square().mean())


@metric(
    "straightness", "straightness", "path", floor=STRAIGHT, ideal=1.0, headline="both", quick=True
)
def straightness(path: Tensor) -> float:
    """Mean length of the lines over the mean distance of their ends; 1 is straight.

    The length is that of the polygon through the solver's grid points, in data space.
    """
    path = path.double()
    distance = torch.linalg.vector_norm(path[-1] - path[0], dim=1).mean()
    return float(lengths(path).mean() / distance) if distance > 0 else math.nan


def lengths(path: Tensor) -> Tensor:
    """Length of each polygon of a path (T+1, n, D), shape (n,)."""
    length: Tensor = torch.linalg.vector_norm(path.double().diff(dim=0), dim=2).sum(0)
    return length
