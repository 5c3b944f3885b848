"""The live view of a run: a line a finished cell, and below it where the run stands."""

import json
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from bench.folder import Record
from bench.leaderboard import MAIN
from bench.schedule import Expectation
from bench.spec import Cell, printable
from bench.worker import RUNNING

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 3.0
SHOWN = 6
"""Running cells, and tasks with their best, that are named."""
SILENT_SECONDS = 120.0
"""A cell of an earlier time that has been silent for that long: its process is dead."""


class Progress:
    """Shows a run on ``stream``; use as a context manager around it.

    On a terminal the state is a block of lines that is renewed in place; elsewhere a plain line
    every ``LOG_SECONDS``.

    Args:
        cells: what is to be run.
        out: the output folder.
        expectation: knows what cells take, and learns.
        before: the records of this command's cells that were finished before.
        stream: where to.
    """

    def __init__(
        self,
        cells: list[Cell],
        out: Path,
        expectation: Expectation,
        before: list[Record],
        stream: TextIO = sys.stderr,
    ) -> None:
        self.pending = {cell.id: cell for cell in cells}
        self.total, self.out, self.stream = len(cells), out, stream
        self.expectation = expectation
        self.counts: Counter[str] = Counter()
        self.best: dict[str, tuple[float, str]] = {}
        for record in before:
            self._compare(record)
        self.ended: list[Cell] = []
        self.begin = time.time()
        self.terminal = stream.isatty()
        self.height = 0
        self.done = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.done.set()
        self.thread.join()
        self._clear()

    def finished(self, record: Record) -> None:
        """One line for a finished cell."""
        with self.lock:
            cell = self.pending.pop(record["id"])
            self.expectation.learn(cell, record)
            if record["status"] != "skipped":
                self.ended.append(cell)
            self.counts[record["status"]] += 1
            self._compare(record)
            self._clear()
            count = self.counts.total()
            print(
                f"[{count:{len(str(self.total))}}/{self.total}] {cell.label}: {summary(record)}",
                file=self.stream,
                flush=True,
            )

    def _compare(self, record: Record) -> None:
        if record["status"] == "done":
            name, value = main_distance(record)
            task, method = record["cell"]["task"], record["cell"]["method"]
            this = value, f"{task} {method} {name} {value:.3f}"
            self.best[task] = min(self.best.get(task, this), this)

    def _watch(self) -> None:
        interval = TERMINAL_SECONDS if self.terminal else LOG_SECONDS
        while not self.done.wait(interval):
            with self.lock:
                if self.terminal:
                    self._draw(self._block())
                else:
                    print(" | ".join(self._block()), file=self.stream, flush=True)

    def _block(self) -> list[str]:
        """The state of the run: the counts, the best of each task, the running cells."""
        running = running_cells(self.out, self.begin)
        bad = self.counts.total() - self.counts["done"] - self.counts["skipped"]
        head = f"{self.counts.total()} of {self.total} cells done, {len(running)} running"
        head += f", {bad} failed" if bad else ""
        head += f", about {tqdm.format_interval(self._left())} left" if self.ended else ""
        best = [f"best so far: {words}" for _, words in self.best.values()]
        now = [f"{state['label']} {standing(state)}" for state in running]
        return [head, *_cut(best), *_cut(now)]

    def _left(self) -> float:
        """At the pace of this run: so many expected seconds were done in so long a time."""
        done = sum(map(self.expectation.seconds, self.ended))
        expected = sum(map(self.expectation.seconds, self.pending.values()))
        return (time.time() - self.begin) * expected / done

    def _draw(self, lines: list[str]) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._clear()
        self.stream.write("".join(f"{line[:width]}\n" for line in lines))
        self.stream.flush()
        self.height = len(lines)

    def _clear(self) -> None:
        if self.terminal and self.height:
            self.stream.write(f"\x1b[{self.height}F\x1b[J")
            self.stream.flush()
            self.height = 0


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN
    return lines if more <= 0 else [*lines[:SHOWN], f"and {more} more"]


def running_cells(out: Path, since: float) -> list[dict[str, Any]]:
    """What the cells at work last said, by whatever runner; the longest at work first."""
    states = []
    for path in (out / RUNNING).glob("*.json"):
        try:
            state = json.loads(path.read_text())
            if state["began"] >= since or state["at"] >= time.time() - SILENT_SECONDS:
                states.append(state)
        except (OSError, ValueError, KeyError, TypeError):  # gone, or half a file
            continue
    return sorted(states, key=lambda state: float(state["began"]))


def standing(state: dict[str, Any]) -> str:
    """Where one running cell stands: step, loss and time left of its training."""
    if state["stage"] != "train":
        counted = f" {state['step']}/{state['steps']}" if state["steps"] > 1 else ""
        return f"{state['stage']}{counted}"
    elapsed = time.time() - state["began"]
    left = elapsed * (state["steps"] / state["step"] - 1)
    return (
        f"step {state['step']}/{state['steps']} loss {state['loss']:.4g}"
        f" {tqdm.format_interval(left)} left"
    )


def main_distance(record: Record) -> tuple[str, float]:
    """The distance by which a cell is judged in a line."""
    metrics = record["metrics"]
    name = next(name for name in MAIN if name in metrics)
    return name, metrics[name]


def summary(record: Record) -> str:
    """Status, main distance and time of a finished cell."""
    if record["status"] != "done":
        return printable(f"{record['status']}: {record['reason']}")
    name, value = main_distance(record)
    floor = record["metrics"][f"{name}_floor"]
    return f"{name} {value:.3f} (floor {floor:.3f}), {record['seconds']:.0f} s"
