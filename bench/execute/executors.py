"""Where cells run: in this process, in worker processes here, or on a dask cluster."""

import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

import joblib
import torch

from bench.config.cell import Cell
from bench.config.options import RunOptions
from bench.execute.cluster import Dask
from bench.execute.job import Finished, Job
from bench.execute.remote import run_here, stop_here
from bench.execute.worker import work
from bench.store.folder import cell_folder, is_held
from bench.store.records import Record

BUSY_SECONDS = 1.0


class Executor(Protocol):
    """Runs jobs and yields them with their records as they finish; None for those at work
    elsewhere."""

    def run(self, jobs: list[Job]) -> Iterator[Finished]: ...

    def close(self) -> None: ...


def execute(cells: list[Cell], options: RunOptions, executor: Executor) -> Iterator[Record]:
    """Runs the cells, in their order, and yields their records as they finish.

    A cell that another runner is at work on is waited for, and run here if that runner dies.

    Raises:
        StorageError: a record could not be written.
        ExecutionError: workers die as they start, or the cluster is gone.
    """
    waiting = [Job.of(cell, options) for cell in cells]
    while waiting:
        busy = []
        for job, record in executor.run(waiting):
            if record is None:
                busy.append(job)
            else:
                yield record
        waiting = busy
        while waiting and all(is_held(cell_folder(options.out, job.id)) for job in waiting):
            time.sleep(BUSY_SECONDS)


def open_executor(options: RunOptions, cells: int) -> Executor:
    """The executor for so many cells that the options ask for, to be closed after use.

    Raises:
        SpecError: there is no such scheduler.
    """
    if options.scheduler is not None and cells:
        return Dask(options)
    jobs = max(1, min(options.jobs or 1, cells))
    if jobs == 1 and options.timeout is None and options.memory is None:
        return InProcess()
    return Workers(options, jobs)


class InProcess:
    """Runs jobs in this process, one after the other; there is nothing to close."""

    def run(self, jobs: list[Job]) -> Iterator[Finished]:
        for job in jobs:
            yield job, work(job, job.options.device, in_process=True)

    def close(self) -> None: ...


class Workers:
    """Runs jobs in supervised processes of this machine, with a thread that waits for each.

    Every worker gets its share of the cores as threads, so that they are not oversubscribed.
    """

    def __init__(self, options: RunOptions, jobs: int) -> None:
        share = max(1, min(joblib.cpu_count() // jobs, torch.get_num_threads()))
        self.options = options.model_copy(update={"threads": options.threads or share})
        self.name = f"bench-{uuid.uuid4().hex}"
        self.pool = ThreadPoolExecutor(jobs, initializer=_block_interrupt)

    def run(self, jobs: list[Job]) -> Iterator[Finished]:
        jobs = [job._replace(options=self.options) for job in jobs]
        device = self.options.device
        futures = {self.pool.submit(run_here, self.name, job, device): job for job in jobs}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()

    def close(self) -> None:
        """Kills what is at work, and ends the workers."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        stop_here(self.name)
        self.pool.shutdown(wait=True)


def _block_interrupt() -> None:
    """Ctrl-C is for the main thread; the worker processes that this thread starts ignore it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
