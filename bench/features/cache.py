"""Tensors kept between cells under the hash of what they were made of.

A file that is corrupt, or a folder that cannot be written, costs time and nothing else. Of several
writers one wins, and all are right.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from bench.store.folder import StorageError, write_atomically
from datasets.base import digest_of
from datasets.cache import cache_folder

DIGEST = "digest"
Tensors = dict[str, Tensor]


def tensors_digest(tensors: Tensors) -> str:
    """:func:`digest_of` named tensors, in the order of their names."""
    return digest_of(part for name in sorted(tensors) for part in (name, tensors[name]))


def stored(path: Path) -> Tensors:
    """The tensors of a file; a ValueError or OSError if they are not what was written there."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            digest = (file.metadata() or {}).get(DIGEST)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name} is corrupt: {error}") from None
    if digest != tensors_digest(tensors):
        raise ValueError(f"{path.name} is corrupt: it has another digest")
    return tensors


def store(path: Path, tensors: Tensors) -> None:
    """Writes tensors with their digest; a StorageError if that fails."""
    write_atomically(path, safetensors.torch.save(tensors, {DIGEST: tensors_digest(tensors)}))


def kept(name: str, make: Callable[[], Tensors]) -> Tensors:
    """The tensors stored under ``name``; where there are none, ``make`` returns what is stored."""
    path = cache_folder() / "features" / f"{name}.safetensors"
    with contextlib.suppress(OSError, ValueError):  # no file, or a corrupt one
        return stored(path)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
    with contextlib.suppress(OSError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        store(path, tensors)
    return tensors
