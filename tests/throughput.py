"""How much faster two workers are than one process, and what a sweep costs beside its cells.

    python -m tests.throughput --cells 200

Runs the same small cells, one thread each, in one process, in two loky workers and on a dask
cluster of two workers on the loopback, one after the other, and compares wall times and rows.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.test_execute import ROOT, Cluster, assert_same_results, rows_by_seed


def timed_run(out: Path, cells: int, steps: int, *arguments: str) -> float:
    """Wall seconds of the whole command, from its start to its end."""
    sweep = ["--methods", "fm", "--tasks", "gaussian_to_swiss_roll", "--seeds", f"0-{cells - 1}"]
    budget = ["--steps", str(steps), "--threads", "1", "--out", str(out)]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "bench.run", *sweep, *budget, *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - begin


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cluster = Cluster(root)
        try:
            cluster.add_workers(2)
            runs = {
                "serial": (1, ["--jobs", "1"]),
                "loky": (2, ["--jobs", "2"]),
                "dask": (2, ["--scheduler", cluster.address]),
            }
            for name, (jobs, options) in runs.items():
                wall = timed_run(root / name, arguments.cells, arguments.steps, *options)
                records = rows_by_seed(root / name).values()
                inside = sum(record["seconds"] for record in records) / jobs
                first = min(record["started"] for record in records)
                last = max(record["started"] + record["seconds"] for record in records)
                print(
                    f"{name}: {wall:.1f} s; cells {inside:.1f} s a worker;"
                    f" outside of the cells {1 - inside / (last - first):.1%} of the sweep,"
                    f" {1 - inside / wall:.1%} of the command",
                    flush=True,
                )
        finally:
            cluster.stop()
        assert_same_results(root / "serial", root / "loky")
        assert_same_results(root / "serial", root / "dask")
        print("rows and weights equal, bit for bit")


if __name__ == "__main__":
    main()
