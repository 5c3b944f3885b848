"""The folder of one cell on disk: atomic files, the lock, the count of killed workers.

Light on purpose: processes that only watch over cells import this and not torch.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RECORD, LOG, TRACEBACK = "record.json", "log.txt", "traceback.txt"
SAMPLES, MODEL, CHECKPOINT = "samples.npz", "model.safetensors", "checkpoint.safetensors"
LOCK, KILLS, ENDED = ".lock", "kills", "ended.json"
MAX_KILLS = 3
"""A cell that has killed its worker this often is not tried again."""

Record = dict[str, Any]


def outcome_of(status: str, reason: str | None, **values: Any) -> dict[str, Any]:
    """The part of a record that says how the cell ended."""
    return {"status": status, "reason": reason, "metrics": {}, **values}


class StorageError(Exception):
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
    """Writes a file that is, at any time, either the old one or the new one.

    Raises:
        StorageError: the file could not be written; the old one is untouched.
    """
    with writing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
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
def hold(folder: Path) -> Iterator[bool]:
    """Whether this process now holds the lock of a cell; until the end of the block.

    The operating system keeps the lock (flock), so a process that dies lets go of it. The file
    itself stays: to remove it would let two processes hold two files of one name.

    Raises:
        StorageError: a folder that cannot be written, or a file system without locks.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder / LOCK):
            file = stack.enter_context((folder / LOCK).open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = True
            except BlockingIOError:
                mine = False
        yield mine


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


class End(NamedTuple):
    """How, when and after how many seconds a cell was ended from outside."""

    outcome: dict[str, Any]
    at: float
    took: float


def note_end(folder: Path, end: End) -> None:
    """Notes the end of a cell before its worker is killed.

    Whoever is next to hold the lock of the cell makes it the record.
    """
    write_json(folder / ENDED, end._asdict())


def noted_end(folder: Path) -> End | None:
    """What :func:`note_end` noted, if anything."""
    try:
        return End(**json.loads((folder / ENDED).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def set_kills(folder: Path, count: int) -> None:
    """Writes that number; none for 0."""
    if count:
        write_atomically(folder / KILLS, str(count).encode())
    else:
        with writing(folder / KILLS):
            (folder / KILLS).unlink(missing_ok=True)
