"""All tables of a run, each computed once, when it is first asked for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd

from bench.analysis import curves, significance
from bench.analysis.fairness import fairness
from bench.analysis.leaderboard import (
    GROUP,
    ablation,
    aggregate,
    axes,
    leaderboard,
    metrics_long,
    with_setting,
)
from bench.analysis.overall import Overall, overall
from bench.analysis.results import fixed_columns, results
from bench.store.records import Record, read_records


@dataclass
class Analysis:
    """The tables of one output folder, for every renderer."""

    rows: pd.DataFrame
    """The rows of ``results.csv``."""
    recorded: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The points of the curves of quality against cost, by the id of their cell."""
    unknown: list[str] = field(default_factory=list)
    """Columns of the records that no registered metric has: they are in no table."""

    @classmethod
    def of(cls, out: Path) -> Self:
        """Of an output folder; a file in it that is no record raises RecordError."""
        return cls.of_records(read_records(out))

    @classmethod
    def of_records(cls, records: Iterable[Record]) -> Self:
        records = list(records)
        unknown = sorted({name for r in records for name in r.metrics} - fixed_columns())
        return cls(results(records), {record.id: record.curve for record in records}, unknown)

    @cached_property
    def done(self) -> pd.DataFrame:
        """The rows that are done, with a column ``setting``."""
        return with_setting(self.rows[self.rows["status"] == "done"])

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a task, method and setting, of the rows that are done."""
        return aggregate(self.done, GROUP)

    @cached_property
    def board(self) -> pd.DataFrame:
        """``leaderboard.csv``."""
        return leaderboard(self.rows)

    @cached_property
    def metrics_long(self) -> pd.DataFrame:
        """``metrics_long.csv``."""
        return metrics_long(self.rows)

    @cached_property
    def tasks(self) -> dict[str, pd.DataFrame]:
        """The rows of the leaderboard of each task."""
        return {str(task): rows for task, rows in self.board.groupby("task", sort=False)}

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """``pairs.csv``."""
        return significance.pairs(self.rows)

    @cached_property
    def remarks(self) -> dict[str, str]:
        """For each task the best and what does not differ from it, in words."""
        return significance.remarks(self.pairs)

    @cached_property
    def fairness(self) -> dict[str, str]:
        """For each task whether its methods had equal budgets, in words."""
        return {str(task): fairness(rows) for task, rows in self.rows.groupby("task", sort=False)}

    @cached_property
    def overall(self) -> dict[str, Overall]:
        """Ranks and scores over the tasks of each kind."""
        return overall(self.rows)

    def over_tasks(self, table: str) -> pd.DataFrame:
        """A table of :class:`Overall`, of all kinds of tasks: ``<name>.csv`` of its name."""
        tables = {kind: getattr(found, table) for kind, found in self.overall.items()}
        both: pd.DataFrame = pd.concat(tables, names=["kind"]).reset_index("kind")
        return both.reset_index(drop=True)

    @cached_property
    def ablations(self) -> dict[str, pd.DataFrame]:
        """``ablation_<axis>.csv`` of each setting with several values."""
        return {axis: ablation(self.rows, axis) for axis in axes(self.rows)}

    @cached_property
    def curves(self) -> pd.DataFrame:
        """``curves.csv``: quality against cost of every cell."""
        return curves.curves(self.rows, self.recorded)

    @cached_property
    def pareto(self) -> pd.DataFrame:
        """``pareto.csv``: the means of the curves over seeds, and which points are the best."""
        return curves.pareto(self.curves)
