"""The folder of one cell on disk: atomic files, the lock, the count of killed workers.

Light on purpose: processes that only watch over cells import this and not torch.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from bench.config.errors import BenchError

RECORD, LOG, TRACEBACK = "record.json", "log.txt", "traceback.txt"
SAMPLES, MODEL, CHECKPOINT = "samples.npz", "model.safetensors", "checkpoint.safetensors"
LOCK, KILLS = ".lock", "kills"
DRAFT = "draft.json"  # the record of a cell that is at work, as it will be if its worker is killed
RUNNING = "running"  # the folder in which cells that are at work say where they stand
PART = ".part"  # how the name of a file ends that is not written to its end
MAX_KILLS = 3  # a cell that has killed its worker this often is not tried again
MAX_NAME = 80  # characters of a file name that is made of a user's words


class StorageError(BenchError):
    """The output folder cannot be written: a full disk, a read-only folder. One line."""


def cell_folder(out: Path, cell_id: str) -> Path:
    """Where the record, samples and checkpoint of a cell are."""
    return out / "cells" / cell_id


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the errors of the file system into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is, at any time, either the old one or the new one; makes its folder.

    Raises:
        StorageError: the file could not be written; the old one is untouched.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(PART, f".{path.name}.", path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # it has its name already
                os.unlink(name)
            raise


def write_json(path: Path, content: Any) -> None:
    """JSON, written atomically."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds a lock file until the end of the block; says whether it does, which may take a wait.

    The operating system keeps the lock (flock), so a process that dies lets go of it, on NFS too
    where the server has a lock manager. The file stays: two processes could hold two of one name.

    Raises:
        StorageError: a folder that cannot be written.
    """
    lock = filelock.FileLock(path)
    with writing(path), contextlib.suppress(filelock.Timeout):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=wait)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def hold(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """Whether this process now holds the lock of a cell; until the end of the block."""
    return locked(folder / LOCK, wait=False)


def is_held(folder: Path) -> bool:
    """Whether some process is at work on a cell."""
    with hold(folder) as mine:
        return not mine


def kills(folder: Path) -> int:
    """How often the cell's worker was killed while it ran the cell."""
    try:
        return int((folder / KILLS).read_text())
    except (OSError, ValueError):
        return 0


def set_kills(folder: Path, count: int) -> None:
    """Writes that number; none for 0."""
    if count:
        write_atomically(folder / KILLS, str(count).encode())
    else:
        with writing(folder / KILLS):
            (folder / KILLS).unlink(missing_ok=True)


def file_name(kind: str, name: str) -> str:
    """``<kind>_<name>``, a file name without suffix that stays in its folder.

    What is not plain becomes ``_``, and a hash of the name keeps two such names apart.
    """
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", name)[:MAX_NAME]
    if plain != name:
        plain += "-" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{kind}_{plain}"
