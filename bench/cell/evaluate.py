"""Every metric of one cell, with its floor and an interval, and of its references."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from bench.features import cache
from bench.features.build import FeatureExtractors, FeatureSets
from bench.metrics import METRICS, Metric
from bench.metrics.distances import optimal_cost
from datasets import Distribution, Known
from datasets.base import digest_of

CONFIDENCE = 0.95
PART = 4  # a replicate has one in ``PART`` of the samples
SMALLEST = 10  # samples that a replicate must have
SPLITS = 4  # of held-out and training samples into two halves, of which floors are a mean
COMPARED = ("distance", "distribution", "label")  # kinds that references are measured by

Values = dict[str, float]
Part = tuple[Tensor, Tensor, Tensor]
"""Rows of the lines, of the target and of the second target set, each (n / PART,)."""


@dataclass(frozen=True)
class Evaluation:
    """What one cell is evaluated on; all on the CPU, in the units of the task."""

    source: Tensor  # (n, D) start points, held out
    samples: Tensor  # (n, D) their end points
    target: Tensor  # (n, D) held-out target samples
    second_target: Tensor  # (n, D) target samples disjoint from those, for the floors
    path: Tensor  # (T+1, k, D), of the first k <= n lines
    native: bool  # the lines start at ``source``, not at a prior of the method's own
    train: Tensor | None = None  # (N, D) the training samples of a data set
    distribution: Distribution | None = None  # of the target
    known: Known | None = None  # the optimal map
    features: Mapping[str, FeatureSets] = field(default_factory=dict)  # of images, by feature map
    extractors: FeatureExtractors | None = None  # that made them
    references: Callable[[], Mapping[str, Tensor]] = dict  # sample sets by name, each (n, D)
    key: str | None = None  # names what the references and the target are; None: not kept

    def part(self, rows: Part) -> "Evaluation":
        """One in ``PART`` of the lines and of each target set."""
        lines, first, second = rows
        return dataclasses.replace(
            self,
            source=self.source[lines],
            samples=self.samples[lines],
            path=self.path[:, lines[lines < self.path.shape[1]]],
            target=self.target[first],
            second_target=self.second_target[second],
            features={
                name: sets.part(lines, first, second) for name, sets in self.features.items()
            },
        )

    def with_samples(self, samples: Tensor) -> "Evaluation":
        """With other samples (n, D), for distances and classes; colours are left out."""
        seen = {} if self.extractors is None else self.extractors.samples(samples)
        sets = {k: dataclasses.replace(self.features[k], samples=own) for k, own in seen.items()}
        return dataclasses.replace(self, samples=samples, features=sets)

    def of_target(self) -> "Evaluation":
        """The second target set in the place of the samples, for floors.

        What a classifier says of images is asked of held-out ones: it was trained on the others.
        """
        features = {
            name: dataclasses.replace(
                sets, samples=sets.target if name == "classes" else sets.second_target
            )
            for name, sets in self.features.items()
        }
        return dataclasses.replace(self, samples=self.second_target, features=features)

    def split(self, number: int) -> "Evaluation":
        """Two halves of the two target sets together in their place, for floors of data sets.

        The training samples, which are the second set, differ from held-out ones as seen by a
        classifier that was trained on them; of random halves neither is the other's better.
        """
        size, rng = len(self.target), torch.Generator().manual_seed(number)
        order = torch.randperm(size + len(self.second_target), generator=rng)

        def halves(sets: "Evaluation | FeatureSets") -> Any:
            both = torch.cat([sets.target, sets.second_target])[order]
            return dataclasses.replace(sets, target=both[:size], second_target=both[size:])

        features = {name: halves(sets) for name, sets in self.features.items()}
        halved: Evaluation = halves(self)
        return dataclasses.replace(halved, features=features)

    def parts(self, number: int, rng: torch.Generator) -> list[Part]:
        """Rows of ``number`` parts, drawn without replacement."""
        size = len(self.samples)

        def drawn() -> Tensor:
            return torch.randperm(size, generator=rng)[: size // PART]

        enough = size // PART >= SMALLEST and number >= 2
        return [(drawn(), drawn(), drawn()) for _ in range(number)] if enough else []


def evaluate(
    data: Evaluation,
    replicates: int = 0,
    rng: torch.Generator | None = None,
    names: Collection[str] = METRICS.keys(),
) -> Values:
    """Every metric that means something here, each with its floor and, if asked for, an interval.

    ``<metric>_floor`` of a distance is the same metric between two target sets. That of a cost is
    the optimal cost: the exact one where it is known, up to D = 3 that from the source samples to
    the held-out target, above none, because samples are too sparse there. Elsewhere the floor is
    the ideal. Methods with a prior of their own have no coupling with the source, and no cost but
    the radial one: these are left out, and so is what is not defined (a distribution without a
    score, a ratio where nothing moved).

    Intervals are made of ``replicates`` parts of the data, chosen by ``rng``; 0 for no intervals.
    """
    found = plain_values(data, names)
    chosen = [METRICS[name] for name in found]
    parts = data.parts(replicates, rng or torch.Generator().manual_seed(0))
    floors = _floors(data, parts, names)
    ideals = {one.name: one.ideal for one in chosen if one.floor_kind == "ideal"}
    whole = ideals | floors[0]
    found |= {f"{one.name}_floor": whole[one.name] for one in chosen if one.name in whole}
    if replicates:
        for name, half in _errors(chosen, data, found, parts, floors[1:]).items():
            found |= {f"{name}_low": found[name] - half, f"{name}_high": found[name] + half}
    return found


def plain_values(data: Evaluation, names: Collection[str]) -> Values:
    """The values alone of those of the named metrics that mean something here."""
    chosen = [METRICS[name] for name in METRICS if name in names]
    values = {one.name: one(*_arguments(one, data)) for one in chosen if applies(one, data)}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def applies(metric: Metric, data: Evaluation) -> bool:
    """Whether a metric means something for this cell."""
    missing = any(argument is None for argument in _arguments(metric, data))
    return metric.meaningful(data.target.shape[1]) and not missing


def _arguments(metric: Metric, data: Evaluation) -> tuple[object, ...]:
    """What a metric is a function of; None in place of what this cell does not have."""
    sets = data if metric.features is None else data.features.get(metric.features)
    if sets is None:
        return (None,)
    match metric.kind:
        case "distance":
            return sets.samples, sets.target
        case "distribution":
            return sets.samples, sets.target, data.distribution
        case "memory":
            return sets.samples, sets.target, sets.train
        case "label":
            return sets.samples, sets.wanted if isinstance(sets, FeatureSets) else None
        case "coupling":
            return sets.source if data.native else None, sets.samples
        case "radial":
            return None if data.native else sets.source, sets.samples
        case "known":
            return sets.source, sets.samples, data.known if data.native else None
        case "path":
            return (data.path if data.native else None,)


def reference_values(data: Evaluation, names: Collection[str]) -> dict[str, Values]:
    """The metrics of each reference sample set, by its name, on the same held-out samples.

    All that compare with the target, and the transport cost of what is a map of the start points.
    """

    def make() -> dict[str, Values]:
        found: dict[str, Values] = {}
        for reference, samples in data.references().items():
            maps = set() if reference == "noise" else {"transport_cost"}
            chosen = [k for k in names if METRICS[k].kind in COMPARED or k in maps]
            seen = dataclasses.replace(data.with_samples(samples), native=True)
            try:
                values = plain_values(seen, chosen)
                found[reference] = {k: value for k, value in values.items() if math.isfinite(value)}
            except (RuntimeError, ValueError) as error:  # no fault of the cell
                print(f"no metrics of the reference {reference}: {error}")
        return found

    return _kept("references", data, [], names, make)


def _floors(data: Evaluation, parts: Collection[Part], names: Collection[str]) -> list[Values]:
    """The floors of the whole and of each part, as far as they are measured; NaN is left out."""

    compared = [name for name in names if METRICS[name].floor_kind == "measured"]
    resampled = [name for name in compared if METRICS[name].error is None]

    def measured(data: Evaluation, chosen: Collection[str], splits: int) -> Values:
        plain = data.of_target()
        # Of a data set the second set is the training samples: random halves of both sets.
        splits = 0 if data.train is None else splits
        halves = [data.split(k).of_target() for k in range(splits)] or [plain]
        found = {}
        for name in chosen:
            sets = [plain] if METRICS[name].kind == "label" else halves
            values = [plain_values(one, [name]).get(name, math.nan) for one in sets]
            found[name] = float(np.mean(values))
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def make() -> dict[str, Values]:
        found = {"whole": measured(data, compared, SPLITS)}
        for k, rows in enumerate(parts):
            found[f"part {k}"] = measured(data.part(rows), resampled, 1)
        costs = [name for name in names if METRICS[name].floor_kind == "cost"]
        if costs and (cost := least_cost(data)) is not None:
            found["whole"] |= dict.fromkeys(costs, cost)
        return found

    found = _kept("floors", data, [x for rows in parts for x in rows[1:]], names, make)
    return [found.get("whole", {}), *(found.get(f"part {k}", {}) for k in range(len(parts)))]


def _kept(
    kind: str,
    data: Evaluation,
    more: Collection[Tensor],
    names: Collection[str],
    make: Callable[[], dict[str, Values]],
) -> dict[str, Values]:
    """What ``make`` returns, or has returned before for the same held-out samples.

    It must not depend on the samples of the cell: all methods of a task and seed share it.
    """
    if data.key is None:
        return make()
    record = str(data.extractors and data.extractors.record)
    sets = (data.source, data.target, data.second_target, *more)
    words = (data.key, record, *sorted(names), _code())
    name = f"{kind}-{digest_of([*words, *sets])[:32]}"

    def tensors() -> dict[str, Tensor]:
        made = make().items()
        pairs = {f"{group}/{k}": value for group, values in made for k, value in values.items()}
        return {path: torch.tensor(value, dtype=torch.float64) for path, value in pairs.items()}

    found: dict[str, Values] = {}
    for path, value in cache.kept(name, tensors).items():
        group, _, metric = path.partition("/")
        found.setdefault(group, {})[metric] = float(value)
    return found


@functools.cache
def _code() -> str:
    """Hash of what values are computed with, beside what ``Evaluation.key`` names."""
    folders = (Path(inspect.getfile(some)).parent for some in (Metric, FeatureSets))
    files = sorted(path for folder in folders for path in folder.glob("*.py"))
    return digest_of(path.read_bytes() for path in files)


def least_cost(data: Evaluation) -> float | None:
    """The least that any map from the source to the target costs, where that can be known."""
    if data.known is not None:
        return data.known.optimal_cost
    sparse = not METRICS["w2"].meaningful(data.target.shape[1])
    return None if sparse else optimal_cost(data.source, data.target)


def _errors(
    chosen: Collection[Metric],
    data: Evaluation,
    found: Values,
    parts: Collection[Part],
    floors: Collection[Values],
) -> Values:
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
    halves = dict[str, float]()
    for metric in chosen:
        if metric.error is not None:
            measured = metric.floor_kind == "measured"
            names = [metric.name, *([f"{metric.name}_floor"] if measured else [])]
            both = [found[name] for name in names if name in found]
            error = math.hypot(*(metric.error(value, *_arguments(metric, data)) for value in both))
            halves[metric.name] = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    if not parts:
        return halves
    resampled = {metric: list[float]() for metric in chosen if metric.error is None}
    for rows, floor in zip(parts, floors, strict=True):
        part = data.part(rows)
        for metric, values in resampled.items():
            own = floor.get(metric.name, math.nan) if metric.floor_kind == "measured" else 0.0
            values.append(metric(*_arguments(metric, part)) - own)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(parts) - 1))
    for metric, values in resampled.items():
        spread = np.std(values, ddof=1)
        if math.isfinite(spread):
            halves[metric.name] = quantile * float(spread) / math.sqrt(PART - 1)
    return halves
