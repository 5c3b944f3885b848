"""The cache: what takes long to make, is kept on disk and can be made again at any time."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

CACHE = "BENCH_CACHE"  # the environment variable that names another folder
Bytes = NDArray[np.uint8]


def cache_folder() -> Path:
    """``BENCH_CACHE``, else ``field-matching-bench`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    The folder may not exist, and everything in it can be removed at any time.
    """
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(usual) / "field-matching-bench"


def cached_rows(name: str, shape: tuple[int, int], make: Callable[[], Iterable[Bytes]]) -> Tensor:
    """The rows that ``make`` yields, uint8 of a shape, mapped from a file of the cache if possible.

    A corrupt file is made again; where none can be written the rows are in memory. Of several
    processes one makes the file and the others wait. ``name`` says all that the rows depend on.
    """
    path = cache_folder() / f"{name}.npy"
    found = _mapped(path, shape)
    if found is None:
        # Failures: read only, full, a disk without locks.
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                found = _mapped(path, shape)  # another process may have made it
                if found is None:
                    _write(path, shape, make())
                    found = _mapped(path, shape)
    if found is None:
        found = np.fromiter(make(), np.dtype((np.uint8, shape[1])), count=shape[0])
    return torch.from_numpy(found)


def _mapped(path: Path, shape: tuple[int, int]) -> Bytes | None:
    try:
        # Copy on write: torch warns of memory that cannot be written.
        array: Bytes = np.load(path, mmap_mode="c", allow_pickle=False)
        return array if array.shape == shape and array.dtype == np.uint8 else None
    except Exception:  # missing, or corrupt, which may raise anything
        return None


def _write(path: Path, shape: tuple[int, int], rows: Iterable[Bytes]) -> None:
    """Writes an array row by row: through a mapping, a full disk would kill the process."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, layout)
            file.writelines(row.tobytes() for row in rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
