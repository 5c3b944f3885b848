"""What tuning looks for: ranges of settings, points in them, and the trials, as one run.

A range is ``low:high``, with ``:log`` evenly in the logarithm, with ``:int`` whole numbers, both
ends included; or words and numbers to choose from, ``a|b|c``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel
from scipy.stats import qmc

from bench.config.cell import Cell
from bench.config.errors import SpecError, check_names
from bench.config.grid import Spec, Variation, concerns, own_settings
from bench.config.settings import SECTIONS, public_fields
from bench.config.values import parse_values
from methods import METHODS

# For every trained method, beside what the method declares itself (``Method.search``).
DEFAULT_SEARCH = {"train.lr": "1e-3:2e-2:log"}
# The budget: what would be found is that more of it is better.
COMMON_SETTINGS = ["train.steps", "train.batch", "sample.solver", "sample.solver_steps"]

MAX_TRIALS = 10_000
SPLIT = "eval.split"
# A trial is compared by one distance; what else is measured would cost more than the training.
QUICK: dict[str, list[Any]] = {"eval.metrics": ["main"], "eval.replicates": [0], "eval.fid_n": [0]}


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, or the words ``choices``."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> list[Any]:
        """The ends, or all the choices: what a method must accept."""
        return list(self.choices) or [self._number(end) for end in (self.low, self.high)]

    def at(self, u: float) -> Any:
        """The value at a share ``u`` in [0, 1) of the range.

        Each whole number, and each choice, has an equal share (or one even in the logarithm).
        """
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        # Whole numbers are cells [k, k + 1): the last has a cell of its own.
        low, high = self.low, self.high + self.whole
        if self.log:
            return self._number(math.exp(math.log(low) + u * (math.log(high) - math.log(low))))
        return self._number(low + u * (high - low))

    def _number(self, value: float) -> int | float:
        """Whole, or of three significant digits: enough to distinguish trials, and legible."""
        rounded = math.floor(value) if self.whole else float(f"{value:.3g}")
        number = min(max(rounded, self.low), self.high)
        return int(number) if self.whole else float(number)


def parse_range(name: str, text: object) -> Range:
    """The range of the setting ``name``: ``3:60:log``, ``mix|log``, or of a file a list of choices.

    Raises:
        SpecError: a text that is no range, or an empty range.
    """
    words = text.split("|") if isinstance(text, str) else text
    if isinstance(words, list) and len(words) > 1:
        choices = tuple(value for word in words for value in parse_values(str(word)))
        if len(set(choices)) != len(words):
            raise SpecError(f"search: {name}: expected different choices, got {text!r}")
        return Range(choices=choices)
    low, *rest = text.split(":") if isinstance(text, str) else [""]
    if not rest or not set(rest[1:]) <= {"log", "int"} or len(set(rest[1:])) != len(rest[1:]):
        raise SpecError(
            f"search: {name}: expected low:high, low:high:log, low:high:int or a|b|c, got {text!r}"
        )
    number, ends = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", [low.strip(), rest[0].strip()]
    if not all(re.fullmatch(number, end, re.ASCII | re.I) for end in ends):
        raise SpecError(f"search: {name}: expected numbers as ends, got {text!r}")
    first, last = map(float, ends)
    if math.isinf(first) or math.isinf(last):
        raise SpecError(f"search: {name}: expected finite numbers as ends, got {text!r}")
    if first >= last:
        raise SpecError(f"search: {name}: the low end must be below the high end, got {text!r}")
    found = Range(first, last, "log" in rest, "int" in rest)
    if found.log and first <= 0:
        raise SpecError(f"search: {name}: a logarithmic range must be above 0, got {text!r}")
    if found.whole and not (first.is_integer() and last.is_integer()):
        raise SpecError(f"search: {name}: expected whole numbers, got {text!r}")
    return found


def spaces(methods: Sequence[str], given: Mapping[str, object]) -> dict[str, dict[str, Range]]:
    """What is looked for, for each method: settings with their section, and their ranges.

    ``given`` are ranges by setting; a bare key is for every method that has it. Without any,
    ``DEFAULT_SEARCH`` and what the methods declare. A trained method that none of them
    concerns is tuned over its learning rate.

    Raises:
        SpecError: a setting that does not exist, is none of the methods' or must not be tuned, or
            a text that is no range.
    """
    ranges = {name: _checked(name, text) for name, text in given.items()}
    found = {method: _space(method, ranges) for method in methods}
    for name in ranges:
        if not any(concerns(name, method) for method in methods):
            raise SpecError(f"search: {name}: concerns none of the methods {', '.join(methods)}")
    return found


def _checked(name: str, text: object) -> Range:
    section, dot, key = name.rpartition(".")
    if name in COMMON_SETTINGS or section in ("eval", "network"):
        raise SpecError(f"search: {name}: must be the same for every method, so it is not tuned")
    owners: dict[str, type[BaseModel]] = {**SECTIONS, **METHODS}
    del owners["eval"]
    if dot:
        check_names(f"search: {name}: section", [section], owners)
    holders = [owners[section]] if dot else list(METHODS.values())
    known = dict.fromkeys(field for holder in holders for field in public_fields(holder))
    check_names(f"search: {name}", [key], known)
    return parse_range(name, text)


def _space(method: str, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges that concern a method; its own setting overrides a bare key."""
    kind = METHODS[method]
    default = DEFAULT_SEARCH if kind.trained else {}
    if not ranges:
        default = default | {f"{method}.{key}": text for key, text in kind.search.items()}
    own = own_settings(ranges, method)
    return own or {name: parse_range(name, text) for name, text in default.items()}


def points(space: Mapping[str, Range], number: int, seed: int) -> list[dict[str, Any]]:
    """At most ``number`` different points of a space; fewer if it has not so many.

    Scrambled Sobol points, whose every stretch fills the space evenly. They depend on the ranges
    and the seed alone: methods with the same ranges have the same points.
    """
    if not space or not number:
        return []
    engine = qmc.Sobol(len(space), scramble=True, rng=seed)
    found: dict[tuple[Any, ...], None] = {}
    # Far more points than trials, since words and whole numbers repeat.
    for row in engine.random_base2(math.ceil(math.log2(64 * number))):
        found[tuple(r.at(float(u)) for r, u in zip(space.values(), row, strict=True))] = None
        if len(found) == number:
            break
    return [dict(zip(space, values, strict=True)) for values in found]


class Tuning(NamedTuple):
    """What is looked for, and where: the spec has one variation a trial, in their order."""

    spec: Spec
    spaces: dict[str, dict[str, Range]]
    trials: dict[str, list[dict[str, Any]]]  # settings by method and number, {} its defaults

    def cells(self) -> dict[tuple[str, str, int], list[Cell]]:
        """The cells of every task, method and number of a trial, one a seed, in that order.

        Two trials may have a cell in common, where one setting makes another void.
        """
        keys = [(method, k) for method, own in self.trials.items() for k in range(len(own))]
        cells = [spec.cells() for spec in self.spec.specs()[1:]]
        return {
            (task, *key): [cell for cell in own if cell.task == task]
            for task in dict.fromkeys(self.spec.tasks)
            for key, own in zip(keys, cells, strict=True)
        }


def make_tuning(spec: Spec, search: Mapping[str, object], trials: int, seed: int) -> Tuning:
    """The trials of every method, checked.

    Args:
        spec: methods, tasks, seeds and the settings that all trials have in common.
        search: ranges by setting, see :func:`spaces`.
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
    made = {method: [{}, *points(space, trials - 1, seed)] for method, space in found.items()}
    vary = [
        Variation(methods=[method], settings={name: [value] for name, value in point.items()})
        for method, own in made.items()
        for point in own
    ]
    return Tuning(spec.model_copy(update={"vary": vary}), found, made)
