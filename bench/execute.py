"""Where cells run: in this process, in worker processes here, or on a dask cluster."""

import contextlib
import json
import logging
import re
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import torch

from bench.folder import (
    RECORD,
    End,
    Record,
    StorageError,
    cell_folder,
    is_held,
    note_end,
    outcome_of,
    write_json,
    writing,
)
from bench.provenance import cpu_count
from bench.records import RecordError
from bench.slots import Job, Slot, WorkerError, deal, run_here, stop_here
from bench.spec import Cell, SpecError
from bench.worker import work

if TYPE_CHECKING:
    from distributed import Client

BUSY_SECONDS = 1.0
CONNECT_SECONDS = 10
CLOSE_SECONDS = 5
FETCH_SECONDS = 60


class ExecutionError(Exception):
    """The run cannot go on, though nothing is wrong with its cells. One line."""


class Plan(NamedTuple):
    """How cells are run."""

    out: Path
    device: str = "cpu"
    jobs: int = 1
    threads: int | None = None
    timeout: float | None = None
    memory: float | None = None
    scheduler: str | None = None
    begun: float = 0.0
    force: bool = False
    command: str | None = None
    tensorboard: bool = False
    plugins: tuple[str, ...] = ()
    data_root: str | None = None
    fid_weights: str | None = None
    checkpoint: int | None = None

    def job(self, cell: Cell) -> Job:
        """What a worker is told of a cell."""
        return Job(
            id=cell.id,
            cell=cell.model_dump_json(),
            out=str(self.out.absolute()),
            threads=self.threads,
            timeout=self.timeout,
            memory=self.memory,
            begun=self.begun,
            force=self.force,
            command=self.command,
            tensorboard=self.tensorboard,
            plugins=self.plugins,
            data_root=self.data_root,
            fid_weights=self.fid_weights,
            checkpoint=self.checkpoint,
        )


Outcome = tuple[Job, Record | None]


class Executor(Protocol):
    """Runs jobs and yields them with their records as they finish; None for those at work
    elsewhere."""

    def run(self, jobs: list[Job]) -> Iterator[Outcome]: ...

    def close(self) -> None: ...


def execute(cells: list[Cell], plan: Plan, executor: Executor) -> Iterator[Record]:
    """Runs the cells, in their order, and yields their records as they finish.

    A cell that another runner is at work on is waited for, and run here if that runner dies.

    Raises:
        StorageError: a record could not be written.
        ExecutionError: workers die as they start, or the cluster is gone.
    """
    waiting = [plan.job(cell) for cell in cells]
    while waiting:
        busy = []
        for job, record in executor.run(waiting):
            if record is None:
                busy.append(job)
            else:
                yield record
        waiting = busy
        while waiting and all(is_held(cell_folder(plan.out, job.id)) for job in waiting):
            time.sleep(BUSY_SECONDS)


def open_executor(plan: Plan, cells: int) -> Executor:
    """The executor that a plan asks for, to be closed after use.

    Raises:
        SpecError: there is no such scheduler.
    """
    if plan.scheduler is not None:
        return Dask(plan)
    jobs = max(1, min(plan.jobs, cells))
    if jobs == 1 and plan.timeout is None and plan.memory is None:
        return InProcess(plan)
    return Workers(plan, jobs)


class InProcess:
    """Runs jobs in this process, one after the other."""

    def __init__(self, plan: Plan) -> None:
        self.device = plan.device

    def run(self, jobs: list[Job]) -> Iterator[Outcome]:
        """See :class:`Executor`."""
        for job in jobs:
            yield job, work(job, self.device, in_process=True)

    def close(self) -> None:
        """See :class:`Executor`."""


class Workers:
    """Runs jobs in worker processes of this machine: a slot each, a thread that waits for each.

    Every worker gets its share of the cores as threads, so that they are not oversubscribed.
    """

    def __init__(self, plan: Plan, jobs: int) -> None:
        threads = plan.threads or max(1, min(cpu_count() // jobs, torch.get_num_threads()))
        self.threads = threads
        self.slots = [Slot(plan.device, index, threads) for index in range(jobs)]
        self.pool = ThreadPoolExecutor(jobs, initializer=_block_interrupt)

    def run(self, jobs: list[Job]) -> Iterator[Outcome]:
        """See :class:`Executor`."""
        free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self.slots:
            free.put(slot)

        def run_one(job: Job) -> Record | None:
            slot = free.get()
            try:
                return slot.run(job._replace(threads=self.threads))
            finally:
                free.put(slot)

        futures = {self.pool.submit(run_one, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()

    def close(self) -> None:
        """Kills what is at work, and ends the workers."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for slot in self.slots:
            slot.stop()
        self.pool.shutdown(wait=True)
        for slot in self.slots:
            slot.close()


def _block_interrupt() -> None:
    """Ctrl-C is for the main thread; the worker processes that this thread starts ignore it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


class Dask:
    """Runs jobs on a dask cluster: in every thread of every worker a slot.

    joblib's dask backend is not used: it waits for ever for a call whose worker died more often
    than the scheduler allows.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.scheduler is not None
        self.plan = plan
        self.name = f"bench-{uuid.uuid4().hex}"
        self.client = connect(plan.scheduler)
        self.futures: dict[Any, Job] = {}

    def run(self, jobs: list[Job]) -> Iterator[Outcome]:
        """See :class:`Executor`."""
        from distributed import as_completed as as_completed_there

        self.futures = {
            self.client.submit(
                run_here,
                self.name,
                job,
                self.plan.device,
                key=f"{job.id}-{uuid.uuid4().hex}",
                pure=False,
                priority=-rank,
            ): job
            for rank, job in enumerate(jobs)
        }
        for future in as_completed_there(list(self.futures), loop=self.client.loop):
            job = self.futures.pop(future)
            yield job, self._record(future, job)

    def _record(self, future: Any, job: Job) -> Record | None:
        """What came of a job."""
        if future.status == "error":
            return self._failure(future.exception(), job)
        if future.status != "finished" and self.client.status == "running":
            return None  # the worker died that had the result; the next one finds the record
        try:
            record: Record | None = future.result(timeout=FETCH_SECONDS)
        except Exception as error:
            if self.client.status == "running":
                return None
            why = type(error).__name__
            raise ExecutionError(f"lost the scheduler {self.plan.scheduler}: {why}") from None
        path = cell_folder(self.plan.out, job.id) / RECORD
        if record is not None and not path.exists():  # a worker that shares no disk with us
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
        return record

    def _failure(self, error: Exception, job: Job) -> Record | None:
        """A job whose dask workers died is a killed cell; else the cluster is unfit."""
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            reason = f"{error.allowed_failures + 1} dask workers died while it ran there"
            folder = cell_folder(self.plan.out, job.id)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            note_end(folder, End(outcome_of("killed", reason), time.time(), 0.0))
            return work(job, "cpu")
        if isinstance(error, StorageError | RecordError | WorkerError):
            raise error
        raise ExecutionError(f"a dask worker cannot run cells: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Ends what is at work there."""
        # The scheduler or a worker may be gone; nothing that is asked of it is answered then.
        ending = threading.Thread(target=self._end, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            self.client.cancel(list(self.futures))
            self.client.run(stop_here, self.name, on_error="ignore")
        with contextlib.suppress(Exception):
            self.client.close(timeout=CLOSE_SECONDS)


def connect(scheduler: str) -> "Client":
    """A client of the scheduler at an address or in a scheduler file.

    Raises:
        SpecError: dask is not installed, or there is no such scheduler.
    """
    try:
        from distributed import Client, Security
    except ImportError:
        raise SpecError(
            "scheduler: dask is not installed, pip install 'field-matching-bench[dask]'"
        ) from None
    # What it logs of a lost cluster is a screenful; one line says it.
    for name in logging.getLogger().manager.loggerDict:
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    address = address_of(scheduler)
    try:
        certificates = Security().get_connection_args("client").get("ssl_context")
        if address.startswith("tls://") and certificates is None:
            # The client would hang, half open, on its way out.
            raise ValueError("it wants certificates, see the README")
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # whatever is wrong with an address or a certificate
        why = " ".join(str(error).split())
        raise SpecError(f"scheduler: cannot connect to {scheduler!r}: {why}") from None


def address_of(scheduler: str) -> str:
    """The address of a scheduler, which a scheduler file holds.

    Raises:
        SpecError: neither an address nor such a file.
    """
    try:
        if "://" in scheduler:
            urlsplit(scheduler)
            return scheduler
        return str(json.loads(Path(scheduler).read_bytes())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SpecError(
            "scheduler: expected an address such as tcp://127.0.0.1:8786 or a scheduler file,"
            f" got {scheduler!r}"
        ) from None


def warning_of(scheduler: str) -> str | None:
    """What to tell someone whose cluster anybody on the network could use; None if all is well."""
    parts = urlsplit(address_of(scheduler))
    if parts.scheme != "tcp" or parts.hostname in ("127.0.0.1", "localhost", "::1"):
        return None
    return f"{scheduler} is neither encrypted nor authenticated; the README shows tls://"


def resolve_device(name: str) -> str:
    """Checks a device; ``auto`` is the GPU if there is one.

    Raises:
        SpecError: an unknown device, or one that this machine lacks.
    """
    check_device(name)
    try:
        device = deal(name, 0, torch.cuda.device_count())
    except ValueError as error:
        raise SpecError(f"device: {error}") from None
    return device if name == device else device.partition(":")[0]


def check_device(name: str) -> None:
    """Raises :class:`SpecError` for a name that is no device on any machine."""
    if not isinstance(name, str) or not re.fullmatch("auto|cpu|cuda(:[0-9]{1,4})?", name):
        raise SpecError(f"device: unknown device {name!r}, choose from auto, cpu, cuda, cuda:N")
