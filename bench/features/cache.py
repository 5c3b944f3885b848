"""Tensors kept between cells under the hash of what they were made of.

The cache is a convenience: a file that is spoiled, or a folder that cannot be written, costs time
and nothing else. Writers may be many: a file is the old one or the new one, and both are right.
"""

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from bench.folder import StorageError, write_atomically
from datasets.cache import cache_folder

FOLDER = "features"
DIGEST = "digest"
Metadata = dict[str, str]


def digest_of(parts: Iterable[bytes | str | Tensor]) -> str:
    """sha256 of these, 64 characters; of tensors with shape and type."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            part = part.detach().cpu().contiguous().numpy().tobytes()
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """:func:`digest_of` named tensors, in the order of their names."""
    return digest_of(part for name in sorted(tensors) for part in (name, tensors[name]))


def load(name: str) -> tuple[dict[str, Tensor], Metadata] | None:
    """The tensors stored under ``name`` and what was noted with them; None if they are not whole.

    A flipped bit is found by the digest that stands beside them.
    """
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
    return cache_folder() / FOLDER / f"{name}.safetensors"
