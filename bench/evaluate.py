"""Every metric of one cell, with its floor and an interval."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bench.features import FeatureSets
from bench.metrics import METRICS, Metric, optimal_cost
from datasets import Distribution, Known

CONFIDENCE = 0.95
PART = 4
"""A replicate has one in ``PART`` of the samples."""
SMALLEST = 10
"""Samples that a replicate must have."""
MAIN = (
    *("w2", "sliced_w2", "energy_distance", "frechet"),
    *("transport_cost", "radial_transport_cost", "coupling_ratio", "straightness"),
    *("excess_cost", "excess_flow_cost", "map_error"),
    *("fid", "fd_classifier", "label_success", "confident", "colour_shift_ratio"),
)
"""The metrics of ``eval.metrics = main``: seconds less a cell."""
MEASURED = ("distance", "law", "label")
"""Kinds of metrics whose floor is measured, on a second target set."""
COSTS = ("transport_cost", "radial_transport_cost", "path_energy")
"""Metrics whose floor is the optimal cost."""
WITHOUT_FLOOR = ("feature_cost",)
"""Metrics of which it is not known how good they can be."""


@dataclass(frozen=True)
class Evaluation:
    """What one cell is judged by; all on the CPU, in the units of the task."""

    source: Tensor  # (n, D) start points, held out
    samples: Tensor  # (n, D) their end points
    target: Tensor  # (n, D) held-out target samples
    second_target: Tensor  # (n, D) target samples disjoint from those, for the floors
    path: Tensor  # (T+1, k, D), of the first k <= n lines
    native: bool  # the lines start at ``source``, not at a prior of the method's own
    train: Tensor | None = None  # (N, D) the training samples of a data set, in random order
    law: Distribution | None = None  # of the target
    known: Known | None = None  # the optimal map
    features: Mapping[str, FeatureSets] = field(default_factory=dict)  # of images, by feature map

    def part(self, rng: torch.Generator) -> "Evaluation":
        """One in ``PART`` of the lines and of each target set, without replacement."""
        size = len(self.samples) // PART

        def shuffled(samples: Tensor) -> Tensor:
            return torch.randperm(len(samples), generator=rng)

        lines, first, second = (shuffled(self.samples)[:size] for _ in range(3))
        # Metrics of memory compare with as many training samples as there are samples.
        train = None if self.train is None else shuffled(self.train)
        features = {
            name: sets.part(lines, first, second, train) for name, sets in self.features.items()
        }
        return dataclasses.replace(
            self,
            source=self.source[lines],
            samples=self.samples[lines],
            path=self.path[:, lines[lines < self.path.shape[1]]],
            target=self.target[first],
            second_target=self.second_target[second],
            train=None if self.train is None or train is None else self.train[train[:size]],
            features=features,
        )


def evaluate(
    data: Evaluation,
    replicates: int = 0,
    rng: torch.Generator | None = None,
    names: Collection[str] = tuple(METRICS),
) -> dict[str, float]:
    """Every metric that means something here, each with its floor and, if asked for, an interval.

    ``<metric>_floor`` of a distance is the same metric between two fresh target sets: what a
    perfect sampler would get on average. That of a cost is the optimal cost: the exact one where it
    is known, up to D = 3 that from the source samples to the held-out target, above none, because
    samples are too sparse there. Elsewhere the floor is the ideal. Methods with a prior of their
    own have no coupling with the source, and no cost but the radial one: these are left out, and so
    is what is not defined (a law without a score, a ratio where nothing moved).

    Args:
        data: what is judged.
        replicates: parts of the data that the intervals are made of; 0 for no intervals.
        rng: which parts; not used without replicates.
        names: the metrics to choose from.
    """
    chosen = {name: METRICS[name] for name in METRICS if name in names}
    chosen = {name: metric for name, metric in chosen.items() if applies(metric, data)}
    values = {name: _value(metric, data) for name, metric in chosen.items()}
    chosen = {name: metric for name, metric in chosen.items() if not math.isnan(values[name])}
    found = {name: values[name] for name in chosen}
    unknown = (*COSTS, *WITHOUT_FLOOR)
    floors = {name: _floor(metric, data) for name, metric in chosen.items() if name not in unknown}
    if any(name in chosen for name in COSTS):
        cost = least_cost(data)
        floors |= {name: cost for name in COSTS if name in chosen and cost is not None}
    found |= {f"{name}_floor": value for name, value in floors.items()}
    if replicates:
        errors = _errors(chosen, data, found, replicates, rng or torch.Generator().manual_seed(0))
        for name, half in errors.items():
            found |= {f"{name}_low": found[name] - half, f"{name}_high": found[name] + half}
    return found


def plain_values(data: Evaluation, names: Collection[str]) -> dict[str, float]:
    """The values alone of those of the named metrics that mean something here."""
    chosen = [METRICS[name] for name in names]
    return {metric.name: _value(metric, data) for metric in chosen if applies(metric, data)}


def applies(metric: Metric, data: Evaluation) -> bool:
    """Whether a metric means something for this cell."""
    if not metric.meaningful(data.target.shape[1]):
        return False
    sets = _sets(metric, data)
    if sets is None:
        return False
    needs: dict[str, bool] = {
        "distance": True,
        "label": True,
        "memory": sets.train is not None,
        "law": data.law is not None,
        "known": data.known is not None and data.native,
        "radial": not data.native,
    }
    return needs.get(metric.kind, data.native and sets.source is not None)


def _sets(metric: Metric, data: Evaluation) -> Evaluation | FeatureSets | None:
    """The sets that a metric is of: the samples, or their features if there are any."""
    return data if metric.features is None else data.features.get(metric.features)


def _value(metric: Metric, data: Evaluation, floor: bool = False) -> float:
    """A metric of the samples; for the floor, of the second target set in their place.

    What a classifier says of images is asked of held-out ones: it was trained on the second set's.
    """
    sets = _sets(metric, data)
    assert sets is not None
    real = sets.target if metric.kind == "label" else sets.second_target
    samples = real if floor else sets.samples
    arguments: dict[str, tuple[object, ...]] = {
        "distance": (samples, sets.target),
        "memory": (samples, sets.target, sets.train),
        "law": (samples, sets.target, data.law),
        "known": (sets.source, samples, data.known),
        "path": (data.path,),
    }
    if isinstance(sets, FeatureSets):
        arguments["label"] = (samples, sets.wanted)
    return metric(*arguments.get(metric.kind, (sets.source, samples)))


def _floor(metric: Metric, data: Evaluation) -> float:
    return _value(metric, data, floor=True) if metric.kind in MEASURED else metric.ideal


def least_cost(data: Evaluation) -> float | None:
    """The least that any map from the source to the target costs, where that can be known."""
    if data.known is not None:
        return data.known.optimal_cost
    sparse = not METRICS["w2"].meaningful(data.target.shape[1])
    return None if sparse else optimal_cost(data.source, data.target)


def _errors(
    chosen: dict[str, Metric],
    data: Evaluation,
    found: dict[str, float],
    replicates: int,
    rng: torch.Generator,
) -> dict[str, float]:
    """Half of the interval of each metric: that of its difference from its floor.

    An m out of n bootstrap: each replicate has m = n / 4 of the samples, without replacement. Drawn
    with replacement, samples would occur twice, and distances grow. The difference varies by
    1 / sqrt(n) (less where its first order vanishes, and the interval is then too wide), so with
    replicates of standard deviation s its error is s sqrt(m / n) / sqrt(1 - m / n), the last factor
    for parts of one finite set. Where the floor is not measured it is the error of the value.

    The parts are independent draws, and low-variance sets vary less: for these the interval is too
    wide, several times for the metrics that vanish on equal laws. A floor outside it is a
    difference; a floor inside says little.

    References:
        Politis and Romano, Large Sample Confidence Regions Based on Subsamples, Annals of
        Statistics 1994; Bickel, Goetze and van Zwet, Statistica Sinica 1997.
    """
    size = len(data.samples)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, replicates - 1)) if replicates > 1 else 0
    halves = {}
    resampled = {name: metric for name, metric in chosen.items() if metric.error is None}
    for name, metric in chosen.items():
        if metric.error is not None:
            pair = (metric.error(found[key], size) for key in (name, f"{name}_floor"))
            halves[name] = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.hypot(*pair)
    if size // PART < SMALLEST or replicates < 2:
        return halves
    differences: dict[str, list[float]] = {name: [] for name in resampled}
    for _ in range(replicates):
        part = data.part(rng)
        for name, metric in resampled.items():
            differences[name].append(_difference(metric, part))
    for name in resampled:
        spread = np.std(differences[name], ddof=1)
        if math.isfinite(spread):
            halves[name] = quantile * float(spread) / math.sqrt(PART - 1)
    return halves


def _difference(metric: Metric, part: Evaluation) -> float:
    return _value(metric, part) - _floor(metric, part)
