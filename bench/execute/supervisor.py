"""Runs cells one after the other in a worker process, and watches over it.

The worker is a loky process. One that is killed, by the system for want of memory or by hand, or
for exceeding a limit, takes one cell with it and nothing else: the next one is started. The process
that supervises imports no torch: it is the runner's, or a dask worker's.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
from joblib.externals.loky import ProcessPoolExecutor, process_executor

from bench.execute.job import ExecutionError, Job
from bench.store.folder import DRAFT, cell_folder, kills, set_kills
from bench.store.records import Outcome, Record, RecordError, read_record, tidy, write_record

POLL_SECONDS = 0.1
GRACE_SECONDS = 0.5  # from the limit, when the worker writes down where it is, to its end
IDLE_SECONDS = 300.0
MAX_STARTS = 3


class _StoppedError(Exception):
    """The supervision is to end."""


class _ExceededError(Exception):
    """The worker exceeds a limit of its job."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


class SupervisedWorker:
    """Runs jobs in a worker process.

    Args:
        device: a torch device, or ``cuda`` or ``auto`` for the one that
            :func:`~bench.execute.devices.assign_device` gives.
        index: the number of the worker among those of its owner.
        threads: the CPU threads of the worker's numerical libraries; theirs if None.
    """

    def __init__(self, device: str, index: int, threads: int | None = None) -> None:
        self.device, self.index, self.threads = device, index, threads
        self.stopped = threading.Event()
        self.busy = threading.Lock()
        self.used = False
        self.pool: Any = None
        self.future: Any = None

    def run(self, job: Job, wanted: Callable[[], bool]) -> Record | None:
        """The record of the cell; None if another runner is at work on it, or after :meth:`close`.

        The worker is killed when ``wanted`` says that nobody wants the result any more.

        Raises:
            StorageError: the record could not be written.
            ExecutionError: the workers die before they begin.
        """
        folder = cell_folder(job.options.out, job.id)
        with self.busy:
            self.wanted = wanted
            while True:
                try:
                    return self._run_once(job)
                except _StoppedError:
                    self._kill()
                    return None
                except BrokenProcessPool:
                    self._kill()
                    set_kills(folder, kills(folder) + 1)  # the worker gives up when it sees 3
                except _ExceededError as exceeded:
                    outcome = exceeded.outcome
                    # The memory of earlier cells is no fault of this one: it gets a new worker.
                    at_fault = outcome.status == "timeout" or not self.used
                    record = _completed(job.options.out, folder, outcome) if at_fault else None
                    self._kill()
                    if record is not None:
                        tidy(job.options.out, record)  # what the worker wrote after that
                        return record

    def close(self) -> None:
        """Kills the worker; :meth:`run`, in another thread, returns None."""
        self.stopped.set()
        with self.busy:
            self._kill()

    def _run_once(self, job: Job) -> Record | None:
        worker, begin = self._ready_worker(), time.monotonic()

        def exceeded() -> Outcome | None:
            return excess(job, time.monotonic() - begin, worker)

        record: Record | None = self._call(exceeded, _work, job, self.device, self.index)
        self.used = True
        return record

    def _ready_worker(self) -> psutil.Process:
        """The worker, ready to begin."""
        for _ in range(MAX_STARTS):
            self.pool = self.pool or ProcessPoolExecutor(
                1,
                timeout=IDLE_SECONDS,
                initializer=_begin_work,
                initargs=(os.getpid(),),
                env=thread_variables(self.threads),
            )
            try:
                return psutil.Process(self._call(lambda: None, _ready))
            except (BrokenProcessPool, psutil.NoSuchProcess, OSError) as error:
                self._kill()
                cause = error
        raise ExecutionError(f"worker processes die as they start: {' '.join(str(cause).split())}")

    def _call(
        self, exceeded: Callable[[], Outcome | None], function: Callable[..., Any], *args: Any
    ) -> Any:
        """The result of a function in the worker.

        Raises:
            BrokenProcessPool: the worker died.
            _ExceededError: ``exceeded``, which is asked meanwhile, gives an outcome.
            _StoppedError: somebody called :meth:`close`, or nobody wants the result any more.
        """
        self.future = self.pool.submit(function, *args)
        while not self.future.done():
            if self.stopped.is_set() or not self.wanted():
                raise _StoppedError
            if (outcome := exceeded()) is not None:
                raise _ExceededError(outcome)
            wait([self.future], POLL_SECONDS)
        return self.future.result()

    def _kill(self) -> None:
        """Kills the worker, if there is one."""
        self.used = False
        if self.pool is None:
            return
        # loky stumbles over a call that it has not passed on yet (KeyError in its own thread).
        end = time.monotonic() + 5
        while self.future is not None and time.monotonic() < end:
            if self.future.running() or self.future.done():
                break
            time.sleep(0.01)
        self.pool.shutdown(wait=True, kill_workers=True)
        self.pool = self.future = None


def _completed(out: Path, folder: Path, outcome: Outcome) -> Record | None:
    """Completes and writes the draft of a record, before its worker is killed."""
    try:
        draft = read_record(folder / DRAFT)
    except RecordError:  # it hangs before the cell begins
        set_kills(folder, kills(folder) + 1)
        return None
    ended = {**outcome.model_dump(), "seconds": time.time() - draft.started}
    record = draft.model_copy(update=ended)
    write_record(out, record)
    return record


def excess(job: Job, elapsed: float, worker: Any) -> Outcome | None:
    """How a cell ends whose worker exceeds a limit; None if it does not.

    Args:
        job: has the limits.
        elapsed: seconds that the cell has taken.
        worker: the process, with ``memory_info()``.
    """
    timeout, memory = job.options.timeout, job.options.memory
    if timeout is not None and elapsed > timeout + GRACE_SECONDS:
        reason = f"not done after --timeout {timeout:g} s"
        return Outcome(status="timeout", reason=reason, exceeded={"timeout": timeout})
    if memory is not None:
        try:
            used = worker.memory_info().rss / 2**20
        except psutil.NoSuchProcess:  # the future says so in a moment
            return None
        if used > memory:
            reason = f"used {used:.0f} MB, more than --memory {memory:g} MB"
            return Outcome(status="killed", reason=reason, exceeded={"memory": memory})
    return None


def thread_variables(threads: int | None) -> dict[str, str]:
    """The environment that gives numerical libraries ``threads`` threads."""
    if threads is None:
        return {}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Threads that spin while they wait bring two busy workers on one core to a standstill.
    return {"OMP_WAIT_POLICY": "PASSIVE", **dict.fromkeys(names, str(threads))}


def _begin_work(owner: int) -> None:
    """In the worker: its owner alone ends it, and it does not outlive its owner."""
    # A terminal or a batch system signals the whole group; the death of the worker would count
    # against its cell.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # loky ends a worker that has grown by 300 MB, as every one does that opens a GPU. (To have it
    # not look at all would have it collect garbage instead, .15 s a cell.)
    process_executor._MAX_MEMORY_LEAK_SIZE = math.inf

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ready() -> int:
    """In the worker: loads what a cell needs, so that a cell's time is its own."""
    import torch

    import bench.execute.worker  # noqa: F401

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds
    return os.getpid()


def _work(job: Job, device: str, index: int) -> Record | None:
    from bench.execute.worker import work

    return work(job, device, index)
