"""Tune every method with equally many trials, on samples that no test sees.

    python -m bench.tune --methods efm,fm --tasks gaussian_to_swiss_roll --trials 8
    python -m bench.tune ... --search train.lr=1e-3:1e-2:log --search efm.points=mix|log

A trial is one setting of a method, run by the ordinary runner with ``eval.split = validation``.
Trial 0 has the method's defaults, the others are points of the search (:mod:`bench.search`), the
same for every task. Chosen is, for each task and method, the trial with the smallest mean over
the seeds of the task's main distance; a trial with a seed that is not done has no score. Hence
tuning never makes a method worse than its defaults on the validation draw.

Written are ``tuning.csv``, every trial with its settings, score and whether it was chosen, and
``tuned.toml``, with which ``bench.run`` runs every method with its choice on the test draws.

No seed gives the test and the validation the same draw: of a law their generators have different
purposes, and of a data set the validation part is taken from the training part. But the seed also
sets the training draws and the initial weights. With the seeds of the tuning a test would repeat
the very trainings that were chosen for being good, so by default the seeds differ; training draws
may otherwise be shared.
"""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from bench.choice import configuration, trial_table, words
from bench.command import (
    FAILED,
    INTERRUPTED,
    MISUSED,
    Parser,
    announce,
    assignments,
    checked_folder,
    chosen_names,
    count,
    plan_of,
    run_cells,
    standing,
    tell,
    tell_failures,
    terminable,
)
from bench.execute import ExecutionError
from bench.folder import StorageError, write_atomically
from bench.plugins import load_plugin
from bench.records import RecordError
from bench.report import write_tables
from bench.run import RUNS
from bench.search import DEFAULT_SEARCH, Sampler
from bench.session import Session
from bench.slots import WorkerError
from bench.spec import (
    SHORTHANDS,
    Spec,
    SpecError,
    check_names,
    check_seeds,
    parse_seeds,
    read_config,
)
from bench.trials import Tuning, make_tuning
from datasets import TASKS
from methods import METHODS

PROGRAM = "bench.tune"
SEEDS, TEST_SEEDS = "100,101", "0,1,2"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    typed = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().read(typed)
        for path in arguments.plugin:
            load_plugin(path)
        spec, search = _asked(arguments)
        test_seeds = parse_seeds(arguments.test_seeds)
        check_seeds(test_seeds)
        tuning = make_tuning(spec, search, arguments.trials, arguments.sampler, arguments.seed)
        out = checked_folder(RUNS / "tune" if arguments.out is None else arguments.out)
        plan = plan_of(arguments, out, PROGRAM, *typed)
        with terminable():
            for line in _remarks(tuning, arguments.trials, test_seeds):
                tell(PROGRAM, line)
            session = Session(tuning.spec, tuning.spec.cells(), plan, arguments.force)
            return _tune(session, tuning, spec.model_copy(update={"seeds": test_seeds}))
    except (SpecError, RecordError, StorageError) as error:  # nothing has been started
        tell(PROGRAM, str(error))
        return MISUSED
    except KeyboardInterrupt:
        tell(PROGRAM, "interrupted")
        return INTERRUPTED


def _remarks(tuning: Tuning, trials: int, test_seeds: list[int]) -> list[str]:
    """What a reader of the numbers must know of the trials."""
    lines = []
    for method, space in tuning.spaces.items():
        number = sum(trial.method == method for trial in tuning.trials)
        if not space:
            lines.append(f"{method}: has nothing to search, its defaults are run once")
        elif number < trials:
            lines.append(f"{method}: its search has {number - 1} points only: {number} trials")
    if both := sorted(set(tuning.spec.seeds) & set(test_seeds)):
        seeds = ", ".join(map(str, both))
        lines.append(f"seeds {seeds} are tuned and tested on: the same trainings; better others")
    return lines


def _tune(session: Session, tuning: Tuning, test: Spec) -> int:
    """Runs the trials, writes what was found and says how to go on."""
    plan = session.plan
    announce(session, PROGRAM)
    try:
        run_cells(session, then="choosing")
        rows, _ = write_tables(plan.out)
        table = trial_table(rows, tuning)
        written = configuration(table, tuning, test, plan.command or "")
        paths = [plan.out / "tuning.csv", plan.out / "tuned.toml"]
        write_atomically(paths[0], table.to_csv(index=False).encode())
        write_atomically(paths[1], written.encode())
    except KeyboardInterrupt:
        with contextlib.suppress(StorageError):
            write_tables(plan.out)
        tell(PROGRAM, f"interrupted; {standing(session)}")
        return INTERRUPTED
    except (StorageError, RecordError, ExecutionError, WorkerError) as error:
        tell(PROGRAM, f"{error}; {standing(session)}")
        return FAILED
    plugins = [word for plugin in plan.plugins for word in ("--plugin", plugin)]
    final = ["--config", str(paths[1]), "--out", str(plan.out / "test"), *plugins]
    print(f"\n{words(table)}\n", *paths, sep="\n")
    print(f"\nthe test of what was chosen:\n  {shlex.join(['python', '-m', 'bench.run', *final])}")
    return tell_failures(rows[rows["id"].isin([cell.id for cell in session.cells])], plan.out)


def _asked(arguments: argparse.Namespace) -> tuple[Spec, dict[str, object]]:
    """What is run, and what is looked for; the command line goes before the file."""
    config = {"settings": {}} if arguments.config is None else read_config(arguments.config)
    if config.get("vary"):
        raise SpecError("config: tuning has no variations [[vary]], but a table [search]")
    settings, search = _divided(config["settings"])
    for option in ("steps", "batch"):
        if (given := getattr(arguments, option)) is not None:
            settings[SHORTHANDS[option]] = [given]
    settings |= assignments(arguments.set)
    if arguments.search:
        search = {}
    for word in arguments.search:
        name, equals, text = word.partition("=")
        if not equals:
            raise SpecError(f"search: expected name=range, got {word!r}")
        search[SHORTHANDS.get(name.strip(), name.strip())] = text.strip()
    lists = {}
    for argument, known in (("methods", METHODS), ("tasks", TASKS)):
        text = getattr(arguments, argument)
        lists[argument] = (
            config.get(argument, []) if text is None else chosen_names(argument, text, known)
        )
        check_names(argument, lists[argument], known)
    seeds = config.get("seeds") if arguments.seeds is None else None
    seeds = parse_seeds(arguments.seeds or SEEDS) if seeds is None else seeds
    return Spec(**lists, seeds=seeds, settings=settings), search


def _divided(settings: Mapping[str, list[Any]]) -> tuple[dict[str, list[Any]], dict[str, object]]:
    """The settings of a file, and its table ``[search]``: ``train.lr = "1e-3:1e-2:log"``."""
    plain: dict[str, list[Any]] = {}
    search: dict[str, object] = {}
    for name, values in settings.items():
        section, _, key = name.partition(".")
        value = values[0] if len(values) == 1 else values
        if section != "search":
            plain[name] = values
        elif isinstance(value, dict):
            search |= {f"{key}.{inner}": text for inner, text in value.items()}
        else:
            search[SHORTHANDS.get(key, key)] = value
    return plain, search


def _parser() -> Parser:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    default = ", ".join(f"{name}={text}" for name, text in DEFAULT_SEARCH.items())
    add("--methods", metavar="A,B", help="methods to tune, or all")
    add("--tasks", metavar="A,B", help="tasks to tune them on, or all")
    add("--trials", type=count, default=8, metavar="N", help="of each method and task; default 8")
    add(
        "--search",
        action="append",
        default=[],
        metavar="NAME=RANGE",
        help=f"low:high[:log][:int] or a|b|c; default {default} and what the methods declare",
    )
    add("--sampler", choices=get_args(Sampler), default="sobol", help="how points are drawn")
    add("--seed", type=count, default=0, metavar="N", help="of the points; default 0")
    add("--seeds", metavar="100,101", help=f"that trials are judged on; default {SEEDS}")
    add("--test-seeds", default=TEST_SEEDS, metavar="0,1,2", help="seeds of tuned.toml")
    add("--steps", type=count, metavar="N", help="training steps")
    add("--batch", type=count, metavar="N", help="training batch")
    add("--set", action="append", default=[], metavar="NAME=A", help="any setting, of all trials")
    parser.add_plan()
    add("--out", metavar="DIR", help=f"output folder; default {RUNS}/tune")
    add("--config", type=Path, metavar="FILE", help="TOML file: methods, tasks, settings, [search]")
    add("--force", action="store_true", help="run finished cells again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
