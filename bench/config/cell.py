"""A cell: one method with its settings on one task and seed; the unit that is run and recorded."""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from bench.config.settings import EvalSettings, TrainSettings
from datasets import TASKS, Task
from datasets.base import digest_of
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
        plain = self.model_dump(mode="json")
        return digest_of([json.dumps(plain, sort_keys=True, allow_nan=False)])[:16]

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
