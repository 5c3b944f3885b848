"""What the commands that run cells have in common: options, exit status, interruption, the run."""

import argparse
import contextlib
import shlex
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from bench.execute import Plan, warning_of
from bench.features.inception import NO_WEIGHTS
from bench.folder import RECORD, cell_folder
from bench.progress import Progress
from bench.session import Session, make_plan
from bench.spec import SHORTHANDS, SpecError, check_names, parse_values, printable

SHOWN = 50
"""Failed cells that are named on the terminal."""
OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are :class:`SpecError`, with the options of :func:`plan_of`."""

    def __init__(self, program: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m {program}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise SpecError(message)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments."""
        arguments = self.parse_args(words)
        repeated = [
            action.dest for action in self._actions if isinstance(action, argparse._AppendAction)
        ]
        for name, value in vars(arguments).items():
            # argparse drops the value of --option=-- and leaves an empty list.
            if [] in (value if name in repeated else [value]):
                raise SpecError(f"{name}: expected a value, got '--'")
        return arguments

    def add_plan(self) -> None:
        """The options that say how cells are run."""
        add = self.add_argument
        add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        add("--jobs", type=count, metavar="N", help="worker processes; with CUDA one a device")
        add("--threads", type=count, metavar="N", help="CPU threads a cell")
        add("--timeout", type=_amount, metavar="SECONDS", help="end a cell that takes longer")
        add("--memory", type=_amount, metavar="MB", help="end a cell whose worker takes more")
        add("--scheduler", metavar="ADDRESS", help="dask cluster: tcp://..., tls://... or a file")
        add("--tensorboard", action="store_true", help="write the training loss for TensorBoard")
        add("--plugin", action="append", default=[], metavar="FILE.py", help="your method or task")
        add("--data-root", metavar="DIR", help="where data sets of yours lie, see README")
        add("--fid-weights", metavar="FILE", help="pytorch-fid's weights, else its usual cache")
        add("--checkpoint", type=count, metavar="K", help="save training every K steps")


def plan_of(arguments: argparse.Namespace, out: Path, *command: str) -> Plan:
    """How cells are to be run, from the options of :meth:`Parser.add_plan`.

    Args:
        arguments: the options.
        out: the output folder.
        command: the words of the command, for the records.

    Raises:
        SpecError: a value out of range, or a device or package that is not here.
    """
    return make_plan(
        out=out,
        device=arguments.device,
        jobs=arguments.jobs,
        threads=arguments.threads,
        timeout=arguments.timeout,
        memory=arguments.memory,
        scheduler=arguments.scheduler,
        tensorboard=arguments.tensorboard,
        command=shlex.join(["python", "-m", *command]),
        plugins=arguments.plugin,
        data_root=arguments.data_root,
        fid_weights=arguments.fid_weights,
        checkpoint=arguments.checkpoint,
    )


def count(text: str) -> int:
    """A number of an option, not negative."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return int(text)


def _amount(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def assignments(words: Sequence[str]) -> dict[str, list[Any]]:
    """The settings of ``--set name=value,value``."""
    settings = {}
    for assignment in words:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SpecError(f"set: expected name=value or name=value,value, got {assignment!r}")
        name = name.strip()
        settings[SHORTHANDS.get(name, name)] = parse_values(text)
    return settings


def chosen_names(argument: str, text: str, known: dict[str, Any]) -> list[str]:
    """The names of ``--methods`` or ``--tasks``; ``all`` is every known one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(known)
    check_names(argument, names, known)
    return list(dict.fromkeys(names))


def checked_folder(out: str | Path) -> Path:
    """The output folder; its name stands in what is printed and written."""
    if not isinstance(out, str | Path) or not str(out) or not str(out).isprintable():
        raise SpecError(f"out: expected a folder with a printable name, got {out!r}")
    try:
        (Path(out) / "cells").exists()
    except OSError as error:  # a name that is too long, or in a folder that cannot be read
        raise SpecError(f"out: no folder {str(out)!r}: {error.strerror}") from None
    return Path(out)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, by which a batch system ends a job, is as Ctrl-C."""

    def interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # cannot handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def announce(session: Session, program: str) -> None:
    """Says what is about to be run, and where."""
    plan, cells = session.plan, session.cells
    where = f"through {plan.scheduler}" if plan.scheduler else f"{plan.jobs} jobs on {plan.device}"
    print(f"{len(cells)} cells, {len(session.before)} of them finished before; {where}; {plan.out}")
    sys.stdout.flush()
    if plan.scheduler is not None and (warning := warning_of(plan.scheduler)) is not None:
        tell(program, warning)
    if plan.fid_weights is not None:
        reasons = [str(record.get("fid_reason")) for record in session.before]
        if count := sum(reason.startswith(NO_WEIGHTS) for reason in reasons):
            tell(program, f"{count} finished cells stay without FID: --force runs them again")


def run_cells(session: Session, then: str) -> None:
    """Runs what is left to do under the live view; ``then`` says what comes next.

    Raises:
        StorageError, RecordError, ExecutionError, WorkerError: the run cannot go on.
    """
    begin = time.time()
    with (
        Progress(session.todo, session.plan.out, session.expectation, session.before) as progress,
        contextlib.closing(session.records()) as records,
    ):
        for record in records:
            progress.finished(record)
    print(f"{len(session.todo)} cells in {time.time() - begin:.0f} s; {then}", flush=True)


def standing(session: Session) -> str:
    """What a run that was cut short has done, and how it goes on."""
    out, cells = session.plan.out, session.cells
    if session.plan.force:
        return (
            f"{session.statuses.total()} of {len(cells)} cells were recorded anew in {out};"
            " --force repeats these too"
        )
    recorded = sum((cell_folder(out, cell.id) / RECORD).exists() for cell in cells)
    return (
        f"{recorded} of {len(cells)} cells are recorded in {out};"
        " the same command goes on from there"
    )


def tell_failures(rows: pd.DataFrame, out: Path) -> int:
    """A line for each cell that is neither done nor skipped, up to a number; the exit status."""
    bad = rows[~rows["status"].isin(["done", "skipped"])]
    for row in bad.head(SHOWN).to_dict("records"):
        where = cell_folder(out, row["id"])
        name = f"{row['method']} {row['task']} seed {row['seed']}"
        print(f"{row['status']}: {name}: {printable(row['reason'])} ({where})", file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"and {len(bad) - SHOWN} more, see {out / 'results.csv'}", file=sys.stderr)
    return FAILED if len(bad) else OK


def tell(program: str, line: str) -> None:
    """One line of a command on the standard error."""
    print(f"{program}:", line, file=sys.stderr, flush=True)
