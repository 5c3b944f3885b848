"""A sweep among faults: its workers and its runner are killed at random, its disk fills up.

    python -m tests.chaos --cells 60 --kills 5

Says whether, after the last resume, every cell is recorded once and equals the same cell of a run
without faults, bit for bit. Needs Linux, and root for a small disk of its own (a tmpfs); without
root the disk does not fill.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
DISK_MB = 24
DEADLINE = 600.0


def command(out: Path, cells: int, steps: int) -> list[str]:
    """The sweep: Flow Matching on one task, a seed a cell, one thread each."""
    sweep = ["--methods", "fm", "--tasks", "gaussian_to_swiss_roll", "--seeds", f"0-{cells - 1}"]
    budget = ["--steps", str(steps), "--set", "eval.n=64", "--jobs", "2", "--threads", "1"]
    return [sys.executable, "-m", "tests.execute.quick", *sweep, *budget, "--out", str(out)]


def start(out: Path, cells: int, steps: int) -> "subprocess.Popen[str]":
    """The sweep as a process."""
    return subprocess.Popen(
        command(out, cells, steps),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(pid: int) -> list[psutil.Process]:
    """The worker processes of a runner."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if any("popen_loky" in word for word in child.cmdline()):
                    found.append(child)
    return found


@contextlib.contextmanager
def small_disk() -> Iterator[tuple[Path, bool]]:
    """A folder on a disk of ``DISK_MB``, and whether it is one."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        try:
            yield Path(folder), mounted
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", folder], check=True)


def recorded(out: Path) -> dict[str, dict[str, Any]]:
    """Every record by its id."""
    paths = (out / "cells").glob("*/record.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def await_records(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """Waits until the run has ``count`` records or has ended."""
    while process.poll() is None and len(list((out / "cells").glob("*/record.json"))) < count:
        time.sleep(0.05)


def fill(disk: Path) -> Path:
    """Fills the disk."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


def torment(disk: Path, full: bool, cells: int, steps: int, kills: int, rng: random.Random) -> Path:
    """Runs the sweep to its end among the faults; returns its folder."""
    out = disk / "out"
    faults = ["kill"] * kills + ["disk"] * full
    rng.shuffle(faults)
    # Faults are spread over the sweep: the next comes at a number of records.
    moments = sorted(rng.uniform(0.05, 0.9) * cells for _ in faults)
    seen: dict[str, dict[str, Any]] = {}
    process = start(out, cells, steps)
    begin = time.monotonic()
    while faults or process.poll() != 0:
        assert time.monotonic() - begin < DEADLINE, "the sweep does not end"
        if process.poll() is not None:
            errors = process.stderr.read() if process.stderr is not None else ""
            assert "Traceback" not in errors, errors
            print(f"runner ended with {process.returncode}: {errors.strip().splitlines()[-1:]}")
            process = start(out, cells, steps)
        if not faults:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            continue
        await_records(process, out, int(moments[0]))
        time.sleep(rng.uniform(0, 1))
        if process.poll() is not None:
            continue
        fault = faults.pop(0)
        moments.pop(0)
        seen |= recorded(out)
        if fault == "disk":
            filler = fill(disk)
            print(f"disk full at {len(recorded(out))} records", flush=True)
            process.wait(60)
            filler.unlink()
        else:
            victims = [process.pid, *(worker.pid for worker in workers(process.pid))]
            victim = rng.choice(victims)
            print(f"kill the {'runner' if victim == process.pid else 'worker'}", flush=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            time.sleep(0.2)
    after = recorded(out)
    for name, record in seen.items():
        assert after[name] == record, f"{name} was recorded, and was run again"
    return out


def run(cells: int, steps: int, kills: int, seed: int) -> None:
    """The whole experiment.

    Raises:
        AssertionError: a record is missing, or differs from that of the run without faults.
    """
    print(f"{cells} cells, {kills} kills, seed {seed}", flush=True)
    with small_disk() as (disk, full), tempfile.TemporaryDirectory() as calm:
        subprocess.run(command(Path(calm), cells, steps), cwd=ROOT, check=True, capture_output=True)
        out = torment(disk, full, cells, steps, kills, random.Random(seed))
        expected, found = recorded(Path(calm)), recorded(out)
        assert len(expected) == cells
        assert set(found) == set(expected)
        for name, record in found.items():
            for key in ("status", "metrics", "data_hash"):
                assert record[key] == expected[name][key], (name, key)
            weights = [
                (folder / "cells" / name / "model.safetensors").read_bytes()
                for folder in (Path(calm), out)
            ]
            assert weights[0] == weights[1], (name, "weights")
        assert not list((out / "cells").glob("*/.record.json*")), "half-written records are left"
        runs = json.loads((out / "manifest.json").read_text())["runs"]
        disk_words = "a full disk" if full else "no full disk (not root)"
        print(
            f"{cells} cells recorded once, equal to the run without faults, after {kills} kills,"
            f" {disk_words} and {len(runs)} starts"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run(arguments.cells, arguments.steps, arguments.kills, arguments.seed)


if __name__ == "__main__":
    main()
