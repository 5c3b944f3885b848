"""The trials of :mod:`bench.tune`: the same number of settings of every method, as one run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.config.cell import Cell
from bench.config.errors import SpecError
from bench.config.grid import Spec, Variation
from bench.tuning.search import Range, points, spaces

MAX_TRIALS = 10_000
SPLIT = "eval.split"
# A trial is compared by one distance; what else is measured would cost more than the training.
QUICK: dict[str, list[Any]] = {"eval.metrics": ["main"], "eval.replicates": [0], "eval.fid_n": [0]}


class Trial(NamedTuple):
    """One setting of a method; ``settings`` are empty for its defaults, which are trial 0."""

    method: str
    number: int
    settings: dict[str, Any]


class Tuning(NamedTuple):
    """What is looked for, and where: the spec has one variation a trial, in their order."""

    spec: Spec
    spaces: dict[str, dict[str, Range]]
    trials: list[Trial]

    def cells(self) -> dict[tuple[str, str, int], list[Cell]]:
        """The cells of every task, method and number of a trial, one a seed, in that order.

        Two trials may have a cell in common, where one setting makes another void.
        """
        own = [self.spec.variation(place).cells() for place in range(len(self.trials))]
        return {
            (task, trial.method, trial.number): [cell for cell in cells if cell.task == task]
            for task in dict.fromkeys(self.spec.tasks)
            for trial, cells in zip(self.trials, own, strict=True)
        }


def make_tuning(spec: Spec, search: Mapping[str, object], trials: int, seed: int) -> Tuning:
    """The trials of every method, checked.

    Args:
        spec: methods, tasks, seeds and the settings that all trials have in common.
        search: ranges by setting, see :func:`bench.tuning.search.spaces`.
        trials: of each method, its defaults included; fewer where a search has fewer points.
        seed: of the points.

    Raises:
        SpecError: no range, or a setting that a method refuses or that has several values.
    """
    if not 1 <= trials <= MAX_TRIALS:
        raise SpecError(f"trials: must be a number from 1 to {MAX_TRIALS}, got {trials}")
    for name, values in spec.settings.items():
        if len(values) != 1:
            raise SpecError(f"{name}: give one value, or a range with search; got {values}")
    if SPLIT in spec.settings:
        raise SpecError(f"{SPLIT}: tuning is always on validation; leave it out")
    settings = {**QUICK, **spec.settings, SPLIT: ["validation"]}
    spec = spec.model_copy(update={"settings": settings})
    spec.cells()  # names of methods and tasks are known from here on
    found = spaces(spec.methods, search)
    for method, space in found.items():
        for name, own in space.items():
            ends = {"methods": [method], "settings": {**spec.settings, name: own.ends}}
            spec.model_copy(update=ends).cells()
    made = [
        Trial(method, number, point)
        for method, space in found.items()
        for number, point in enumerate([{}, *points(space, trials - 1, seed)])
    ]
    vary = [
        Variation(methods=[trial.method], settings={k: [v] for k, v in trial.settings.items()})
        for trial in made
    ]
    return Tuning(spec.model_copy(update={"vary": vary}), found, made)
