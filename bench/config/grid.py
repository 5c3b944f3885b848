"""The configuration of a run, and the grid of cells it describes.

Settings are named ``section.key``: ``train.lr``, ``efm.points``, ``gaussian_to_8gaussians.std``.
A bare key (``L``, ``sigma``) is for every method that has a hyperparameter of that name. Every
setting has a list of values; more than one makes an axis of the grid.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from bench.config.cell import Cell
from bench.config.errors import SpecError, check_names, validated
from bench.config.plugins import used_by
from bench.config.settings import SECTIONS, TRAINING, public_fields
from bench.config.values import MAX_CELLS, check_seeds, checked_settings
from datasets import TASKS, Task
from methods import METHODS, Method
from methods.networks import NetworkSettings

T = TypeVar("T")


class Variation(BaseModel):
    """Another grid of the same run: what it has in place of the run's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: list[str] | None = None
    tasks: list[str] | None = None
    seeds: list[int] | None = None
    settings: dict[str, list[Any]] = {}


class Spec(BaseModel):
    """What a run is made of; :meth:`cells` is its grid, and those of its variations.

    One factor at a time is a grid of one point with a variation for each factor. A run may have
    variations alone, with methods of their own.
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
        _check_registered()
        specs = self.specs()[0 if self.methods or not self.vary else 1 :]
        grids = [grid for spec in specs for grid in spec._grids()]
        size = sum(grid.size for grid in grids)
        if size > MAX_CELLS:
            raise SpecError(
                f"the grid has {size} cells, at most {MAX_CELLS} are possible:"
                " give fewer seeds or values"
            )
        return list({cell.id: cell for grid in grids for cell in grid.cells()}.values())

    def ignored(self, settings: Iterable[str]) -> list[str]:
        """A line for each of these settings that concerns no cell of the run."""
        specs = self.specs()
        methods = list(dict.fromkeys(method for spec in specs for method in spec.methods))
        tasks = list(dict.fromkeys(task for spec in specs for task in spec.tasks))
        lines = []
        for name in settings:
            section = name.rpartition(".")[0]
            if section in METHODS and section not in methods:
                lines.append(f"{name}: {section} is none of the methods, it is ignored")
            elif section in TASKS and section not in tasks:
                lines.append(f"{name}: {section} is none of the tasks, it is ignored")
            elif section not in TASKS and not any(concerns(name, method) for method in methods):
                known = ", ".join(methods)
                lines.append(f"{name}: none of the methods {known} has it, it is ignored")
        return lines

    def specs(self) -> list["Spec"]:
        """The run's own grid, and those of its variations in their order, as runs of their own."""
        specs = [self.model_copy(update={"vary": []})]
        for variation in self.vary:
            changed = variation.model_dump(exclude_none=True)
            changed["settings"] = {**self.settings, **variation.settings}
            specs.append(specs[0].model_copy(update=changed))
        return specs

    def _grids(self) -> list["_Grid"]:
        check_names("methods", self.methods, METHODS)
        check_names("tasks", self.tasks, TASKS)
        check_seeds(self.seeds)
        settings = checked_settings(self.settings)
        return [
            _Grid(method, task, settings, list(dict.fromkeys(self.seeds)))
            for task in dict.fromkeys(self.tasks)
            for method in dict.fromkeys(self.methods)
        ]


def concerns(name: str, method: str) -> bool:
    """Whether a setting, of the method, of a section or bare, makes a difference to a method."""
    section, _, key = name.rpartition(".")
    if not section:
        return key in public_fields(METHODS[method])
    if section in TRAINING:
        return METHODS[method].trained
    return section == method or section in SECTIONS


def own_settings(settings: Mapping[str, T], method: str) -> dict[str, T]:
    """The settings that concern a method, each with its section; ``efm.L`` overrides ``L``."""
    own: dict[str, T] = {}
    for name, value in settings.items():
        if concerns(name, method):
            if "." in name:
                own[name] = value
            else:
                own.setdefault(f"{method}.{name}", value)
    return own


class _Grid:
    """The cells of one method on one task.

    Many cells have few different sections, and validation is most of what a cell costs: a section
    is built once for each combination of its own values.
    """

    def __init__(
        self, method: str, task: str, settings: Mapping[str, list[Any]], seeds: list[int]
    ) -> None:
        self.method, self.task, self.seeds = method, task, seeds
        self.axes = own_settings(settings, method)
        self.axes |= {name: v for name, v in settings.items() if name.rpartition(".")[0] == task}
        self.size = math.prod(len(values) for values in self.axes.values()) * len(seeds)

    def cells(self) -> Iterator[Cell]:
        """The cells in the order settings, seed."""
        plugins = used_by(METHODS[self.method], TASKS[self.task])
        own = {"method": self.method, "task": self.task, "plugins": plugins}
        tasks, methods = self._made(self.task), self._made(self.method)
        sections = {name: self._made(name) for name in SECTIONS}
        for task, method in itertools.product(tasks, methods):
            own |= {"task_version": task.version, "task_parameters": task.parameters()}
            own |= {"hyperparameters": method.hyperparameters()}
            used = dict.fromkeys(_used(one, method, task) for one in sections["network"])
            for parts in itertools.product(*(sections | {"network": list(used)}).values()):
                fields = own | dict(zip(SECTIONS, parts, strict=True))
                yield from (Cell(seed=seed, **fields) for seed in self.seeds)

    def _made(self, name: str) -> list[Any]:
        """The task, the method or a section for each combination of its own values."""
        own = {
            axis.removeprefix(f"{name}."): values
            for axis, values in self.axes.items()
            if axis.startswith(f"{name}.")
        }
        every = (dict(zip(own, values, strict=True)) for values in itertools.product(*own.values()))
        return [validated(name, functools.partial(self._make, name, one)) for one in every]

    def _make(self, name: str, settings: dict[str, Any]) -> BaseModel:
        if name in SECTIONS:
            return SECTIONS[name](**settings)
        task = TASKS[self.task]
        if name == self.task:
            return task(**settings)
        return METHODS[self.method].create(
            task.dim, task.noise_source, task.data_set_source, **settings
        )


def _used(network: NetworkSettings, method: Method, task: Task) -> NetworkSettings:
    """Without what makes no difference to the task's network or the method: a cell has one id.

    Raises:
        SpecError: an architecture that is not for samples of the task's shape.
    """
    if network == NetworkSettings():
        return network
    try:
        used = network.used(*task.shape)
        return used.without(method.unused_network(used, math.prod(task.shape)))
    except ValueError as error:
        raise SpecError(f"network.architecture: {task.name}: {error}") from None


def _check_registered() -> None:
    """Raises for a name, registered by a plug-in, that no setting or path can hold."""
    names = [*SECTIONS, *METHODS, *TASKS]
    for name in names:
        if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise SpecError(f"name {name!r}: expected letters, digits, _ and - only")
        if names.count(name) > 1:
            raise SpecError(f"name {name!r}: given to two of the sections, methods and tasks")
