"""What the trials of :mod:`bench.tune` have shown: scores, the choice, and its configuration."""

import json
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.leaderboard import aggregate, main_distance
from bench.analysis.words import format_value
from bench.config.cell import Cell
from bench.config.errors import printable
from bench.config.grid import Spec, own_settings
from bench.metrics import METRICS
from bench.tuning.search import Tuning

GROUP = ["task", "method", "trial"]
SHOWN = 20  # trials of a method and task that the terminal shows, the best


def trial_table(rows: pd.DataFrame, tuning: Tuning) -> pd.DataFrame:
    """One row a task, method and trial: settings, seeds, score, its deviation, status, chosen.

    ``rows`` are those of ``results.csv``. The score is the mean over the seeds of the task's main
    distance, empty unless every seed is done. Chosen is the smallest of each task and method; of
    equal ones the first, so that the defaults stay where nothing is better.
    """
    cells = tuning.cells()
    pairs = [(cell.id, number) for (_, _, number), own in cells.items() for cell in own]
    merged = pd.DataFrame(pairs, columns=["id", "trial"]).merge(rows, on="id", how="left")
    summary = aggregate(merged, GROUP)
    groups = merged.groupby(GROUP, sort=False)
    status = groups["status"].agg(lambda own: next((s for s in own if s != "done"), "done"))
    table = summary[GROUP].assign(
        seeds=groups["seed"].agg(lambda own: " ".join(map(str, own))).to_numpy(),
        metric=None,
        score=np.nan,
        std=np.nan,
        status=status.to_numpy(),
    )
    for _, own in summary.groupby("task"):
        metric = main_distance(own)
        if metric is not None:
            done = own.index[table.loc[own.index, "status"] == "done"]
            table.loc[own.index, "metric"] = metric
            table.loc[done, "score"] = own.loc[done, f"{metric}_mean"]
            table.loc[done, "std"] = own.loc[done, f"{metric}_std"]
    best = table[table["score"].notna()].groupby(["task", "method"])["score"].idxmin()
    table = table.assign(chosen=table.index.isin(best), note=summary["note"])
    return pd.concat([table[GROUP], _settings(tuning), table.drop(columns=GROUP)], axis=1)


def _settings(tuning: Tuning) -> pd.DataFrame:
    """What each trial has set, defaults as what they are on the task; empty where it has not."""
    names = dict.fromkeys(name for space in tuning.spaces.values() for name in space)
    rows = [
        [value_of(cells[0], name) if name in tuning.spaces[method] else None for name in names]
        for (_, method, _), cells in tuning.cells().items()
    ]
    return pd.DataFrame(rows, columns=list(names), dtype=object)  # whole numbers stay whole


def value_of(cell: Cell, name: str) -> Any:
    """The value of a setting ``section.key`` in a cell."""
    section, _, key = name.rpartition(".")
    if section == cell.method:
        return cell.hyperparameters[key]
    return cell.model_dump(mode="json")[section][key]


def configuration(table: pd.DataFrame, tuning: Tuning, test: Spec, command: str) -> str:
    """A file for ``bench.run --config``: every method and task with what was chosen, on the test.

    The grid of a file is never empty: it is the first choice, and the others are its variations.
    These give every setting that was looked for, also where a default was chosen, since they
    inherit those of the first. Without any score the defaults stay.

    Args:
        table: of :func:`trial_table`, and ``tuning``: whose trials they are.
        test: seeds, and the settings that all have in common.
        command: what made the file.
    """
    cells = tuning.cells()
    blocks = [
        f"# Chosen on validation draws by\n#   {printable(command)}\n"
        "# --methods chooses among them and --seeds may change the seeds; --tasks would mix what\n"
        "# belongs to others."
    ]
    searched = {name: own for space in tuning.spaces.values() for name, own in space.items()}
    first = {"seeds": test.seeds, **{name: values[0] for name, values in test.settings.items()}}
    for task in dict.fromkeys(table["task"]):
        for method in tuning.spaces:
            own = table[(table["task"] == task) & (table["method"] == method)]
            cell = cells[task, method, max(own["trial"].where(own["chosen"], 0))][0]
            given = {"methods": [method], "tasks": [task], **first}
            given |= {name: value_of(cell, name) for name in own_settings(searched, method)}
            head = [] if first else ["[[vary]]"]
            # In TOML none is a word, and the rest is as in JSON.
            plain = {name: "none" if value is None else value for name, value in given.items()}
            lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
            blocks.append("\n".join([*head, f"# {_verdict(own)}", *lines]))
            first = {}
    return "\n\n".join(blocks) + "\n"


def _verdict(own: pd.DataFrame) -> str:
    """What was chosen out of what, in words."""
    chosen = own[own["chosen"]]
    if not len(chosen):
        return f"no trial has a score ({', '.join(dict.fromkeys(own['status']))}): the defaults"
    row = chosen.iloc[0]
    score = f"{METRICS[row['metric']].label} {format_value(row['score'], row['std'])}"
    before = format_value(own["score"].iloc[0], own["std"].iloc[0]) or own["status"].iloc[0]
    found = f"trial {row['trial']}, one of {len(own)}: {score} on validation"
    return found if row["trial"] == 0 else f"{found}; the defaults {before}"


def words(table: pd.DataFrame) -> str:
    """The trials of each task for a terminal; ``*`` marks the choice."""
    return "\n\n".join(_block(str(task), own) for task, own in table.groupby("task", sort=False))


def _block(task: str, rows: pd.DataFrame) -> str:
    metric = rows["metric"].iloc[0]
    label = METRICS[metric].label if metric in METRICS else "no score"
    lines, notes = [], []
    for method, own in rows.groupby("method", sort=False):
        best = own.sort_values("score", kind="stable").head(SHOWN).sort_index()
        for row in best.to_dict("records"):
            given = {str(name): value for name, value in row.items() if "." in str(name)}
            settings = [f"{name}={value}" for name, value in given.items() if value is not None]
            score = format_value(row["score"], row["std"]) or row["status"]
            mark = "*" if row["chosen"] else ""
            lines.append([mark, str(method), str(row["trial"]), ", ".join(settings), score])
        if len(own) > SHOWN:
            notes.append(f"  {method}: the best {SHOWN} of {len(own)}, all are in tuning.csv")
    shown = pd.DataFrame(lines, columns=["", "method", "trial", "settings", "score"])
    title = f"{task}: {label} on the validation draw, seeds {rows['seeds'].iloc[0]}"
    return "\n".join([title, shown.to_string(index=False), *notes])
