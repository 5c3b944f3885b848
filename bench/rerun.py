"""Runs a recorded cell again and says whether it agrees.

python -m bench.rerun results/runs/default/cells/<id>/record.json
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from bench.cell import run_cell
from bench.execute import resolve_device
from bench.folder import RECORD, SAMPLES, Record, StorageError
from bench.plugins import load_plugin
from bench.provenance import device_name, environment
from bench.records import RecordError, read_record
from bench.session import use_data_root
from bench.slots import deal
from bench.spec import Cell, SpecError
from datasets import TASKS
from methods import METHODS

AGREES, DIFFERS, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.rerun", description=__doc__)
    parser.add_argument("record", type=Path, help="a record.json, or the folder it lies in")
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="R", help="relative; 0")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N; as recorded if not given")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE.py")
    parser.add_argument("--data-root", metavar="DIR", help="where data sets of yours lie")
    parser.add_argument("--fid-weights", metavar="FILE", help="the weights of pytorch-fid")
    arguments = parser.parse_args(argv)
    try:
        use_data_root(arguments.data_root)
        record, cell = _read(arguments.record, arguments.plugin)
        recorded = "cpu" if record["device"] == "cpu" else "cuda"
        device = deal(resolve_device(arguments.device or recorded), 0, torch.cuda.device_count())
        return _rerun(record, cell, device, arguments)
    except (SpecError, RecordError, StorageError) as error:
        print(f"bench.rerun: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        print("bench.rerun: interrupted", file=sys.stderr)
        return INTERRUPTED


def _read(path: Path, plugins: Sequence[str]) -> tuple[Record, Cell]:
    """The record, and the cell that it is of.

    The plugins that a record names are not loaded: a file must not be able to have code run.
    """
    hashes = {load_plugin(plugin) for plugin in plugins}
    path = path.absolute()
    path = path / RECORD if path.is_dir() else path
    record = read_record(path)
    try:
        cell = Cell.model_validate(record["cell"])
    except ValidationError as error:
        raise RecordError(f"{path}: {' '.join(str(error.errors()[0]['msg']).split())}") from None
    if cell.id != record["id"]:
        raise RecordError(f"{path}: recorded with other settings than there are now (id {cell.id})")
    for kind, name, known in (("method", cell.method, METHODS), ("task", cell.task, TASKS)):
        if name not in known:
            named = ", ".join(record.get("plugins", {})) or "none"
            raise SpecError(f"{kind}: {name!r} is not known; the record names the plugins: {named}")
    try:
        method, task = cell.build_method(), cell.build_task()
    except ValidationError as error:
        raise RecordError(f"{path}: {' '.join(str(error.errors()[0]['msg']).split())}") from None
    now = method.hyperparameters(), task.version, task.parameters()
    if now != (cell.hyperparameters, cell.task_version, cell.task_parameters):
        raise RecordError(f"{path}: recorded with other settings or data than there are now")
    for plugin, digest in record.get("plugins", {}).items():
        if digest not in hashes:
            print(f"bench.rerun: {plugin} has changed or is not given", file=sys.stderr)
    return record, cell


def _rerun(record: Record, cell: Cell, device: str, arguments: argparse.Namespace) -> int:
    path, tolerance = arguments.record, arguments.tolerance
    print(f"{cell.label} ({cell.id}), recorded: {record['status']}", flush=True)
    for line in environment_differences(record, device_name(device)):
        print(line)
    with tempfile.TemporaryDirectory() as folder:
        threads, weights = record["threads"], arguments.fid_weights
        again = run_cell(cell, Path(folder), device, threads, fid_weights=weights)
        recorded_samples = (path if path.is_dir() else path.parent) / SAMPLES
        same_samples = equal_samples(recorded_samples, Path(folder) / SAMPLES)
    table = differences(record["metrics"], again["metrics"])
    if len(table):
        print(table.to_string(index=False))
    if same_samples is not None:
        print("samples:", "the same to the last bit" if same_samples else "differ")
    problems = [
        f"{key}: recorded {record.get(key)}, now {again.get(key)}"
        for key in ("status", "reason", "data_hash", "nfe", "parameters")
        if record.get(key) != again.get(key)
    ]
    worst = table["relative difference"].max() if len(table) else 0.0
    if not worst <= tolerance:
        problems.append(f"metrics differ by up to {worst:.3g}, tolerance {tolerance:g}")
    close = "to the last bit" if worst == 0 else f"within {worst:.3g}, tolerance {tolerance:g}"
    print("differs: " + "; ".join(problems) if problems else f"agrees {close}")
    return DIFFERS if problems else AGREES


def differences(recorded: dict[str, float], again: dict[str, float]) -> pd.DataFrame:
    """Metric, both values and their relative difference; infinite where one is missing."""
    rows = []
    for name in dict.fromkeys([*recorded, *again]):
        one, two = recorded.get(name, math.nan), again.get(name, math.nan)
        scale = max(abs(one), abs(two))
        relative = 0.0 if one == two else abs(one - two) / scale
        rows.append((name, one, two, math.inf if math.isnan(relative) else relative))
    return pd.DataFrame(rows, columns=["metric", "recorded", "again", "relative difference"])


def equal_samples(one: Path, two: Path) -> bool | None:
    """Whether two sample files hold the same arrays; None if one is missing."""
    if not (one.exists() and two.exists()):
        return None
    with np.load(one, allow_pickle=False) as first, np.load(two, allow_pickle=False) as second:
        names = set(first.files)
        return names == set(second.files) and all(
            np.array_equal(first[name], second[name], equal_nan=True) for name in names
        )


def environment_differences(record: Record, device: str) -> list[str]:
    """A line for everything that may change the result and is not as it was."""
    here: dict[str, Any] = {**environment(), "device": device}
    lines = [
        f"{key}: recorded {record.get(key)}, now {here[key]}"
        for key in ("commit", "python", "device")
        if record.get(key) != here[key]
    ]
    packages = record.get("packages", {})
    lines += [
        f"{name}: recorded {packages.get(name)}, now {now}"
        for name, now in here["packages"].items()
        if packages.get(name) != now
    ]
    before = record.get("hardware", {}).get("processor")
    if before != here["hardware"]["processor"]:
        lines.append(f"processor: recorded {before}, now {here['hardware']['processor']}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
