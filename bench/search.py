"""What tuning looks for: ranges of settings, and points in them.

A range is ``low:high``, with ``:log`` evenly in the logarithm, with ``:int`` whole numbers, both
ends included; or words and numbers to choose from, ``a|b|c``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.stats import qmc

from bench.spec import SECTIONS, TRAINING, SpecError, check_names, parse_values, public_fields
from methods import METHODS

Sampler = Literal["sobol", "random"]

LEARNING_RATE = "train.lr"
DEFAULT_SEARCH = {LEARNING_RATE: "1e-3:2e-2:log"}
"""For every trained method, beside what the method declares itself (``Method.search``)."""

EQUAL = ["train.steps", "train.batch", "sample.solver", "sample.solver_steps"]
"""The budget: what would be found is that more of it is better."""

MAX_TRIALS = 10_000
DIGITS = 3
"""Significant digits of a number that is looked for: enough to tell trials apart, and legible."""
SPARE = 64
"""So many times as many points as trials are drawn, since words and whole numbers repeat."""


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
            value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        else:
            value = low + u * (high - low)
        return self._number(value)

    def _number(self, value: float) -> int | float:
        rounded = math.floor(value) if self.whole else float(f"{value:.{DIGITS}g}")
        number = min(max(rounded, self.low), self.high)
        return int(number) if self.whole else float(number)


def parse_range(name: str, text: object) -> Range:
    """The range that a text describes.

    Args:
        name: the setting it is of, for messages.
        text: ``3:60:log``, ``8:64:int``, ``mix|log``, or of a file a list of choices.

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
    first, last = (_end(name, part, text) for part in (low, rest[0]))
    if first >= last:
        raise SpecError(f"search: {name}: the low end must be below the high end, got {text!r}")
    found = Range(first, last, "log" in rest, "int" in rest)
    if found.log and first <= 0:
        raise SpecError(f"search: {name}: a logarithmic range must be above 0, got {text!r}")
    if found.whole and not (first.is_integer() and last.is_integer()):
        raise SpecError(f"search: {name}: expected whole numbers, got {text!r}")
    return found


def _end(name: str, part: str, text: object) -> float:
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", part.strip(), re.ASCII | re.I):
        raise SpecError(f"search: {name}: expected numbers as ends, got {text!r}")
    value = float(part)
    if math.isinf(value):
        raise SpecError(f"search: {name}: expected finite numbers as ends, got {text!r}")
    return value


def spaces(methods: Sequence[str], given: Mapping[str, object]) -> dict[str, dict[str, Range]]:
    """What is looked for, for each method: settings with their section, and their ranges.

    Args:
        methods: the methods to tune.
        given: ranges by setting; a bare key is for every method that has it. Without any,
            ``DEFAULT_SEARCH`` and what the methods declare. A trained method that none of them
            concerns is tuned over its learning rate.

    Raises:
        SpecError: a setting that does not exist, is none of the methods' or must not be tuned, or
            a text that is no range.
    """
    ranges = {name: _checked(name, text) for name, text in given.items()}
    found = {method: _space(method, ranges) for method in methods}
    for name in ranges:
        if not any(_own(name, method) in space for method, space in found.items()):
            raise SpecError(f"search: {name}: concerns none of the methods {', '.join(methods)}")
    return found


def _checked(name: str, text: object) -> Range:
    section, dot, key = name.rpartition(".")
    if name in EQUAL or section in ("eval", "network"):
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
    """The ranges that concern a method; its own setting goes before a bare key."""
    kind = METHODS[method]
    default = {name: parse_range(name, text) for name, text in DEFAULT_SEARCH.items()}
    if not kind.trained:
        default = {}
    if not ranges:
        own = {f"{method}.{key}": text for key, text in kind.search.items()}
        return default | {name: parse_range(name, text) for name, text in own.items()}
    sections = [name for name in SECTIONS if kind.trained or name not in TRAINING]
    space = {}
    for name, found in ranges.items():
        section = name.rpartition(".")[0]
        if section in (method, *sections):
            space[name] = found
        elif not section and name in public_fields(kind):
            space.setdefault(_own(name, method), found)
    return space or default


def _own(name: str, method: str) -> str:
    """A setting as one of the method, if it has no section."""
    return name if "." in name else f"{method}.{name}"


def points(
    space: Mapping[str, Range], number: int, sampler: Sampler, seed: int
) -> list[dict[str, Any]]:
    """At most ``number`` different points of a space; fewer if it has not so many.

    Scrambled Sobol points, whose every stretch fills the space evenly, or independent ones. They
    depend on the ranges and the seed alone: methods with the same ranges have the same points.
    """
    if not space or not number:
        return []
    found: dict[tuple[Any, ...], None] = {}
    for row in _shares(len(space), number, sampler, seed):
        found[tuple(r.at(float(u)) for r, u in zip(space.values(), row, strict=True))] = None
        if len(found) == number:
            break
    return [dict(zip(space, values, strict=True)) for values in found]


def _shares(dim: int, number: int, sampler: Sampler, seed: int) -> Iterator[NDArray[np.float64]]:
    """Points in [0, 1)^dim, up to ``SPARE`` times ``number``."""
    if sampler == "sobol":
        engine = qmc.Sobol(dim, scramble=True, rng=seed)
        yield from engine.random_base2(math.ceil(math.log2(SPARE * number)))
    else:
        yield from np.random.default_rng(seed).random((SPARE * number, dim))
