"""The real command as a process, a dask cluster, and what runs leave: shared by tests of runs."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.store.folder import MODEL, cell_folder
from bench.store.records import Record, read_records

ROOT = Path(__file__).parents[2]
PLUGIN = ["--plugin", str(ROOT / "tests" / "faulty.py")]
TASK = ["--tasks", "gaussian_to_swiss_roll"]
TINY = ["--steps", "4", "--batch", "16", "--set", "eval.n=16", "--set", "network.width=8"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux does")


def start(*arguments: str, out: Path) -> "subprocess.Popen[str]":
    """The command, as the terminal starts it (Ctrl-C is not ignored), without its report."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.execute.quick", *arguments, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and standard error, which has no traceback."""
    _, errors = process.communicate(timeout=240)
    assert "Traceback" not in errors, errors
    return process.returncode, errors


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def by_seed(out: Path) -> dict[tuple[str, int], Record]:
    """The records of cells of one task, by method and seed."""
    return {(record.cell.method, record.cell.seed): record for record in read_records(out)}


def assert_same_results(one: Path, two: Path) -> None:
    """The same cells with the same numbers, bit for bit, and the same samples."""
    first, second = by_seed(one), by_seed(two)
    assert set(first) == set(second)
    for key, record in first.items():
        for name in ("id", "status", "metrics", "data_hash"):
            assert getattr(record, name) == getattr(second[key], name), (key, name)
        files = [cell_folder(out, record.id) / MODEL for out in (one, two)]
        assert files[0].read_bytes() == files[1].read_bytes()


def starts(out: Path) -> list[int]:
    """How often each cell was begun, by its log."""
    logs = [path.read_text() for path in out.glob("cells/*/log.txt")]
    return [log.count(" on cpu, threads: ") for log in logs]


class Cluster:
    """A dask scheduler and workers, started by their own command lines on the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--port", "0", "--scheduler-file", str(self.file))
        wait_for(self.file.exists)
        self.address = json.loads(self.file.read_text())["address"]

    def add_workers(self, count: int = 2) -> None:
        """Workers of one thread each."""
        self._start("worker", self.address, "--nworkers", str(count), "--nthreads", "1")

    def _start(self, kind: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "dask", kind, *arguments]
        command += ["--host", "127.0.0.1", "--no-dashboard"]
        log = (self.folder / f"{kind}.log").open("wb")
        self.processes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        )

    def worker_processes(self) -> list[psutil.Process]:
        """The processes in which the dask workers live: the children of their nannies."""
        nanny = psutil.Process(self.processes[1].pid)
        return [child for child in nanny.children() if "spawn_main" in " ".join(child.cmdline())]

    def stop(self) -> None:
        """Ends all of it."""
        everything = [
            child
            for process in self.processes
            if process.poll() is None
            for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        ]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, timeout=30)
        for process in self.processes:
            process.wait(30)
