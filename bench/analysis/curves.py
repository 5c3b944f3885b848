"""Quality against cost: one trained model with fewer solver steps, and as it was on the way.

A checkpoint is the averaged model of a run whose learning rate was still to fall: a run of that
length alone would end lower. Curves compare methods at equal stages of equal runs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.leaderboard import with_distance, with_setting
from bench.metrics import METRICS

PLACE = ["task", "method", "setting"]
POINT = ["train_steps", "solver_steps"]
COST = ["nfe", "train_seconds", "sample_seconds"]
COSTS = {"nfe": "evaluations a sample", "seconds": "seconds of training and sampling"}
"""What a point of a Pareto front may be the cheapest in."""


def measured() -> list[str]:
    """The distances at every point of a curve, where they mean something."""
    return [name for name, metric in METRICS.items() if metric.curve]


def curves(rows: pd.DataFrame, recorded: Mapping[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """One row a point: the curve of every finished cell, or its result alone if it has none.

    ``recorded`` has the points of curves, by the id of their cell.
    """
    done = with_setting(rows[rows["status"] == "done"])
    shared = [*PLACE, "seed"]
    own = done.reindex(columns=[*shared, "id", "steps", "solver_steps", *COST, *measured()])
    own = own.rename(columns={"steps": "train_steps"})
    trained = done["parameters"].fillna(0).to_numpy() > 0
    own["train_steps"] = own["train_steps"].where(trained, 0).astype(int)
    untrained = set(own.loc[own["train_steps"] == 0, "id"])
    places = own.set_index("id")[shared].to_dict("index")
    points = [
        {**places[name], "id": name, **point}
        for name, curve in recorded.items()
        if name in places
        for point in curve
    ]
    alone = own[~own["id"].isin({point["id"] for point in points})]
    both = pd.concat([alone, pd.DataFrame(points, columns=own.columns)]) if points else own
    # What was not trained has no training steps, whatever its curve counts.
    both.loc[both["id"].isin(untrained), "train_steps"] = 0
    return both.sort_values([*shared, *POINT], kind="stable", ignore_index=True)


def pareto(points: pd.DataFrame) -> pd.DataFrame:
    """One row a task, method, setting, training steps and solver steps: means over the seeds.

    ``distance`` is the task's main distance, whose name stands beside it; none where a seed has
    none, since those that diverged must not help the mean. ``best_for_nfe`` says that nothing that
    took as few evaluations has a smaller one, ``best_for_seconds`` likewise for the sum of the
    training and sampling times; both among the trained methods, because a closed form has paid for
    nothing.
    """
    means = points.groupby([*PLACE, *POINT], sort=False, dropna=False)
    table = means[[*COST, *measured()]].mean()
    table[measured()] = table[measured()].where(means[measured()].count().eq(means.size(), axis=0))
    table = table.assign(seeds=means.size()).reset_index()
    table["seconds"] = table["train_seconds"].fillna(0) + table["sample_seconds"]
    table = with_distance(table, suffix="").drop(columns=measured())
    return table.assign(**{f"best_for_{cost}": front(table, cost) for cost in COSTS})


def front(table: pd.DataFrame, cost: str) -> "pd.Series[bool]":
    """Whether no trained row of the task costs at most as much and has as small a distance."""
    trained = table[(table["train_steps"] > 0) & table["distance"].notna()]
    order = trained.sort_values(["task", cost, "distance"], kind="stable")
    least = order.groupby("task")["distance"].cummin()
    before = least.groupby(order["task"]).shift(fill_value=np.inf)
    return (order["distance"] < before).reindex(table.index, fill_value=False)
