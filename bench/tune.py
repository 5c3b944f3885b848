"""Tune every method with equally many trials, on samples that no test sees.

    python -m bench.tune --methods efm,fm --tasks gaussian_to_swiss_roll --trials 8
    python -m bench.tune ... --search train.lr=1e-3:1e-2:log --search efm.points=mix|log

A trial is one setting of a method, run by the ordinary runner with ``eval.split = validation``.
Trial 0 has the method's defaults, the others are points of the search (:mod:`bench.tuning.search`),
the same for every task. Chosen is, for each task and method, the trial with the smallest mean over
the seeds of the task's main distance; a trial with a seed that is not done has no score. Hence
tuning never makes a method worse than its defaults on the validation draw.

Written are ``tuning.csv``, every trial with its settings, score and whether it was chosen, and
``tuned.toml``, with which ``bench.run`` runs every method with its choice on the test draws.

No seed gives the test and the validation the same draw: their generators have different purposes,
and of a data set the validation part is taken from the training part; a part of fewer than 100
samples is another one for each of four seeds, a cross-validation. But the seed also sets the
training draws and the initial weights. With the seeds of the tuning a test would repeat the very
trainings that were chosen for being good, so by default the seeds differ.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench import sweep
from bench.command import Parser, count, entry, log, terminable
from bench.config.errors import SpecError
from bench.config.files import merge, read_config
from bench.config.grid import Spec
from bench.config.settings import SHORTHANDS
from bench.config.values import check_seeds, parse_seeds
from bench.execute.session import Session
from bench.report.build import write_tables
from bench.store.folder import write_atomically
from bench.tuning.choice import configuration, trial_table, words
from bench.tuning.search import DEFAULT_SEARCH, Tuning, make_tuning

PROGRAM = "bench.tune"
SEEDS, TEST_SEEDS = "100-103", "0-4"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return entry(PROGRAM, _tune, argv)


def _tune(typed: Sequence[str]) -> int:
    """Runs the trials, writes what was found and prints the command that tests it."""
    arguments = _parser().read(typed)
    sweep.load(arguments.plugins, arguments.data_root)
    spec, search, given = _asked(arguments)
    test = spec.model_copy(update={"seeds": parse_seeds(arguments.test_seeds)})
    check_seeds(test.seeds)
    tuning = make_tuning(spec, search, arguments.trials, arguments.seed)
    out = sweep.checked_folder(sweep.RUNS / "tune" if arguments.out is None else arguments.out)
    options = sweep.options_of(arguments, out, PROGRAM, *typed)
    paths = [out / "tuning.csv", out / "tuned.toml"]

    def report() -> pd.DataFrame:
        rows, _ = write_tables(out)
        table = trial_table(rows, tuning)
        write_atomically(paths[0], table.to_csv(index=False).encode())
        written = configuration(table, tuning, test, options.command or "")
        write_atomically(paths[1], written.encode())
        plugins = [word for plugin in options.plugins for word in ("--plugin", plugin)]
        final = ["--config", str(paths[1]), "--out", str(out / "test"), *plugins]
        final_command = shlex.join(["python", "-m", "bench.run", *final])
        print(f"\n{words(table)}\n", *paths, sep="\n")
        print(f"\nthe test of what was chosen:\n  {final_command}")
        return rows

    with terminable():
        for line in [*_remarks(tuning, arguments.trials, test.seeds), *spec.ignored(given)]:
            log(PROGRAM, line)
        session = Session(tuning.spec, tuning.spec.cells(), options)
        return sweep.run_session(session, PROGRAM, "choosing", report)


def _remarks(tuning: Tuning, trials: int, test_seeds: list[int]) -> list[str]:
    """What a reader of the numbers must know of the trials."""
    lines = []
    for method, space in tuning.spaces.items():
        number = len(tuning.trials[method])
        if not space:
            lines.append(f"{method}: has nothing to search, its defaults are run once")
        elif number < trials:
            lines.append(f"{method}: its search has {number - 1} points only: {number} trials")
    if both := sorted(set(tuning.spec.seeds) & set(test_seeds)):
        seeds = ", ".join(map(str, both))
        lines.append(f"seeds {seeds} are tuned and tested on: the same trainings; better others")
    return lines


def _asked(arguments: argparse.Namespace) -> tuple[Spec, dict[str, object], list[str]]:
    """What is run, what is looked for, and the settings of the command line, which overrides."""
    config = {"settings": {}} if arguments.config is None else read_config(arguments.config)
    if config.get("vary"):
        raise SpecError("config: tuning has no variations [[vary]], but a table [search]")
    settings, search = _divided(config["settings"])
    if arguments.search:
        search = dict(sweep.assignment("search", word, "name=range") for word in arguments.search)
    given = sweep.words_given(arguments)
    base = {"methods": [], "tasks": [], "seeds": parse_seeds(SEEDS), "vary": []}
    spec = merge({**base, **config, "settings": settings}, given)
    return spec, search, list(given["settings"])


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
    ranges = f"low:high[:log][:int] or a|b|c; default {default} and what the methods declare"
    add("--search", action="append", default=[], metavar="NAME=RANGE", help=ranges)
    add("--seed", type=count, default=0, metavar="N", help="of the points; default 0")
    add("--seeds", metavar="100-103", help=f"that trials are evaluated on; default {SEEDS}")
    add("--test-seeds", default=TEST_SEEDS, metavar="0-4", help="seeds of tuned.toml")
    add("--steps", type=count, metavar="N", help="training steps")
    add("--batch", type=count, metavar="N", help="training batch")
    add("--set", action="append", default=[], metavar="NAME=A", help="any setting, of all trials")
    parser.add_options()
    add("--out", metavar="DIR", help=f"output folder; default {sweep.RUNS}/tune")
    add("--config", type=Path, metavar="FILE", help="TOML file: methods, tasks, settings, [search]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
