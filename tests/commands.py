"""Commands in the process of the test, and a process that has loaded no plug-ins yet."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import bench.run
from bench.config import plugins
from bench.metrics import METRICS
from datasets import TASKS
from methods import METHODS


class Ended(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def run_main(argv: Sequence[str], main: Callable[[Sequence[str]], int] = bench.run.main) -> Ended:
    """Runs a command in this process.

    The streams encode as those of a process do: what is not UTF-8 cannot be printed.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            status = main(argv)
        except SystemExit as stop:  # --help
            status = int(stop.code or 0)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return Ended(status, out, err)


@contextlib.contextmanager
def no_plugins() -> Iterator[None]:
    """Forgets at the end what was registered in the block, as a new process has never known it."""
    tables = METHODS, TASKS, METRICS, plugins._loaded
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)
