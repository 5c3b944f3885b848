"""Tables and the store: the leaderboard, ablations, records and the report of hostile names."""

import io
import json
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from bench.analysis.analysis import Analysis
from bench.analysis.leaderboard import ablation, axes, leaderboard, with_setting
from bench.analysis.references import BASELINE
from bench.analysis.words import format_value
from bench.metrics import METRICS
from bench.report import terminal, write_report
from bench.store.folder import RECORD, StorageError, cell_folder, write_atomically, write_json
from bench.store.records import FORMAT, RecordError, read_record, read_records
from tests.analysis.made import (
    EIGHT,
    ROLL,
    Record,
    analysis,
    as_record,
    record,
    results,
    stored,
    the,
    w2,
)


def board_of(*made: Record) -> pd.DataFrame:
    """Without the reference samples."""
    board = analysis(made).board
    return board[board["role"] != BASELINE]


# Mean, deviation, interval, floor


def test_mean_deviation_interval_and_floor() -> None:
    values = [0.21, 0.34, 0.26, 0.3]
    board = board_of(
        *[record(seed=k, metrics=w2(v, 0.1 + k / 100)) for k, v in enumerate(values)],
        record("ot_cfm", metrics=w2(9.0)),
    )
    row = the(board, method="fm")
    interval = stats.t.interval(0.95, 3, loc=statistics.mean(values), scale=stats.sem(values))
    assert row["count"] == 4
    assert row["w2_mean"] == pytest.approx(statistics.mean(values))
    assert row["w2_std"] == pytest.approx(statistics.stdev(values))
    assert (row["w2_ci_low"], row["w2_ci_high"]) == pytest.approx(interval)
    assert row["w2_floor"] == pytest.approx(0.115)
    assert row["train_seconds"] == pytest.approx(3.5)
    assert (row["nfe"], row["steps"], row["batch"]) == (50, 100, 512)
    assert row["note"] == ""


def test_one_seed_has_no_interval_and_two_have_a_wide_one() -> None:
    one = the(board_of(record(metrics=w2(0.3))), method="fm")
    assert one["w2_mean"] == 0.3
    assert all(math.isnan(one[f"w2_{name}"]) for name in ("std", "ci_low", "ci_high"))
    pair = board_of(record(seed=0, metrics=w2(1.0)), record(seed=1, metrics=w2(2.0))).iloc[0]
    assert pair["w2_ci_high"] - pair["w2_mean"] == pytest.approx(12.7062 / 2, rel=1e-5)


def test_a_metric_that_does_not_apply_stays_empty() -> None:
    board = board_of(record("pfgm", metrics=w2(0.3)), record("fm", metrics={"straightness": 1.1}))
    assert math.isnan(the(board, method="pfgm")["straightness_mean"])
    assert pd.isna(the(board, method="pfgm")["straightness_rank"])
    assert the(board, method="fm")["straightness_rank"] == 1
    assert pd.isna(the(board, method="fm")["w2_rank"])


def test_ranks_are_of_each_task() -> None:
    values = {EIGHT: {"fm": 0.2, "ot_cfm": 0.1, "efm": 0.2, "pfgm": 0.4}, ROLL: {"fm": 1, "efm": 2}}
    board = board_of(
        *[
            record(method, task=task, metrics=w2(value))
            for task, methods in values.items()
            for method, value in methods.items()
        ]
    )
    ranks = {
        task: dict(zip(rows["method"], rows["w2_rank"], strict=True))
        for task, rows in board.groupby("task")
    }
    assert ranks[EIGHT] == {"ot_cfm": 1, "fm": 2, "efm": 2, "pfgm": 4}
    assert ranks[ROLL] == {"fm": 1, "efm": 2}


def test_rank_is_of_the_mean_over_seeds() -> None:
    board = board_of(
        *[record("fm", seed, metrics=w2(value)) for seed, value in enumerate([0.0, 1.0])],
        *[record("efm", seed, metrics=w2(value)) for seed, value in enumerate([0.4, 0.4])],
    )
    assert the(board, method="efm")["w2_rank"] == 1
    assert the(board, method="fm")["w2_rank"] == 2


# Settings


def test_a_setting_is_named_only_where_a_method_has_several() -> None:
    board = board_of(
        *[
            record("efm", seed, metrics=w2(0.3), L=L, sigma=0.1)
            for L in (6.0, 30.0)
            for seed in (0, 1)
        ],
        record("fm", metrics=w2(0.2), sigma=0.0),
        record("efm", task=ROLL, metrics=w2(0.2), L=6.0, sigma=0.1),
    )
    assert [tuple(row) for row in board[["task", "method", "setting", "count"]].to_numpy()] == [
        (EIGHT, "efm", "L=6", 2),
        (EIGHT, "efm", "L=30", 2),
        (EIGHT, "fm", "", 1),
        (ROLL, "efm", "", 1),
    ]


def test_several_settings_and_the_budget_are_named() -> None:
    board = board_of(
        *[
            record("efm", metrics=w2(0.3), steps=steps, L=6.0, points=points)
            for steps in (100, 200)
            for points in ("mix", "log")
        ]
    )
    assert sorted(board["setting"]) == [
        f"points={points}, steps={steps}" for points in ("log", "mix") for steps in (100, 200)
    ]
    assert the(board, setting="points=log, steps=200")["steps"] == 200


# What is not done


def test_cells_that_are_not_done_have_count_zero_and_their_reason() -> None:
    made = [
        record("pfgm", 0, status="skipped", reason="starts from its own prior"),
        record("pfgm", 1, status="skipped", reason="starts from its own prior"),
        record("efm", 0, status="failed", reason="ValueError: broken"),
        record("efm", 1, status="diverged", reason="loss not finite at step 3"),
        record("fm", 0, metrics=w2(0.2)),
        record("fm", 1, metrics=w2(0.4)),
        record("fm", 2, status="failed", reason="out of memory"),
    ]
    board = board_of(*made)
    pfgm, efm, fm = (the(board, method=name) for name in ("pfgm", "efm", "fm"))
    assert [row["count"] for row in (pfgm, efm, fm)] == [0, 0, 2]
    assert pfgm["note"] == "skipped: starts from its own prior"  # once, not once a seed
    assert efm["note"] == "failed: ValueError: broken; diverged: loss not finite at step 3"
    assert fm["note"] == "failed: out of memory"
    assert fm["w2_mean"] == pytest.approx(0.3)
    for row in (pfgm, efm):
        assert pd.isna(row["w2_mean"])
        assert pd.isna(row["w2_rank"])
        assert pd.isna(row["nfe"])
    assert [row["tried"] for row in (pfgm, efm, fm)] == [0, 2, 3]
    assert pd.isna(fm["w2_rank"])  # what is missing might have been worse


def test_metrics_of_rows_that_are_not_done_do_not_count() -> None:
    bad = record(seed=1, status="diverged", reason="lost")
    bad["metrics"] = w2(1e9)
    row = board_of(record(seed=0, metrics=w2(0.2)), bad).iloc[0]
    assert (row["count"], row["w2_mean"]) == (1, 0.2)


@pytest.mark.parametrize("status", ["failed", "skipped", "diverged"])
def test_a_run_in_which_nothing_was_done(status: str) -> None:
    found = analysis([record("fm", status=status, reason="no luck")])
    assert found.board["count"].tolist() == [0]
    assert f"{status}: no luck" in terminal(found)


# The table for the terminal


def many() -> list[Record]:
    return [
        *[
            record("efm", k, metrics=w2(0.25 + k / 100, 0.125), L=L)
            for L in (6, 30)
            for k in (0, 1)
        ],
        record("fm", metrics=w2(0.5, 0.125) | {"straightness": 1.5, "straightness_floor": 1.0}),
        record("pfgm", status="failed", reason="RuntimeError: it broke"),
        record("pfgm", task=ROLL, metrics=w2(0.75, 0.5)),
        record("fm", task=ROLL, status="skipped", reason="cannot"),
    ]


def test_the_table_shows_every_method_and_reason() -> None:
    text = terminal(analysis(many()))
    eight, roll, _ = text.split("\n\n", 2)
    assert eight.startswith(EIGHT)
    assert roll.startswith(ROLL)
    for part in (
        "efm",
        "fm",
        "pfgm",
        "L=6",
        "L=30",
        "0.255 ±0.007",
        "0.500",
        "1.500",
        "references:",
    ):
        assert part in eight
    assert "pfgm: failed: RuntimeError: it broke" in eight
    assert "fm: skipped: cannot" in roll
    assert METRICS["straightness"].label in eight
    assert METRICS["straightness"].label not in roll  # no value on that task
    assert METRICS["frechet"].label not in text
    lines = [line.split() for line in text.splitlines()]
    again = [line[3:] for line in lines if line[:3] == ["target", "vs", "target"]]
    assert again == [["0.125", "±0.000", "2"], ["0.500", "1"]]
    assert "floor" not in text
    assert "nan" not in text.lower()


@pytest.mark.filterwarnings("error::pandas.errors.PerformanceWarning")  # of a frame in pieces
def test_the_table_is_the_same_from_the_file() -> None:
    """``bench.report`` reads results.csv, where an empty column is a column of floats."""
    for made in (many(), many()[:5]):
        frame = results(made)
        read = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
        assert terminal(Analysis(read)) == terminal(Analysis(frame))


def test_values_are_written_with_three_digits() -> None:
    assert format_value(0.2137, 0.0119) == "0.214 ±0.012"
    assert format_value(0.2137, None) == format_value(0.2137, math.nan) == "0.214"
    assert format_value(math.nan, 0.1) == ""


# Ablations


def swept() -> pd.DataFrame:
    return results(
        [
            *[
                record("efm", seed, metrics=w2(L / 100 + sigma + seed), L=L, sigma=sigma)
                for L in (6.0, 30.0)
                for sigma in (0.1, 1.0)
                for seed in (0, 1)
            ],
            *[record("fm", seed, metrics=w2(0.2), sigma=0.0) for seed in (0, 1)],
        ]
    )


def test_axes_are_the_settings_that_vary_within_a_method() -> None:
    assert axes(swept()) == ["L", "sigma"]
    once = results([record("efm", L=6.0), record("efm", 1, L=6.0), record("fm", sigma=0.0)])
    assert axes(once) == []
    by_task = results([record("efm", L=6.0), record("efm", task=ROLL, L=30.0)])
    assert axes(by_task) == []
    assert axes(results([record(steps=steps) for steps in (10, 20)])) == ["steps"]


def test_an_ablation_has_a_row_a_value_and_other_setting() -> None:
    rows = ablation(swept(), "L")
    efm = rows[rows["method"] == "efm"]
    assert list(zip(efm["setting"], efm["L"], efm["count"], strict=True)) == [
        ("sigma=0.1", 6.0, 2),
        ("sigma=0.1", 30.0, 2),
        ("sigma=1", 6.0, 2),
        ("sigma=1", 30.0, 2),
    ]
    assert efm["w2_mean"].tolist() == pytest.approx([0.66, 0.9, 1.56, 1.8])


def test_a_method_without_the_axis_stands_in_the_ablation_once() -> None:
    fm = the(ablation(swept(), "L"), method="fm")
    assert math.isnan(fm["L"])
    assert (fm["setting"], fm["count"], fm["w2_mean"]) == ("", 2, 0.2)
    assert the(ablation(swept(), "sigma"), method="fm")["sigma"] == 0.0


def test_an_ablation_over_the_budget() -> None:
    rows = ablation(results([record(steps=k, metrics=w2(1 / k)) for k in (20, 10)]), "steps")
    assert rows["steps"].tolist() == [10, 20]
    assert rows["w2_mean"].tolist() == pytest.approx([0.1, 0.05])


# The store


def test_columns_are_in_the_order_of_the_contract() -> None:
    columns = list(results([record(L=6.0, sigma=0.1, points="mix", metrics=w2(0.1))]))
    assert columns[:5] == ["task", "method", "seed", "L", "sigma"]
    last = "status reason nfe train_seconds sample_seconds peak_memory_mb parameters steps batch"
    memory = ["nearest_train", "nearest_train_floor"]
    seen = ["classifier_hash", "classifier_accuracy", "fid_weights_hash", "fid_reason"]
    seen += ["features_file", "features_hash"]
    end = [*last.split(), "device", "commit", "evaluated", "landed", *memory, *seen, "id"]
    assert columns[-len(end) :] == end
    parts = ("floor", "low", "high")
    metrics = [c for name in METRICS for c in (name, *(f"{name}_{part}" for part in parts))]
    between = columns[5 : -len(end)]
    assert between[-len(metrics) :] == metrics
    settings = between[: -len(metrics)]
    assert {"points", "lr", "warmup", "width", "solver_steps", "eval_n"} <= set(settings)
    assert len(set(columns)) == len(columns)


def test_rows_are_sorted_and_hold_what_the_record_says() -> None:
    frame = results([record(seed=s, L=L, metrics=w2(L)) for s in (1, 0) for L in (30.0, 6.0)])
    assert list(zip(frame["L"], frame["seed"], strict=True)) == [(6, 0), (6, 1), (30, 0), (30, 1)]
    assert frame["w2"].tolist() == [6, 6, 30, 30]
    assert frame["steps"].tolist() == [100] * 4
    assert frame["sigma"].isna().all()


def test_no_records_give_an_empty_table(tmp_path: Path) -> None:
    assert len(results([])) == 0
    assert list(read_records(tmp_path)) == []
    assert [path.name for path in write_report(tmp_path)] == ["results.csv"]


def fail(*_: Any) -> None:
    raise OSError("no space left")


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / RECORD
    write_json(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match="no space left"):
            write_json(path, {"a": 2})
    assert os.listdir(tmp_path) == [RECORD]
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 3})
    assert os.listdir(tmp_path) == [RECORD]
    assert json.loads(path.read_text()) == {"a": 3}


def test_an_interrupted_write_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_json_holds_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / RECORD, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / RECORD, {"a": math.nan})
    assert json.loads((tmp_path / RECORD).read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == [RECORD]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = [record(seed=seed, metrics=w2(0.1 + seed)) for seed in range(3)]
    for one in made:
        assert read_record(stored(tmp_path, one)) == as_record(one)
    (tmp_path / "cells" / "unfinished").mkdir()  # a cell without a record
    assert sorted(one.cell.seed for one in read_records(tmp_path)) == [0, 1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: "\udcff\udcfe",  # not UTF-8
        lambda text: text.replace(f'"format": {FORMAT}', '"format": 0'),
        lambda text: text.replace(f'"format": {FORMAT},', ""),
        lambda text: text.replace('"id": "', '"id": "f'),  # of another cell
    ],
)
def test_a_file_that_is_no_record_is_named(damage: Callable[[str], str], tmp_path: Path) -> None:
    path = stored(tmp_path, record())
    corrupt = damage(path.read_text())
    assert corrupt != path.read_text()
    path.write_bytes(corrupt.encode(errors="surrogateescape"))
    for read in (read_record, lambda path: list(read_records(tmp_path))):
        with pytest.raises(ValueError, match=r"record|belongs") as caught:
            read(path)
        assert str(path) in str(caught.value)


# The report


def test_the_report_escapes_every_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    made = [
        record("fm", status="failed", reason=f"ValueError: {hostile}"),
        record(hostile, status="failed", reason="a & b"),
        record("fm", task=f"x{hostile}", status="skipped", reason="<b>no</b>"),
        *[
            record("efm", points=points, status="failed", reason="no")
            for points in ("<i>mix</i>", "log")
        ],
    ]
    made[0]["device"] = made[0]["commit"] = '"><img src=x onerror=alert(1)>'
    # Such names are refused where records are read; the report does not rely on that.
    paths = write_report(tmp_path, analysis=analysis(made))
    names = {path.name for path in paths}
    assert {"results.csv", "leaderboard.csv", "ablation_points.csv", "report.html"} <= names
    assert all(path.exists() for path in paths)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for tag in ("<script", "<b>no", "<i>", "<img"):
        assert tag not in page
    assert "ValueError: &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '<td class="words">&lt;script&gt;alert(1)&lt;/script&gt;</td>' in page
    assert "skipped: &lt;b&gt;no&lt;/b&gt;" in page
    assert "a &amp; b" in page
    frame = pd.read_csv(tmp_path / "results.csv")
    assert hostile in set(frame["method"])  # the data are as they were


def test_the_report_shows_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.build.draw_plots", lambda *arguments: [])
    for one in many():
        stored(tmp_path, one)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<td class="best">0.255 ±0.007</td>' in page
    assert "<td>0.500</td>" in page
    assert '<td class="best">0.750</td>' in page  # alone on its task
    assert "failed: RuntimeError: it broke" in page
    assert "8 cells (6 done, 1 failed, 1 skipped)" in page
    assert ">nan" not in page
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert list(board["task"].unique()) == [EIGHT, ROLL]
    assert (tmp_path / "ablation_L.csv").exists()


def test_tables_of_axes_that_are_gone_are_removed(tmp_path: Path) -> None:
    stored(tmp_path, record(status="failed", reason="no"))
    old = tmp_path / "ablation_sigma.csv"
    old.write_text("old")
    write_report(tmp_path)
    assert not old.exists()


def test_every_table_says_whose_field_was_learned() -> None:
    """``endpoints`` is named though it has one value; methods without it have no such word."""
    rows = results(
        [
            record("efm", endpoints="included", metrics={"w2": 1.0}),
            record("fm", metrics={"w2": 1.0}),
        ]
    )
    assert dict(zip(rows["method"], with_setting(rows)["setting"], strict=True)) == {
        "efm": "endpoints=included",
        "fm": "",
    }
    assert set(with_setting(rows, without="endpoints")["setting"]) == {""}
    assert "endpoints=included" in terminal(Analysis(rows))


def test_diagnostics_are_columns_and_means_but_no_settings_and_no_ranks() -> None:
    angles = [{"field_angle_50": 2.0}, {"field_angle_50": 4.0}]
    rows = results(
        [
            {**record("efm", seed, metrics={"w2": 1.0}), "diagnostics": found}
            for seed, found in enumerate(angles)
        ]
        + [record("fm", metrics={"w2": 1.0})]
    )
    assert list(rows["field_angle_50"].dropna()) == [2.0, 4.0]
    board = leaderboard(rows).set_index("method")
    assert board.loc["efm", "field_angle_50"] == 3.0
    assert math.isnan(board.loc["fm", "field_angle_50"])
    assert (board["setting"] == "").all()
    assert "field_angle_50_rank" not in board
    assert axes(rows) == []


def test_a_record_with_something_else_for_a_diagnostic_is_refused(tmp_path: Path) -> None:
    broken = {**record("efm", metrics={"w2": 1.0}), "diagnostics": {"field_angle": "wide"}}
    path = cell_folder(tmp_path, broken["id"]) / RECORD
    path.parent.mkdir(parents=True)
    write_json(path, broken)
    with pytest.raises(RecordError, match="diagnostic"):
        read_record(path)


def test_what_was_not_trained_has_no_training_settings() -> None:
    rows = results([{**record("efm-exact", metrics={"w2": 1.0}), "parameters": 0}])
    assert rows[["steps", "batch", "lr", "width"]].isna().all(axis=None)
    assert rows["solver_steps"].notna().all()


def test_the_main_metric_is_one_that_all_rows_have() -> None:
    made = [
        record("fm", metrics={"energy_distance": 1.0, "w2": 3.0}),
        record("vp", metrics={"w2": 2.0}),
    ]
    board = leaderboard(results(made)).set_index("method")
    assert board["main_metric"].to_dict() == {"fm": "w2", "vp": "w2"}
    assert board["main_rank"].to_dict() == {"fm": 2, "vp": 1}
