"""Values as users give them: words, lists and ranges of a command line or a file."""

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from pydantic import BaseModel

from bench.config.errors import SpecError, unknown
from bench.config.settings import SECTIONS, public_fields
from datasets import TASKS
from methods import METHODS

# Cells of a grid and values of an axis: far more than anyone runs, far less than memory holds.
MAX_CELLS = 100_000
MAX_SEED = 10**9 - 1


def check_seeds(seeds: list[int]) -> None:
    """Raises :class:`SpecError` for an empty list, or a seed out of range."""
    if not seeds:
        raise SpecError("seeds: empty, give numbers such as 0,1,2 or a range such as 0-4")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise SpecError(f"seeds: expected numbers from 0 to {MAX_SEED}, got {seed!r}")


def checked_settings(settings: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The settings with every value as a plain number, a word or None.

    Raises:
        SpecError: a setting that no section, method or task has, or a value that is none.
    """
    owners: dict[str, type[BaseModel]] = {**SECTIONS, **METHODS, **TASKS}
    anywhere = sorted({field for method in METHODS.values() for field in public_fields(method)})
    for name, values in settings.items():
        section, dot, key = name.rpartition(".")
        if dot and section not in owners:
            raise SpecError(f"{name}: {unknown('section', section, owners)}")
        known = public_fields(owners[section]) if dot else anywhere
        if key not in known:
            raise SpecError(f"{name}: {unknown('setting', key, known)}")
        if not values:
            raise SpecError(f"{name}: no value given")
    return {name: [_checked_value(name, v) for v in values] for name, values in settings.items()}


def _checked_value(name: str, value: Any) -> str | int | float | None:
    parsed = _parse_value(value) if isinstance(value, str) else value
    if parsed is None or isinstance(parsed, str):
        return parsed
    if isinstance(value, str | float) and value in ("inf", math.inf):
        return "inf"  # a word: JSON has no such number
    if isinstance(parsed, Real) and not isinstance(parsed, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond every float
            if math.isfinite(parsed):
                # Of numpy too, as a number of Python; -0.0 + 0 is 0.0: one cell, one id.
                return (int(parsed) if isinstance(parsed, Integral) else float(parsed)) + 0
    raise SpecError(f"{name}: expected a finite number or a word, got {value!r}")


def parse_seeds(text: str) -> list[int]:
    """``0,1,2`` or ``0-4`` or both: ``0-2,7``."""
    ranges = []
    for part in filter(None, map(str.strip, text.split(","))):
        ends = re.fullmatch("([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if ends is None:
            expected = "expected numbers such as 0,1,2 or a range such as 0-4"
            raise SpecError(f"seeds: {expected}, got {text!r}")
        ranges.append(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
        if not ranges[-1]:
            raise SpecError(f"seeds: the range {part!r} is empty")
    return list(dict.fromkeys(as_list("seeds", itertools.chain(*ranges))))


def parse_values(text: str) -> list[Any]:
    """Comma-separated values: numbers, ``none`` or words."""
    return [_parse_value(part.strip()) for part in text.split(",") if part.strip()]


def _parse_value(text: str) -> Any:
    if text.lower() == "none":
        return None
    for kind in (int, float) if text.isascii() else ():  # Python reads the digits of every script
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def as_list(argument: str, value: Any) -> list[Any]:
    """The values of a collection; a value alone, or a word, is a list of one.

    Raises:
        SpecError: a collection of more than ``MAX_CELLS`` values, such as an endless one.
    """
    if hasattr(value, "tolist"):  # of numpy or torch: with the numbers of Python
        value = value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return [value]
    values = list(itertools.islice(value, MAX_CELLS + 1))
    if len(values) > MAX_CELLS:
        raise SpecError(f"{argument}: at most {MAX_CELLS} values")
    return values
