"""Checkpoints of a training: a killed run resumes from its last one as if nothing had happened.

A file holds the state dicts of model, average, optimiser and scheduler, the losses so far, the
snapshots, and where all random streams stand; so the steps that follow are, on the same device with
the same number of threads, those that an uninterrupted run would have taken.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.cell.context import Saving
from bench.store.folder import StorageError, write_atomically
from bench.store.provenance import code_hash
from datasets import Stream

FORMAT = "2"
# Between two checkpoints, and before that of the last step, where no number of steps is given.
SECONDS, LAST_SECONDS = 300.0, 60.0

State = dict[str, Any]
"""Tensors, numbers, words and None in dicts and lists; keys come back as words."""


@dataclass
class Checkpoints:
    """Where the checkpoint of one training lies, and when it is written."""

    path: Path
    saving: Saving
    device: torch.device  # not resumed from one of another kind of device: its streams differ
    sources: Mapping[str, torch.Generator | Stream]  # what training draws from, by name
    task_digest: str = ""  # nor from one of other data
    last: float = field(default_factory=time.monotonic)  # when the last one was written

    def due(self, step: int, last: bool) -> bool:
        """Whether ``step`` steps must be saved; without a number of steps, whether it is time.

        The last step is saved too: what comes after training may fail.
        """
        if self.saving.every is not None:
            return last or step % self.saving.every == 0
        return time.monotonic() - self.last >= (LAST_SECONDS if last else SECONDS)

    def save(self, step: int, training: State) -> None:
        """Writes a checkpoint in place of the last one, which stays if that fails."""
        streams = {name: source.get_state() for name, source in self.sources.items()}
        state: State = {"training": training, "streams": streams, "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        tensors, text = packed(state)
        self.last = time.monotonic()
        try:
            content = safetensors.torch.save(tensors, {**self._origin(), "state": text})
            write_atomically(self.path, content)
        except StorageError as error:  # training may come to its end without
            print(f"no checkpoint of step {step}: {error}")
        else:
            self.saving.written()

    def load(self) -> State | None:
        """The last checkpoint; None if there is none, or one of other code, data or device."""
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                origin = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = unpacked(tensors, origin["state"])
        except (OSError, ValueError, KeyError, safetensors.SafetensorError):
            return None
        if other := [name for name, here in self._origin().items() if origin.get(name) != here]:
            print(f"training does not resume from its checkpoint: other {', '.join(other)}")
            return None
        return state

    def restore(self, state: State) -> None:
        """Puts all random streams to where they were, torch's own too: dropout draws from them."""
        for name, source in self.sources.items():
            source.set_state(state["streams"][name])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def _origin(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "torch": str(torch.__version__),
            "device": self.device.type,
            "code": code_hash(),
            "task": self.task_digest,
        }


def packed(state: State) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state by number, and the rest as JSON that names them: nothing pickled."""
    tensors: dict[str, Tensor] = {}

    def named(tensor: Tensor) -> dict[str, str]:
        name = str(len(tensors))
        tensors[name] = tensor.cpu().contiguous()
        return {"tensor": name}

    return tensors, json.dumps(state, default=named)


def unpacked(tensors: Mapping[str, Tensor], text: str) -> State:
    """The state of which :func:`packed` made these."""

    def found(part: State) -> Any:
        return tensors[part["tensor"]] if part.keys() == {"tensor"} else part

    state: State = json.loads(text, object_hook=found)
    return state
