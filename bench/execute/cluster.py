"""Cells on a dask cluster."""

import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bench.config.errors import BenchError, SpecError
from bench.config.options import RunOptions
from bench.execute.job import ExecutionError, Finished, Job
from bench.execute.remote import run_on_dask, stop_here
from bench.execute.worker import work
from bench.store.folder import MAX_KILLS, RECORD, cell_folder, set_kills
from bench.store.records import Record, write_record

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 10
CLOSE_SECONDS = 5
FETCH_SECONDS = 60


class Dask:
    """Runs jobs on a dask cluster: one at a time in every thread of every dask worker.

    joblib's dask backend is not used: it waits for ever for a call whose worker died more often
    than the scheduler allows.
    """

    # Why a cell has a supervised process of its own there, instead of the dask worker's with its
    # nanny (measured): of a cell that kills its worker, those queued behind it end as KilledWorker
    # too, after 13 s a restart; what is cancelled runs to its end; cells take 1.8 times as long
    # with the nanny's MALLOC_TRIM_THRESHOLD_; edited plug-ins stay loaded between commands.

    def __init__(self, options: RunOptions) -> None:
        assert options.scheduler is not None
        self.options = options
        self.name = f"bench-{uuid.uuid4().hex}"
        self.client = connect(options.scheduler)
        self.futures: dict[Any, Job] = {}

    def run(self, jobs: list[Job]) -> Iterator[Finished]:
        from distributed import as_completed as as_completed_there

        for rank, job in enumerate(jobs):
            key, device = f"{job.id}-{uuid.uuid4().hex}", self.options.device
            submitted = self.client.submit(
                run_on_dask, self.name, job, device, key=key, priority=-rank
            )
            self.futures[submitted] = job
        for future in as_completed_there(list(self.futures), loop=self.client.loop):
            job = self.futures.pop(future)
            yield job, self._record(future, job)

    def _record(self, future: Any, job: Job) -> Record | None:
        """The record of a job that has ended, or None if it must be submitted again."""
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
            raise ExecutionError(f"lost the scheduler {self.options.scheduler}: {why}") from None
        path = cell_folder(self.options.out, job.id) / RECORD
        if record is not None and not path.exists():  # a worker that shares no disk with us
            write_record(self.options.out, record)
        return record

    def _failure(self, error: Exception, job: Job) -> Record | None:
        """A job whose dask workers died is a killed cell; else the cluster is unfit."""
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            set_kills(cell_folder(self.options.out, job.id), MAX_KILLS)
            return work(job, "cpu")
        if isinstance(error, BenchError):
            raise error
        raise ExecutionError(f"a dask worker cannot run cells: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Cancels the jobs and kills the workers that run them."""
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
    """A warning that anybody on the network could use the cluster; None if nobody can."""
    parts = urlsplit(address_of(scheduler))
    if parts.scheme != "tcp" or parts.hostname in ("127.0.0.1", "localhost", "::1"):
        return None
    return f"{scheduler} is neither encrypted nor authenticated; the README shows tls://"
