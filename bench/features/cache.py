"""Tensors kept between cells under the hash of what they were made of.

A file that is corrupt, or a folder that cannot be written, costs time and nothing else. Of several
writers one wins, and all are right.
"""

import contextlib
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from bench.store.folder import StorageError, write_atomically
from datasets.base import digest_of
from datasets.cache import cache_folder

DIGEST = "digest"
Metadata = dict[str, str]


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """:func:`digest_of` named tensors, in the order of their names."""
    return digest_of(part for name in sorted(tensors) for part in (name, tensors[name]))


def load(name: str) -> tuple[dict[str, Tensor], Metadata] | None:
    """The tensors stored under ``name`` and their metadata; None if they differ from their hash."""
    try:
        with safetensors.safe_open(_path(name), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, ValueError):
        return None
    return (tensors, metadata) if metadata.get(DIGEST) == tensors_digest(tensors) else None


def store(name: str, tensors: dict[str, Tensor], metadata: Metadata) -> None:
    """Stores tensors under ``name``, if the folder can be written."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    noted = {**metadata, DIGEST: tensors_digest(tensors)}
    with contextlib.suppress(OSError, StorageError):
        _path(name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_path(name), safetensors.torch.save(tensors, noted))


def _path(name: str) -> Path:
    return cache_folder() / "features" / f"{name}.safetensors"
