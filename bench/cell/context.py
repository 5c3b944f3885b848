"""What the steps of a cell share: what is run, and where."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from bench.config.cell import Cell
from datasets import Distribution, Task
from datasets.base import Labelled
from datasets.exact import Components
from methods import Method

Notify = Callable[[str, int, int, float | None], None]
"""``notify(stage, step, steps, loss)``: where a cell stands."""


@dataclass(frozen=True)
class CellContext:
    """A cell and what it names."""

    cell: Cell
    method: Method
    task: Task
    source: Distribution  # all that the cell is trained and evaluated on is drawn from these
    target: Distribution

    @classmethod
    def of(cls, cell: Cell) -> "CellContext":
        """Builds what the cell names; for tuning, with the distributions for validation."""
        task = cell.build_task()
        source, target = task.source(), task.target()
        if cell.eval.split == "validation":
            source, target = (side.for_validation(cell.seed) for side in (source, target))
        return cls(cell, cell.build_method(), task, source, target)

    def skip(self) -> str | None:
        """Why the method cannot do the task, or None if it can."""
        if self.method.of_mixtures and self.mixtures() is None:
            return f"{self.method.name}: source or target is no mixture of Gaussians"
        return self.method.skip(self.target.dim, self.task.noise_source)

    def mixtures(self) -> tuple[Components, Components] | None:
        """Source and target as mixtures of Gaussians, where both are."""
        source, target = self.source.components(), self.target.components()
        return None if source is None or target is None else (source, target)

    def labelled(self) -> Labelled | None:
        """Labelled images for the classifier of metrics, none of which the cell is evaluated on."""
        if self.cell.eval.split == "validation":
            return self.task.labelled_for_validation(self.cell.seed)
        return self.task.labelled()

    @property
    def unused_network(self) -> tuple[str, ...]:
        """Settings of the network that make no difference to the method's model."""
        return self.method.unused_network(self.cell.network, self.target.dim)

    @cached_property
    def task_digest(self) -> str:
        """Hash of the task's data: where it is another, so is the result."""
        return self.task.digest()


class Saving(NamedTuple):
    """When training is saved."""

    every: int | None = None  # steps between two checkpoints; None for one every few minutes
    written: Callable[[], None] = lambda: None  # called after each checkpoint


class RunContext(NamedTuple):
    """Where a cell runs, and who is notified."""

    folder: Path
    device: torch.device
    notify: Notify
    saving: Saving
    fid_weights: str | None  # the weight file of pytorch-fid; None for its usual place
    features: str | None = None  # the TorchScript file of a network of the user's
