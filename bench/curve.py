"""Quality against cost: one trained model with fewer solver steps, and as it was on the way.

A checkpoint is the averaged model of a run whose learning rate was still to fall: a run of that
length alone would end lower. Curves compare methods at equal stages of equal runs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from bench.leaderboard import main_distance, with_setting
from bench.train import Trained
from methods.solvers import Solver

JUDGED = ("fid", "fd_classifier", "w2", "sliced_w2", "energy_distance", "frechet")
"""Distances at every point of a curve, where they mean something."""

Sample = Callable[[nn.Module, Solver], tuple[Tensor, int, float]]
"""``sample(model, solver)``: samples (n, D), evaluations, seconds."""
Judge = Callable[[Tensor], dict[str, float]]
"""``judge(samples)``: the ``JUDGED`` metrics of finite samples (n, D), by name."""

PLACE = ["task", "method", "setting"]
POINT = ["train_steps", "solver_steps"]
COST = ["nfe", "train_seconds", "sample_seconds"]
COSTS = {"nfe": "evaluations a sample", "seconds": "seconds of training and sampling"}
"""What a point of a Pareto front may be the cheapest in."""


def halvings(whole: int, count: int) -> list[int]:
    """whole / 2, whole / 4, ..., whole / 2^count, rounded down, as far as they are not 0."""
    return [whole >> k for k in range(1, count + 1) if whole >> k]


def measure_curve(
    trained: Trained, steps: int, solver: Solver, count: int, sample: Sample, judge: Judge
) -> list[dict[str, Any]]:
    """The points of a cell's curve, with its own result among them; as plain numbers.

    Args:
        trained: the model, with its snapshots.
        steps: of the whole training.
        solver: with its full number of steps.
        count: halvings of the solver's steps.
        sample: transports the held-out source samples.
        judge: measures distances to the target.
    """
    whole = solver.solver_steps
    # Adaptive solvers choose their steps; theirs are only where a path is recorded.
    numbers = [whole] if solver.adaptive else [whole, *halvings(whole, count)]
    fewer = [solver.model_copy(update={"solver_steps": number}) for number in numbers]
    stages = [(s.step, s.seconds, s.model, solver) for s in trained.snapshots]
    stages += [(steps, trained.seconds, trained.model, other) for other in fewer]
    points = []
    for step, seconds, model, chosen in stages:
        samples, nfe, sample_seconds = sample(model, chosen)
        points.append(
            {
                "train_steps": step,
                "solver_steps": chosen.solver_steps,
                "nfe": nfe,
                "train_seconds": seconds,
                "sample_seconds": sample_seconds,
                **(judge(samples) if bool(samples.isfinite().all()) else {}),
            }
        )
    return points


def curves(rows: pd.DataFrame, recorded: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """One row a point: the curve of every finished cell, or its result alone if it has none.

    Args:
        rows: the rows of ``results.csv``.
        recorded: the points of the curve of a cell, by its id; cells without one may be missing.
    """
    done = with_setting(rows[rows["status"] == "done"])
    shared = [*PLACE, "seed", "id"]
    own = done[[*shared, "steps", "solver_steps", *COST, *JUDGED]]
    own = own.rename(columns={"steps": "train_steps"})
    trained = done["parameters"].fillna(0).to_numpy() > 0
    own["train_steps"] = own["train_steps"].where(trained, 0).astype(int)
    untrained = set(own.loc[own["train_steps"] == 0, "id"])
    places = own.set_index("id")[[*PLACE, "seed"]].to_dict("index")
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
    return both.sort_values([*shared[:4], *POINT], kind="stable", ignore_index=True)


def pareto(points: pd.DataFrame) -> pd.DataFrame:
    """One row a task, method, setting, training steps and solver steps: means over the seeds.

    ``distance`` is the task's main distance, whose name stands beside it; none where a seed has
    none, since those that diverged must not help the mean. ``best_for_nfe`` says that nothing that
    took as few evaluations has a smaller one, ``best_for_seconds`` likewise for the sum of the
    training and sampling times; both among the trained methods, because a closed form has paid for
    nothing.
    """
    means = points.groupby([*PLACE, *POINT], sort=False, dropna=False)
    table = means[[*COST, *JUDGED]].mean()
    table[list(JUDGED)] = table[list(JUDGED)].where(
        means[list(JUDGED)].count().eq(means.size(), axis=0)
    )
    table = table.assign(seeds=means.size()).reset_index()
    table["seconds"] = table["train_seconds"].fillna(0) + table["sample_seconds"]
    table[["metric", "distance"]] = None, np.nan
    for task, group in table.groupby("task", sort=False):
        name = main_distance(group.rename(columns={m: f"{m}_mean" for m in JUDGED}))
        if name is not None:
            where = table["task"] == task
            table.loc[where, "metric"] = name
            table.loc[where, "distance"] = table.loc[where, name]
    for cost in COSTS:
        table[f"best_for_{cost}"] = front(table, cost)
    return table.drop(columns=list(JUDGED))


def front(table: pd.DataFrame, cost: str) -> "pd.Series[bool]":
    """Whether no trained row of the task costs at most as much and has as small a distance."""
    trained = table[(table["train_steps"] > 0) & table["distance"].notna()]
    order = trained.sort_values(["task", cost, "distance"], kind="stable")
    least = order.groupby("task")["distance"].cummin()
    before = least.groupby(order["task"]).shift(fill_value=np.inf)
    return (order["distance"] < before).reindex(table.index, fill_value=False)
