"""What results are held against: roles, reference rows, scores, copies; ranks of any direction."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from bench.analysis.leaderboard import leaderboard, main_distance, metrics_long, shown_metrics
from bench.analysis.overall import overall
from bench.analysis.significance import pairs
from bench.metrics import METRICS
from bench.metrics.base import Metric
from bench.report.tables import COPYING, SEPARATOR, Table, task_table
from tests.analysis.made import EIGHT, ROLL, Record, analysis, record, results, the, w2

SETS = {
    "perfect": {"w2": 0.2, "transport_cost": 3.0},
    "linear": {"w2": 1.2},
    "identity": {"w2": 3.0, "transport_cost": 0.0},
    "noise": {"w2": 2.2},
}
COPIED = Metric("copied", "copied share", "memory", lambda *given: 0.05, "", ideal=0.05)


def with_sets(made: Record, **changed: dict[str, float]) -> Record:
    return made | {"references": SETS | changed}


def usual() -> list[Record]:
    values = {"fm": 0.4, "efm": 0.6, "fm-exact": 0.1}
    return [
        with_sets(record(method, seed, metrics=w2(value + seed / 100)))
        for method, value in values.items()
        for seed in range(3)
    ]


def test_reference_rows_stand_below_the_methods_without_a_rank() -> None:
    board = analysis(usual()).board
    assert list(zip(board["method"], board["role"], strict=True)) == [
        ("efm", "method"),
        ("fm", "method"),
        ("fm-exact", "exact"),
        ("perfect", "baseline"),
        ("target vs target", "baseline"),
        ("linear", "baseline"),
        ("identity", "baseline"),
        ("noise", "baseline"),
    ]
    means = board.set_index("method")["main_mean"]
    assert means["perfect"] == pytest.approx(0.2)
    assert means["target vs target"] == pytest.approx(0.1)
    assert (means["linear"], means["identity"], means["noise"]) == (1.2, 3.0, 2.2)
    assert board["main_rank"].fillna(0).tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert the(board, method="identity")["transport_cost_mean"] == 0
    assert board["w2_perfect"].to_numpy() == pytest.approx(0.2)


def test_the_leaderboard_begins_with_what_decides() -> None:
    board = analysis(usual()).board
    first = "task method setting main_metric main_mean main_low main_high main_rank score role"
    assert list(board)[:12] == [*first.split(), "count", "tried"]
    for ours, theirs in (("mean", "mean"), ("low", "ci_low"), ("high", "ci_high")):
        assert board[f"main_{ours}"].equals(board[f"w2_{theirs}"])
    assert board["main_rank"].equals(board["w2_rank"])
    assert set(board["main_metric"]) == {"w2"}


def test_the_score_by_its_formula() -> None:
    """Each seed has a perfect map and noise of its own."""
    made = [
        with_sets(record("fm", seed, metrics=w2(value)), perfect={"w2": best}, noise={"w2": worst})
        for seed, (value, best, worst) in enumerate([(0.5, 0.1, 2.1), (0.6, 0.2, 1.2)])
    ]
    board = analysis(made).board.set_index("method")["score"]
    assert board["fm"] == pytest.approx((0.4 / 2 + 0.4 / 1) / 2)
    assert board["perfect"] == pytest.approx(0)
    assert board["noise"] == pytest.approx(1)
    assert board["linear"] == pytest.approx(((1.2 - 0.1) / 2 + (1.2 - 0.2) / 1) / 2)


def test_the_score_of_a_metric_with_an_ideal_is_by_the_distance_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On which side of the ideal a value lies makes no difference."""
    main = replace(METRICS["w2"], name="own", better="nearest", ideal=1.0, main=99)
    monkeypatch.setitem(METRICS, "own", main)

    def scores(best: float, worst: float) -> list[float]:
        values = {"fm": 0.2, "efm": 1.8, "vp": 1.0}
        sets = {"perfect": {"own": best}, "noise": {"own": worst}}
        made = [
            record(name, metrics={"own": v}) | {"references": sets} for name, v in values.items()
        ]
        board = analysis(made).board.set_index("method")["score"]
        return [board[name] for name in (*values, "perfect", "noise")]

    expected = pytest.approx([0.7 / 1.9, 0.7 / 1.9, -0.1 / 1.9, 0, 1])
    for best in (0.9, 1.1):
        for worst in (-1.0, 3.0):
            assert scores(best, worst) == expected


def test_without_an_exact_map_a_second_target_set_is_perfect() -> None:
    sets = {"references": {"noise": {"w2": 2.1}}}
    board = analysis([record("fm", metrics=w2(0.5)) | sets]).board.set_index("method")["score"]
    assert board.to_dict() == pytest.approx({"fm": 0.2, "target vs target": 0.0, "noise": 1.0})


@pytest.mark.parametrize("sets", [{}, {"perfect": {"w2": 0.1}}, {"noise": {"w2": 0.05}}])
def test_no_score_without_noise_or_where_noise_is_not_worse(sets: dict[str, Any]) -> None:
    board = analysis([record("fm", metrics=w2(0.5)) | {"references": sets}]).board
    assert board["score"].isna().all()


def test_a_seed_counts_once_however_many_cells_it_has() -> None:
    made = [with_sets(record(m, 0, metrics=w2(1)), linear={"w2": 1.0}) for m in ("fm", "efm", "vp")]
    made += [with_sets(record("fm", 1, metrics=w2(1)), linear={"w2": 3.0})]
    row = the(analysis(made).board, method="linear")
    assert (row["w2_mean"], row["count"]) == (2.0, 2)


@pytest.mark.parametrize(
    ("name", "values"), [("n", (500, 1000)), ("draws", ("low_variance", "iid"))]
)
def test_references_of_several_data_are_rows_of_their_own(name: str, values: Any) -> None:
    made = []
    for setting, value in zip(values, (1.0, 3.0), strict=True):
        one = with_sets(record("fm", metrics=w2(value)), linear={"w2": value})
        one["cell"]["eval"][name] = setting
        made.append(one)
    board = analysis(made).board
    linear = board[board["method"] == "linear"].set_index("setting")["w2_mean"]
    assert linear.to_dict() == {f"eval_{name}={values[0]}": 1.0, f"eval_{name}={values[1]}": 3.0}


def test_references_say_on_which_samples_all_were_evaluated() -> None:
    made = usual()
    for one in made:
        one["cell"]["eval"]["split"] = "validation"
    board = analysis(made).board
    assert set(board["setting"]) == {"eval_split=validation"}
    made[0]["cell"]["eval"]["split"] = "test"
    board = analysis(made).board
    assert set(board.loc[board["role"] == "baseline", "setting"]) == {"eval_split=validation", ""}


def test_references_do_not_choose_the_main_metric_or_the_headline() -> None:
    """What only some reference sets have is measured on no method, and does not hide the FID."""
    made = [
        record("fm", metrics={"fid": 5.0, "w2": 1.0})
        | {"references": {"noise": {"w2": 2.0, "label_success": 0.1}}}
    ]
    found = analysis(made)
    assert set(found.board["main_metric"]) == {"fid"}
    assert main_distance(found.board) == "fid"
    assert "label_success" not in shown_metrics(found.board)
    assert task_table(found, EIGHT).head[2] == "FID"


def test_a_method_named_like_a_reference_is_not_mixed_with_it() -> None:
    board = analysis([with_sets(record("linear", metrics=w2(0.5)))]).board
    assert the(board, method="linear", role="method")["w2_mean"] == 0.5
    assert the(board, method="linear", role="baseline")["w2_mean"] == 1.2


def test_exact_rows_compete_nowhere() -> None:
    made = [
        with_sets(record(method, seed, task, metrics=w2(value + seed / 100)))
        for task in (EIGHT, ROLL)
        for method, value in {"fm": 0.4, "efm": 0.6, "vp": 0.5, "fm-exact": 0.1}.items()
        for seed in range(3)
    ]
    rows = results(made)
    assert "fm-exact" not in {*pairs(rows)["method_a"], *pairs(rows)["method_b"]}
    (across,) = overall(rows).values()
    assert list(across.table["name"]) == ["fm", "vp", "efm"]
    assert across.table["mean_rank"].tolist() == [1, 2, 3]
    alone = results([one for one in made if one["cell"]["method"] == "fm-exact"])
    assert overall(alone) == {}
    assert len(pairs(alone)) == 0


def shown(table: Table) -> dict[str, dict[str, str]]:
    """The texts of a table by the names of its rows and columns; bold in stars."""
    place = table.head.index("method")
    return {
        row[place].text: {
            name: f"*{entry.text}*" if entry.bold else f"{entry.text}{entry.mark}"
            for name, entry in zip(table.head, row, strict=True)
        }
        for row in table.rows
    }


def test_a_table_sets_references_apart() -> None:
    table = task_table(analysis(usual()), EIGHT)
    found = shown(table)
    assert list(found) == [
        *("fm", "efm", SEPARATOR, "fm-exact", "perfect", "target vs target"),
        *("linear", "identity", "noise"),
    ]
    assert found["fm"]["W2"] == "*0.410 ±0.010*"
    assert found["fm-exact"]["W2"] == "0.110 ±0.010"
    assert {found[name]["rank"] for name in list(found)[2:]} == {""}
    assert (found["perfect"]["score"], found["noise"]["score"]) == ("0.000", "1.000")
    assert table.head[:4] == ["rank", "method", "W2", "score"]
    assert not any("floor" in word or "ceiling" in word for word in (*table.head, *table.notes))


def test_the_long_table_is_tidy() -> None:
    made = usual()
    made[0]["metrics"] |= {"w2_low": 0.3, "w2_high": 0.5}
    long = analysis(made).metrics_long
    columns = "task method setting role seed metric value low high floor perfect"
    assert list(long) == columns.split()
    own = the(long, method="fm", seed=0, metric="w2")
    assert own[["value", "low", "high", "floor", "perfect"]].tolist() == [0.4, 0.3, 0.5, 0.1, 0.2]
    rows = results(made).set_index(["method", "seed"])
    for method, seed, name, value in long[["method", "seed", "metric", "value"]].to_numpy():
        if method in set(rows.index.get_level_values(0)):
            assert rows.loc[(method, seed), name] == value
    assert len(long[long["method"].isin(["fm", "efm", "fm-exact"])]) == 9
    assert the(long, method="identity", seed=2, metric="transport_cost")["value"] == 0
    failed = results([record("fm", status="failed", reason="no")])
    assert len(metrics_long(failed)) == 0


def test_the_long_table_says_who_competes() -> None:
    """Also where a method has the name of a reference set."""
    made = [*usual(), with_sets(record("linear", metrics=w2(0.5)))]
    long = analysis(made).metrics_long
    rows = long[long["metric"] == "w2"].drop_duplicates(["method", "role"])
    roles = rows.groupby("role")["method"].agg(set).to_dict()
    assert roles == {
        "method": {"efm", "fm", "linear"},
        "reference": {
            *("fm-exact", "perfect", "target vs target"),
            *("linear", "identity", "noise"),
        },
    }
    assert the(long, method="linear", role="method", metric="w2")["value"] == 0.5


# Memorisation

SHARES: list[tuple[dict[str, float], bool]] = [
    ({"copied": 0.12, "copied_low": 0.06, "copied_high": 0.2}, True),
    ({"copied": 0.12, "copied_low": 0.04, "copied_high": 0.2}, False),
    ({"copied": 0.12}, True),
    ({"copied": 0.09}, False),
    ({"copied": 0.0, "copied_low": 0.0, "copied_high": 0.01}, False),
]


@pytest.mark.parametrize(("share", "copies"), SHARES)
def test_who_copies_is_marked(
    share: dict[str, float], copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "copied", COPIED)
    made = [record("fm", seed, metrics=w2(1.0) | share) for seed in range(2)]
    found = analysis([*made, record("efm", metrics=w2(2.0))])
    assert the(found.board, method="fm")["copies"] == copies
    assert not the(found.board, method="efm")["copies"]
    table = task_table(found, EIGHT)
    assert table.head[2:5] == ["W2", "score", METRICS["copied"].label]  # beside the headline
    assert (f"fm {COPYING}" in {f"{row[1].text} {row[1].mark}" for row in table.rows}) == copies


def test_tasks_without_training_rows_have_no_such_column() -> None:
    assert "copied share" not in task_table(analysis(usual()), EIGHT).head


# Ranks


@pytest.mark.parametrize("name", sorted(METRICS))
def test_ranks_follow_the_direction_and_the_labels(name: str) -> None:
    """Another name for each method, and the ranks go with the values."""
    metric = METRICS[name]
    better, worse = {
        "lower": (metric.ideal + 0.1, metric.ideal + 0.5),
        "higher": (0.9, 0.3),
        "nearest": (metric.ideal - 0.2, metric.ideal + 0.5),
    }[metric.better]

    def ranks(names: tuple[str, str]) -> dict[str, int]:
        board = leaderboard(
            results(
                [record(n, metrics={name: v}) for n, v in zip(names, (better, worse), strict=True)]
            )
        )
        return dict(zip(board["method"], board[f"{name}_rank"], strict=True))

    if not metric.ranked:
        with pytest.raises(KeyError):
            ranks(("fm", "efm"))
        return
    assert ranks(("fm", "efm")) == {"fm": 1, "efm": 2}
    assert ranks(("efm", "fm")) == {"efm": 1, "fm": 2}


def test_costs_have_no_rank_and_the_excess_is_best_near_zero() -> None:
    costs = {"transport_cost", "radial_transport_cost", "path_energy", "feature_cost"}
    costs |= {"excess_flow_cost"}  # FM's cost is no aim of the others
    assert {name for name, metric in METRICS.items() if not metric.ranked} == costs
    made = [record(m, metrics={"excess_cost": v}) for m, v in (("efm", -0.4), ("fm", 0.2))]
    board = leaderboard(results(made)).set_index("method")
    assert board["excess_cost_rank"].to_dict() == {"efm": 2, "fm": 1}


def test_errors_of_both_signs_do_not_cancel() -> None:
    values = {"fm": [0.5, -0.5, 0.0], "efm": [0.05, 0.05, 0.05]}
    made = [
        record(name, seed=seed, metrics={"excess_cost": value})
        for name, own in values.items()
        for seed, value in enumerate(own)
    ]
    board = leaderboard(results(made)).set_index("method")
    assert board["excess_cost_rank"].to_dict() == {"fm": 2, "efm": 1}


def test_a_distance_below_its_ideal_ties_with_one_at_it() -> None:
    values = {"fm": -0.1, "efm": 0.0, "vp": -0.3, "edm": 0.2}
    made = [record(name, metrics={"w2": value}) for name, value in values.items()]
    board = leaderboard(results(made)).set_index("method")
    assert board["main_rank"].to_dict() == {"fm": 1, "efm": 1, "vp": 1, "edm": 4}


@pytest.mark.parametrize("better", ["lower", "higher", "nearest"])
def test_verdicts_follow_the_direction_and_the_labels(
    better: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = replace(METRICS["w2"], name="own", better=better, ideal=1.0, main=99)
    monkeypatch.setitem(METRICS, "own", main)
    values = {"lower": (1.5, 4.0), "higher": (4.0, 1.5), "nearest": (0.8, 2.0)}[better]

    def found(names: tuple[str, str]) -> pd.DataFrame:
        return results(
            [
                record(name, seed, task, metrics={"own": value + seed / 100})
                for task in (EIGHT, ROLL)
                for name, value in zip(names, values, strict=True)
                for seed in range(6)
            ]
        )

    for names in (("fm", "efm"), ("efm", "fm")):
        rows = found(names)
        compared = pairs(rows)
        assert set(compared["verdict"]) == {f"{names[0]} is better"}
        assert set(compared["method_a"]) == {names[0]}
        (across,) = overall(rows).values()
        assert list(across.table["name"]) == list(names)
        board = leaderboard(rows).query("role == 'method'")
        assert set(board.loc[board["main_rank"] == 1, "method"]) == {names[0]}


def test_older_records_have_no_references() -> None:
    made = record("fm", metrics={"straightness": 1.1})
    board = analysis([made]).board
    assert board["method"].tolist() == ["fm"]
    assert math.isnan(board["score"].iloc[0])
    assert not any("_perfect" in name for name in board)
