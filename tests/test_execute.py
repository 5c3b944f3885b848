"""Executors, devices, faults: with the real command, real workers and a real dask cluster."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import bench.run
from bench.execute import resolve_device, warning_of
from bench.folder import cell_folder, kills
from bench.manifest import read_runs
from bench.records import read_records
from bench.schedule import Expectation, longest_first, work_of
from bench.slots import Job, deal, excess, thread_variables
from bench.spec import Cell, Spec, SpecError
from bench.worker import work
from tests import chaos

ROOT = Path(__file__).parent.parent
PLUGIN = ["--plugin", str(ROOT / "tests" / "faulty.py")]
TASK = ["--tasks", "gaussian_to_swiss_roll"]
TINY = ["--steps", "4", "--batch", "16", "--set", "eval.n=16", "--set", "network.width=8"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux does")


def start(*arguments: str, out: Path) -> "subprocess.Popen[str]":
    """The real command, as the terminal starts it: Ctrl-C is not ignored."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.run", *arguments, "--out", str(out)],
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


def rows_by_seed(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Metrics and data hash of each cell of one task."""
    return {
        (record["cell"]["method"], record["cell"]["seed"]): record for record in read_records(out)
    }


def assert_same_results(one: Path, two: Path) -> None:
    """The same cells with the same numbers, bit for bit, and the same samples."""
    first, second = rows_by_seed(one), rows_by_seed(two)
    assert set(first) == set(second)
    for key, record in first.items():
        for name in ("id", "status", "metrics", "data_hash"):
            assert record[name] == second[key][name], (key, name)
        files = [cell_folder(out, record["id"]) / "model.safetensors" for out in (one, two)]
        assert files[0].read_bytes() == files[1].read_bytes()


# Pure functions.


@pytest.mark.parametrize(
    ("device", "index", "visible", "expected"),
    [
        ("cpu", 3, 8, "cpu"),
        ("auto", 0, 0, "cpu"),
        ("auto", 5, 4, "cuda:1"),
        ("cuda:2", 0, 4, "cuda:2"),
        ("cuda:2", 7, 4, "cuda:2"),
        ("cuda", 0, 1, "cuda:0"),
    ],
)
def test_dealing_of_devices(device: str, index: int, visible: int, expected: str) -> None:
    assert deal(device, index, visible) == expected


@pytest.mark.parametrize(("jobs", "visible"), [(8, 8), (16, 8), (3, 2), (1, 4)])
def test_slots_go_round_the_devices(jobs: int, visible: int) -> None:
    dealt = [deal("cuda", index, visible) for index in range(jobs)]
    counts = [dealt.count(f"cuda:{number}") for number in range(visible)]
    assert sum(counts) == jobs
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("device", "visible"), [("cuda", 0), ("cuda:2", 2), ("cuda:0", 0)])
def test_a_device_that_is_not_here_is_refused(device: str, visible: int) -> None:
    with pytest.raises(ValueError, match=f"'{device}' is not here, this machine has {visible}"):
        deal(device, 0, visible)


@pytest.mark.parametrize(
    ("name", "visible", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cuda", 2, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_the_device_of_a_run(
    name: str, visible: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    assert resolve_device(name) == expected


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:²"])
def test_what_is_no_device(name: str) -> None:
    with pytest.raises(SpecError, match="device: unknown device"):
        resolve_device(name)


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


def cells_of(**settings: list[Any]) -> list[Cell]:
    """Cells of two methods on two tasks."""
    return Spec(
        methods=["fm", "efm"],
        tasks=["gaussian_to_swiss_roll", "gaussian_to_digits"],
        seeds=[0],
        settings=settings,
    ).cells()


def test_long_cells_go_first() -> None:
    cells = cells_of(**{"train.steps": [10, 1000, 100]})
    ordered = longest_first(cells, Expectation())
    assert sorted(cell.id for cell in ordered) == sorted(cell.id for cell in cells)
    assert [cell.train.steps for cell in ordered][:4] == [1000] * 4
    assert ordered[0].task == "gaussian_to_digits"  # D = 64 is more work than D = 2
    work = [work_of(cell) for cell in ordered]
    assert work == sorted(work, reverse=True)


def test_expected_seconds_are_learnt_from_the_nearest_cells() -> None:
    fm_roll, efm_roll, fm_digits, efm_digits = (
        next(c for c in cells_of() if (c.method, c.task) == (method, task))
        for task in ("gaussian_to_swiss_roll", "gaussian_to_digits")
        for method in ("fm", "efm")
    )
    expectation = Expectation()
    expectation.learn(fm_roll, {"status": "done", "seconds": 2.0})
    assert expectation.seconds(fm_roll) == pytest.approx(2)
    ratio = work_of(fm_digits) / work_of(fm_roll)
    assert expectation.seconds(fm_digits) == pytest.approx(2 * ratio)  # from its method
    assert expectation.seconds(efm_roll) == pytest.approx(2)  # from any
    expectation.learn(efm_roll, {"status": "done", "seconds": 6.0})
    assert expectation.seconds(efm_digits) == pytest.approx(6 * ratio)
    expectation.learn(fm_digits, {"status": "failed", "seconds": 0.0})
    assert expectation.seconds(fm_digits) == pytest.approx(2 * ratio)  # a failure is no length


def test_limits() -> None:
    worker = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=600 * 2**20))
    job = Job("id", "{}", "out", timeout=10, memory=700)
    assert excess(job, 10.0, worker) is None
    outcome = excess(job, 11.0, worker)
    assert outcome is not None
    assert outcome["status"] == "timeout"
    assert outcome["exceeded"] == {"timeout": 10}
    outcome = excess(job._replace(memory=500), 1.0, worker)
    assert outcome is not None
    assert outcome["status"] == "killed"
    assert outcome["reason"] == "used 600 MB, more than --memory 500 MB"
    assert excess(Job("id", "{}", "out"), 1e9, worker) is None


def test_threads_are_told_to_every_library() -> None:
    assert thread_variables(None) == {}
    variables = thread_variables(3)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert variables[name] == "3"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"], ["jobs", "cluster"]),
        (["--scheduler", "nowhere"], ["scheduler", "tcp://", "nowhere"]),
        (["--scheduler", "tcp://127.0.0.1:1"], ["scheduler", "cannot connect"]),
        (["--scheduler", "carrier://pigeon"], ["scheduler", "carrier://pigeon"]),
        (["--timeout", "0"], ["timeout", "positive", "0"]),
        (["--timeout", "nan"], ["timeout", "positive"]),
        (["--timeout", "1e10"], ["timeout", "positive", "1e9"]),
        (["--memory", "-5"], ["memory", "positive", "-5"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--plugin", "missing.py"], ["plugin", "missing.py"]),
        (["--plugin", "README.md"], ["plugin", "README.md"]),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.execute.CONNECT_SECONDS", 1)
    assert bench.run.main([*TASK, *TINY, *arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line
    assert not list((tmp_path / "out").glob("cells/*"))


def test_a_plugin_that_raises_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("import methods\nmethods.no_such_name\n")
    assert bench.run.main(["--plugin", str(tmp_path / "mine.py"), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.py' raises AttributeError: module 'methods' has no attribute" in line


# Faults.


@linux
def test_every_fault_becomes_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    faults = "raising,leaving,killed,segfault,sleeping,eating,printing,fm"
    arguments = [*PLUGIN, "--methods", faults, *TASK, "--seeds", "0", *TINY, "--jobs", "2"]
    arguments += ["--timeout", "9", "--memory", "2000"]
    status, errors = finish(start(*arguments, out=tmp_path))
    assert status == 1
    rows = pd.read_csv(tmp_path / "results.csv").set_index("method")
    assert rows["status"].to_dict() == {
        "raising": "failed",
        "leaving": "failed",
        "killed": "killed",
        "segfault": "killed",
        "sleeping": "timeout",
        "eating": "killed",
        "printing": "done",
        "fm": "done",
    }
    reasons = rows["reason"]
    assert reasons["raising"] == "RuntimeError: no field today"
    assert reasons["leaving"] == "SystemExit: 3"
    assert "killed 3 times" in reasons["killed"]
    assert "killed 3 times" in reasons["segfault"]
    assert reasons["sleeping"] == "not done after --timeout 9 s"
    assert "more than --memory 2000 MB" in reasons["eating"]
    tracebacks = {
        method: cell_folder(tmp_path, row["id"]) / "traceback.txt"
        for method, row in rows.iterrows()
    }
    assert "RuntimeError: no field today" in tracebacks["raising"].read_text()
    assert "in string_at" in tracebacks["segfault"].read_text()
    assert "faulty.py" in tracebacks["sleeping"].read_text()
    assert not tracebacks["fm"].exists()
    assert not tracebacks["killed"].exists()
    log = (cell_folder(tmp_path, rows.loc["printing", "id"]) / "log.txt").read_text()
    assert "a line on standard output\na line on standard error\n" in log
    assert "a line on standard" not in errors
    assert f"timeout: sleeping {TASK[1]} seed 0: not done after" in errors
    (run,) = read_runs(tmp_path)
    assert run["statuses"] == {"failed": 2, "killed": 3, "timeout": 1, "done": 2}

    # What was killed or took too long is not tried again under the same limits.
    before = rows_by_seed(tmp_path)
    assert finish(start(*arguments, out=tmp_path))[0] == 1
    for key, record in rows_by_seed(tmp_path).items():
        again = record["started"] > before[key]["started"]
        assert again == (record["status"] == "failed"), key


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
    job = Job(cell.id, cell.model_dump_json(), str(tmp_path))
    folder = cell_folder(tmp_path, cell.id)
    seen = []

    def interrupt(*arguments: object) -> None:
        seen.append(kills(folder))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.worker.run_cell", interrupt)
        with pytest.raises(KeyboardInterrupt):
            work(job, "cpu", in_process=True)
    assert seen == [1]
    assert kills(folder) == 0
    record = work(job, "cpu", in_process=True)
    assert record is not None
    assert record["status"] == "done"
    assert kills(folder) == 0


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
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


def starts(out: Path) -> list[int]:
    """How often each cell was begun, by its log."""
    logs = [path.read_text() for path in out.glob("cells/*/log.txt")]
    return [log.count(" on cpu, threads: ") for log in logs]


@linux
def test_two_runners_end_a_cell_that_exceeds_their_limit_once(tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "sleeping", *TASK, "--seeds", "0-1", *TINY]
    processes = [start(*arguments, "--timeout", "3", out=tmp_path) for _ in range(2)]
    for process in processes:
        assert finish(process)[0] == 1
    assert [record["status"] for record in read_records(tmp_path)] == ["timeout"] * 2
    assert starts(tmp_path) == [1, 1]


@linux
def test_a_runner_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "pausing", *TASK, "--seeds", "0-1", *TINY]
    arguments += ["--set", "pausing.pause=2"]
    first = start(*arguments, out=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("running/*.json"))) == 1)
    second = start(*arguments, out=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("running/*.json"))) == 2)
    first.kill()
    first.communicate()
    assert finish(second)[0] == 0
    assert [record["status"] for record in read_records(tmp_path)] == ["done"] * 2
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
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(small_disk: Path, jobs: str) -> None:
    arguments = ["--methods", "fm", *TASK, "--seeds", "0-5", *TINY, "--jobs", jobs]
    arguments[arguments.index("network.width=8")] = "network.width=256"  # 0.5 MB a checkpoint
    out = small_disk / "out"
    status, errors = finish(start(*arguments, out=out))
    assert status == 1
    last = errors.splitlines()[-1]
    assert "No space left on device" in last
    done = rows_by_seed(out)
    assert f"{len(done)} of 6 cells are recorded in {out}; the same command goes on" in last
    assert 0 < len(done) < 6
    assert all(record["status"] == "done" for record in done.values())
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    assert finish(start(*arguments, out=out))[0] == 0
    after = rows_by_seed(out)
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


@linux
def test_chaos_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    chaos.run(cells=10, steps=100, kills=2, seed=random.randrange(10**6))
    assert "10 cells recorded once" in capsys.readouterr().out


# Executors.


def test_workers_give_the_rows_of_the_serial_run(tmp_path: Path) -> None:
    arguments = ["--methods", "fm,efm", *TASK, "--seeds", "0-1", *TINY, "--threads", "1"]
    assert bench.run.main([*arguments, "--out", str(tmp_path / "serial")]) == 0
    assert finish(start(*arguments, "--jobs", "2", out=tmp_path / "workers"))[0] == 0
    assert_same_results(tmp_path / "serial", tmp_path / "workers")


def test_the_python_interface_takes_the_same_executors(tmp_path: Path) -> None:
    rows = bench.run(
        methods=["sleeping", "fm"],
        tasks=TASK[1:],
        seeds=[0],
        out=tmp_path,
        steps=2,
        timeout=2,
        plugins=[PLUGIN[1]],
        **{"eval.n": 8},
    )
    assert dict(zip(rows["method"], rows["status"], strict=True)) == {
        "sleeping": "timeout",
        "fm": "done",
    }


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["--methods", "fm", *TASK, "--seeds", "0", *TINY, "--steps", "100"]
    assert bench.run.main([*arguments, "--tensorboard", "--out", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [50, 100]
    (record,) = read_records(tmp_path)
    (last,) = events.Scalars("metrics/w2")
    assert last.value == pytest.approx(record["metrics"]["w2"], rel=1e-6)


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
    assert bench.run.main([*arguments, "--out", str(tmp_path / "serial")]) == 0
    assert_same_results(tmp_path / "serial", tmp_path / "dask")
    workers = cluster.worker_processes()  # the nannies and the slots' processes are no longer busy
    wait_for(lambda: not any(chaos.workers(worker.pid) for worker in workers), 30)


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
@pytest.mark.parametrize("what", ["scheduler", "runner interrupted", "runner killed"])
def test_the_end_of_a_cluster_or_of_its_runner(what: str, cluster: Cluster, tmp_path: Path) -> None:
    arguments = [*PLUGIN, "--methods", "sleeping,fm", *TASK, "--seeds", "0-1", *TINY]
    cluster.add_workers()
    process = start(*arguments, "--scheduler", cluster.address, out=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("running/*.json"))) == 2)
    slots = [slot for worker in cluster.worker_processes() for slot in chaos.workers(worker.pid)]
    assert len(slots) == 2
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
        gone, alive = psutil.wait_procs(slots, timeout=30)
        assert len(gone) == 2
        assert not alive


@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA device")
def test_cells_on_the_gpu_have_one_context_a_worker(tmp_path: Path) -> None:
    arguments = ["--methods", "fm,efm", *TASK, "--seeds", "0-3", *TINY, "--device", "cuda"]
    status, _ = finish(start(*arguments, "--jobs", "2", out=tmp_path))
    assert status == 0
    rows = pd.read_csv(tmp_path / "results.csv")
    assert (rows["status"] == "done").all()
    assert (rows["device"] == torch.cuda.get_device_name(0)).all()


def test_environment_of_a_worker_does_not_leak_here(tmp_path: Path) -> None:
    before = dict(os.environ)
    bench.run(
        methods=["fm"], tasks=TASK[1:], seeds=[0, 1], out=tmp_path, steps=2, jobs=2, **{"eval.n": 8}
    )
    assert dict(os.environ) == before
