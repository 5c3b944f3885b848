"""Every metric of one cell, with its floor and an interval."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bench.features.build import FeatureExtractors, FeatureSets
from bench.metrics import METRICS, Metric
from bench.metrics.distances import optimal_cost
from datasets import Distribution, Known

CONFIDENCE = 0.95
PART = 4  # a replicate has one in ``PART`` of the samples
SMALLEST = 10  # samples that a replicate must have


@dataclass(frozen=True)
class Evaluation:
    """What one cell is evaluated on; all on the CPU, in the units of the task."""

    source: Tensor  # (n, D) start points, held out
    samples: Tensor  # (n, D) their end points
    target: Tensor  # (n, D) held-out target samples
    second_target: Tensor  # (n, D) target samples disjoint from those, for the floors
    path: Tensor  # (T+1, k, D), of the first k <= n lines
    native: bool  # the lines start at ``source``, not at a prior of the method's own
    train: Tensor | None = None  # (N, D) the training samples of a data set, in random order
    distribution: Distribution | None = None  # of the target
    known: Known | None = None  # the optimal map
    features: Mapping[str, FeatureSets] = field(default_factory=dict)  # of images, by feature map
    extractors: FeatureExtractors | None = None  # that made them

    def part(self, rng: torch.Generator) -> "Evaluation":
        """One in ``PART`` of the lines and of each target set, without replacement."""
        size = len(self.samples) // PART

        def shuffled(samples: Tensor) -> Tensor:
            return torch.randperm(len(samples), generator=rng)

        lines, first, second = (shuffled(self.samples)[:size] for _ in range(3))
        # Metrics of memory compare with as many training samples as there are samples.
        train = None if self.train is None else shuffled(self.train)
        return dataclasses.replace(
            self,
            source=self.source[lines],
            samples=self.samples[lines],
            path=self.path[:, lines[lines < self.path.shape[1]]],
            target=self.target[first],
            second_target=self.second_target[second],
            train=None if self.train is None or train is None else self.train[train[:size]],
            features={
                name: sets.part(lines, first, second, train) for name, sets in self.features.items()
            },
        )


def evaluate(
    data: Evaluation,
    replicates: int = 0,
    rng: torch.Generator | None = None,
    names: Collection[str] = METRICS.keys(),
) -> dict[str, float]:
    """Every metric that means something here, each with its floor and, if asked for, an interval.

    ``<metric>_floor`` of a distance is the same metric between two fresh target sets: what a
    perfect sampler would get on average. That of a cost is the optimal cost: the exact one where it
    is known, up to D = 3 that from the source samples to the held-out target, above none, because
    samples are too sparse there. Elsewhere the floor is the ideal. Methods with a prior of their
    own have no coupling with the source, and no cost but the radial one: these are left out, and so
    is what is not defined (a distribution without a score, a ratio where nothing moved).

    Intervals are made of ``replicates`` parts of the data, chosen by ``rng``; 0 for no intervals.
    """
    found = plain_values(data, names)
    chosen = [METRICS[name] for name in found]
    costs = [metric.name for metric in chosen if metric.floor_kind == "cost"]
    if costs and (cost := least_cost(data)) is not None:
        found |= {f"{name}_floor": cost for name in costs}
    measured = [metric for metric in chosen if metric.floor_kind in ("measured", "ideal")]
    found |= {f"{metric.name}_floor": _floor(metric, data) for metric in measured}
    if replicates:
        rng = rng or torch.Generator().manual_seed(0)
        for name, half in _errors(chosen, data, found, replicates, rng).items():
            found |= {f"{name}_low": found[name] - half, f"{name}_high": found[name] + half}
    return found


def plain_values(data: Evaluation, names: Collection[str]) -> dict[str, float]:
    """The values alone of those of the named metrics that mean something here."""
    chosen = [METRICS[name] for name in METRICS if name in names]
    values = {one.name: one(*_arguments(one, data)) for one in chosen if applies(one, data)}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def applies(metric: Metric, data: Evaluation) -> bool:
    """Whether a metric means something for this cell."""
    missing = any(argument is None for argument in _arguments(metric, data))
    return metric.meaningful(data.target.shape[1]) and not missing


def _arguments(metric: Metric, data: Evaluation, floor: bool = False) -> tuple[object, ...]:
    """What a metric is a function of; None in place of what this cell does not have.

    For the floor the second target set is in the place of the samples. What a classifier says of
    images is asked of held-out ones: it was trained on the second set's.
    """
    sets = data if metric.features is None else data.features.get(metric.features)
    if sets is None:
        return (None,)
    real = sets.target if metric.kind == "label" else sets.second_target
    samples = real if floor else sets.samples
    match metric.kind:
        case "distance":
            return samples, sets.target
        case "distribution":
            return samples, sets.target, data.distribution
        case "memory":
            return samples, sets.target, sets.train
        case "label":
            return samples, sets.wanted if isinstance(sets, FeatureSets) else None
        case "coupling":
            return sets.source if data.native else None, samples
        case "radial":
            return None if data.native else sets.source, samples
        case "known":
            return sets.source, samples, data.known if data.native else None
        case "path":
            return (data.path if data.native else None,)


def _floor(metric: Metric, data: Evaluation) -> float:
    measured = metric.floor_kind == "measured"
    return metric(*_arguments(metric, data, floor=True)) if measured else metric.ideal


def least_cost(data: Evaluation) -> float | None:
    """The least that any map from the source to the target costs, where that can be known."""
    if data.known is not None:
        return data.known.optimal_cost
    sparse = not METRICS["w2"].meaningful(data.target.shape[1])
    return None if sparse else optimal_cost(data.source, data.target)


def _errors(
    chosen: Collection[Metric],
    data: Evaluation,
    found: Mapping[str, float],
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
    wide, several times for the metrics that vanish on equal distributions. A floor outside it is a
    difference; a floor inside says little.

    References:
        Politis and Romano, Large Sample Confidence Regions Based on Subsamples, Annals of
        Statistics 1994; Bickel, Goetze and van Zwet, Statistica Sinica 1997.
    """
    size = len(data.samples)
    halves, resampled = {}, {metric: list[float]() for metric in chosen if metric.error is None}
    for metric in chosen:
        if metric.error is not None:
            both = (found[name] for name in (metric.name, f"{metric.name}_floor") if name in found)
            error = math.hypot(*(metric.error(value, size) for value in both))
            halves[metric.name] = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    if size // PART < SMALLEST or replicates < 2:
        return halves
    for _ in range(replicates):
        part = data.part(rng)
        for metric, differences in resampled.items():
            differences.append(metric(*_arguments(metric, part)) - _floor(metric, part))
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, replicates - 1))
    for metric, differences in resampled.items():
        spread = np.std(differences, ddof=1)
        if math.isfinite(spread):
            halves[metric.name] = quantile * float(spread) / math.sqrt(PART - 1)
    return halves
