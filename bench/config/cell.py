"""A cell: one method with its settings on one task and seed; the unit that is run and recorded."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from bench.config.settings import EvalSettings, TrainSettings
from datasets import TASKS, Task
from methods import METHODS, Method
from methods.networks import NetworkSettings
from methods.solvers import Solver


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
    plugins: dict[str, str] = {}  # that the result depends on: the file's name and source hash

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the hash of the cell."""
        return digest_of(as_json(self.model_dump(mode="json")))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with the id of what it is and not of what it was copied from."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("id", None)
        return copied

    @property
    def label(self) -> str:
        return f"{self.method} {self.task} seed {self.seed}"

    def build_task(self) -> Task:
        return TASKS[self.task](**self.task_parameters)

    def build_method(self) -> Method:
        return METHODS[self.method](**self.hyperparameters)


def digest_of(text: str) -> str:
    """Sixteen hexadecimal digits of the hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_json(value: Any) -> str:
    """A value, or a model, as JSON in which the order of names does not matter."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, allow_nan=False)
