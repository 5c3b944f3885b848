"""The configuration of a run, and the grid of cells it describes.

Settings are named ``section.key``: ``train.lr``, ``efm.points``, ``gaussian_to_8gaussians.std``.
A bare key (``L``, ``sigma``) is for every method that has a hyperparameter of that name. Every
setting has a list of values; more than one makes an axis of the grid.
"""

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.train import TrainSettings
from datasets import TASKS, Task
from datasets.base import Draws
from methods import METHODS, Method
from methods.networks import NetworkSettings
from methods.solvers import Solver

SUITES = Path(__file__).parent / "suites"
DEFAULT_SUITE = "default"


class SpecError(ValueError):
    """A mistake of the user: one line that names the argument, the value and the choices."""


class EvalSettings(BaseModel):
    """What a cell is judged on: ``n`` held-out samples, drawn with low variance or independently.

    Data sets with fewer held-out samples are judged on what they have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(2000, ge=4, le=100_000)
    draws: Draws = "low_variance"


SHORTHANDS = {"steps": "train.steps", "batch": "train.batch"}
"""Settings that may be named without their section."""

SECTIONS: dict[str, type[BaseModel]] = {
    "train": TrainSettings,
    "network": NetworkSettings,
    "sample": Solver,
    "eval": EvalSettings,
}


class Cell(BaseModel):
    """One entry of the grid: everything that determines its result, and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    hyperparameters: dict[str, Any]
    task: str
    task_version: int
    task_parameters: dict[str, Any]
    seed: int
    train: TrainSettings
    network: NetworkSettings
    sample: Solver
    eval: EvalSettings

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the hash of the cell."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.method} {self.task} seed {self.seed}"

    def build_task(self) -> Task:
        """The task with its parameters."""
        return TASKS[self.task](**self.task_parameters)

    def build_method(self) -> Method:
        """The method with its hyperparameters."""
        return METHODS[self.method](**self.hyperparameters)


class Spec(BaseModel):
    """What a run is made of; :meth:`cells` is its grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: list[str]
    tasks: list[str]
    seeds: list[int]
    settings: dict[str, list[Any]] = {}

    def cells(self) -> list[Cell]:
        """The cells of the grid, each once, in the order task, method, settings, seed.

        Raises:
            SpecError: an unknown name, or a value that a method, task or section refuses.
        """
        check_names("methods", self.methods, METHODS)
        check_names("tasks", self.tasks, TASKS)
        check_seeds(self.seeds)
        check_settings(self.settings)
        cells = {
            cell.id: cell
            for task in self.tasks
            for method in self.methods
            for settings in self._combinations(method, task)
            for seed in self.seeds
            for cell in [_cell(method, task, seed, settings)]
        }
        return list(cells.values())

    def _combinations(self, method: str, task: str) -> Iterable[dict[str, Any]]:
        """Every combination of the values of the settings that concern a method on a task."""
        sections = {method, task, *SECTIONS}
        axes: dict[str, list[Any]] = {}
        for name, values in self.settings.items():
            section, _, _ = name.rpartition(".")
            if not section and name in public_fields(METHODS[method]):
                axes.setdefault(f"{method}.{name}", values)  # efm.L goes before L
            elif section in sections:
                axes[name] = values
        for combination in itertools.product(*axes.values()):
            yield dict(zip(axes, combination, strict=True))


def _cell(method: str, task: str, seed: int, settings: Mapping[str, Any]) -> Cell:
    def section(name: str) -> dict[str, Any]:
        return {
            key.removeprefix(f"{name}."): value
            for key, value in settings.items()
            if key.startswith(f"{name}.")
        }

    built_task = _validated(task, lambda: TASKS[task](**section(task)))
    built_method = _validated(
        method, lambda: METHODS[method].create(built_task.dim, **section(method))
    )
    return Cell(
        method=method,
        hyperparameters=built_method.hyperparameters(),
        task=task,
        task_version=built_task.version,
        task_parameters=built_task.parameters(),
        seed=seed,
        **{
            name: _validated(name, lambda name=name, kind=kind: kind(**section(name)))
            for name, kind in SECTIONS.items()
        },
    )


def _validated(section: str, build: Any) -> Any:
    try:
        return build()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([section, *(str(part) for part in first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        value = f", got {first['input']!r}" if first["loc"] else ""
        raise SpecError(f"{name}: {message[:1].lower()}{message[1:]}{value}") from None


def public_fields(model: type[BaseModel]) -> list[str]:
    """The names by which the fields of a model are set."""
    return [field.alias or name for name, field in model.model_fields.items()]


def check_names(argument: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises :class:`SpecError` for an empty list or an unknown name."""
    names = list(names)
    choices = ", ".join(known)
    if not names:
        raise SpecError(f"{argument}: empty, choose from {choices}")
    for name in names:
        if name not in known:
            raise SpecError(f"{argument}: unknown name {name!r}, choose from {choices}")


def check_seeds(seeds: list[int]) -> None:
    """Raises :class:`SpecError` for an empty list or a negative seed."""
    if not seeds:
        raise SpecError("seeds: empty, give numbers such as 0,1,2 or a range such as 0-4")
    for seed in seeds:
        if seed < 0:
            raise SpecError(f"seeds: must not be negative, got {seed}")


def check_settings(settings: Mapping[str, list[Any]]) -> None:
    """Raises :class:`SpecError` for a setting that no section, method or task has."""
    owners: dict[str, type[BaseModel]] = {**SECTIONS, **METHODS, **TASKS}
    for name, values in settings.items():
        section, _, key = name.rpartition(".")
        if not values:
            raise SpecError(f"{name}: no value given")
        for value in values:
            if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
                raise SpecError(f"{name}: expected a finite number or a word, got {value}")
        if section and section not in owners:
            raise SpecError(f"{name}: unknown section {section!r}, choose from {', '.join(owners)}")
        known = (
            public_fields(owners[section])
            if section
            else sorted({field for method in METHODS.values() for field in public_fields(method)})
        )
        if key not in known:
            raise SpecError(f"{name}: unknown setting {key!r}, choose from {', '.join(known)}")


def parse_seeds(text: str) -> list[int]:
    """``0,1,2`` or ``0-4`` or both: ``0-2,7``."""
    seeds: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        numbers = [first, last] if dash else [first]
        if not all(number.isdecimal() and len(number) < 10 for number in numbers):
            raise SpecError(
                f"seeds: expected numbers such as 0,1,2 or a range such as 0-4, got {text!r}"
            )
        if dash and int(last) < int(first):
            raise SpecError(f"seeds: the range {part!r} is empty")
        if dash and int(last) - int(first) >= MAX_SEEDS:
            raise SpecError(f"seeds: at most {MAX_SEEDS} seeds a range, got {part!r}")
        seeds += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(seeds))


MAX_SEEDS = 100_000


def parse_values(text: str) -> list[Any]:
    """Comma-separated values: numbers, ``none`` or words."""
    return [_parse_value(part.strip()) for part in text.split(",") if part.strip()]


def _parse_value(text: str) -> Any:
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_config(path: Path) -> dict[str, Any]:
    """A TOML file as arguments of :class:`Spec`: tables are sections, lists are axes.

    Raises:
        SpecError: a file that cannot be read, or a key that does not exist.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"config: cannot read {path}: {error}") from None
    config: dict[str, Any] = {"settings": {}}
    for key, value in tables.items():
        if key == "seeds" and isinstance(value, str):
            config[key] = parse_seeds(value)
        elif key in ("methods", "tasks", "seeds"):
            config[key] = _checked_list(key, value, int if key == "seeds" else str)
        elif isinstance(value, dict):
            for name, setting in value.items():
                config["settings"][f"{key}.{name}"] = _as_list(setting)
        else:
            config["settings"][SHORTHANDS.get(key, key)] = _as_list(value)
    return config


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _checked_list(key: str, value: Any, kind: type) -> list[Any]:
    values = _as_list(value)
    if not all(type(item) is kind for item in values):
        raise SpecError(f"{key}: expected a list of {kind.__name__}, got {value!r}")
    return values


def suite_path(name: str) -> Path:
    """The file of a suite by its name.

    Raises:
        SpecError: an unknown suite.
    """
    known = {path.stem: path for path in sorted(SUITES.glob("*.toml"))}
    check_names("suite", [name], known)
    return known[name]
