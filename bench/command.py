"""What all commands have in common: how words are parsed, exit statuses, one line for a mistake.

Light on purpose: ``--help`` and ``--list`` import neither torch nor pandas.
"""

import argparse
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from bench.config.errors import BenchError, SpecError, did_you_mean
from bench.config.options import RunOptions

OK, FAILED, MISUSED, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are :class:`SpecError`, with the options of :class:`RunOptions`."""

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
        arguments, rest = self.parse_known_args(words)
        if rest:
            hint = did_you_mean(rest[0].partition("=")[0], self._option_string_actions)
            raise SpecError(f"unrecognized arguments: {' '.join(rest)}{hint}")
        for action in self._actions:
            value: Any = getattr(arguments, action.dest, None)
            # argparse drops the value of --option=-- and leaves an empty list.
            if [] in (value if isinstance(action, argparse._AppendAction) else [value]):
                raise SpecError(f"{action.dest}: expected a value, got '--'")
        return arguments

    def add_options(self) -> None:
        """The options of :class:`RunOptions`: those that have a help."""
        for name, field in RunOptions.model_fields.items():
            if field.description is None:
                continue
            word, extra = f"--{name.replace('_', '-')}", field.json_schema_extra
            assert isinstance(extra, dict)
            kind: dict[str, Any] = extra if extra["metavar"] else {"action": "store_true"}
            self.add_argument(word, help=field.description, **kind)
        self.add_plugins()

    def add_plugins(self) -> None:
        """The option ``--plugin``."""
        known: dict[str, Any] = {"metavar": "FILE.py", "help": "your method, task or metric"}
        self.add_argument("--plugin", dest="plugins", action="append", default=[], **known)


def count(text: str) -> int:
    """A number of an option, not negative."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return int(text)


def entry(
    program: str, command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None
) -> int:
    """Runs a command and returns its exit status; what ends it early is one line, no traceback.

    The command gets the words ``argv``, those of the process if None, and raises
    :class:`BenchError` for a mistake that it has found before it has started anything.
    """
    try:
        try:
            return command(sys.argv[1:] if argv is None else argv)
        except BenchError as error:
            log(program, str(error))
            return MISUSED
        except KeyboardInterrupt:
            log(program, "interrupted")
            return INTERRUPTED
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():  # the pipe of a worker, say
            raise
        return UNREAD


def _output_is_closed() -> bool:
    """Whether nobody reads what is printed, as after ``| head``; then it goes nowhere instead."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, select.POLLOUT)
    closed = [number for number, event in poll.poll(0) if event & select.POLLERR]
    for number in closed:  # the interpreter writes there once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(closed)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, by which a batch system ends a job, is as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # cannot handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def log(program: str, line: str) -> None:
    """Prints one line of a command on the standard error."""
    print(f"{program}:", line, file=sys.stderr, flush=True)
