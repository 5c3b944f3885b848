"""Tuning: validation draws that no test sees, the trials, the choice and its configuration."""

import hashlib
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

import bench.tune
from bench.analysis.leaderboard import leaderboard
from bench.analysis.results import results
from bench.cell.context import CellContext
from bench.cell.draws import evaluation_sets
from bench.cell.run import run_cell
from bench.config.cell import Cell
from bench.config.errors import SpecError
from bench.config.files import merge, read_config, suite_path
from bench.config.grid import Spec
from bench.config.values import parse_seeds
from bench.report import write_tables
from bench.store.records import Record, RecordedCell, read_records
from bench.tuning.choice import configuration, trial_table, words
from bench.tuning.search import (
    DEFAULT_SEARCH,
    QUICK,
    Range,
    Tuning,
    make_tuning,
    parse_range,
    points,
    spaces,
)
from datasets import TASKS, Distribution, Empirical
from datasets.base import FEW_ROWS, VALIDATION_PARTS, Draws
from methods import METHODS, register
from methods.base import Draw, Regression
from methods.fm import FlowMatching
from tests.commands import run_main

ROOT = Path(__file__).parents[2]
ROLL, DIGITS, THREES = "gaussian_to_swiss_roll", "gaussian_to_digits", "digits_3_to_2"
EIGHT = "gaussian_to_8gaussians"
TINY = ["--steps", "20", "--batch", "16", "--set", "eval.n=32", "--set", "network.width=8"]
BUILT_IN = [name for name, task in TASKS.items() if not task.user_files]
SIDES = [(name, side) for name in BUILT_IN for side in ("source", "target")]
DATA = [
    (name, side) for name, side in SIDES if isinstance(getattr(TASKS[name](), side)(), Empirical)
]
TRAINED = [name for name in sorted(METHODS) if METHODS[name].trained]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(samples: Tensor) -> set[bytes]:
    return {row.tobytes() for row in samples.numpy()}


def side_of(task: str, side: str) -> Distribution:
    return getattr(TASKS[task](), side)()


def cells_of(task: str, split: str, seeds: list[int], **settings: Any) -> list[Cell]:
    given = {name.replace("__", "."): [value] for name, value in settings.items()}
    settings = {"eval.split": [split], "eval.n": [300], **given}
    return Spec(methods=["fm"], tasks=[task], seeds=seeds, settings=settings).cells()


def sets_of(cell: Cell) -> tuple[Tensor, ...]:
    return evaluation_sets(CellContext.of(cell))


# ------------------------------------------------------------------------------ validation draws


@pytest.mark.parametrize(("task", "side"), DATA)
def test_validation_samples_are_part_of_the_training_samples(task: str, side: str) -> None:
    whole = side_of(task, side)
    assert isinstance(whole, Empirical)
    other = whole.for_validation()
    parts = [rows_of(part) for part in (other.train, other.test)]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] == rows_of(whole.train)
    assert len(other.train) + len(other.test) == len(whole.train)
    assert (parts[0] | parts[1]).isdisjoint(rows_of(whole.test))
    assert len(other.test) == pytest.approx(len(whole.train) / VALIDATION_PARTS, abs=1)
    assert other.normalisation == whole.normalisation
    drawn = [other.sample(5000, rng()), other.low_variance(5000, rng())]
    drawn.append(other.second_set(5000, rng(), "iid"))
    assert all(rows_of(samples) <= parts[0] for samples in drawn)
    assert rows_of(other.held_out(5000, rng(), "iid")) == parts[1]
    again = side_of(task, side).for_validation()  # fixed, whatever the state of torch
    assert isinstance(again, Empirical)
    assert torch.equal(again.test, other.test)
    assert torch.equal(again.train, other.train)


def test_there_are_data_sets_among_the_tasks() -> None:
    assert {(DIGITS, "target"), (THREES, "source"), (THREES, "target")} <= set(DATA)


@pytest.mark.parametrize(("task", "side"), [side for side in SIDES if side not in DATA])
def test_a_distribution_is_its_own_for_validation(task: str, side: str) -> None:
    whole = side_of(task, side)
    assert whole.for_validation() is whole


def test_equal_samples_stay_on_one_side() -> None:
    train = torch.arange(20.0).repeat(7)[:, None]
    other = Empirical(train, torch.full((3, 1), -1.0), (1,)).for_validation()
    assert rows_of(other.train).isdisjoint(rows_of(other.test))
    assert (len(other.train), len(other.test)) == (7 * 15, 7 * 5)
    two = Empirical(torch.tensor([[1.0], [2.0]]), torch.zeros(1, 1), (1,)).for_validation()
    assert (len(two.train), len(two.test)) == (1, 1)
    with pytest.raises(ValueError, match="no two different samples"):
        Empirical(torch.ones(5, 1), torch.zeros(1, 1), (1,)).for_validation()


@pytest.mark.parametrize(("task", "side"), DATA)
def test_small_sets_are_cross_validated(task: str, side: str) -> None:
    """Four seeds in a row hold out every training sample once, where a part has few rows."""
    whole = side_of(task, side)
    assert isinstance(whole, Empirical)
    seeds = parse_seeds(bench.tune.SEEDS)
    splits = [whole.for_validation(seed) for seed in seeds]
    parts = [rows_of(split.test) for split in splits]
    if len(whole.train) >= VALIDATION_PARTS * FEW_ROWS:
        assert all(part == parts[0] for part in parts)
        return
    assert sum(map(len, parts)) == len(set[bytes]().union(*parts)) == len(rows_of(whole.train))
    assert max(map(len, parts)) - min(map(len, parts)) < VALIDATION_PARTS
    for split, part in zip(splits, parts, strict=True):
        assert rows_of(split.train) == rows_of(whole.train) - part


@pytest.mark.parametrize("task", [DIGITS, THREES, "colored_digits_3_to_2"])
def test_no_classifier_knows_what_is_cross_validated(task: str) -> None:
    shared = TASKS[task]().labelled()
    assert shared is not None
    for seed in parse_seeds(bench.tune.SEEDS):
        settings = {"eval.split": ["validation"]}
        (cell,) = Spec(methods=["fm"], tasks=[task], seeds=[seed], settings=settings).cells()
        context = CellContext.of(cell)
        labelled = context.labelled()
        assert labelled is not None
        learned = rows_of(labelled.train)
        for side in (context.source, context.target):
            if isinstance(side, Empirical):
                assert learned.isdisjoint(rows_of(side.test))
        same = seed % VALIDATION_PARTS == 0 or task == DIGITS
        assert labelled.name == (shared.name if same else None)
        assert len(labelled.train) == len(labelled.train_labels)
        assert learned <= rows_of(shared.train)
        assert len(learned) > 0.85 * len(shared.train)


def test_a_distribution_that_holds_out_must_say_what_is_for_validation() -> None:
    class Own(Distribution):
        shape = (1,)

        def sample(self, n: int, rng: torch.Generator) -> Tensor:
            return torch.rand(n, 1, generator=rng)

        def held_out(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
            return torch.zeros(n, 1)

    with pytest.raises(TypeError, match=r"Own .*for_validation"):
        Own().for_validation()


@pytest.mark.parametrize("draws", ["low_variance", "iid"])
@pytest.mark.parametrize("task", BUILT_IN)
def test_no_seed_gives_both_splits_a_common_sample(task: str, draws: str) -> None:
    seeds = [0, 1, 100]
    test, validation = (
        [sets_of(cell) for cell in cells_of(task, split, seeds, eval__draws=draws)]
        for split in ("test", "validation")
    )
    for one, two in itertools.product(test, validation):
        # Sources and targets; of a data set the second target set is training samples.
        evaluated = rows_of(one[0]) | rows_of(one[1])
        assert all(evaluated.isdisjoint(rows_of(samples)) for samples in two)
        assert not torch.equal(one[2], two[2])


@pytest.mark.parametrize("task", BUILT_IN)
def test_test_draws_are_what_they_were_before_there_was_a_split(task: str) -> None:
    """From the definition of the seeds and the whole distributions."""
    (cell,) = Spec(methods=["fm"], tasks=[task], seeds=[3]).cells()
    built = TASKS[task]()

    def generator(purpose: str) -> torch.Generator:
        text = f"{task} {built.version} 3 evaluate {purpose}"
        return rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))

    expected = (
        built.source().held_out(2000, generator("source"), "low_variance"),
        built.target().held_out(2000, generator("target"), "low_variance"),
        built.target().second_set(2000, generator("floor"), "low_variance"),
    )
    size = min(map(len, expected))
    for found, samples in zip(sets_of(cell), expected, strict=True):
        assert torch.equal(found, samples[:size])


@pytest.fixture
def spy() -> Iterator[list[Tensor]]:
    """All samples that the method ``spy`` has been given, (source, target) in turn."""
    seen: list[Tensor] = []

    class Spy(FlowMatching):
        name: ClassVar[str] = "spy"

        def model(self, network: Any, source: Tensor, target: Tensor) -> torch.nn.Module:
            if network.device != "meta":  # where widths are counted, on the first few of these
                seen.extend([source, target])
            return super().model(network, source, target)

        def regression(self, source: Draw, target: Draw, n: int, rng: Any) -> Regression:
            seen.extend([source(n), target(n)])
            return super().regression(source, target, n, rng)

        def diagnose(self, model: Any, source: Draw, target: Draw) -> dict[str, float]:
            seen.extend([source(9), target(9)])
            return {}

    register(Spy)
    return seen


@pytest.mark.parametrize("split", ["test", "validation"])
def test_training_sees_neither_split(split: str, spy: list[Tensor], tmp_path: Path) -> None:
    (cell,) = Spec(
        methods=["spy"],
        tasks=[THREES],
        seeds=[0],
        settings={"eval.split": [split], "train.steps": [5], "train.batch": [64], "eval.n": [300]},
    ).cells()
    assert run_cell(cell, tmp_path).status == "done"
    assert len(spy) == 2 * (1 + 5 + 1)
    stored = np.load(tmp_path / "samples.npz")
    for side, given in (("source", spy[::2]), ("target", spy[1::2])):
        whole = side_of(THREES, side)
        assert isinstance(whole, Empirical)
        other = whole.for_validation()
        assert isinstance(other, Empirical)
        drawn = set[bytes]().union(*map(rows_of, given))
        assert drawn == rows_of((other if split == "validation" else whole).train)
        held = (other if split == "validation" else whole).test
        shown = rows_of(whole.normalisation.apply(torch.from_numpy(stored[side])))
        assert shown <= rows_of(held)
        assert len(shown) >= 0.9 * len(held)  # both sides are cut to one size


# --------------------------------------------------------------------------------------- ranges


def spread(text: str, n: int = 4001) -> list[Any]:
    one = parse_range("x.y", text)
    return [one.at((k + 0.5) / n) for k in range(n)]


def test_ranges_are_even_in_what_they_say() -> None:
    linear = spread("-2:6")
    assert stats.kstest(linear, stats.uniform(-2, 8).cdf).statistic < 0.002
    log = spread("1e-4:1e-1:log")
    assert stats.kstest(log, stats.loguniform(1e-4, 1e-1).cdf).statistic < 0.002
    assert np.mean(np.array(log) < 1e-3) == pytest.approx(1 / 3, abs=1e-3)  # a decade, a third
    assert np.unique(spread("3:7:int"), return_counts=True)[1] == pytest.approx(800, abs=1)
    assert set(spread("3:7:int")) == {3, 4, 5, 6, 7}
    whole = spread("1:7:int:log")
    assert all(type(value) is int for value in whole)
    octaves = [sum(a <= value < 2 * a for value in whole) for a in (1, 2, 4)]  # 1; 2, 3; 4 to 7
    assert octaves == pytest.approx([4001 / 3] * 3, abs=2)
    assert spread("mix|log|uniform", 3) == ["mix", "log", "uniform"]
    assert spread("1|inf|none|2.5", 4) == [1, math.inf, None, 2.5]
    assert parse_range("x.y", ["a", "b"]) == parse_range("x.y", "a|b")


@pytest.mark.parametrize("text", ["0.12345:0.98765", "0.12345:0.98765:log", "8:9:int", "-3.3:7"])
def test_values_stay_in_the_range_and_are_legible(text: str) -> None:
    one = parse_range("x.y", text)
    values = [one.at(u) for u in (0.0, 1e-9, 0.3, 0.5, 1 - 1e-16)]
    assert all(one.low <= value <= one.high for value in values)
    assert [values[0], values[-1]] == pytest.approx([one.low, one.high], rel=0.005)
    assert len(f"{values[2]!r}") <= 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected low:high"),
        ("3", "expected low:high"),
        ("3:", "expected numbers as ends"),
        ("a:b", "expected numbers as ends"),
        ("nan:1", "expected numbers as ends"),
        ("1:inf", "expected numbers as ends"),
        ("1:1e999", "expected finite numbers"),
        ("٣:7", "expected numbers as ends"),
        ("1:2:3", "expected low:high"),
        ("1:2:log:log", "expected low:high"),
        ("5:5", "low end must be below"),
        ("7:5:log", "low end must be below"),
        ("0:5:log", "logarithmic range must be above 0"),
        ("-1:5:log", "logarithmic range must be above 0"),
        ("1.5:4:int", "whole numbers"),
        ("a|a", "different choices"),
        ("a|", "different choices"),
        (3, "expected low:high"),
        (["a"], "expected low:high"),
    ],
)
def test_what_is_no_range_is_refused(text: object, said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        parse_range("efm.L", text)
    assert "search: efm.L: " in str(error.value)
    assert repr(text) in str(error.value) or not str(text).isascii()


SPACE = {
    "a.x": Range(1e-3, 1.0, log=True),
    "a.y": Range(0.0, 1.0),
    "a.z": Range(0.0, 7.0, whole=True),
}


def test_sobol_points_fill_the_space_and_are_their_own_prefix() -> None:
    found = points(SPACE, 32, 0)
    assert found == points(SPACE, 32, 0)
    assert found[:8] == points(SPACE, 8, 0)  # more trials continue fewer
    assert found[0] != points(SPACE, 1, 1)[0]
    shares = np.array(
        [[(math.log10(p["a.x"]) + 3) / 3, p["a.y"], (p["a.z"] + 0.5) / 8] for p in found]
    )
    for column in shares.T:  # the first 2^k in each of 2^k cells; rounding may cross a border
        assert (
            np.abs(np.bincount((column[:8] * 8).astype(int).clip(0, 7), minlength=8) - 1).sum() <= 2
        )
    assert [tuple(p) for p in found] == [tuple(SPACE)] * 32


def test_no_point_comes_twice() -> None:
    small = {"a.x": parse_range("a.x", "p|q"), "a.y": parse_range("a.y", "1:3:int")}
    found = points(small, 5, 0)
    assert len({tuple(point.values()) for point in found}) == 5
    assert len(points(small, 50, 0)) == 6  # and then there are no more
    assert points({}, 5, 0) == []
    assert points(small, 0, 0) == []


# ------------------------------------------------------------------------------- what is searched


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("task", TASKS)
def test_what_methods_declare_exists_and_both_ends_are_valid(name: str, task: str) -> None:
    for key, text in METHODS[name].search.items():
        for value in parse_range(f"{name}.{key}", text).ends:
            settings = {f"{name}.{key}": [value]}
            (cell,) = Spec(methods=[name], tasks=[task], seeds=[0], settings=settings).cells()
            assert str(cell.hyperparameters[key]) == str(value)


def test_every_trained_method_has_something_to_search() -> None:
    found = spaces(sorted(METHODS), {})
    for name, space in found.items():
        assert ("train.lr" in space) == METHODS[name].trained
        assert len(space) == len(METHODS[name].search) + len(DEFAULT_SEARCH) * METHODS[name].trained
    assert all(METHODS[name].search for name in TRAINED)
    assert set(found["efm"]) == {"train.lr", "efm.L", "efm.sigma"}


def test_ranges_concern_the_methods_that_have_the_setting() -> None:
    given = {"sigma": "0.1:1", "efm.sigma": "2:3", "L": "3:6"}
    found = spaces(["efm", "fm", "efm-exact", "pfgmpp"], given)
    assert {name: list(space) for name, space in found.items()} == {
        "efm": ["efm.sigma", "efm.L"],
        "fm": ["fm.sigma"],
        "efm-exact": ["efm-exact.L"],
        "pfgmpp": ["train.lr"],  # none concerns it, and it is to have as many trials
    }
    assert found["efm"]["efm.sigma"].ends == [2, 3]  # its own overrides
    turned = dict(reversed(given.items()))
    assert spaces(["efm"], turned)["efm"]["efm.sigma"].ends == [2, 3]
    assert spaces(["fm-exact", "fm"], {"train.lr": "1:2"})["fm-exact"] == {}


def tuning_of(
    methods: list[str],
    tasks: list[str],
    search: dict[str, object] | None = None,
    trials: int = 4,
    seeds: tuple[int, ...] = (100, 101),
    **settings: Any,
) -> Tuning:
    given = {name.replace("__", "."): [value] for name, value in settings.items()}
    spec = Spec(methods=methods, tasks=tasks, seeds=list(seeds), settings=given)
    return make_tuning(spec, search or {}, trials, 0)


def test_every_method_has_as_many_trials_and_the_first_are_its_defaults() -> None:
    tuning = tuning_of(TRAINED, [ROLL, THREES], trials=7)
    for name in TRAINED:
        own = tuning.trials[name]
        assert len(own) == 7
        assert own[0] == {}
        assert len({tuple(settings.values()) for settings in own}) == 7
    cells = tuning.cells()
    assert len(cells) == len(TRAINED) * 2 * 7
    whole = {cell.id for cell in tuning.spec.cells()}
    assert whole == {cell.id for own in cells.values() for cell in own}
    defaults = {
        cell.id
        for cell in Spec(
            methods=TRAINED,
            tasks=[ROLL, THREES],
            seeds=[100, 101],
            settings={**QUICK, "eval.split": ["validation"]},
        ).cells()
    }
    assert defaults == {cell.id for key, own in cells.items() if key[2] == 0 for cell in own}
    for (task, method, _), own in cells.items():
        assert [cell.seed for cell in own] == [100, 101]
        assert {(cell.task, cell.method, cell.eval.split) for cell in own} == {
            (task, method, "validation")
        }


def test_a_trial_has_the_settings_of_its_point() -> None:
    search: dict[str, object] = {"L": "3:60:log", "train.lr": "1e-3:1e-2:log"}
    tuning = tuning_of(["efm"], [ROLL], search, train__steps=7, L=5)
    for (_, _, number), (cell, _) in tuning.cells().items():
        settings = tuning.trials["efm"][number]
        assert cell.train.steps == 7
        assert cell.hyperparameters["L"] == settings.get("efm.L", 5)
        assert cell.train.lr == settings.get("train.lr", 5e-3)


# ------------------------------------------------------------------------------------ the choice


def record(cell: Cell, value: float, status: Any = "done", **metrics: float) -> Record:
    images = cell.task in (DIGITS, THREES)
    distance = {"sliced_w2": value} if images else {"energy_distance": value}
    return Record(
        id=cell.id,
        cell=RecordedCell(**cell.model_dump(mode="json")),
        status=status,
        reason=None if status == "done" else "made up",
        metrics={**distance, **metrics} if status == "done" else {},
        steps=cell.train.steps,
        batch=cell.train.batch,
        device="cpu",
        threads=1,
        started=0.0,
        seconds=1.0,
        commit="abc",
    )


def table_of(tuning: Tuning, scores: dict[tuple[str, str], list[Any]]) -> pd.DataFrame:
    """The trials with made-up scores: for each task and method a pair of seeds a trial.

    A word instead of a number is the status of that seed.
    """
    made = []
    for (task, method, number), cells in tuning.cells().items():
        for cell, value in zip(cells, scores[task, method][number], strict=True):
            done = not isinstance(value, str)
            made.append(record(cell, value, w1=9 - value) if done else record(cell, 0.0, value))
    return trial_table(results(made), tuning)


SCORES = {
    (ROLL, "efm"): [(3, 5), (1, 8), (3.5, 3.5), (0.1, "diverged")],
    (ROLL, "fm"): [(2, 2), (2, 2), (5, 5), (3, 1)],  # equal: the defaults stay
    (DIGITS, "efm"): [("failed", 1), ("diverged", "failed"), ("failed", "failed"), ("killed", 1)],
    (DIGITS, "fm"): [("failed", 1), (2, 3), (1, 2), (4, 4)],
}


@pytest.fixture
def table() -> tuple[Tuning, pd.DataFrame]:
    tuning = tuning_of(["efm", "fm"], [ROLL, DIGITS], train__steps=7, eval__n=50)
    return tuning, table_of(tuning, SCORES)


def test_the_smallest_mean_is_chosen(table: tuple[Tuning, pd.DataFrame]) -> None:
    rows = table[1]
    chosen = rows[rows["chosen"]]
    found = dict(
        zip(zip(chosen["task"], chosen["method"], strict=True), chosen["trial"], strict=True)
    )
    assert found == {(ROLL, "efm"): 2, (ROLL, "fm"): 0, (DIGITS, "fm"): 2}
    scores = rows.set_index(["task", "method", "trial"]).sort_index()
    assert len(rows) == 16
    assert scores.loc[(ROLL, "efm", 1), "score"] == pytest.approx(4.5)
    assert scores.loc[(ROLL, "efm", 1), "std"] == pytest.approx(np.std([1, 8], ddof=1))
    assert scores.loc[(ROLL, "efm", 3), "status"] == "diverged"
    assert math.isnan(scores.loc[(ROLL, "efm", 3), "score"])  # though one seed is the best of all
    assert "made up" in scores.loc[(ROLL, "efm", 3), "note"]
    assert list(scores.loc[(DIGITS, "efm"), "status"]) == ["failed", "diverged", "failed", "killed"]
    assert scores.loc[(DIGITS, "efm"), "score"].isna().all()
    assert set(rows["seeds"]) == {"100 101"}
    metrics = rows.groupby("task")["metric"].agg(set).to_dict()
    assert metrics == {ROLL: {"energy_distance"}, DIGITS: {"sliced_w2"}}


def test_tables_show_the_settings_that_were_tried(table: tuple[Tuning, pd.DataFrame]) -> None:
    tuning, rows = table
    efm = rows[(rows["task"] == DIGITS) & (rows["method"] == "efm")]
    assert efm.iloc[0][["train.lr", "efm.L", "efm.sigma"]].tolist() == [5e-3, 6.0, 0.02]
    points = tuning.trials["efm"]
    for row, point in zip(efm.to_dict("records")[1:], points[1:], strict=True):
        assert {name: row[name] for name in point} == point
    assert efm["fm.sigma"].isna().all()
    text = words(rows)
    assert text.count("*") == 3
    assert f"{ROLL}: energy distance on the validation draw, seeds 100 101" in text
    (line,) = [line for line in text.splitlines() if line.startswith("*") and "efm" in line]
    assert "3.500 ±0.000" in line
    assert f"efm.L={points[2]['efm.L']}" in line


def test_of_many_trials_the_terminal_shows_the_best() -> None:
    tuning = tuning_of(["fm"], [ROLL], trials=30)
    text = words(table_of(tuning, {(ROLL, "fm"): [(30 - k, 30 - k) for k in range(30)]}))
    assert "fm: the best 20 of 30, all are in tuning.csv" in text
    assert "1.000 ±" in text
    assert "21.000 ±" not in text


def loaded(text: str, tmp_path: Path, **over: Any) -> list[Cell]:
    (tmp_path / "tuned.toml").write_text(text)
    return merge(read_config(tmp_path / "tuned.toml"), over).cells()


def test_the_configuration_runs_what_was_chosen_on_the_test(
    table: tuple[Tuning, pd.DataFrame], tmp_path: Path
) -> None:
    tuning, rows = table
    test = Spec(
        methods=["efm", "fm"],
        tasks=[ROLL, DIGITS],
        seeds=[0, 1, 2],
        settings={"train.steps": [7], "eval.n": [50]},
    )
    text = configuration(rows, tuning, test, "python -m bench.tune --out 'a\nmethods=1'")
    cells = loaded(text, tmp_path)
    keys = [(cell.task, cell.method, cell.seed) for cell in cells]
    assert sorted(keys) == sorted(itertools.product([ROLL, DIGITS], ["efm", "fm"], [0, 1, 2]))
    numbers = {(ROLL, "efm"): 2, (ROLL, "fm"): 0, (DIGITS, "efm"): 0, (DIGITS, "fm"): 2}
    tried = tuning.cells()
    for cell in cells:
        assert cell.eval.split == "test"
        (one, _) = tried[cell.task, cell.method, numbers[cell.task, cell.method]]
        same = {"seed": cell.seed, "eval": cell.eval}
        assert cell == one.model_copy(update=same)
        assert (cell.eval.n, cell.train.steps) == (50, 7)
    assert "# no trial has a score (failed, diverged, killed): the defaults" in text
    found = "trial 2, one of 4: energy distance 3.500 ±0.000 on validation"
    assert f"{found}; the defaults 4.000 ±1.414" in text
    assert {cell.seed for cell in loaded(text, tmp_path, seeds=[9])} == {9}


def test_the_configuration_holds_words_and_what_does_not_apply(tmp_path: Path) -> None:
    search: dict[str, object] = {
        "efm.points": "mix|log",
        "efm.sigma": "0.1:1",
        "pfgmpp.aug_dim": "4|inf",
        "ot-cfm.block": "8:64:int",
        "sample.grid": "auto|uniform",
    }
    methods = ["efm", "pfgmpp", "ot-cfm", "fm-exact"]
    tuning = tuning_of(methods, [ROLL], search, trials=6)
    for best in range(6):
        scores = {
            (ROLL, name): [
                (float(number != best),) * 2 for number in range(len(tuning.trials[name]))
            ]
            for name in methods
        }
        rows = table_of(tuning, scores)
        test = Spec(methods=methods, tasks=[ROLL], seeds=[0])
        text = configuration(rows, tuning, test, "")
        cells = loaded(text, tmp_path)
        assert len(cells) == 4
        assert ('efm.sigma = "none"' in text) == ('efm.points = "log"' in text)
        for cell in cells:
            (number,) = rows[rows["chosen"] & (rows["method"] == cell.method)]["trial"]
            (one, _) = tuning.cells()[ROLL, cell.method, number]
            assert cell == one.model_copy(update={"seed": 0, "eval": cell.eval})
    sigmas = {
        cells[0].hyperparameters["sigma"]
        for cells in tuning.cells().values()
        if cells[0].hyperparameters.get("points") == "log"
    }
    assert sigmas == {None}
    frame = rows.set_index(["method", "trial"])
    assert {type(value) for value in frame.loc["ot-cfm", "ot-cfm.block"]} == {int}


# ------------------------------------------------------------------------------ the command line


def test_from_the_trials_to_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--methods", "fm,pfgm,fm-exact", "--tasks", f"{EIGHT},{THREES}", "--trials", "3"]
    arguments += ["--search", "train.lr=1e-4:1e-2:log", "--search", "fm.sigma=0:1"]
    arguments += ["--set", "fm-exact.charges=64", *TINY, "--out", str(tmp_path / "tune")]
    ended = run_main(arguments, bench.tune.main)
    assert ended.status == 0, ended.err
    assert "bench.tune: fm-exact: has nothing to search, its defaults are run once" in ended.err
    trials = pd.read_csv(tmp_path / "tune" / "tuning.csv")
    counts = trials.groupby(["task", "method"]).size()
    assert counts.to_dict() == {
        (task, method): n
        for task in (EIGHT, THREES)
        for method, n in (("fm", 3), ("pfgm", 3), ("fm-exact", 1))
    }
    best = trials[trials["score"].notna()]
    best = best.loc[best.groupby(["task", "method"])["score"].idxmin()]
    assert trials[trials["chosen"]].sort_index().equals(best.sort_index())
    assert len(best) == 5
    skipped = trials[(trials["method"] == "pfgm") & (trials["task"] == THREES)]
    assert set(skipped["status"]) == {"skipped"}
    records = list(read_records(tmp_path / "tune"))
    assert {record.cell.eval["split"] for record in records} == {"validation"}
    assert {record.cell.seed for record in records} == set(parse_seeds(bench.tune.SEEDS))
    board = pd.read_csv(tmp_path / "tune" / "leaderboard.csv")
    assert board["setting"].str.contains("eval_split=validation").all()

    again = run_main(arguments, bench.tune.main)
    assert again.status == 0, again.err
    assert f"{len(records)} cells, {len(records)} of them finished before" in again.out
    assert pd.read_csv(tmp_path / "tune" / "tuning.csv").equals(trials)

    tuned = tmp_path / "tune" / "tuned.toml"
    final = f"python -m bench.run --config {tuned} --out {tmp_path / 'tune' / 'test'}"
    assert final in ended.out
    monkeypatch.setattr(
        "bench.report.write_report", lambda out, log, analysis: write_tables(out, analysis)[1]
    )
    test = run_main([*final.split()[3:], "--seeds", "0"])
    assert test.status == 0, test.err
    rows = pd.read_csv(tmp_path / "tune" / "test" / "results.csv")
    assert len(rows) == 6
    assert set(rows["eval_split"]) == {"test"}
    for row in best.to_dict("records"):
        (own,) = rows[(rows["task"] == row["task"]) & (rows["method"] == row["method"])].to_dict(
            "records"
        )
        assert row["method"] == "fm-exact" or own["lr"] == row["train.lr"]
        assert row["method"] != "fm" or own["sigma"] == row["fm.sigma"]
    shown = pd.read_csv(tmp_path / "tune" / "test" / "leaderboard.csv")
    assert not shown["setting"].astype(str).str.contains("split").any()


def test_a_file_gives_what_is_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "search.toml"
    config.write_text(
        f"""
methods = ["efm"]
tasks = ["{ROLL}"]
seeds = [7]
steps = 3
batch = 8
eval.n = 16
network.width = 8
[search]
L = "3:60:log"
train.lr = "1e-3:1e-2:log"
efm.points = ["mix", "log"]
"""
    )
    arguments = ["--config", str(config), "--trials", "2", "--test-seeds", "7,8"]
    assert bench.tune.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "seeds 7 are tuned and tested on" in said.err
    trials = pd.read_csv(tmp_path / "out" / "tuning.csv")
    assert {"train.lr", "efm.L", "efm.points"} <= set(trials)
    assert list(trials["seeds"]) == [7, 7]
    cells = merge(read_config(tmp_path / "out" / "tuned.toml"), {}).cells()
    assert [cell.seed for cell in cells] == [7, 8]
    over = ["--search", "efm.sigma=0.1:1", "--seeds", "5", "--out", str(tmp_path / "two")]
    assert bench.tune.main([*arguments, *over]) == 0
    trials = pd.read_csv(tmp_path / "two" / "tuning.csv")
    assert list(trials["seeds"]) == [5, 5]
    assert "efm.sigma" in trials
    assert "efm.L" not in trials


def test_a_trial_that_diverges_has_no_score_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--methods", "fm", "--tasks", EIGHT, "--trials", "2", "--seeds", "0"]
    arguments += ["--search", "train.lr=1e37:1e38:log", *TINY, "--set", "train.warmup=0"]
    assert bench.tune.main([*arguments, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert f"diverged: fm {EIGHT} seed 0" in said.err
    trials = pd.read_csv(tmp_path / "tuning.csv").set_index("trial")
    assert trials["status"].to_dict() == {0: "done", 1: "diverged"}
    assert trials["chosen"].to_dict() == {0: True, 1: False}
    assert "diverged" in said.out


BASE = ["--methods", "efm", "--tasks", ROLL]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "methods: empty, choose from"),
        (["--methods", "efm"], "tasks: empty, choose from"),
        (
            ["--methods", "emf", "--tasks", ROLL],
            "methods: unknown name 'emf', did you mean efm?",
        ),
        ([*BASE, "--trials", "0"], "trials: must be a number from 1 to 10000, got 0"),
        ([*BASE, "--trials=-3"], "argument --trials: expected a number, got '-3'"),
        ([*BASE, "--search", "train.lr"], "search: expected name=range, got 'train.lr'"),
        ([*BASE, "--search=--"], "search: expected a value, got '--'"),
        ([*BASE, "--search", "efm.L=60:3"], "search: efm.L: the low end must be below"),
        ([*BASE, "--search", "efm.L=0:3:log"], "search: efm.L: a logarithmic range"),
        ([*BASE, "--search", "efm.M=1:3"], "search: efm.M: unknown name 'M', choose from L"),
        ([*BASE, "--search", "M=1:3"], "search: M: unknown name 'M', choose from"),
        (
            [*BASE, "--search", "emf.L=1:3"],
            "search: emf.L: section: unknown name 'emf', did",
        ),
        ([*BASE, "--search", "block=1:3:int"], "search: block: concerns none of the methods efm"),
        ([*BASE, "--search", "fm.sigma=0:1"], "search: fm.sigma: concerns none of the methods efm"),
        ([*BASE, "--search", "steps=1:9:int"], "search: train.steps: must be the same for every"),
        ([*BASE, "--search", "eval.n=9:99:int"], "search: eval.n: must be the same for every"),
        ([*BASE, "--search", "efm.L=-3:6"], "efm.L: input should be greater than 0, got -3"),
        ([*BASE, "--search", "efm.points=mix|max"], "efm.points: input should be 'uniform'"),
        ([*BASE, "--seeds", "x"], "seeds: expected numbers such as 0,1,2"),
        ([*BASE, "--test-seeds", ","], "seeds: empty"),
        ([*BASE, "--set", "efm.L=3,6"], "efm.L: give one value, or a range with search"),
        ([*BASE, "--set", "eval.split=test"], "eval.split: tuning is always on validation"),
        ([*BASE, "--set", "L"], "set: expected name=value"),
        ([*BASE, "--config", "/nowhere.toml"], "config: cannot read /nowhere.toml"),
        ([*BASE, "--jobs", "0"], "jobs: input should be greater than or equal to 1, got '0'"),
        ([*BASE, "--lr", "3"], "unrecognized arguments: --lr 3"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.tune.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench.tune: {said}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_suites_with_variations_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = suite_path("efm_ablation")
    assert bench.tune.main(["--config", str(config), "--out", str(tmp_path)]) == 2
    assert "config: tuning has no variations [[vary]]" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_recorded(tmp_path: Path) -> None:
    arguments = ["--methods", "fm", "--tasks", ROLL, "--trials", "300", *TINY]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.tune", *arguments, "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    begin = time.time()
    while not list(tmp_path.glob("cells/*/record.json")) and time.time() - begin < 120:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "interrupted; " in error
    assert "the same command resumes there" in error
    assert not (tmp_path / "tuned.toml").exists()
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(list(read_records(tmp_path))) > 0


# ---------------------------------------------------------------------------------------- tables


def test_tables_name_learning_rates_that_differ_on_a_task() -> None:
    cells = [
        cells_of(task, "test", [0], train__lr=lr)[0] for task, lr in ((ROLL, 0.01), (EIGHT, 0.02))
    ]
    board = leaderboard(results([record(cell, 0.3) for cell in cells]))
    assert board["setting"].tolist() == ["", ""]  # what all rows of a task share stands below it
    other = cells[0].model_copy(update={"method": "other", "train": cells[1].train})
    board = leaderboard(results([record(cell, 0.3) for cell in (cells[0], other)]))
    assert sorted(board["setting"]) == ["lr=0.01", "lr=0.02"]
    assert leaderboard(results([record(cells[0], 0.3)]))["setting"].tolist() == [""]
