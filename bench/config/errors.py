"""Mistakes and faults that end a command with one line, and how a user's values are shown in it."""

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import ValidationError

T = TypeVar("T")

MAX_MESSAGE = 2000


class BenchError(Exception):
    """What ends a command with one line: a mistake of the user, or a fault of what is around it."""


class SpecError(BenchError, ValueError):
    """A mistake of the user: one line that names the argument, the value and the choices.

    Values come from command lines and files and may hold anything: what is not printable is
    escaped, and of a long message the middle is left out.
    """

    def __init__(self, message: str) -> None:
        text, half = printable(message), (MAX_MESSAGE - len(" ... ")) // 2
        super().__init__(text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}")


def printable(text: str) -> str:
    """Text in which what could move a terminal's cursor is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def validated(section: str, build: Callable[[], T]) -> T:
    """What ``build`` gives; a value that pydantic refuses becomes a :class:`SpecError`."""
    try:
        return build()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in (section, *first["loc"]) if part != "")
        message = first["msg"].removeprefix("Value error, ")
        value = f", got {first['input']!r}" if first["loc"] else ""
        raise SpecError(f"{name}: {message[:1].lower()}{message[1:]}{value}") from None


def check_names(argument: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises :class:`SpecError` for an empty list or an unknown name."""
    names = list(names)
    if not names:
        raise SpecError(f"{argument}: empty, choose from {', '.join(known)}")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise SpecError(f"{argument}: {unknown('name', name, known)}")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The end of a message: ``unknown name 'emf', did you mean efm? Choose from efm, fm``."""
    guess = did_you_mean(name, known)
    choose = f"{guess} Choose" if guess else ", choose"
    return f"unknown {kind} {name!r}{choose} from {', '.join(known)}"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``, did you mean efm?`` for a name that is close to one of ``known``, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f", did you mean {close[0]}?" if close else ""
