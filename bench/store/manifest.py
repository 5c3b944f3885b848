"""``manifest.json``: the commands that were run into an output folder, when, and how they ended."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.store.folder import locked, write_json
from bench.store.records import RecordError

MANIFEST = "manifest.json"
MANIFEST_LOCK = ".manifest.lock"
TIME = "%Y-%m-%dT%H:%M:%S%z"


def add_run(out: Path, **entry: Any) -> int:
    """Notes the start of a run; returns its number.

    Raises:
        RecordError: a ``manifest.json`` that is none; it is left as it is.
        StorageError: it cannot be written.
    """
    with locked(out / MANIFEST_LOCK):
        runs = read_runs(out)
        write_json(out / MANIFEST, {"runs": [*runs, {"started": time.strftime(TIME), **entry}]})
    return len(runs)


def end_run(out: Path, number: int, statuses: Mapping[str, int]) -> None:
    """Notes how many cells of a run ended how."""
    with locked(out / MANIFEST_LOCK):
        runs = read_runs(out)
        if number < len(runs):  # else somebody has moved the file away
            runs[number] |= {"finished": time.strftime(TIME), "statuses": dict(statuses)}
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
