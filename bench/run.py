"""Compare physics-inspired generators: methods x tasks x seeds x settings -> a leaderboard.

    python -m bench.run --methods efm,fm,pfgm
    python -m bench.run --methods efm,fm --tasks gaussian_to_swiss_roll --L 6,30 --sigma 0.1,1

From Python: ``from bench import run``, then ``run(methods=["efm"], L=[6, 30])``.
"""

import argparse
import contextlib
import shlex
import sys
import types
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.command import (
    FAILED,
    INTERRUPTED,
    MISUSED,
    OK,
    Parser,
    announce,
    assignments,
    checked_folder,
    chosen_names,
    plan_of,
    run_cells,
    standing,
    tell,
    tell_failures,
    terminable,
)
from bench.estimate import forecast
from bench.execute import ExecutionError, Plan
from bench.folder import StorageError
from bench.metrics import METRICS
from bench.plugins import load_plugin
from bench.records import RecordError, read_records, results
from bench.report import write_report, write_tables
from bench.session import Session, check_data, make_plan, pending, settled, use_data_root
from bench.slots import WorkerError
from bench.spec import (
    DEFAULT_SUITE,
    SECTIONS,
    SHORTHANDS,
    SUITES,
    Cell,
    Spec,
    SpecError,
    as_list,
    check_seeds,
    folder_name,
    merge,
    parse_seeds,
    parse_values,
    public_fields,
    read_config,
    suite_path,
)
from bench.summary import terminal
from datasets import TASKS
from datasets.base import DataError
from methods import METHODS

RUNS = Path("results/runs")
PROGRAM = "bench.run"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().read(words)
        for path in arguments.plugin:
            load_plugin(path)
        use_data_root(arguments.data_root)
        if arguments.list:
            _list()
            return OK
        missing = _without_files() if (arguments.tasks or "").strip() == "all" else {}
        spec = _spec(arguments, missing)
        cells = spec.cells()
        plan = plan_of(arguments, _out(arguments), PROGRAM, *words)
        if arguments.dry_run:
            _tell_left_out(missing)
            _dry_run(cells, plan, arguments.force)
            return OK
        with terminable():
            session = Session(spec, cells, plan, arguments.force)
            _tell_left_out(missing)  # not before: a mistake is one line
            return _run_and_report(session)
    except (SpecError, RecordError, StorageError) as error:  # nothing has been started
        tell(PROGRAM, str(error))
        return MISUSED
    except KeyboardInterrupt:  # before the first cell, or again while tables are written
        tell(PROGRAM, "interrupted")
        return INTERRUPTED


def run(
    methods: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    suite: str = DEFAULT_SUITE,
    jobs: int | None = None,
    device: str = "auto",
    force: bool = False,
    threads: int | None = None,
    timeout: float | None = None,
    memory: float | None = None,
    scheduler: str | None = None,
    tensorboard: bool = False,
    plugins: Sequence[str] = (),
    data_root: str | Path | None = None,
    fid_weights: str | Path | None = None,
    checkpoint: int | None = None,
    **axes: Any,
) -> pd.DataFrame:
    """Runs the cells that have no record yet and writes the tables; no plots, no report.

    Args:
        methods, tasks, seeds: what to compare; those of the suite if not given.
        out: the output folder; ``results/runs/<suite>`` if not given.
        suite: the name of a suite.
        jobs: worker processes; 1 if not given, or with CUDA one a visible device.
        device: auto, cpu, cuda or cuda:N.
        force: run finished cells again.
        threads: CPU threads of a cell; its worker's share of the cores if not given.
        timeout: seconds that a cell may take.
        memory: megabytes that the worker of a cell may take.
        scheduler: address or scheduler file of a dask cluster to run on.
        tensorboard: write the training loss for TensorBoard.
        plugins: Python files that register methods or tasks.
        data_root: where data sets of the user lie, from now on in this process.
        fid_weights: the weight file of pytorch-fid.
        checkpoint: training steps between two checkpoints.
        axes: settings, a value or a list of values each: ``L=[6, 30]``, ``steps=500``,
            ``**{"efm.points": ["log", "mix"]}``.

    Returns:
        The rows of ``results.csv``.

    Raises:
        SpecError: an unknown name or a value out of range, before anything is trained.
        RecordError: the folder holds a file that is no record of this version.
        StorageError, ExecutionError, WorkerError: the run cannot go on; what is recorded stays.
    """
    for path in plugins:
        load_plugin(path)
    use_data_root(data_root)
    settings = {SHORTHANDS.get(name, name): as_list(name, value) for name, value in axes.items()}
    given = {"methods": methods, "tasks": tasks, "seeds": seeds}
    config = {name: as_list(name, value) for name, value in given.items() if value is not None}
    spec = merge(read_config(suite_path(suite)), {**config, "settings": settings})
    plan = make_plan(
        out=checked_folder(out) if out is not None else RUNS / suite,
        device=device,
        jobs=jobs,
        threads=threads,
        timeout=timeout,
        memory=memory,
        scheduler=scheduler,
        tensorboard=tensorboard,
        plugins=plugins,
        data_root=data_root,
        fid_weights=fid_weights,
        checkpoint=checkpoint,
        command=shlex.join(["python", *sys.argv]),
    )
    with contextlib.closing(Session(spec, spec.cells(), plan, force).records()) as records:
        for _ in records:
            pass
    return write_tables(plan.out)[0]


def _run_and_report(session: Session) -> int:
    plan, cells = session.plan, session.cells
    announce(session, PROGRAM)
    try:
        run_cells(session, then="writing tables and plots")
        paths = write_report(plan.out, tell=lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        with contextlib.suppress(StorageError):
            write_tables(plan.out)
        tell(PROGRAM, f"interrupted; {standing(session)}")
        return INTERRUPTED
    except (StorageError, RecordError, ExecutionError, WorkerError) as error:
        tell(PROGRAM, f"{error}; {standing(session)}")
        return FAILED
    rows = results(read_records(plan.out))
    print(f"\n{terminal(rows)}\n")
    for path in paths:
        print(path)
    return tell_failures(rows[rows["id"].isin([cell.id for cell in cells])], plan.out)


def _spec(arguments: argparse.Namespace, left_out: Collection[str]) -> Spec:
    """Suite, then configuration file, then command line; the later goes before."""
    config = read_config(suite_path(arguments.suite))
    if arguments.config is not None:
        config = merge(config, read_config(arguments.config)).model_dump()
    given: dict[str, Any] = {"settings": {}}
    if arguments.methods is not None:
        given["methods"] = chosen_names("methods", arguments.methods, METHODS)
    if arguments.tasks is not None:
        names = chosen_names("tasks", arguments.tasks, TASKS)
        given["tasks"] = [name for name in names if name not in left_out]
    if arguments.seeds is not None:
        given["seeds"] = parse_seeds(arguments.seeds)
        check_seeds(given["seeds"])
    for option in ("L", "sigma", "steps", "batch"):
        text = getattr(arguments, option)
        if text is not None:
            given["settings"][SHORTHANDS.get(option, option)] = parse_values(text)
    given["settings"] |= assignments(arguments.set)
    return merge(config, given)


def _without_files() -> dict[str, str]:
    """The tasks that need files of the user's which are not there, and what must lie where."""
    missing = {}
    for name, task in TASKS.items():
        try:
            task().check()
        except DataError as error:
            missing[name] = str(error)
    return missing


def _tell_left_out(missing: dict[str, str]) -> None:
    for reason in missing.values():
        tell(PROGRAM, f"left out: {reason}")


def _out(arguments: argparse.Namespace) -> Path:
    if arguments.out is not None:
        return checked_folder(arguments.out)
    name: str = arguments.suite if arguments.config is None else folder_name(arguments.config)
    return RUNS / name


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


def _dry_run(cells: list[Cell], plan: Plan, force: bool) -> None:
    known = {record["id"]: record for record in read_records(plan.out)}
    todo = {cell.id for cell in pending(cells, [] if force else settled(cells, known, plan))}
    for cell in cells:
        settings = " ".join(f"{key}={value}" for key, value in cell.hyperparameters.items())
        state = "to do   " if cell.id in todo else "finished"
        print(f"{cell.id} {state} {cell.label} {settings}")
    left = [cell for cell in cells if cell.id in todo]
    try:
        check_data(left, plan)
    except SpecError as error:
        print(f"not here: {error}")
    if left:
        device = "cuda" if plan.device.startswith("cuda") else "cpu"
        for line in forecast(left, device, plan.threads):
            print(line)
    print(f"{len(cells)} cells, {len(todo)} to do, in {plan.out}")


def _parser() -> Parser:
    parser = Parser(PROGRAM, __doc__)
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
    parser.add_plan()
    add("--out", metavar="DIR", help=f"output folder; default {RUNS}/<suite>")
    add("--config", type=Path, metavar="FILE", help="TOML file with any of these")
    add("--force", action="store_true", help="run finished cells again")
    add("--list", action="store_true", help="show methods, tasks, metrics and settings")
    add("--dry-run", action="store_true", help="show the cells and run none")
    return parser


class _Callable(types.ModuleType):
    """``from bench import run`` gives this module; calling it calls :func:`run`."""

    def __call__(self, *args: Any, **axes: Any) -> pd.DataFrame:
        return run(*args, **axes)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
