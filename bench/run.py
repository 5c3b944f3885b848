"""Compare physics-inspired generators: methods x tasks x seeds x settings -> a leaderboard.

    python -m bench.run --methods efm,fm,pfgm
    python -m bench.run --methods efm,fm --tasks gaussian_to_swiss_roll --L 6,30 --sigma 0.1,1

From Python: ``from bench import run``, then ``run(methods=["efm"], L=[6, 30])``.
"""

# Functions import what they need: torch and pandas take seconds that --help and --list need not.

import contextlib
import functools
import shlex
import shutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.command import OK, Parser, entry, log, terminable
from bench.config.catalogue import Catalogue, lines_of, read_catalogue, registered_catalogue
from bench.config.options import RunOptions

if TYPE_CHECKING:
    import pandas as pd

PROGRAM = "bench.run"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return entry(PROGRAM, _run, argv)


def _run(words: Sequence[str]) -> int:
    arguments = _parser().read(words)
    if arguments.list and not arguments.plugins:
        return _show(read_catalogue())
    from bench import sweep
    from bench.analysis.analysis import Analysis
    from bench.execute.session import Session
    from bench.metrics import METRICS
    from bench.report import terminal, write_report

    sweep.load(arguments.plugins, arguments.data_root)
    if arguments.list:
        return _show(registered_catalogue(METRICS))
    spec, given, remarks = sweep.asked(arguments)
    cells = spec.cells()
    remarks += spec.ignored(given)
    options = sweep.options_of(arguments, sweep.output_folder(arguments), PROGRAM, *words)

    def report() -> "pd.DataFrame":
        analysis = Analysis.of(options.out)
        to_stderr = functools.partial(print, file=sys.stderr, flush=True)
        paths = write_report(options.out, to_stderr, analysis=analysis)
        print(f"\n{terminal(analysis)}\n", *paths, sep="\n")
        return analysis.rows

    with terminable():
        session = None if arguments.dry_run else Session(spec, cells, options)
        for remark in remarks:  # not before: a mistake is one line
            log(PROGRAM, remark)
        if session is not None:
            return sweep.run_session(session, PROGRAM, "writing tables and plots", report)
        sweep.dry_run(cells, options)
        return OK


def run(
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    suite: str = "default",
    **axes: Any,
) -> "pd.DataFrame":
    """Runs the cells that have no record yet, writes the tables, and returns ``results.csv``.

    Args:
        methods, tasks, seeds: what to compare; those of the suite if not given.
        out: the output folder; ``results/runs/<suite>`` if not given.
        suite: the name of a suite.
        axes: options of :class:`~bench.config.options.RunOptions` (``jobs=2``), and
            settings, a value or a list of values each: ``L=[6, 30]``, ``steps=500``,
            ``**{"efm.points": ["log", "mix"]}``.

    Raises:
        SpecError: an unknown name or a value out of range, before anything is trained.
        RecordError: the folder holds a file that is no record of this version.
        StorageError, ExecutionError: the run cannot continue; what is recorded stays.
    """
    from bench import sweep
    from bench.config.files import merge, read_config, suite_path
    from bench.config.settings import SHORTHANDS
    from bench.config.values import as_list
    from bench.execute.session import Session, prepared
    from bench.report.build import write_tables

    base = read_config(suite_path(suite))
    options = {name: axes.pop(name) for name in sweep.OPTIONS & set(axes)}
    folder = sweep.RUNS / suite if out is None else sweep.checked_folder(out)
    chosen = RunOptions.checked(folder, command=shlex.join(["python", *sys.argv]), **options)
    sweep.load(chosen.plugins, chosen.data_root)
    settings = {SHORTHANDS.get(name, name): as_list(name, value) for name, value in axes.items()}
    given = {"methods": methods, "tasks": tasks, "seeds": seeds}
    config = {name: as_list(name, value) for name, value in given.items() if value is not None}
    spec = merge(base, {**config, "settings": settings})
    session = Session(spec, spec.cells(), prepared(chosen))
    for line in spec.ignored(settings):
        log(PROGRAM, line)
    with contextlib.closing(session.records()) as records:
        for _ in records:
            pass
    return write_tables(folder)[0]


def _show(catalogue: Catalogue) -> int:
    for line in lines_of(catalogue, shutil.get_terminal_size((100, 24)).columns):
        print(line)
    return OK


def _parser() -> Parser:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("--methods", metavar="A,B", help="methods to compare, or all")
    add("--tasks", metavar="A,B", help="tasks to run, or all")
    add("--suite", default="default", metavar="NAME", help="named set of methods and tasks")
    add("--seeds", metavar="0,1,2", help="seeds: a list, or a range such as 0-4")
    add("--L", metavar="6,30", help="plate distances, for methods that have one")
    add("--sigma", metavar="0.1,1", help="noise levels, for methods that have one")
    add("--steps", metavar="N", help="training steps")
    add("--batch", metavar="N", help="training batch")
    add("--set", action="append", default=[], metavar="NAME=A,B", help="any setting, see --list")
    parser.add_options()
    add("--out", metavar="DIR", help="output folder; default results/runs/<suite>")
    add("--config", type=Path, metavar="FILE", help="TOML file with any of these")
    add("--list", action="store_true", help="show methods, tasks, metrics and settings")
    add("--dry-run", action="store_true", help="show the cells and run none")
    return parser


class _Callable(types.ModuleType):
    """``from bench import run`` gives this module; calling it calls :func:`run`."""

    def __call__(self, *args: Any, **axes: Any) -> "pd.DataFrame":
        return run(*args, **axes)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
