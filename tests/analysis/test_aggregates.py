"""Aggregates of scores, and the exact Friedman test: against scipy, brute force, closed forms."""

from collections import Counter
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis.aggregates import (
    TAUS,
    aggregates,
    draw,
    improvement,
    interquartile_mean,
    interval,
    profile,
)
from bench.analysis.overall import compare_ranks, friedman_null, overall
from tests.analysis.made import EIGHT, ROLL, Record, record, results, w2


def runs_of(*sizes: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size).round(1) for size in sizes]  # rounded: some are equal


@pytest.mark.parametrize("sizes", [(1,), (3,), (5, 5), (3, 4, 8)])
def test_the_interquartile_mean_is_scipys_trimmed_mean(sizes: tuple[int, ...]) -> None:
    runs = runs_of(*sizes)
    pooled = np.concatenate(runs)
    assert interquartile_mean(runs) == pytest.approx(stats.trim_mean(pooled, 0.25))


def test_a_draw_counts_runs_as_often_as_they_were_drawn() -> None:
    a, b = runs_of(4, 6), runs_of(5, 3, seed=1)
    rng = np.random.default_rng(0)
    drawn = draw(a, rng), draw(b, rng)
    means, chances = interquartile_mean(a, drawn[0]), improvement(a, b, drawn)
    for k in range(20):
        x, y = (
            [np.repeat(own, times[k]) for own, times in zip(runs, counts, strict=True)]
            for runs, counts in zip((a, b), drawn, strict=True)
        )
        assert [len(own) for own in x] == [4, 6]  # a task keeps its number of runs
        assert means[k] == pytest.approx(stats.trim_mean(np.concatenate(x), 0.25))
        assert chances[k] == pytest.approx(improvement(x, y))
    share = np.mean([times[:, 0].mean() for times in drawn[0]])
    assert share == pytest.approx(1, abs=0.1)


def test_improvement_is_the_mean_of_the_mann_whitney_statistics() -> None:
    a, b = runs_of(4, 6, 3), runs_of(5, 3, 3, seed=1)
    # scipy counts how often the first is larger; here the smaller is better.
    expected = [
        stats.mannwhitneyu(y, x).statistic / (len(x) * len(y)) for x, y in zip(a, b, strict=True)
    ]
    assert improvement(a, b) == pytest.approx(np.mean(expected))
    assert improvement(a, b) + improvement(b, a) == pytest.approx(1)
    assert improvement(a, a) == pytest.approx(0.5)
    assert improvement([np.zeros(2)], [np.ones(3)]) == 1


def test_a_profile_is_the_share_of_runs_up_to_tau() -> None:
    runs = runs_of(4, 7)
    pooled = np.concatenate(runs)
    assert profile(runs) == pytest.approx([(pooled <= tau).mean() for tau in TAUS])
    assert profile([np.array([0.5])])[list(TAUS).index(0.5)] == 1
    assert profile([np.array([0.5])])[list(TAUS).index(0.49)] == 0


def test_intervals_hold_what_they_should() -> None:
    """Of normal scores about 0 on two tasks, whose interquartile mean is 0."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        runs = [rng.normal(size=15), rng.normal(size=15)]
        low, high = interval(interquartile_mean(runs, draw(runs, rng)), runs)
        held += low <= 0 <= high
    assert 0.87 < held / 200 < 0.99


def test_an_interval_is_the_middle_95_percent_of_the_draws() -> None:
    draws = np.random.default_rng(0).permutation(np.arange(1001.0))
    assert interval(draws, runs_of(3, 3)) == (25, 975)


def test_few_seeds_have_no_interval_and_the_tables_are_complete() -> None:
    means, pairs, profiles = aggregates(
        {"a": runs_of(2, 5), "b": runs_of(3, 3), "c": runs_of(5, 4)}
    )
    assert means["iqm"].notna().all()
    assert means["iqm_low"].isna().tolist() == [True, False, False]
    assert (means["iqm_low"] <= means["iqm"])["b":].all()  # type: ignore[misc]
    assert list(zip(pairs["a"], pairs["b"], strict=True)) == list(permutations("abc", 2))
    assert pairs["low"].notna().tolist() == [False, False, False, True, False, True]
    assert len(profiles) == 3 * len(TAUS)
    again = aggregates({"a": runs_of(2, 5), "b": runs_of(3, 3), "c": runs_of(5, 4)})
    pd.testing.assert_frame_equal(means, again[0])


# Over the tasks


def made(values: dict[str, float], *tasks: str, noise: float = 2.1) -> list[Record]:
    sets = {"references": {"perfect": {"w2": 0.1}, "noise": {"w2": noise}}}
    return [
        record(name, seed, task, metrics=w2(value + seed / 100)) | sets
        for task in tasks
        for name, value in values.items()
        for seed in range(4)
    ]


def test_noise_and_data_have_tables_of_their_own() -> None:
    values = {"fm": 0.3, "efm": 0.5, "vp": 0.7}
    rows = results(made(values, EIGHT, ROLL) + made({"efm": 0.2, "fm": 0.4}, "moons_to_8gaussians"))
    found = overall(rows)
    assert list(found) == ["noise to data", "data to data"]
    noise, data = (one.table.set_index("name") for one in found.values())
    assert list(noise.index) == ["fm", "efm", "vp"]
    assert list(data.index) == ["efm", "fm"]
    assert set(noise["missing"]) == {""}  # what starts from noise lacks nothing
    scores = [(0.3 + s / 100 - 0.1) / 2 for s in range(4)] * 2
    assert noise.loc["fm", "iqm"] == pytest.approx(stats.trim_mean(scores, 0.25))
    assert noise.loc["fm", "iqm_low"] <= noise.loc["fm", "iqm"] <= noise.loc["fm", "iqm_high"]
    chances = found["noise to data"].improvement.set_index(["a", "b"])["improvement"]
    assert (chances["fm", "vp"], chances["vp", "fm"]) == (1, 0)
    shares = found["noise to data"].profiles
    own = shares[(shares["name"] == "fm") & (shares["tau"] == 0.11)]["share"]
    assert own.tolist() == [0.75]  # scores .1, .105, .11 and .115 on both tasks


def test_settings_that_vary_on_one_kind_of_tasks_are_named_there_alone() -> None:
    """Also where a method names a setting that does not vary, as EFM its end points."""
    sets = {"references": {"perfect": {"w2": 0.1}, "noise": {"w2": 2.1}}}
    records = [
        record("efm", seed, task, metrics=w2(0.5 + seed / 100), L=L, endpoints="included") | sets
        for task, heights in ((EIGHT, [10.0]), (ROLL, [10.0]), ("moons_to_8gaussians", [6.0, 30.0]))
        for L in heights
        for seed in range(4)
    ]
    noise, data = overall(results(records)).values()
    assert list(noise.table["name"]) == list(noise.profiles["name"].unique()) == ["efm"]
    own = ["efm (L=6, endpoints=included)", "efm (L=30, endpoints=included)"]
    assert list(data.table["name"]) == own


def test_who_is_skipped_on_all_tasks_of_a_kind_is_not_in_its_table() -> None:
    moons = "moons_to_8gaussians"
    why = "skipped", "it cannot start from data"
    records = made({"fm": 0.3, "pfgm": 0.5}, EIGHT) + made({"fm": 0.3}, moons)
    found = overall(results([*records, record("pfgm", 0, moons, *why)]))
    assert list(found["noise to data"].table["name"]) == ["fm", "pfgm"]
    assert list(found["data to data"].table["name"]) == ["fm"]
    failed = overall(results([*records, record("pfgm", 0, moons, "failed", "it broke")]))
    assert list(failed["data to data"].table["name"]) == ["fm", "pfgm"]
    assert overall(results([record("pfgm", 0, moons, *why)])) == {}


def test_who_lacks_a_task_has_no_aggregate() -> None:
    rows = results(made({"fm": 0.3, "efm": 0.5}, EIGHT, ROLL) + made({"vp": 0.1}, EIGHT))
    (found,) = overall(rows).values()
    means = found.table.set_index("name")["iqm"]
    assert means.notna().to_dict() == {"vp": False, "fm": True, "efm": True}


# Friedman


def brute(ranks: np.ndarray) -> float:
    """The share of all tables, with every order in every row, with as large a statistic."""

    def statistic(table: np.ndarray) -> float:
        return float(stats.friedmanchisquare(*table.T).statistic)

    tables = [np.array(rows) for rows in product(*(permutations(row) for row in ranks))]
    return float(np.mean([statistic(table) >= statistic(ranks) - 1e-9 for table in tables]))


@pytest.mark.parametrize(
    "ranks",
    [
        [[1, 2, 3], [1, 2, 3], [1, 2, 3]],
        [[1, 2, 3], [2, 1, 3], [1, 3, 2]],
        [[1.5, 1.5, 3], [1, 2, 3], [2, 2, 2]],
        [[1, 2, 3, 4], [1, 3, 2, 4]],
    ],
)
def test_the_exact_p_is_that_of_all_tables(ranks: list[list[float]]) -> None:
    p, null = friedman_null(np.array(ranks, float), 1.0)
    assert null.startswith("exact")
    assert p == pytest.approx(brute(np.array(ranks, float)))


def test_the_exact_p_of_the_table() -> None:
    """Friedman's statistic for k = 3 and N = 4: 6.5 and more has the probability .042."""
    p, _ = friedman_null(np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 3, 2]], float), 1.0)
    assert p == pytest.approx(0.042, abs=5e-4)


def test_drawn_orders_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = pd.DataFrame(np.random.default_rng(1).normal(size=(5, 3))).rank(axis=1).to_numpy()
    exact, _ = friedman_null(ranks, 1.0)
    monkeypatch.setattr("bench.analysis.overall.MAX_TABLES", 1)
    drawn, null = friedman_null(ranks, 1.0)
    assert null == "10,000 drawn orders of the ranks"
    assert drawn == pytest.approx(exact, abs=0.015)
    assert drawn == friedman_null(ranks, 1.0)[0]


def test_of_many_tasks_p_is_that_of_iman_and_davenport() -> None:
    losses = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 4)), columns=list("abcd"))
    found = compare_ranks(losses)
    chi = stats.friedmanchisquare(*losses.to_numpy().T).statistic
    davenport = 39 * chi / (40 * 3 - chi)
    assert found.iman_davenport == pytest.approx(davenport)
    # The F statistic of a two-way analysis of variance of the ranks is the same.
    ranks = losses.rank(axis=1).to_numpy()
    between = 40 * np.square(ranks.mean(0) - 2.5).sum() / 3
    within = (np.square(ranks - 2.5).sum() - 3 * between) / (39 * 3)
    assert between / within == pytest.approx(davenport)
    assert found.friedman_p == pytest.approx(stats.f.sf(davenport, 3, 117))
    assert found.friedman_null == "F distribution"


def test_an_exact_test_is_not_significant_too_often() -> None:
    rng = np.random.default_rng(0)
    found = Counter(
        friedman_null(np.array([rng.permutation(3) + 1.0 for _ in range(4)]), 1.0)[0] < 0.05
        for _ in range(500)
    )
    assert found[True] / 500 < 0.07


def test_labels_do_not_matter() -> None:
    losses = pd.DataFrame(np.random.default_rng(2).normal(size=(6, 3)), columns=list("abc"))
    found, swapped = compare_ranks(losses), compare_ranks(losses[["c", "a", "b"]])
    assert swapped.friedman_p == pytest.approx(found.friedman_p)
    assert swapped.ranks.to_dict() == found.ranks.to_dict()
