"""Supervised workers and the runners that own them: limits, faults, interruptions."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

import bench.run
from bench.config.grid import Spec
from bench.config.options import RunOptions
from bench.execute.job import Job
from bench.execute.supervisor import excess, thread_variables
from bench.execute.worker import work
from bench.store.folder import cell_folder, kills
from bench.store.manifest import read_runs
from bench.store.records import read_records
from tests import chaos
from tests.execute.processes import (
    PLUGIN,
    ROOT,
    TASK,
    TINY,
    by_seed,
    finish,
    linux,
    start,
    starts,
    wait_for,
)


def test_limits() -> None:
    worker = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=600 * 2**20))
    job = Job("id", "{}", RunOptions(out=Path("out"), timeout=10, memory=700))
    assert excess(job, 10.0, worker) is None
    outcome = excess(job, 11.0, worker)
    assert outcome is not None
    assert outcome.status == "timeout"
    assert outcome.exceeded == {"timeout": 10}
    outcome = excess(
        job._replace(options=job.options.model_copy(update={"memory": 500})), 1.0, worker
    )
    assert outcome is not None
    assert outcome.status == "killed"
    assert outcome.reason == "used 600 MB, more than --memory 500 MB"
    assert excess(Job("id", "{}", RunOptions(out=Path("out"))), 1e9, worker) is None


def test_what_supervises_imports_no_torch() -> None:
    """A dask worker imports it, and should take no second there."""
    code = "import sys, bench.execute.remote; print({'torch', 'pandas'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"


def test_every_library_gets_the_threads() -> None:
    assert thread_variables(None) == {}
    variables = thread_variables(3)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert variables[name] == "3"


@linux
def test_every_fault_becomes_a_row_and_the_rest_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = "raising,leaving,segfault,sleeping,eating,printing,fm"

    def run() -> pd.DataFrame:
        return bench.run(
            methods=names.split(","),
            tasks=TASK[1:],
            seeds=[0],
            out=tmp_path,
            plugins=[PLUGIN[1]],
            jobs=2,
            timeout=9,
            memory=2000,
            steps=4,
            batch=16,
            **{"eval.n": 16, "network.width": 8},
        ).set_index("method")

    rows = run()
    assert rows["status"].to_dict() == {
        "raising": "failed",
        "leaving": "failed",
        "segfault": "killed",
        "sleeping": "timeout",
        "eating": "killed",
        "printing": "done",
        "fm": "done",
    }
    reasons = rows["reason"]
    assert reasons["raising"] == "RuntimeError: no field today"
    assert reasons["leaving"] == "SystemExit: 3"
    assert "killed 3 times" in reasons["segfault"]
    assert reasons["sleeping"] == "not done after --timeout 9 s"
    assert "more than --memory 2000 MB" in reasons["eating"]
    folders = {method: cell_folder(tmp_path, row["id"]) for method, row in rows.iterrows()}
    tracebacks = {method: folder / "traceback.txt" for method, folder in folders.items()}
    assert "RuntimeError: no field today" in tracebacks["raising"].read_text()
    assert "in string_at" in tracebacks["segfault"].read_text()
    assert "faulty.py" in tracebacks["sleeping"].read_text()
    assert not tracebacks["fm"].exists()
    assert not list(tmp_path.glob("cells/*/draft.json"))
    assert not list(tmp_path.glob("running/*.json"))
    log = (folders["printing"] / "log.txt").read_text()
    assert "a line on standard output\na line on standard error\n" in log
    assert "a line on standard" not in "".join(capfd.readouterr())
    (noted,) = read_runs(tmp_path)
    assert noted["statuses"] == {"failed": 2, "killed": 2, "timeout": 1, "done": 2}

    # What was killed or took too long is not tried again under the same limits.
    before = by_seed(tmp_path)
    run()
    for key, record in by_seed(tmp_path).items():
        again = record.started > before[key].started
        assert again == (record.status == "failed"), key


@linux
def test_a_cell_that_kills_the_runner_is_given_up(tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "killed,fm", *TASK, "--seeds", "0", *TINY, "--jobs", "1"]
    for _ in range(3):
        process = start(*arguments, out=tmp_path)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
    status, errors = finish(start(*arguments, out=tmp_path))
    assert status == 1
    assert "killed: killed gaussian_to_swiss_roll seed 0: its worker was killed 3 times" in errors
    rows = pd.read_csv(tmp_path / "results.csv").set_index("method")
    assert rows["status"].to_dict() == {"killed": "killed", "fm": "done"}


def test_a_cell_in_this_process_counts_as_a_killer_only_while_it_runs(tmp_path: Path) -> None:
    (cell,) = Spec(
        methods=["fm"],
        tasks=TASK[1:],
        seeds=[0],
        settings={"train.steps": [2], "eval.n": [8]},
    ).cells()
    job = Job.of(cell, RunOptions(out=tmp_path))
    folder = cell_folder(tmp_path, cell.id)
    seen = []

    def interrupt(*arguments: object, **options: object) -> None:
        seen.append(kills(folder))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.execute.worker.run_cell", interrupt)
        with pytest.raises(KeyboardInterrupt):
            work(job, "cpu", in_process=True)
    assert seen == [1]
    assert kills(folder) == 0
    record = work(job, "cpu", in_process=True)
    assert record is not None
    assert record.status == "done"
    assert kills(folder) == 0


@linux
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_workers_do_not_outlive_the_runner(number: signal.Signals, tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "sleeping", *TASK, "--seeds", "0-5", *TINY, "--jobs", "2"]
    process = start(*arguments, out=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("running/*.json"))) == 2)
    workers = chaos.workers(process.pid)
    assert len(workers) == 2
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)  # as terminals and batch systems do: to the whole group
    begin = time.monotonic()
    _, errors = process.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted; 0 of 6 cells are recorded" in errors.splitlines()[-1]
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert len(gone) == 2
    assert not alive
    assert time.monotonic() - begin < 10
    assert not list(tmp_path.glob("cells/*/kills"))  # they did not kill their workers


@linux
def test_two_runners_share_the_work(tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "pausing,raising", *TASK, "--seeds", "0-7", *TINY]
    arguments += ["--set", "pausing.pause=0.2"]
    processes = [start(*arguments, out=tmp_path) for _ in range(2)]
    for process in processes:
        assert finish(process)[0] == 1
    rows = pd.read_csv(tmp_path / "results.csv")
    assert rows.groupby(["method", "status"]).size().to_dict() == {
        ("pausing", "done"): 8,
        ("raising", "failed"): 8,
    }
    assert starts(tmp_path) == [1] * 16  # no cell twice
    assert len(read_runs(tmp_path)) == 2
    process = start(*arguments, out=tmp_path)  # a later command tries the failed ones again
    assert finish(process)[0] == 1
    assert sorted(starts(tmp_path)) == [1] * 8 + [2] * 8


@pytest.mark.slow
@linux
def test_two_runners_end_a_cell_that_exceeds_their_limit_once(tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "sleeping", *TASK, "--seeds", "0-1", *TINY]
    processes = [start(*arguments, "--timeout", "3", out=tmp_path) for _ in range(2)]
    for process in processes:
        assert finish(process)[0] == 1
    assert [record.status for record in read_records(tmp_path)] == ["timeout"] * 2
    assert starts(tmp_path) == [1, 1]


@pytest.mark.slow
@linux
def test_a_runner_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "pausing", *TASK, "--seeds", "0-1", *TINY]
    arguments += ["--set", "pausing.pause=4"]
    first, second = start(*arguments, out=tmp_path), start(*arguments, out=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("running/*.json"))) == 2)
    first.kill()
    first.communicate()
    assert finish(second)[0] == 0
    assert [record.status for record in read_records(tmp_path)] == ["done"] * 2
    assert sorted(starts(tmp_path)) == [1, 2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    with chaos.small_disk() as (folder, mounted):
        if not mounted:
            pytest.skip("needs root to mount a small disk")
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        yield folder


@linux
@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(small_disk: Path, jobs: str) -> None:
    arguments = ["--methods", "fm", *TASK, "--seeds", "0-5", *TINY, "--jobs", jobs]
    arguments[arguments.index("network.width=8")] = "network.width=256"  # 0.5 MB a checkpoint
    out = small_disk / "out"
    status, errors = finish(start(*arguments, out=out))
    assert status == 1
    last = errors.splitlines()[-1]
    assert "No space left on device" in last
    done = by_seed(out)
    assert f"{len(done)} of 6 cells are recorded in {out}; the same command resumes" in last
    assert 0 < len(done) < 6
    assert all(record.status == "done" for record in done.values())
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    assert finish(start(*arguments, out=out))[0] == 0
    after = by_seed(out)
    assert len(after) == 6
    assert all(after[key] == record for key, record in done.items())


@linux
def test_a_read_only_folder_is_one_line(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, errors = finish(start("--methods", "fm", *TASK, *TINY, out=small_disk / "out"))
    assert status == 2
    (line,) = errors.splitlines()
    assert "out: cannot write to" in line
    assert "Read-only file system" in line


@pytest.mark.slow
@linux
def test_chaos_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    chaos.run(cells=10, steps=100, kills=2, seed=random.randrange(10**6))
    assert "10 cells recorded once" in capsys.readouterr().out
