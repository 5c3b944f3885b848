"""Checkpoints of a training: a killed run goes on from its last one as if nothing had happened.

A file holds weights, their average, the state of Adam, the losses so far, the snapshots, and where
all random streams stand; so the steps that follow are, on the same device with the same number of
threads, those that an uninterrupted run would have taken.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.folder import StorageError, write_atomically
from bench.provenance import code_hash

FORMAT = "1"
SECONDS = 300.0
"""Between two checkpoints, where no number of steps is given: shorter trainings write none."""
LAST_SECONDS = 60.0
"""Before the one of the last step."""
GENERAL = "random.torch"
"""torch's own generators: dropout draws from them."""


class Source(Protocol):
    """Anything random: a generator of torch, or a :class:`~datasets.base.Stream`."""

    def get_state(self) -> Tensor:
        """Where it stands."""

    def set_state(self, state: Tensor, /) -> Any:
        """Puts it there."""


class Saved(NamedTuple):
    """What a checkpoint holds."""

    step: int
    seconds: float  # of training
    tensors: dict[str, Tensor]


class Checkpoints:
    """Where the checkpoint of one training lies, and when it is written.

    Args:
        path: the file.
        every: steps between two; None for one every ``SECONDS``.
        device: a checkpoint of another kind of device is not taken up: its streams differ.
        sources: what training draws from, by name.
        written: called after each.
    """

    def __init__(
        self,
        path: Path,
        every: int | None,
        device: torch.device,
        sources: Mapping[str, Source],
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.every, self.device = path, every, device
        self.sources, self.written = sources, written
        self.last = time.monotonic()

    def due(self, step: int, last: bool) -> bool:
        """Whether ``step`` steps must be saved; without a number of steps, whether it is time.

        The last step is saved too: what comes after training may fail.
        """
        if self.every is not None:
            return last or step % self.every == 0
        return time.monotonic() - self.last >= (LAST_SECONDS if last else SECONDS)

    def save(self, step: int, seconds: float, tensors: Mapping[str, Tensor]) -> None:
        """Writes a checkpoint in place of the last one, which stays if that fails."""
        random = {f"random.{name}": source.get_state() for name, source in self.sources.items()}
        random |= {f"{GENERAL}.{kind}": state for kind, state in self._general().items()}
        content = {name: value.cpu().contiguous() for name, value in {**tensors, **random}.items()}
        origin = {**self._origin(), "step": str(step), "seconds": repr(seconds)}
        self.last = time.monotonic()
        try:
            write_atomically(self.path, safetensors.torch.save(content, origin))
        except StorageError as error:  # training may come to its end without
            print(f"no checkpoint of step {step}: {error}")
        else:
            self.written()

    def load(self) -> Saved | None:
        """The last checkpoint; None if there is none, or one of other code or another device."""
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                origin = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step, seconds = int(origin.pop("step")), float(origin.pop("seconds"))
        except (OSError, ValueError, KeyError, safetensors.SafetensorError):
            return None
        here = self._origin()
        other = [name for name in here if origin.get(name) != here[name]]
        if other:
            print(f"the checkpoint of step {step} is not taken up: other {', '.join(other)}")
            return None
        return Saved(step, seconds, tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts all random streams to where they were."""
        for name, source in self.sources.items():
            source.set_state(tensors[f"random.{name}"])
        torch.set_rng_state(tensors[f"{GENERAL}.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"{GENERAL}.cuda"], self.device)

    def _general(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _origin(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "torch": str(torch.__version__),
            "device": self.device.type,
            "code": code_hash(),
        }
