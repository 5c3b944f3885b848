"""Runs a recorded cell again and says whether it agrees.

python -m bench.rerun results/runs/default/cells/<id>/record.json
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bench.cell.run import run_cell
from bench.cell.stored import recorded_cell
from bench.command import Parser, entry, log
from bench.config.plugins import loaded
from bench.execute.devices import assign_device
from bench.store.folder import RECORD, SAMPLES
from bench.store.provenance import device_name, environment
from bench.store.records import Outcome, Record, read_record
from bench.sweep import load

PROGRAM = "bench.rerun"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return entry(PROGRAM, lambda words: _run(_parser().read(words)), argv)


def _parser() -> Parser:
    parser = Parser(PROGRAM, __doc__)
    parser.add_argument("record", type=Path, help="a record.json, or the folder it lies in")
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="R", help="relative; 0")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N; as recorded if not given")
    parser.add_argument("--data-root", metavar="DIR", help="where data sets of yours lie")
    parser.add_argument("--fid-weights", metavar="FILE", help="the weights of pytorch-fid")
    parser.add_argument("--features", metavar="FILE", help="a network of yours, for fd_custom")
    parser.add_plugins()
    return parser


def _run(arguments: argparse.Namespace) -> int:
    load(arguments.plugins, arguments.data_root)
    path = arguments.record.absolute()
    path = path / RECORD if path.is_dir() else path
    record = read_record(path)
    cell = recorded_cell(record).cell
    for plugin, digest in record.plugins.items():
        if digest not in loaded().values():
            log(PROGRAM, f"{plugin} has changed or is not given")
    device = assign_device(arguments.device or ("cpu" if record.device == "cpu" else "cuda"))
    print(f"{cell.label} ({cell.id}), recorded: {record.status}", flush=True)
    for line in environment_differences(record, device_name(device)):
        print(line)
    with tempfile.TemporaryDirectory() as folder:
        files = {"fid_weights": arguments.fid_weights, "features": arguments.features}
        again = run_cell(cell, Path(folder), device, record.threads, **files)
        same_samples = equal_samples(path.with_name(SAMPLES), Path(folder) / SAMPLES)
    return _compare(record, again, same_samples, arguments.tolerance)


def _compare(record: Record, again: Outcome, same_samples: bool | None, tolerance: float) -> int:
    """Prints what differs; the exit status."""
    table = differences(record.metrics, again.metrics)
    if len(table):
        print(table.to_string(index=False))
    if same_samples is not None:
        print("samples:", "the same to the last bit" if same_samples else "differ")
    problems = [
        f"{key}: recorded {getattr(record, key)}, now {getattr(again, key)}"
        for key in ("status", "reason", "data_hash", "nfe", "parameters")
        if getattr(record, key) != getattr(again, key)
    ]
    worst = table["relative difference"].max() if len(table) else 0.0
    if not worst <= tolerance:
        problems.append(f"metrics differ by up to {worst:.3g}, tolerance {tolerance:g}")
    close = "to the last bit" if worst == 0 else f"within {worst:.3g}, tolerance {tolerance:g}"
    print("differs: " + "; ".join(problems) if problems else f"agrees {close}")
    return 1 if problems else 0


def differences(recorded: dict[str, float], again: dict[str, float]) -> pd.DataFrame:
    """Metric, both values and their relative difference; infinite where one is missing."""
    rows = []
    for name in dict.fromkeys([*recorded, *again]):
        one, two = recorded.get(name, math.nan), again.get(name, math.nan)
        relative = 0.0 if one == two else abs(one - two) / max(abs(one), abs(two))
        rows.append((name, one, two, math.inf if math.isnan(relative) else relative))
    return pd.DataFrame(rows, columns=["metric", "recorded", "again", "relative difference"])


def equal_samples(one: Path, two: Path) -> bool | None:
    """Whether two sample files hold the same arrays; None if one is missing."""
    if not (one.exists() and two.exists()):
        return None
    with np.load(one, allow_pickle=False) as first, np.load(two, allow_pickle=False) as second:
        return set(first.files) == set(second.files) and all(
            np.array_equal(first[name], second[name], equal_nan=True) for name in first.files
        )


def environment_differences(record: Record, device: str) -> list[str]:
    """A line for everything that may change the result and is not as it was."""
    here = environment()
    pairs = [
        ("commit", record.commit, here["commit"]),
        ("python", record.python, here["python"]),
        ("device", record.device, device),
        *((name, record.packages.get(name), now) for name, now in here["packages"].items()),
        ("processor", record.hardware.get("processor"), here["hardware"]["processor"]),
    ]
    return [f"{name}: recorded {then}, now {now}" for name, then, now in pairs if then != now]


if __name__ == "__main__":
    sys.exit(main())
