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

from tests.execute.processes import ROOT, Cluster, assert_same_results, by_seed, wait_for


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


def measure(root: Path, name: str, cells: int, steps: int, options: list[str]) -> float:
    """Runs the cells; the seconds of the whole command."""
    jobs = 1 if name == "serial" else 2
    wall = timed_run(root / name, cells, steps, *options)
    records = by_seed(root / name).values()
    inside = sum(record.seconds for record in records) / jobs
    first = min(record.started for record in records)
    sweep = max(record.started + record.seconds for record in records) - first
    print(
        f"{name}: command {wall:.1f} s, sweep {sweep:.1f} s, cells {inside:.1f} s a worker:"
        f" outside of the cells {1 - inside / sweep:.1%} of the sweep,"
        f" {1 - inside / wall:.1%} of the command",
        flush=True,
    )
    return wall


def main() -> int:
    """The command line; 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    size = arguments.cells, arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        serial = measure(root, "serial", *size, ["--jobs", "1"])
        loky = measure(root, "loky", *size, ["--jobs", "2"])
        cluster = Cluster(root)
        try:
            cluster.add_workers(2)
            log = root / "worker.log"
            wait_for(lambda: log.read_text().count("Registered to") == 2)
            dask = measure(root, "dask", *size, ["--scheduler", cluster.address])
        finally:
            cluster.stop()
        assert_same_results(root / "serial", root / "loky")
        assert_same_results(root / "serial", root / "dask")
    print("rows and weights equal, bit for bit")
    print(f"two workers are {serial / loky:.2f} times faster (bar 1.8)")
    print(f"dask takes {dask / loky:.2f} times as long as loky (bar 1.1)")
    return 0 if serial / loky >= 1.8 and dask / loky <= 1.1 else 1


if __name__ == "__main__":
    sys.exit(main())
