"""What commands that run cells do with their arguments: check them, run, report, name failures."""

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bench.command import FAILED, INTERRUPTED, OK, log
from bench.config.cell import Cell
from bench.config.errors import BenchError, SpecError, printable
from bench.config.files import folder_name, merge, read_config, suite_path
from bench.config.grid import Spec
from bench.config.options import RunOptions
from bench.config.plugins import load_plugin
from bench.config.settings import SHORTHANDS
from bench.config.values import parse_seeds, parse_values
from bench.execute.cluster import warning_of
from bench.execute.cost import forecast
from bench.execute.progress import Progress
from bench.execute.session import Session, check_data, plan, prepared
from bench.features.inception import NO_WEIGHTS
from bench.report.build import write_tables
from bench.store.folder import RECORD, StorageError, cell_folder
from datasets import TASKS
from datasets.base import DATA_ROOT, DataError
from methods import METHODS

RUNS = Path("results/runs")
SHOWN = 50  # failed cells that are named on the terminal


def load(plugins: Iterable[str], data_root: str | None) -> None:
    """Loads plug-ins and has tasks look for files of the user's; before anything is checked.

    Raises:
        SpecError: a plug-in that cannot be loaded, or no such folder.
    """
    for path in plugins:
        load_plugin(path)
    if data_root is not None:  # else the environment has it
        if not Path(data_root).is_dir():
            raise SpecError(f"data-root: no folder {data_root!r}")
        os.environ[DATA_ROOT] = str(Path(data_root).absolute())


def options_of(arguments: argparse.Namespace, out: Path, *command: str) -> RunOptions:
    """How cells are to be run, from the options of :meth:`Parser.add_options`.

    Records name the words of the ``command``.

    Raises:
        SpecError: a value out of range, or a device or package that is not here.
    """
    given = {name: value for name, value in vars(arguments).items() if name in OPTIONS}
    words = shlex.join(["python", "-m", *command])
    return prepared(RunOptions.checked(out, command=words, **given))


OPTIONS = set(RunOptions.model_fields) - {"out", "command", "begun"}


def asked(arguments: argparse.Namespace) -> tuple[Spec, list[str], list[str]]:
    """What :mod:`bench.run` is asked for; the command line overrides a file, and that the suite.

    Returns:
        The spec; the settings of the command line; a line for each task that is left out because
        its files are not there.
    """
    config = read_config(suite_path(arguments.suite))
    if arguments.config is not None:
        config = merge(config, read_config(arguments.config)).model_dump()
    given, left_out = words_given(arguments), []
    if (arguments.tasks or "").strip() == "all":
        for name, task in TASKS.items():
            try:
                task().check()
            except DataError as error:
                given["tasks"].remove(name)
                left_out.append(f"left out: {error}")
    return merge(config, given), list(given["settings"]), left_out


def words_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The methods, tasks, seeds and settings of a command line, as those of a file; not checked."""
    axes = {name: getattr(arguments, name, None) for name in ("L", "sigma", "steps", "batch")}
    words = [f"{name}={text}" for name, text in axes.items() if text is not None]
    given: dict[str, Any] = {"settings": {}}
    for word in [*words, *arguments.set]:
        name, text = assignment("set", word, "name=value or name=value,value")
        given["settings"][name] = parse_values(text)
    for argument, known in (("methods", METHODS), ("tasks", TASKS)):
        if (text := getattr(arguments, argument)) is not None:
            names = list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
            given[argument] = list(known) if names == ["all"] else names
    if arguments.seeds is not None:
        given["seeds"] = parse_seeds(arguments.seeds)
    return given


def assignment(option: str, word: str, expected: str) -> tuple[str, str]:
    """The name of a setting, with its section, and what it is set to."""
    name, equals, text = word.partition("=")
    if not equals:
        raise SpecError(f"{option}: expected {expected}, got {word!r}")
    return SHORTHANDS.get(name.strip(), name.strip()), text.strip()


def output_folder(arguments: argparse.Namespace) -> Path:
    """``--out``, or a folder that is named after the suite or the configuration file."""
    if arguments.out is not None:
        return checked_folder(arguments.out)
    return RUNS / (arguments.suite if arguments.config is None else folder_name(arguments.config))


def checked_folder(out: str | Path) -> Path:
    """The output folder; its name stands in what is printed and written."""
    if not isinstance(out, str | Path) or not str(out) or not str(out).isprintable():
        raise SpecError(f"out: expected a folder with a printable name, got {out!r}")
    try:
        (Path(out) / "cells").exists()
    except OSError as error:  # a name that is too long, or in a folder that cannot be read
        raise SpecError(f"out: no folder {str(out)!r}: {error.strerror}") from None
    return Path(out)


def dry_run(cells: list[Cell], options: RunOptions) -> None:
    """Prints the cells, what is left to do and what that takes."""
    _, left, _ = plan(cells, options)
    todo = {cell.id for cell in left}
    for cell in cells:
        settings = " ".join(f"{key}={value}" for key, value in cell.hyperparameters.items())
        state = "to do   " if cell.id in todo else "finished"
        print(f"{cell.id} {state} {cell.label} {settings}")
    try:
        check_data(left, options)
    except SpecError as error:
        print(f"not here: {error}")
    if left:
        device = "cuda" if options.device.startswith("cuda") else "cpu"
        for line in forecast(left, device, options.threads):
            print(line)
    print(f"{len(cells)} cells, {len(todo)} to do, in {options.out}")


def run_session(
    session: Session, program: str, then: str, report: Callable[[], pd.DataFrame]
) -> int:
    """Runs what is left to do under the live view, and reports; the exit status.

    ``report`` is called when all cells are recorded, and gives the rows of ``results.csv``;
    ``then`` says in words what it does.
    """
    options, cells = session.options, session.cells
    _announce(session, program)
    try:
        begin = time.time()
        with (
            Progress(cells, options.out, session.expectation, session.before) as progress,
            contextlib.closing(session.records()) as records,
        ):
            for record in records:
                progress.finished(record)
        print(f"{len(session.todo)} cells in {time.time() - begin:.0f} s; {then}", flush=True)
        rows = report()
    except KeyboardInterrupt:
        with contextlib.suppress(StorageError):
            write_tables(options.out)
        log(program, f"interrupted; {_standing(session)}")
        return INTERRUPTED
    except BenchError as error:
        log(program, f"{error}; {_standing(session)}")
        return FAILED
    return _name_failures(rows[rows["id"].isin([cell.id for cell in cells])], options.out)


def _announce(session: Session, program: str) -> None:
    """Says what is about to be run, and where."""
    options, before = session.options, session.before
    remote, local = f"through {options.scheduler}", f"{options.jobs} jobs on {options.device}"
    counted = f"{len(session.cells)} cells, {len(before)} of them finished before"
    print(f"{counted}; {remote if options.scheduler else local}; {options.out}", flush=True)
    if options.scheduler is not None and (warning := warning_of(options.scheduler)) is not None:
        log(program, warning)
    if options.fid_weights is not None:
        count = sum(str(record.fid_reason).startswith(NO_WEIGHTS) for record in before)
        if count:
            log(program, f"{count} finished cells stay without FID: --force runs them again")


def _standing(session: Session) -> str:
    """What a run that was cut short has recorded, and how to resume it."""
    out, cells = session.options.out, session.cells
    if session.options.force:
        anew = f"{session.statuses.total()} of {len(cells)} cells were recorded anew in {out}"
        return f"{anew}; --force repeats these too"
    recorded = sum((cell_folder(out, cell.id) / RECORD).exists() for cell in cells)
    return f"{recorded} of {len(cells)} cells are recorded in {out}; the same command resumes there"


def _name_failures(rows: pd.DataFrame, out: Path) -> int:
    """A line for each cell that is neither done nor skipped, up to a number; the exit status."""
    bad = rows[~rows["status"].isin(["done", "skipped"])]
    for row in bad.head(SHOWN).to_dict("records"):
        name = f"{row['method']} {row['task']} seed {row['seed']}"
        reason, where = printable(row["reason"]), cell_folder(out, row["id"])
        print(f"{row['status']}: {name}: {reason} ({where})", file=sys.stderr)
    if len(bad) > SHOWN:
        print(f"and {len(bad) - SHOWN} more, see {out / 'results.csv'}", file=sys.stderr)
    return FAILED if len(bad) else OK
