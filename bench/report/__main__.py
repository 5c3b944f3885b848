"""``python -m bench.report DIR``: makes the tables, plots and the report of a run again."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.analysis.analysis import Analysis
from bench.command import OK, Parser, count, entry
from bench.config.errors import SpecError
from bench.config.plugins import load_plugin
from bench.report.build import write_report
from bench.report.export import terminal
from bench.report.plots.fields import MAX_FIELDS
from bench.store.folder import RECORD

PROGRAM = "bench.report"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return entry(PROGRAM, _rebuild, argv)


def _rebuild(words: Sequence[str]) -> int:
    parser = Parser(PROGRAM, __doc__)
    parser.add_argument("folder", type=Path, help="output folder of a run")
    most = f"draw the fields of at most N settings (default {MAX_FIELDS})"
    parser.add_argument("--fields", type=count, default=MAX_FIELDS, metavar="N", help=most)
    parser.add_plugins()
    arguments = parser.read(words)
    out = arguments.folder
    for path in arguments.plugins:
        load_plugin(path)
    if not out.is_dir():
        raise SpecError(f"folder: no such folder: {out}")
    if not any((out / "cells").glob(f"*/{RECORD}")):
        raise SpecError(f"folder: {out} holds no recorded cells")
    analysis = Analysis.of(out)
    log = functools.partial(print, file=sys.stderr, flush=True)
    paths = write_report(out, log, arguments.fields, analysis)
    print(terminal(analysis), *paths, sep="\n")
    return OK


if __name__ == "__main__":
    sys.exit(main())
