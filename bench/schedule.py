"""Which cell first, and how long the rest will take."""

from collections import defaultdict
from collections.abc import Iterable

from bench.folder import Record
from bench.spec import Cell
from datasets import TASKS

STEP_WORK = 2e7
"""What a training step costs beside its multiply-adds, in multiply-adds."""


def work_of(cell: Cell) -> float:
    """The multiply-adds of a cell's training, roughly: for comparing cells of one method."""
    inputs = TASKS[cell.task].dim
    width, depth = cell.network.width, cell.network.depth
    forward = width * (2 * inputs + (depth - 1) * width)
    return cell.train.steps * (STEP_WORK + cell.train.batch * forward)


class Expectation:
    """Expected seconds of a cell: its work at the pace of the nearest cells that are known.

    The pace is that of the same method on the same task, else that of the method, else that of
    all; with nothing known the work itself, which orders cells but is no time.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])

    def learn(self, cell: Cell, record: Record) -> None:
        """Takes note of a finished cell."""
        if record["status"] in ("done", "timeout"):
            for key in _keys(cell):
                self.totals[key][0] += record["seconds"]
                self.totals[key][1] += work_of(cell)

    def seconds(self, cell: Cell) -> float:
        """What a cell is expected to take."""
        for key in _keys(cell):
            if key in self.totals:
                seconds, work = self.totals[key]
                return work_of(cell) * seconds / work
        return work_of(cell)


def _keys(cell: Cell) -> list[tuple[str, ...]]:
    return [(cell.method, cell.task), (cell.method,), ()]


def longest_first(cells: Iterable[Cell], expectation: Expectation) -> list[Cell]:
    """The cells in the order to start them in: a long one at the end delays all."""
    return sorted(cells, key=expectation.seconds, reverse=True)
