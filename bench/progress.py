"""The live view of a run: a line a finished cell, and where the running cells stand."""

import shutil
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from bench.execute import running
from bench.spec import Cell

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 3.0
SHOWN = 4


class Progress:
    """Shows a run on ``stream``; use as a context manager around it.

    On a terminal the running cells stand in one line that is renewed in place; elsewhere a plain
    line every ``LOG_SECONDS``.
    """

    def __init__(self, cells: list[Cell], out: Path, stream: TextIO = sys.stderr) -> None:
        self.pending = {cell.id: cell for cell in cells}
        self.total, self.out, self.stream = len(cells), out, stream
        self.begin = time.time()
        self.terminal = stream.isatty()
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

    def finished(self, record: dict[str, Any]) -> None:
        """One line for a finished cell."""
        with self.lock:
            cell = self.pending.pop(record["id"])
            count = self.total - len(self.pending)
            self._clear()
            print(
                f"[{count:{len(str(self.total))}}/{self.total}] {cell.label}: {summary(record)}",
                file=self.stream,
                flush=True,
            )

    def _watch(self) -> None:
        interval = TERMINAL_SECONDS if self.terminal else LOG_SECONDS
        while not self.done.wait(interval):
            with self.lock:
                line = self._line()
                if self.terminal:
                    width = shutil.get_terminal_size().columns - 1
                    print(f"\r\x1b[K{line[:width]}", end="", file=self.stream, flush=True)
                else:
                    print(line, file=self.stream, flush=True)

    def _line(self) -> str:
        cells = running(list(self.pending.values()), self.out, self.begin)
        count = self.total - len(self.pending)
        left = ""
        if count:
            rate = (time.time() - self.begin) / count
            left = f", about {tqdm.format_interval(rate * len(self.pending))} left"
        parts = [f"{count} of {self.total} cells done{left}"]
        parts += [f"{cell.label} {standing(state)}" for cell, state in cells[:SHOWN]]
        if len(cells) > SHOWN:
            parts.append(f"and {len(cells) - SHOWN} more")
        return " | ".join(parts)

    def _clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=self.stream, flush=True)


def standing(state: dict[str, Any]) -> str:
    """Where one running cell stands: step, loss and time left of its training."""
    if state["stage"] != "train":
        return str(state["stage"])
    elapsed = time.time() - state["began"]
    left = elapsed * (state["steps"] / state["step"] - 1)
    return (
        f"step {state['step']}/{state['steps']} loss {state['loss']:.4g}"
        f" {tqdm.format_interval(left)} left"
    )


def summary(record: dict[str, Any]) -> str:
    """Status, main distance and time of a finished cell."""
    if record["status"] != "done":
        return f"{record['status']}: {record['reason']}"
    metrics = record["metrics"]
    name = "w2" if "w2" in metrics else "sliced_w2"
    return (
        f"{name} {metrics[name]:.3f} (floor {metrics[f'{name}_floor']:.3f}),"
        f" {record['seconds']:.0f} s"
    )
