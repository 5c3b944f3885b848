"""Compare physics-inspired generators: methods x tasks x seeds x settings -> a leaderboard.

    python -m bench.run --methods efm,fm,pfgm
    python -m bench.run --methods efm,fm --tasks gaussian_to_swiss_roll --L 6,30 --sigma 0.1,1

From Python: ``from bench import run``, then ``run(methods=["efm"], L=[6, 30])``.
"""

import argparse
import platform
import shlex
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from pydantic import ValidationError

from bench.cell import environment
from bench.execute import cpu_count, execute, resolve_device
from bench.leaderboard import leaderboard, table
from bench.metrics import METRICS
from bench.progress import Progress
from bench.records import cell_folder, finished, read_records, results, write_json
from bench.report import write_report, write_tables
from bench.spec import (
    DEFAULT_SUITE,
    SECTIONS,
    SHORTHANDS,
    SUITES,
    Cell,
    Spec,
    SpecError,
    check_names,
    check_seeds,
    parse_seeds,
    parse_values,
    public_fields,
    read_config,
    suite_path,
)
from datasets import TASKS
from methods import METHODS

RUNS = Path("results/runs")
OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        arguments = _parser().parse_args(argv)
        if arguments.list:
            _list()
            return OK
        spec, out = _spec(arguments), _out(arguments)
        cells, device = spec.cells(), resolve_device(arguments.device)
        if arguments.dry_run:
            _dry_run(cells, out, arguments.force)
            return OK
        _check_writable(out)
        todo = _pending(cells, out, arguments.force)
        command = ["python", "-m", "bench.run", *(sys.argv[1:] if argv is None else argv)]
        _write_manifest(out, spec, cells, command)
        return _run_and_report(cells, todo, out, arguments.jobs, device)
    except SpecError as error:
        print(f"bench.run: {error}", file=sys.stderr)
        return MISUSED


def run(
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    suite: str = DEFAULT_SUITE,
    jobs: int = 1,
    device: str = "auto",
    force: bool = False,
    **axes: Any,
) -> pd.DataFrame:
    """Runs the cells that have no record yet and writes the tables; no plots, no report.

    Args:
        methods, tasks, seeds: what to compare; those of the suite if not given.
        out: the output folder; ``results/runs/<suite>`` if not given.
        suite: the name of a suite.
        jobs: worker processes.
        device: auto, cpu, cuda or cuda:N.
        force: run finished cells again.
        axes: settings, a value or a list of values each: ``L=[6, 30]``, ``steps=500``,
            ``**{"efm.points": ["log", "mix"]}``.

    Returns:
        The rows of ``results.csv``.

    Raises:
        SpecError: an unknown name or a value out of range, before anything is trained.
    """
    settings = {
        SHORTHANDS.get(name, name): list(value) if isinstance(value, list | tuple) else [value]
        for name, value in axes.items()
    }
    given = {"methods": methods, "tasks": tasks, "seeds": seeds}
    config = {name: list(value) for name, value in given.items() if value is not None}
    spec = _merge(read_config(suite_path(suite)), {**config, "settings": settings})
    folder = Path(out) if out is not None else RUNS / suite
    cells, device = spec.cells(), resolve_device(device)
    if jobs < 1:
        raise SpecError(f"jobs: must be at least 1, got {jobs}")
    _check_writable(folder)
    todo = _pending(cells, folder, force)
    _write_manifest(folder, spec, cells, None)
    for _ in execute(todo, folder, jobs, device):
        pass
    return write_tables(folder)[0]


def _run_and_report(cells: list[Cell], todo: list[Cell], out: Path, jobs: int, device: str) -> int:
    done = len(cells) - len(todo)
    print(f"{len(cells)} cells, {done} of them finished before; {jobs} jobs on {device}; {out}")
    sys.stdout.flush()
    begin = time.time()
    try:
        with Progress(todo, out) as progress:
            for record in execute(todo, out, jobs, device):
                progress.finished(record)
        print(f"{len(todo)} cells in {time.time() - begin:.0f} s; writing tables and plots")
        sys.stdout.flush()
        paths = write_report(out, tell=lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        kept = len(finished(read_records(out)) & {cell.id for cell in cells})
        write_tables(out)
        print(
            f"\nbench.run: interrupted; {kept} of {len(cells)} cells are recorded in {out};"
            " the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    rows = results(read_records(out))
    print(f"\n{table(leaderboard(rows))}\n")
    for path in paths:
        print(path)
    mine = rows[rows["id"].isin([cell.id for cell in cells])]
    bad = mine[~mine["status"].isin(["done", "skipped"])]
    for row in bad.to_dict("records"):
        where = cell_folder(out, row["id"])
        name = f"{row['method']} {row['task']} seed {row['seed']}"
        print(f"{row['status']}: {name}: {row['reason']} ({where})", file=sys.stderr)
    return FAILED if len(bad) else OK


def _pending(cells: list[Cell], out: Path, force: bool) -> list[Cell]:
    try:
        known = set(finished(read_records(out)))  # a record that is none would spoil the tables
    except ValueError as error:
        raise SpecError(f"out: {error}") from None
    return [cell for cell in cells if force or cell.id not in known]


def _spec(arguments: argparse.Namespace) -> Spec:
    """Suite, then configuration file, then command line; the later goes before."""
    config = read_config(suite_path(arguments.suite))
    if arguments.config is not None:
        config = _merge(config, read_config(arguments.config)).model_dump()
    given: dict[str, Any] = {"settings": {}}
    if arguments.methods is not None:
        given["methods"] = _names("methods", arguments.methods, METHODS)
    if arguments.tasks is not None:
        given["tasks"] = _names("tasks", arguments.tasks, TASKS)
    if arguments.seeds is not None:
        given["seeds"] = parse_seeds(arguments.seeds)
        check_seeds(given["seeds"])
    for option in ("L", "sigma", "steps", "batch"):
        text = getattr(arguments, option)
        if text is not None:
            given["settings"][SHORTHANDS.get(option, option)] = parse_values(text)
    for assignment in arguments.set:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SpecError(f"set: expected name=value or name=value,value, got {assignment!r}")
        name = name.strip()
        given["settings"][SHORTHANDS.get(name, name)] = parse_values(text)
    return _merge(config, given)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> Spec:
    settings = {**base.get("settings", {}), **over.get("settings", {})}
    try:
        return Spec(**{**base, **over, "settings": settings})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{name}: {first['msg']}, got {first['input']!r}") from None


def _names(argument: str, text: str, known: dict[str, Any]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(known)
    check_names(argument, names, known)
    return list(dict.fromkeys(names))


def _out(arguments: argparse.Namespace) -> Path:
    if arguments.out == "":
        raise SpecError("out: empty, give a folder")
    name: str = arguments.config.stem if arguments.config else arguments.suite
    return Path(arguments.out) if arguments.out is not None else RUNS / name


def _check_writable(out: Path) -> None:
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out / "cells"):
            pass
    except OSError as error:
        raise SpecError(f"out: cannot write to {str(out)!r}: {error.strerror}") from None


def _write_manifest(out: Path, spec: Spec, cells: list[Cell], command: list[str] | None) -> None:
    manifest = {
        "command": shlex.join(command) if command else None,
        "spec": spec.model_dump(mode="json"),
        "cells": [cell.id for cell in cells],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "platform": platform.platform(),
        "cores": cpu_count(),
        **environment(),
    }
    write_json(out / "manifest.json", manifest)


def _list() -> None:
    print("methods (--methods; hyperparameters with --set method.name=value)")
    for name, method in METHODS.items():
        print(f"  {name:12} {method.title}")
        print(f"  {'':12} {', '.join(public_fields(method))}")
    print("tasks (--tasks; parameters with --set task.name=value)")
    for name, task in TASKS.items():
        print(f"  {name:24} D = {task.dim:<4} {task.title}; {', '.join(public_fields(task))}")
    print("suites (--suite)")
    for path in sorted(SUITES.glob("*.toml")):
        print(f"  {path.stem:12} {path.read_text().splitlines()[0].lstrip('# ')}")
    print("metrics")
    for name, metric in METRICS.items():
        print(f"  {name:16} {(metric.function.__doc__ or '').splitlines()[0]}")
    print("settings (--set section.name=value)")
    for name, section in SECTIONS.items():
        print(f"  {name:8} {', '.join(public_fields(section))}")


def _dry_run(cells: list[Cell], out: Path, force: bool) -> None:
    todo = {cell.id for cell in _pending(cells, out, force)}
    for cell in cells:
        settings = " ".join(f"{key}={value}" for key, value in cell.hyperparameters.items())
        state = "to do   " if cell.id in todo else "finished"
        print(f"{cell.id} {state} {cell.label} {settings}")
    print(f"{len(cells)} cells, {len(todo)} to do, in {out}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--methods", metavar="A,B", help="methods to compare, or all")
    add("--tasks", metavar="A,B", help="tasks to run, or all")
    add("--suite", default=DEFAULT_SUITE, metavar="NAME", help="named set of methods and tasks")
    add("--seeds", metavar="0,1,2", help="seeds: a list, or a range such as 0-4")
    add("--L", metavar="6,30", help="plate distances, for methods that have one")
    add("--sigma", metavar="0.1,1", help="noise levels, for methods that have one")
    add("--steps", metavar="N", help="training steps")
    add("--batch", metavar="N", help="training batch")
    add("--set", action="append", default=[], metavar="NAME=A,B", help="any setting, see --list")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--jobs", type=_positive, default=1, metavar="N", help="worker processes")
    add("--out", metavar="DIR", help=f"output folder; default {RUNS}/<suite>")
    add("--config", type=Path, metavar="FILE", help="TOML file with any of these")
    add("--force", action="store_true", help="run finished cells again")
    add("--list", action="store_true", help="show methods, tasks, metrics and settings")
    add("--dry-run", action="store_true", help="show the cells and run none")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


class _Callable(types.ModuleType):
    """``from bench import run`` gives this module; calling it calls :func:`run`."""

    def __call__(self, *args: Any, **axes: Any) -> pd.DataFrame:
        return run(*args, **axes)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
