"""The configuration of a run, and the grid of cells it describes.

Settings are named ``section.key``: ``train.lr``, ``efm.points``, ``gaussian_to_8gaussians.std``.
A bare key (``L``, ``sigma``) is for every method that has a hyperparameter of that name. Every
setting has a list of values; more than one makes an axis of the grid.
"""

import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.records import TAKEN, is_diagnostic
from bench.train import TrainSettings
from datasets import TASKS, Task
from datasets.base import Draws
from methods import METHODS, Method
from methods.networks import NetworkSettings
from methods.solvers import Solver

T = TypeVar("T")

SUITES = Path(__file__).parent / "suites"
DEFAULT_SUITE = "default"

MAX_CELLS = 100_000
"""Cells of a grid and values of an axis: far more than anyone runs, far less than memory holds."""
MAX_SEED = 10**9 - 1
MAX_CONFIG_BYTES = 1_000_000
MAX_MESSAGE = 2000


class SpecError(ValueError):
    """A mistake of the user: one line that names the argument, the value and the choices.

    Values come from command lines and files and may hold anything: what is not printable is
    escaped, and of a long message the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shortened(printable(message)))


def printable(text: str) -> str:
    """Text in which what could move a terminal's cursor is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _shortened(text: str) -> str:
    half = (MAX_MESSAGE - len(" ... ")) // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}"


class EvalSettings(BaseModel):
    """What a cell is judged on: ``n`` held-out samples, drawn with low variance or independently.

    Data sets with fewer held-out samples are judged on what they have. Optimal transport holds 40
    bytes a pair in memory, 160 MB for 2,000 samples and 16 GB at the largest ``n``. ``metrics =
    main`` keeps W2, its sliced form, the energy distance, the Fréchet distance and the costs alone,
    for sweeps of thousands of cells. Intervals are made of ``replicates`` parts of the samples; 0
    for no intervals. With ``curve`` = k the trained model is also judged with 1/2, 1/4, ... 1/2^k
    of the solver's steps, and as it was after 1/2, 1/4, ... 1/2^k of the training: quality against
    cost, from one run. With ``fid_n`` images of a task that starts at noise have ``fid_train`` too:
    that many fresh samples beside the whole training set, as in the papers with 50,000.

    ``split = validation`` is for tuning: other samples, that the test never sees. Of a data set
    they are a part of the training samples, on which the cell is then not trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(2000, ge=5, le=20_000)
    draws: Draws = "low_variance"
    metrics: Literal["all", "main"] = "all"
    replicates: int = Field(10, ge=0, le=1000)
    curve: int = Field(0, ge=0, le=12)
    fid_n: int = Field(0, ge=0, le=1_000_000)
    split: Literal["test", "validation"] = "test"

    @field_validator("fid_n")
    @classmethod
    def _has_a_covariance(cls, fid_n: int) -> int:
        if fid_n == 1:
            raise ValueError("one sample has no covariance; 0 for none, or 2 and more")
        return fid_n


SHORTHANDS = {"steps": "train.steps", "batch": "train.batch"}
"""Settings that may be named without their section."""

SECTIONS: dict[str, type[BaseModel]] = {
    "train": TrainSettings,
    "network": NetworkSettings,
    "sample": Solver,
    "eval": EvalSettings,
}


TRAINING = ["train", "network"]
"""Sections that a method with nothing to learn does not depend on: it has their defaults."""


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
        return _hash(_json(self.model_dump(mode="json")))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with the id of what it is and not of what it was copied from."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("id", None)
        return copied

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


class Variation(BaseModel):
    """Another grid of the same run: what it has in place of the run's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: list[str] | None = None
    tasks: list[str] | None = None
    seeds: list[int] | None = None
    settings: dict[str, list[Any]] = {}


class Spec(BaseModel):
    """What a run is made of; :meth:`cells` is its grid, and those of its variations.

    One factor at a time is a grid of one point with a variation for each factor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: list[str]
    tasks: list[str]
    seeds: list[int]
    settings: dict[str, list[Any]] = {}
    vary: list[Variation] = []

    def cells(self) -> list[Cell]:
        """The cells of the grids, each once, in the order task, method, settings, seed.

        Raises:
            SpecError: an unknown name, too many cells, or a value that a method, task or section
                refuses.
        """
        check_registered()
        specs = [self, *(self._varied(variation) for variation in self.vary)]
        grids = [
            (grid, list(dict.fromkeys(spec.seeds))) for spec in specs for grid in spec._grids()
        ]
        check_size(sum(grid.size * len(seeds) for grid, seeds in grids))
        return list({cell.id: cell for grid, seeds in grids for cell in grid.cells(seeds)}.values())

    def variation(self, number: int) -> "Spec":
        """The grid of a variation as a run of its own."""
        return self._varied(self.vary[number]).model_copy(update={"vary": []})

    def _varied(self, variation: Variation) -> "Spec":
        changed = variation.model_dump(exclude_none=True)
        changed["settings"] = {**self.settings, **variation.settings}
        return self.model_copy(update=changed)

    def _grids(self) -> list["_Grid"]:
        check_names("methods", self.methods, METHODS)
        check_names("tasks", self.tasks, TASKS)
        check_seeds(self.seeds)
        settings = checked_settings(self.settings)
        return [
            _Grid(method, task, settings)
            for task in dict.fromkeys(self.tasks)
            for method in dict.fromkeys(self.methods)
        ]


class _Part(NamedTuple):
    """Some fields of a cell, and their JSON."""

    fields: dict[str, Any]
    texts: dict[str, str]


class _Section:
    """The fields of a cell that one section of the settings determines.

    A grid repeats a few sections in many cells. Validation and JSON are what a cell costs, so
    both are done once for each combination of values that the section has.
    """

    def __init__(
        self, name: str, axes: Mapping[str, list[Any]], build: Callable[..., dict[str, Any]]
    ) -> None:
        self.name, self.build = name, build
        self.own = {
            place: (axis.removeprefix(f"{name}."), values)
            for place, (axis, values) in enumerate(axes.items())
            if axis.startswith(f"{name}.")
        }
        self.parts: dict[tuple[int, ...], _Part] = {}

    def part(self, point: tuple[int, ...]) -> _Part:
        """The fields at a point of the grid: for each axis, the place of its value."""
        # By place and not by value: 1, 1.0 and True are the same key, but need not be one setting.
        key = tuple(point[place] for place in self.own)
        if key not in self.parts:
            self.parts[key] = self._part(key)
        return self.parts[key]

    def _part(self, key: tuple[int, ...]) -> _Part:
        chosen = zip(self.own.values(), key, strict=True)
        settings = {axis: values[place] for (axis, values), place in chosen}
        fields = validated(self.name, lambda: self.build(**settings))
        return _Part(fields, {name: _json(value) for name, value in fields.items()})


class _Grid:
    """The cells of one method on one task."""

    def __init__(self, method: str, task: str, settings: Mapping[str, list[Any]]) -> None:
        self.method, self.task = method, task
        self.axes = _axes(method, task, settings)
        self.size = math.prod(len(values) for values in self.axes.values())
        self.networks: dict[tuple[str, str], tuple[NetworkSettings, str]] = {}

    def cells(self, seeds: list[int]) -> Iterator[Cell]:
        """The cells in the order settings, seed."""
        sections = self._sections()
        for point in itertools.product(*(range(len(values)) for values in self.axes.values())):
            fields: dict[str, Any] = {"method": self.method, "task": self.task}
            texts = {name: _json(value) for name, value in fields.items()}
            for section in sections:
                part = section.part(point)
                fields |= part.fields
                texts |= part.texts
            self._without_idle(fields, texts)
            for seed in seeds:
                cell = Cell(seed=seed, **fields)
                texts["seed"] = _json(seed)
                # Where cached_property keeps it: the hash of the same text, put together of parts.
                vars(cell)["id"] = _hash(_json_object(texts))
                yield cell

    def _without_idle(self, fields: dict[str, Any], texts: dict[str, str]) -> None:
        """Sets what the network of the task does not have back: else a cell had two ids."""
        network = fields["network"]
        if network == NetworkSettings():
            return
        key = texts["network"], texts["task_parameters"]
        if key not in self.networks:
            shape = TASKS[self.task](**fields["task_parameters"]).shape
            used = network.used(*shape)
            self.networks[key] = used, _json(used)
        fields["network"], texts["network"] = self.networks[key]

    def _sections(self) -> list[_Section]:
        task, method = TASKS[self.task], METHODS[self.method]

        def task_fields(**settings: Any) -> dict[str, Any]:
            built = task(**settings)
            return {"task_version": built.version, "task_parameters": built.parameters()}

        def method_fields(**settings: Any) -> dict[str, Any]:
            built = method.create(task.dim, task.noise_source, **settings)
            return {"hyperparameters": built.hyperparameters()}

        def fields_of(name: str) -> Callable[..., dict[str, Any]]:
            return lambda **settings: {name: SECTIONS[name](**settings)}

        builders = {self.task: task_fields, self.method: method_fields}
        builders |= {name: fields_of(name) for name in SECTIONS}
        return [_Section(name, self.axes, build) for name, build in builders.items()]


def _axes(method: str, task: str, settings: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The settings that concern a method on a task, with their sections."""
    axes: dict[str, list[Any]] = {}
    sections = [name for name in SECTIONS if METHODS[method].trained or name not in TRAINING]
    for name, values in settings.items():
        section, _, _ = name.rpartition(".")
        if not section and name in public_fields(METHODS[method]):
            axes.setdefault(f"{method}.{name}", values)  # efm.L goes before L
        elif section in (method, task, *sections):
            axes[name] = values
    return axes


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _json(value: Any) -> str:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, allow_nan=False)


def _json_object(texts: Mapping[str, str]) -> str:
    """What :func:`_json` gives for a dictionary, from the JSON of its values."""
    return "{" + ", ".join(f'"{name}": {text}' for name, text in sorted(texts.items())) + "}"


def validated(section: str, build: Callable[[], T]) -> T:
    """What ``build`` gives; a value that pydantic refuses becomes a :class:`SpecError`."""
    try:
        return build()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in (section, *first["loc"]) if part != "")
        message = first["msg"].removeprefix("Value error, ")
        value = f", got {_shown(first['input'])}" if first["loc"] else ""
        raise SpecError(f"{name}: {message[:1].lower()}{message[1:]}{value}") from None


def public_fields(model: type[BaseModel]) -> list[str]:
    """The names by which the fields of a model are set."""
    return [field.alias or name for name, field in model.model_fields.items()]


def check_registered() -> None:
    """Raises :class:`SpecError` for a name of a method or task that no setting or path can hold.

    A file of the user's may register any.
    """
    names = [*SECTIONS, *METHODS, *TASKS]
    for name in names:
        if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise SpecError(f"name {name!r}: expected letters, digits, _ and - only")
        if names.count(name) > 1:
            raise SpecError(f"name {name!r}: given to two of the sections, methods and tasks")
    common = TAKEN.union(*(public_fields(section) for section in SECTIONS.values()))
    for owner, kind in [*METHODS.items(), *TASKS.items()]:
        for field in common.intersection(public_fields(kind)):
            raise SpecError(
                f"{owner}.{field}: every table has a column of that name, choose another"
            )
        for field in filter(is_diagnostic, public_fields(kind)):
            raise SpecError(f"{owner}.{field}: diagnostics are named like that, choose another")


def check_names(argument: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises :class:`SpecError` for an empty list or an unknown name."""
    names = list(names)
    choices = ", ".join(known)
    if not names:
        raise SpecError(f"{argument}: empty, choose from {choices}")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise SpecError(f"{argument}: unknown name {name!r}, choose from {choices}")


def check_seeds(seeds: list[int]) -> None:
    """Raises :class:`SpecError` for an empty list, too many seeds or one out of range."""
    if not seeds:
        raise SpecError("seeds: empty, give numbers such as 0,1,2 or a range such as 0-4")
    if len(seeds) > MAX_CELLS:
        raise SpecError(f"seeds: at most {MAX_CELLS} seeds, got {len(seeds)}")
    for seed in seeds:
        if seed < 0:
            raise SpecError(f"seeds: must not be negative, got {_shown(seed)}")
        if seed > MAX_SEED:
            raise SpecError(f"seeds: must be at most {MAX_SEED}, got {_shown(seed)}")


def check_size(cells: int) -> None:
    """Raises :class:`SpecError` for a grid of too many cells."""
    if cells > MAX_CELLS:
        raise SpecError(
            f"the grid has {cells} cells, at most {MAX_CELLS} are possible:"
            " give fewer seeds or values"
        )


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
            raise SpecError(f"{name}: unknown section {section!r}, choose from {', '.join(owners)}")
        known = public_fields(owners[section]) if dot else anywhere
        if key not in known:
            raise SpecError(f"{name}: unknown setting {key!r}, choose from {', '.join(known)}")
        if not values:
            raise SpecError(f"{name}: no value given")
    return {name: [_checked_value(name, v) for v in values] for name, values in settings.items()}


def _checked_value(name: str, value: Any) -> str | int | float | None:
    parsed = _parse_value(value) if isinstance(value, str) else value
    if parsed is None or isinstance(parsed, str):
        return parsed
    if isinstance(value, str | float) and value in ("inf", math.inf):
        return "inf"  # a word: JSON has no such number
    number = None if isinstance(parsed, bool) else _finite(parsed)
    if number is None:
        raise SpecError(f"{name}: expected a finite number or a word, got {_shown(value)}")
    return number + 0  # -0.0 + 0 is 0.0: one cell, one id


def _finite(value: Any) -> int | float | None:
    """A number, of numpy too, as one of Python; None for anything else."""
    try:
        if isinstance(value, Integral):
            return int(value) if math.isfinite(value) else None
        if isinstance(value, Real):
            return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        pass
    return None


def _shown(value: Any) -> str:
    """``repr``, for any value of a user."""
    try:
        return repr(value)
    except (ValueError, RecursionError):  # Python prints no integer of more than 4300 digits
        return f"a {type(value).__name__} that is too large to print"


def parse_seeds(text: str) -> list[int]:
    """``0,1,2`` or ``0-4`` or both: ``0-2,7``."""
    seeds: dict[int, None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        numbers = [first, last] if dash else [first]
        if not all(re.fullmatch("[0-9]{1,9}", number) for number in numbers):
            raise SpecError(
                f"seeds: expected numbers such as 0,1,2 or a range such as 0-4, got {text!r}"
            )
        given = range(int(first), int(last if dash else first) + 1)
        if not given:
            raise SpecError(f"seeds: the range {part!r} is empty")
        if len(given) + len(seeds) > MAX_CELLS:
            raise SpecError(f"seeds: at most {MAX_CELLS} seeds, got {text!r}")
        seeds |= dict.fromkeys(given)
    return list(seeds)


def parse_values(text: str) -> list[Any]:
    """Comma-separated values: numbers, ``none`` or words."""
    return [_parse_value(part.strip()) for part in text.split(",") if part.strip()]


def _parse_value(text: str) -> Any:
    if text.lower() == "none":
        return None
    if not text.isascii():
        return text  # Python takes the digits of every script for a number
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_config(path: Path) -> dict[str, Any]:
    """A TOML file as arguments of :class:`Spec`: tables are sections, lists are axes.

    Tables ``[[vary]]`` are variations, each with methods, tasks, seeds and settings.

    Raises:
        SpecError: a file that cannot be read, or a key that does not exist.
    """
    try:
        tables = tomllib.loads(_read(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"config: cannot read {path}: {error}") from None
    variations = tables.pop("vary", [])
    if not isinstance(variations, list) or not all(isinstance(one, dict) for one in variations):
        raise SpecError(f"vary: expected tables [[vary]], got {_shown(variations)}")
    return {**_config(tables), "vary": [_config(one) for one in variations]}


def _config(tables: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"settings": {}}
    for key, value in tables.items():
        if key == "seeds" and isinstance(value, str):
            config[key] = parse_seeds(value)
        elif key in ("methods", "tasks", "seeds"):
            config[key] = _checked_list(key, value, int if key == "seeds" else str)
        elif isinstance(value, dict):
            for name, setting in value.items():
                setting_name = f"{key}.{name}"
                config["settings"][setting_name] = as_list(setting_name, setting)
        else:
            config["settings"][SHORTHANDS.get(key, key)] = as_list(key, value)
    return config


def merge(base: dict[str, Any], over: dict[str, Any]) -> Spec:
    """Two configurations as one: what ``over`` gives goes before, in variations of ``base`` too."""
    given = over.get("settings", {})
    merged = {**base, **over, "settings": {**base.get("settings", {}), **given}}
    merged["vary"] = over.get("vary") or [
        {
            **{key: value for key, value in variation.items() if key not in over},
            "settings": {k: v for k, v in variation.get("settings", {}).items() if k not in given},
        }
        for variation in base.get("vary", [])
    ]
    return validated("", lambda: Spec(**merged))


def _read(path: Path) -> bytes:
    """A file of at most ``MAX_CONFIG_BYTES``: a device such as /dev/zero has no end."""
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise ValueError(f"more than {MAX_CONFIG_BYTES} bytes")
    return content


def folder_name(config: Path) -> str:
    """The name of a configuration file without its ending, as that of a folder.

    Raises:
        SpecError: a name that leads elsewhere, such as that of ``...toml``, or that is hidden.
    """
    if not re.fullmatch(r"\w[\w .+-]*", config.stem):
        raise SpecError(f"config: no folder can be named after {str(config)!r}, give one with out")
    return config.stem


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


def _checked_list(key: str, value: Any, kind: type) -> list[Any]:
    values = as_list(key, value)
    if not all(type(item) is kind for item in values):
        raise SpecError(f"{key}: expected a list of {kind.__name__}, got {_shown(value)}")
    return values


def suite_path(name: str) -> Path:
    """The file of a suite by its name.

    Raises:
        SpecError: an unknown suite.
    """
    known = {path.stem: path for path in sorted(SUITES.glob("*.toml"))}
    check_names("suite", [name], known)
    return known[name]
