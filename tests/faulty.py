"""A plugin for the tests: methods that fail in every way that a sweep must survive."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from methods import register
from methods.fm import FlowMatching

HELD = []


def raising() -> None:
    raise RuntimeError("no field today")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def sleeping() -> None:
    time.sleep(1000)


def eating() -> None:
    while True:
        HELD.append(bytearray(500_000_000))
        time.sleep(0.01)


def printing() -> None:
    print("a line on standard output")
    print("a line on standard error", file=sys.stderr)


def leaving() -> None:
    sys.exit(3)


class Faulty(FlowMatching):
    """Flow Matching that comes to grief at its first batch."""

    fault: ClassVar[Callable[[], None]]

    def regression(self, source, target, n, rng):  # type: ignore[no-untyped-def]
        type(self).fault()
        return super().regression(source, target, n, rng)


for _fault in (raising, killed, segfault, sleeping, eating, printing, leaving):
    register(type(_fault.__name__, (Faulty,), {"name": _fault.__name__, "fault": _fault}))


@register
class Pausing(FlowMatching):
    """Flow Matching that sleeps at every batch: a cell of a known length that needs no core."""

    name = "pausing"
    pause: float = Field(0.01, ge=0)

    def regression(self, source, target, n, rng):  # type: ignore[no-untyped-def]
        time.sleep(self.pause)
        return super().regression(source, target, n, rng)


class DiesOnTheWay(FlowMatching):
    """Flow Matching whose process is killed in the middle of the training, three times and more.

    At the 30th batch of each process: with a checkpoint every 20 steps each gets further.
    """

    name: ClassVar[str] = "dies_on_the_way"
    drawn: ClassVar[int] = 0

    def regression(self, source, target, n, rng):  # type: ignore[no-untyped-def]
        type(self).drawn += 1
        if type(self).drawn == 30:
            killed()
        return super().regression(source, target, n, rng)


register(DiesOnTheWay)
