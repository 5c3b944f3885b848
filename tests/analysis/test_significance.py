"""Paired tests on a task, ranks over tasks: against published and other people's numbers."""

import math
import time
import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis.leaderboard import leaderboard
from bench.analysis.overall import Overall, compare_ranks, critical_difference, overall
from bench.analysis.significance import SAME, UNTESTED, holm, paired, pairs, remarks
from bench.report.plots.charts import critical_difference_figure
from tests.analysis.made import (
    EIGHT,
    ROLL,
    Record,
    first_cells,
    record,
    record_of,
    results,
    w2,
)

DIGITS = "gaussian_to_digits"
DEMSAR = [
    [0.763, 0.768, 0.771, 0.798],  # adult
    [0.599, 0.591, 0.590, 0.569],  # breast cancer
    [0.954, 0.971, 0.968, 0.967],  # breast cancer Wisconsin
    [0.628, 0.661, 0.654, 0.657],  # cmc
    [0.882, 0.888, 0.886, 0.898],  # ionosphere
    [0.936, 0.931, 0.916, 0.931],  # iris
    [0.661, 0.668, 0.609, 0.685],  # liver disorders
    [0.583, 0.583, 0.563, 0.625],  # lung cancer
    [0.775, 0.838, 0.866, 0.875],  # lymphography
    [1.000, 1.000, 1.000, 1.000],  # mushroom
    [0.940, 0.962, 0.965, 0.962],  # primary tumor
    [0.619, 0.666, 0.614, 0.669],  # rheum
    [0.972, 0.981, 0.9752, 0.9751],  # voting: both .975, with the published ranks 2 and 3
    [0.957, 0.978, 0.946, 0.970],  # wine
]
"""Areas under the curve, larger is better: Demsar, JMLR 7, 2006, table 6."""


def rows_of(values: dict[str, list[float]], task: str = EIGHT) -> list[Record]:
    """Records of methods with a W2 a seed."""
    return [
        record(method, seed, task=task, metrics=w2(value))
        for method, own in values.items()
        for seed, value in enumerate(own)
    ]


def the_kind(made: list[Record]) -> Overall:
    """The comparison over the tasks, which are all of one kind."""
    (found,) = overall(results(made)).values()
    return found


def the_pair(comparisons: pd.DataFrame, a: str, b: str) -> "pd.Series[Any]":
    """The row of two methods, with the difference a - b."""
    for first, second, sign in ((a, b, 1), (b, a, -1)):
        found = comparisons[(comparisons[["method_a", "method_b"]] == [first, second]).all(axis=1)]
        if len(found) == 1:
            row = found.iloc[0].copy()
            row["difference"] *= sign
            return row
    raise AssertionError(f"no pair {a}, {b}")


# The paired test


def test_the_paired_test_by_its_formula() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 5, 10):
        a, b = np.exp(rng.normal(size=(2, n)))
        found, difference = paired(a, b), np.log(a) - np.log(b)
        error = difference.std(ddof=1) / math.sqrt(n)
        half = stats.t.ppf(0.975, n - 1) * error
        assert found.shared_seeds == n
        assert (found.mean_a, found.mean_b) == pytest.approx((a.mean(), b.mean()))
        assert found.difference == pytest.approx(difference.mean())
        assert found.ratio == pytest.approx(stats.gmean(a) / stats.gmean(b))
        assert found.p == pytest.approx(2 * stats.t.sf(abs(difference.mean()) / error, n - 1))
        interval = difference.mean() - half, difference.mean() + half
        assert (found.ci_low, found.ci_high) == pytest.approx(interval)
        assert (found.ratio_low, found.ratio_high) == pytest.approx(tuple(np.exp(interval)))
        assert found.scale == "log"


def test_the_unit_of_a_distance_changes_no_test() -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(size=(2, 5)))
    small, large = paired(a, b), paired(1000 * a, 1000 * b)
    assert (small.p, small.ratio, small.ratio_high) == pytest.approx(
        (large.p, large.ratio, large.ratio_high)
    )


def test_values_without_logarithms_are_compared_as_they_are() -> None:
    a, b = np.array([0.0, 1.0, 2.0, 1.5]), np.array([3.0, 3.5, 4.0, 5.0])
    found = paired(a, b)
    test = stats.ttest_rel(a, b)
    assert found.scale == "plain"
    assert found.p == pytest.approx(test.pvalue)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert math.isnan(found.ratio)
    assert math.isnan(found.ratio_low)


def test_only_shared_seeds_are_compared() -> None:
    values = {"fm": [1.0, 2.0, 4.0, 8.0], "efm": [1.5, 2.25, 4.125]}
    made = [*rows_of(values), record("efm", 7, metrics=w2(100.0))]
    row = the_pair(pairs(results(made)), "fm", "efm")
    assert row["shared_seeds"] == 3
    logs = np.log([1, 2, 4]), np.log([1.5, 2.25, 4.125])
    assert row["difference"] == pytest.approx((logs[0] - logs[1]).mean())
    assert (row["mean_a"], row["mean_b"]) == pytest.approx((7 / 3, 7.875 / 3))
    assert row["p"] == pytest.approx(stats.ttest_rel(*logs).pvalue)


def test_a_noise_that_both_share_hides_no_difference() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(10, 3, 6)
    values = {
        "fm": list(shared),
        "efm": list(shared + 0.1 + 0.01 * rng.normal(size=6)),
    }
    assert stats.ttest_ind(values["fm"], values["efm"]).pvalue > 0.8  # not paired: lost in noise
    assert pairs(results(rows_of(values)))["verdict"].tolist() == ["fm is better"]


def test_two_shared_seeds_are_no_test() -> None:
    made = rows_of({"fm": [1.0, 1.1, 1.2], "vp": [1.5, 1.6]})
    made += [record("efm", seed, metrics=w2(5.0)) for seed in (1, 2, 3)]
    found = pairs(results(made))
    assert set(found["verdict"]) == {UNTESTED}
    assert sorted(found["shared_seeds"]) == [1, 2, 2]
    assert found[["p", "p_holm", "ci_low", "ratio_low"]].isna().all(axis=None)
    assert found["ratio"].notna().all()
    assert remarks(found)[EIGHT] == "best: fm; not tested vp, efm (fewer than 3 shared seeds)"


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_same_method_under_two_names_does_not_differ(seeds: int) -> None:
    values = list(np.random.default_rng(0).normal(size=seeds) + 3)
    made = [
        one
        for task in (EIGHT, ROLL, DIGITS)
        for one in rows_of({"fm": values, "copy": values, "again": values}, task)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pairs(results(made))
        across = the_kind(made)
        figure = critical_difference_figure(across)
    assert set(found["verdict"]) == {SAME}
    assert set(found["p"]) == {1.0}
    assert set(found["difference"]) == {0.0}
    for line in remarks(found).values():
        assert f"{SAME} from " in line
        assert "better than" not in line
    assert SAME in across.sentence
    assert set(across.table["mean_rank"]) == {2.0}
    assert set(across.table["better_than"]) == {""}
    assert figure is not None


def test_rounding_is_no_difference() -> None:
    values = np.random.default_rng(0).normal(size=8) + 3
    found = paired(values, values * (1 + 1e-13))
    assert (found.difference, found.p) == (0, 1)


def test_a_shift_without_spread_is_tested_by_its_signs() -> None:
    """t would be infinite, or, with the rounding of the sums, merely huge."""
    values = np.random.default_rng(0).normal(size=10) + 3
    for n in (3, 5, 6, 10):
        found = paired(values[:n], values[:n] * 0.9)
        signs = stats.permutation_test(
            (np.full(n, 0.1), np.zeros(n)),
            lambda a, b: np.mean(a - b),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert found.p == pytest.approx(signs.pvalue)
        assert math.isnan(found.ci_low)
    assert (
        the_pair(
            pairs(results(rows_of({"fm": [1.0, 2.0, 3.0], "efm": [1.1, 2.2, 3.3]}))), "fm", "efm"
        )["verdict"]
        == SAME
    )


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, none below the one before."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.02])) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm(np.array([0.5, np.nan, 0.6])) == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert len(holm(np.array([]))) == 0


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).uniform(size=40) ** 3
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_equal_methods_differ_in_few_tasks() -> None:
    """At most 5% of tasks have any false verdict; 9.5% is five deviations above."""
    rng = np.random.default_rng(0)
    tasks, methods, seeds = 600, 4, 5
    false = 0
    for _ in range(tasks):
        scores = rng.normal(size=(1, seeds)) * 3 + rng.normal(size=(methods, seeds))
        p = np.array([paired(a, b).p for a, b in combinations(scores, 2)])
        false += bool((holm(p) < 0.05).any())
    assert 0.01 < false / tasks < 0.095


def test_pairs_are_corrected_within_their_task() -> None:
    rng = np.random.default_rng(0)
    made = [
        one
        for task in (EIGHT, ROLL)
        for one in rows_of({m: list(rng.normal(size=6)) for m in ("fm", "efm", "vp")}, task)
    ]
    found = pairs(results(made))
    assert len(found) == 6
    for _, own in found.groupby("task"):
        assert own["p_holm"].tolist() == pytest.approx(list(holm(own["p"].to_numpy())))


def test_who_lacks_a_seed_is_not_the_best() -> None:
    rng = np.random.default_rng(0)
    made = [record(m, s, metrics=w2(v + rng.normal() / 9)) for s in range(4) for m, v in
            (("fm", 1.0), ("vp", 2.0))]  # fmt: skip
    made += [record("efm", 0, metrics=w2(0.1)), record("efm", 1, metrics=w2(0.1))]
    made += [record("efm", s, status="diverged", reason="loss not finite") for s in (2, 3)]
    rows = results(made)
    assert remarks(pairs(rows))[EIGHT].startswith("best: fm")
    board = leaderboard(rows).query("role == 'method'").set_index("method")
    assert board["w2_rank"].fillna(0).to_dict() == {"fm": 1, "vp": 2, "efm": 0}
    (across,) = overall(rows).values()
    found = across.table.set_index("name")
    assert found.loc["efm", "tasks"] == 0
    assert "2 of 4 seeds done; diverged: loss not finite" in found.loc["efm", "missing"]


def test_only_the_best_of_many_settings_are_compared() -> None:
    made = [record("efm", s, metrics=w2(k + s / 9), L=float(k)) for k in range(20) for s in (0, 1)]
    made += [record("fm", s, metrics=w2(1000.0 + s)) for s in (0, 1)]
    found = pairs(results(made))
    assert len(found) == 12 * 11 / 2
    assert "fm" in set(found["method_b"])  # the worst of all, but the best of its method
    words = "best 12 of 21 settings by W2, of each method in turn; chosen by the same results"
    assert set(found["note"]) == {words}


def test_the_seeds_of_other_data_are_not_shared() -> None:
    """W2 to a target of another width, or of other sizes, says nothing about the method."""
    made = rows_of({"fm": [1.0, 1.1, 1.3], "efm": [2.0, 2.2, 2.1]})
    for one in made:
        fm = one["cell"]["method"] == "fm"
        one["cell"]["task_parameters"] = {"std": 0.1 if fm else 0.2, "radius": 4.0}
    assert len(pairs(results(made))) == 0
    for one in made:
        one["cell"]["task_parameters"]["std"] = 0.1
        one["cell"]["eval"]["n"] = 1000 if one["cell"]["method"] == "fm" else 2000
    assert len(pairs(results(made))) == 0
    for one in made:  # other samples, as many of them
        one["cell"]["eval"]["n"] = 2000
        one["cell"]["eval"]["split"] = "test" if one["cell"]["method"] == "fm" else "validation"
    assert len(pairs(results(made))) == 0
    both = rows_of({"fm": [1.0, 1.1], "efm": [2.0, 2.2]}) + [
        {**one, "cell": {**one["cell"], "task_parameters": {"std": 0.5}}}
        for one in rows_of({"fm": [7.0, 7.1], "efm": [3.0, 3.2]})
    ]
    for one in both[:4]:
        one["cell"]["task_parameters"] = {"std": 0.1}
    found = pairs(results(both))
    assert found["data"].tolist() == ["std=0.1", "std=0.5"]
    assert found["method_a"].tolist() == ["fm", "efm"]
    assert remarks(found)[EIGHT].count("\n") == 1
    assert the_kind(both).table["tasks"].tolist() == [2, 2]


def test_the_line_below_a_task() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(3, 8)) / 100
    values = {"fm": list(1 + noise[0]), "ot-cfm": list(1 + noise[1]), "vp": list(2 + noise[2])}
    line = remarks(pairs(results(rows_of(values))))[EIGHT]
    best, other = sorted(("fm", "ot-cfm"), key=lambda name: np.mean(values[name]))
    assert line == (
        f"best: {best}; significantly better than vp; no significant difference from {other}"
        " (paired t of logarithms over 8 seeds, Holm)"
    )


def test_a_line_of_tests_is_short() -> None:
    values = list(2 + np.random.default_rng(1).normal(size=8) / 100)
    made = rows_of({"fm": [1.0] * 8} | {f"copy{k}": values for k in range(9)})
    line = remarks(pairs(results(made)))[EIGHT]
    assert len(line) < 160
    assert "copy5, and 3 more (paired" in line


def test_nothing_to_compare() -> None:
    assert remarks(pairs(results(rows_of({"fm": [1.0, 2.0]})))) == {}
    failed = results([record("fm", status="failed", reason="no")])
    assert len(pairs(failed)) == 0
    (found,) = overall(failed).values()
    assert "No Friedman test" in found.sentence


# Ranks over tasks


def test_demsars_example() -> None:
    found = compare_ranks(-pd.DataFrame(DEMSAR))
    assert found.ranks.to_numpy() == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    n, k = 14, 4
    squares = float((found.ranks**2).sum())
    plain = 12 * n / (k * (k + 1)) * (squares - k * (k + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=0.01)  # of the paper, which does not correct for ties
    ties = 3 * (2**3 - 2) + (4**3 - 4)
    assert found.friedman == pytest.approx(plain / (1 - ties / (n * (k**3 - k))))
    assert found.iman_davenport == pytest.approx(
        (n - 1) * found.friedman / (n * (k - 1) - found.friedman)
    )
    assert found.friedman_null == "10,000 drawn orders of the ranks"
    assert found.friedman_p == pytest.approx(stats.f.sf(found.iman_davenport, 3, 39), abs=4e-3)
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize(("k", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_the_table(k: int, q: float) -> None:
    """Demsar, table 5 a: N = k (k + 1) / 6 makes the difference the critical value."""
    assert critical_difference(k, 1) / math.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=1e-3)


def test_nemenyis_p_is_five_percent_at_the_critical_difference() -> None:
    rng = np.random.default_rng(1)
    scores = pd.DataFrame(np.arange(5) + rng.normal(size=(12, 5)), columns=list("abcde"))
    found = compare_ranks(scores)
    assert found.friedman_p < 0.05
    for a, b in combinations("abcde", 2):
        apart = abs(found.ranks[a] - found.ranks[b]) > found.critical_difference
        assert apart == (found.p_values.loc[a, b] < 0.05)


def test_without_friedman_no_nemenyi() -> None:
    scores = pd.DataFrame([[1.0, 2, 3], [3, 2, 1], [2, 3, 1]], columns=list("abc"))
    found = compare_ranks(scores)
    assert found.friedman_p > 0.05
    assert SAME in found.sentence
    assert (found.p_values == 1).all(axis=None)


def test_who_is_better_over_tasks() -> None:
    rng = np.random.default_rng(0)
    made = []
    for number in range(12):
        values = {m: [k + rng.normal() / 9] for k, m in enumerate(("fm", "efm", "vp", "edm"))}
        made += rows_of(values, f"task{number}")
    table = the_kind(made).table.set_index("name")
    assert list(table.index) == ["fm", "efm", "vp", "edm"]
    assert table["mean_rank"].tolist() == [1, 2, 3, 4]
    assert table["better_than"].tolist() == ["edm, vp", "edm", "", ""]


def test_a_method_that_lacks_tasks_is_ranked_on_the_others_and_named() -> None:
    made = [
        one
        for task in (EIGHT, ROLL, DIGITS)
        for one in rows_of({"fm": [1.0, 1.5], "efm": [2.0, 2.5], "vp": [3.0, 3.5]}, task)
    ]
    made += rows_of({"pfgm": [0.5, 0.6]}, EIGHT)
    made += [record("pfgm", s, ROLL, "skipped", "it cannot start from data") for s in (0, 1)]
    found = the_kind(made)
    table = found.table.set_index("name")
    pfgm = table.loc["pfgm"]
    assert (pfgm["mean_rank"], pfgm["tasks"]) == (1, 1)
    assert f"not ranked on {ROLL} (skipped: it cannot start from data)" in pfgm["missing"]
    assert f"not ranked on {DIGITS} (not run)" in pfgm["missing"]
    assert table.loc["fm", "mean_rank"] == pytest.approx((2 + 1 + 1) / 3)
    assert table.loc["fm", "tested_rank"] == 1
    assert math.isnan(pfgm["tested_rank"])
    assert list(found.ranks.index) == ["efm", "fm", "vp"]
    assert "over 3 tasks and 3 competitors" in found.sentence
    assert "no result of theirs: pfgm." in found.sentence


def test_too_little_for_friedman_is_said() -> None:
    two = the_kind(rows_of({"fm": [1.0], "efm": [2.0]}) + rows_of({"fm": [1.0]}, ROLL))
    assert two.sentence.startswith("No Friedman test: it needs 3 competitors")
    assert "here 1 and 2" in two.sentence
    assert critical_difference_figure(two) is None
    one = the_kind(rows_of({"fm": [1.0], "efm": [2.0], "vp": [3.0]}))
    assert "here 3 and 1" in one.sentence


def test_defaults_that_depend_on_the_task_do_not_split_a_method() -> None:
    """``endpoints`` is named in every table, and differs by task: still one competitor."""
    made = [
        *[record("efm", task=EIGHT, endpoints="included", metrics=w2(1.0))],
        *[record("efm", task=ROLL, endpoints="independent", metrics=w2(1.0))],
        *[record("fm", task=task, metrics=w2(2.0)) for task in (EIGHT, ROLL)],
        *[
            record("vp", task=task, metrics=w2(3.0), sampler=sampler)
            for task in (EIGHT, ROLL)
            for sampler in ("ode", "sde")
        ],
    ]
    table = the_kind(made).table
    assert sorted(table["name"]) == ["efm", "fm", "vp (sampler=ode)", "vp (sampler=sde)"]
    assert set(table["tasks"]) == {2}


def test_of_many_settings_the_best_are_ranked_and_that_is_said() -> None:
    made = [
        record("efm", task=task, metrics=w2(1.0 + k), L=float(k))
        for task in (EIGHT, ROLL)
        for k in range(30)
    ] + [record("fm", task=task, metrics=w2(99.0)) for task in (EIGHT, ROLL)]
    found = the_kind(made)
    assert len(found.table) == 12
    assert list(found.table["name"])[-1] == "fm"
    assert "Best 12 of 31 by mean rank" in found.sentence
    assert "chosen by the same results" in found.sentence


@pytest.mark.parametrize(
    "shape",
    [
        "settings",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("seeds", "grid", "search")),
    ],
)
def test_ten_thousand_results_are_compared_in_seconds(shape: str) -> None:
    rng = np.random.default_rng(0)
    rows = results([record_of(cell, rng) for cell in first_cells(shape)])
    assert len(rows) == 10_000
    begin = time.process_time()
    assert len(pairs(rows)) <= 5 * 66
    assert all(len(found.table) <= 12 for found in overall(rows).values())
    assert time.process_time() - begin < 3
