"""Supervised workers of a run, one a thread: of this machine, or of a dask worker; no torch."""

import multiprocessing
import os
import threading
from collections.abc import Callable

from bench.execute.job import Job
from bench.execute.supervisor import SupervisedWorker
from bench.store.records import Record

# Of each run, by the thread of this process that they work for.
_workers: dict[str, dict[int, SupervisedWorker]] = {}
_ended: set[str] = set()
_lock = threading.Lock()


def run_on_dask(run: str, job: Job, device: str) -> Record | None:
    """Runs a job: what a dask worker calls, in each of its threads."""
    multiprocessing.current_process().daemon = False  # dask's are, and may have no children
    # The nanny sets it so that memory is given back at once; cells take 1.8 times as long with it.
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    return run_here(run, job, device, _task_is_wanted())


def run_here(
    run: str, job: Job, device: str, wanted: Callable[[], bool] = lambda: True
) -> Record | None:
    """Runs a job in the supervised worker of this thread.

    Args:
        run: names the run, so that :func:`stop_here` ends its workers and no others.
        job: what to run.
        device: as for :class:`~bench.execute.supervisor.SupervisedWorker`.
        wanted: whether somebody still wants the result.
    """
    with _lock:
        if run in _ended:
            return None
        workers = _workers.setdefault(run, {})
        new = SupervisedWorker(device, len(workers), job.options.threads)
        worker = workers.setdefault(threading.get_ident(), new)
    return worker.run(job, wanted)


def _task_is_wanted() -> Callable[[], bool]:
    """Whether the dask task of this thread still is, after its client was killed for instance."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    return wanted


def stop_here(run: str) -> None:
    """Ends the workers of a run in this process, with what they are at."""
    with _lock:
        _ended.add(run)
        workers = _workers.pop(run, {}).values()
    for worker in workers:  # all at once
        worker.stopped.set()
    for worker in workers:
        worker.close()
