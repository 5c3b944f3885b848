"""``manifest.json``: the commands that were run into an output folder, when, and how they ended."""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.folder import write_json, writing
from bench.records import RecordError

MANIFEST = "manifest.json"


def add_run(out: Path, **entry: Any) -> int:
    """Notes the start of a run; returns its number.

    Raises:
        RecordError: a ``manifest.json`` that is none; it is left as it is.
        StorageError: it cannot be written.
    """
    with _lock(out):
        runs = read_runs(out)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(out / MANIFEST, {"runs": [*runs, {"started": started, **entry}]})
    return len(runs)


def end_run(out: Path, number: int, statuses: Mapping[str, int]) -> None:
    """Notes how many cells of a run ended how."""
    with _lock(out):
        runs = read_runs(out)
        if number >= len(runs):  # somebody has moved the file away
            return
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        runs[number] |= {"finished": finished, "statuses": dict(statuses)}
        write_json(out / MANIFEST, {"runs": runs})


def read_runs(out: Path) -> list[dict[str, Any]]:
    """The runs of a folder, the oldest first; none without a manifest."""
    path = out / MANIFEST
    if not path.exists():
        return []
    try:
        runs: list[dict[str, Any]] = json.loads(path.read_bytes())["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RecordError(
            f"{path}: not a manifest of this version; move it away, or give another --out"
        ) from None
    return runs


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with writing(out / MANIFEST):
            file = stack.enter_context((out / ".manifest.lock").open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
