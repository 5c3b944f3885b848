"""Cells on a real dask cluster: results, faults, its end and that of its runner."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bench.execute.cluster import warning_of
from tests import chaos
from tests.execute.processes import (
    PLUGIN,
    TASK,
    TINY,
    Cluster,
    assert_same_results,
    finish,
    linux,
    start,
    wait_for,
)


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("tcp://127.0.0.1:8786", False),
        ("tcp://localhost:8786", False),
        ("tcp://[::1]:8786", False),
        ("tls://10.0.0.5:8786", False),
        ("tcp://10.0.0.5:8786", True),
    ],
)
def test_an_open_cluster_is_pointed_out(address: str, warned: bool) -> None:
    assert (warning_of(address) is not None) is warned


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without workers."""
    with contextlib.ExitStack() as stack:
        started = Cluster(tmp_path_factory.mktemp("dask"))
        stack.callback(started.stop)
        yield started


@linux
def test_dask_gives_the_rows_of_the_serial_run_though_a_worker_dies(
    cluster: Cluster, tmp_path: Path
) -> None:
    arguments = [*PLUGIN, "--methods", "fm,pausing", *TASK, "--seeds", "0-3", *TINY]
    arguments += ["--set", "pausing.pause=0.2", "--threads", "1"]
    cluster.add_workers()
    process = start(*arguments, "--scheduler", cluster.address, out=tmp_path / "dask")
    wait_for(lambda: len(list(tmp_path.glob("dask/cells/*/record.json"))) >= 2)
    cluster.worker_processes()[0].kill()
    status, errors = finish(process)
    assert status == 0, errors
    assert finish(start(*arguments, out=tmp_path / "serial"))[0] == 0
    assert_same_results(tmp_path / "serial", tmp_path / "dask")
    workers = cluster.worker_processes()  # what was at work for the run has ended
    wait_for(lambda: not any(chaos.workers(worker.pid) for worker in workers), 30)


@pytest.mark.slow
@linux
def test_faults_on_dask_become_rows(cluster: Cluster, tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "raising,killed,sleeping,fm", *TASK, "--seeds", "0", *TINY]
    arguments += ["--timeout", "3", "--scheduler", str(cluster.file)]
    process = start(*arguments, out=tmp_path)
    time.sleep(5)
    assert process.poll() is None  # it waits for workers
    cluster.add_workers()
    assert finish(process)[0] == 1
    rows = pd.read_csv(tmp_path / "results.csv").set_index("method")
    assert rows["status"].to_dict() == {
        "raising": "failed",
        "killed": "killed",
        "sleeping": "timeout",
        "fm": "done",
    }


@linux
@pytest.mark.parametrize(
    "what",
    [
        "runner interrupted",
        pytest.param("scheduler", marks=pytest.mark.slow),
        pytest.param("runner killed", marks=pytest.mark.slow),
    ],
)
def test_the_end_of_a_cluster_or_of_its_runner(what: str, cluster: Cluster, tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "sleeping,fm", *TASK, "--seeds", "0-1", *TINY]
    cluster.add_workers()
    process = start(*arguments, "--scheduler", cluster.address, out=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("running/*.json"))) == 2)
    nannied = cluster.worker_processes()
    busy = [process for worker in nannied for process in chaos.workers(worker.pid)]
    assert len(busy) == 2
    if what == "scheduler":
        cluster.processes[0].kill()
        status, errors = finish(process)
        assert status == 1
        assert "lost the scheduler" in errors.splitlines()[-1]
        assert "of 4 cells are recorded in" in errors.splitlines()[-1]
    elif what == "runner interrupted":
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        status, errors = finish(process)
        assert status == 130
        assert time.monotonic() - begin < 15
        assert "interrupted; 0 of 4 cells are recorded in" in errors.splitlines()[-1]
    else:
        process.kill()
        process.communicate()
    if what != "scheduler":  # what the runner has begun on the cluster ends too
        gone, alive = psutil.wait_procs(busy, timeout=30)
        assert len(gone) == 2
        assert not alive
