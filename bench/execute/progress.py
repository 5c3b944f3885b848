"""The live view of a run: a line a finished cell, and below it where the run stands."""

import json
import shutil
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from bench.config.cell import Cell
from bench.config.errors import printable
from bench.config.settings import SECTIONS
from bench.execute.cost import Expectation, cost_of
from bench.metrics.base import METRICS, main_metrics
from bench.store.folder import RUNNING
from bench.store.records import Record

TERMINAL_SECONDS = 0.5
HEARTBEAT_SECONDS = 60.0
SHOWN = 6  # running cells, and tasks with their best, that are named
SILENT_SECONDS = 120.0  # a cell of an earlier time that is silent for that long has a dead process

Work = dict[tuple[str, str], float]  # the cost of cells in seconds, of each method and task


class Progress:
    """Shows a run on the standard error; use as a context manager around it.

    A finished cell is a line. On a terminal the state is a block of lines below, which is renewed
    in place; elsewhere a line a minute.

    Args:
        cells: those of the command.
        out: the output folder.
        expectation: knows what cells take, and learns.
        before: the records of cells that need not run again.
    """

    def __init__(
        self, cells: list[Cell], out: Path, expectation: Expectation, before: list[Record]
    ) -> None:
        finished = {record.id for record in before}
        self.names = names_of(cells)
        self.pending = {cell.id: cell for cell in cells if cell.id not in finished}
        self.total, self.out, self.expectation = len(self.pending), out, expectation
        self.work_left: Work = defaultdict(float)
        self.work_done: Work = defaultdict(float)
        for cell in self.pending.values():
            self.work_left[cell.method, cell.task] += cost_of(cell).seconds()
        self.counts: Counter[str] = Counter()
        self.records = list(before)
        self.begin = time.time()
        self.stream = sys.stderr  # a cell in this process has it redirected to its log
        self.terminal = self.stream.isatty()
        self.height = 0
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self._clear()

    def finished(self, record: Record) -> None:
        """One line for a finished cell."""
        with self.lock:
            cell = self.pending.pop(record.id)
            kind, work = (cell.method, cell.task), cost_of(cell).seconds()
            self.expectation.learn(cell, record)
            self.work_left[kind] -= work
            self.work_done[kind] += work if record.status != "skipped" else 0
            self.counts[record.status] += 1
            self.records.append(record)
            self._clear()
            count = f"{self.counts.total():{len(str(self.total))}}/{self.total}"
            line = f"[{count}] {self.names[record.id]}: {summary(record)}"
            print(line, file=self.stream, flush=True)

    def _watch(self) -> None:
        while not self.over.wait(TERMINAL_SECONDS if self.terminal else HEARTBEAT_SECONDS):
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
        if any(self.work_done.values()):  # at the pace of this run
            seconds = (time.time() - self.begin) * self._expected(self.work_left)
            left = seconds / self._expected(self.work_done)
            head += f", about {tqdm.format_interval(left)} left"
        best = [f"best so far: {words}" for words in best_of(self.records)]
        now = [
            f"{self.names.get(state['id'], state['label'])} {standing(state)}" for state in running
        ]
        return [head, *_cut(best), *_cut(now)]

    def _expected(self, work: Work) -> float:
        """Seconds that one worker would take."""
        return sum(amount * self.expectation.pace(*kind) for kind, amount in work.items())

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


def best_of(records: Iterable[Record]) -> list[str]:
    """The best cell of each task: task, method, metric and value.

    A task is compared by the first main metric that all its finished cells have.
    """
    done: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "done":
            done[record.cell.task].append(record)
    found = []
    for task, same in done.items():
        common = (name for name in main_metrics() if all(name in one.metrics for one in same))
        if name := next(common, None):
            loss = METRICS[name].loss
            best = min(same, key=lambda record: float(loss(record.metrics[name])))
            found.append(f"{task} {best.cell.method} {name} {best.metrics[name]:.3f}")
    return found


def names_of(cells: list[Cell]) -> dict[str, str]:
    """Names of cells by id: method, task, the settings that vary among such cells, seed."""
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.method, cell.task].append(cell)
    names = {}
    for (method, task), same in groups.items():
        settings = [_settings(cell) for cell in same]
        vary = [name for name in settings[0] if len({one[name] for one in settings}) > 1]
        for cell, own in zip(same, settings, strict=True):
            words = [method, task, *(f"{name}={own[name]}" for name in vary), f"seed {cell.seed}"]
            names[cell.id] = " ".join(words)
    return names


def _settings(cell: Cell) -> dict[str, Any]:
    """Every setting of a cell, under the name that ``--set`` knows it by where that is short."""
    settings = {**cell.task_parameters, **cell.hyperparameters}
    for section in SECTIONS:
        values = vars(getattr(cell, section))
        settings |= {f"{section}.{name}": value for name, value in values.items()}
    return settings


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN
    return lines if more <= 0 else [*lines[:SHOWN], f"and {more} more"]


def running_cells(out: Path, since: float) -> list[dict[str, Any]]:
    """What the cells at work last said, by whatever runner; the longest at work first."""
    states = []
    for path in (out / RUNNING).glob("*.json"):
        try:
            state = {"id": path.stem, **json.loads(path.read_text())}
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


def summary(record: Record) -> str:
    """Status, main metric and time of a finished cell."""
    if record.status != "done":
        return printable(f"{record.status}: {record.reason}")
    name = next(name for name in main_metrics() if name in record.metrics)
    floor = record.metrics[f"{name}_floor"]
    return f"{name} {record.metrics[name]:.3f} (floor {floor:.3f}), {record.seconds:.0f} s"
