"""Metrics: pure functions of samples, each with what it means and its floor."""

from bench.metrics.base import METRICS, Metric
from bench.metrics.distances import (
    frechet,
    max_sliced_w2,
    optimal_cost,
    sinkhorn_divergence,
    sliced_w2,
    w1,
    w2,
)
from bench.metrics.images import (
    cmmd,
    colour_shift,
    colour_shift_ratio,
    confident,
    fd_classifier,
    feature_cost,
    fid,
    fid_train,
    kernel_distance,
    label_success,
)
from bench.metrics.kernels import energy_distance, mmd, stein_discrepancy
from bench.metrics.modes import mode_error, modes_missed
from bench.metrics.neighbours import coverage, density, memorised, precision, recall
from bench.metrics.transport import (
    coupling_ratio,
    excess_cost,
    excess_flow_cost,
    map_error,
    path_energy,
    radial_transport_cost,
    straightness,
    transport_cost,
)
from bench.metrics.two_sample import c2st

__all__ = [
    "METRICS",
    "Metric",
    "c2st",
    "cmmd",
    "colour_shift",
    "colour_shift_ratio",
    "confident",
    "coupling_ratio",
    "coverage",
    "density",
    "energy_distance",
    "excess_cost",
    "excess_flow_cost",
    "fd_classifier",
    "feature_cost",
    "fid",
    "fid_train",
    "frechet",
    "kernel_distance",
    "label_success",
    "map_error",
    "max_sliced_w2",
    "memorised",
    "mmd",
    "mode_error",
    "modes_missed",
    "optimal_cost",
    "path_energy",
    "precision",
    "radial_transport_cost",
    "recall",
    "sinkhorn_divergence",
    "sliced_w2",
    "stein_discrepancy",
    "straightness",
    "transport_cost",
    "w1",
    "w2",
]
