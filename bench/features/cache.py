"""Tensors kept between cells under the hash of what they were made of.

A file that is corrupt, or a folder that cannot be written, costs time and nothing else. Of several
writers one wins, and all are right.
"""

import contextlib
from collections.abc import Callable

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


def kept(name: str, make: Callable[[], Tensors]) -> Tensors:
    """The tensors stored under ``name``; where there are none, ``make`` returns what is stored."""
    path = cache_folder() / "features" / f"{name}.safetensors"
    # No file, or a corrupt one.
    with contextlib.suppress(OSError, safetensors.SafetensorError, ValueError):
        with safetensors.safe_open(path, "pt") as file:
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            digest = (file.metadata() or {}).get(DIGEST)
        if digest == tensors_digest(stored):
            return stored
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in make().items()}
    with contextlib.suppress(OSError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = safetensors.torch.save(tensors, {DIGEST: tensors_digest(tensors)})
        write_atomically(path, content)
    return tensors
