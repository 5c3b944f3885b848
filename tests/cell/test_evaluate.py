"""The evaluation of a cell: which metrics, against which sets, with floors and intervals."""

import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from bench.cell.context import CellContext
from bench.cell.draws import evaluation_sets, reference_sets, training_samples
from bench.cell.evaluate import Evaluation, applies, evaluate, reference_values
from bench.cell.run import run_cell
from bench.config.grid import Spec
from bench.metrics import METRICS, Metric
from bench.metrics.distances import sliced_w2, w2
from bench.metrics.kernels import energy_distance
from bench.store.records import Outcome
from datasets import TASKS, Distribution, Known
from datasets.gaussians import StandardNormal
from datasets.mixtures import Mixture
from tests.peak import peak_kibibytes


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def assignment_cost(x: Tensor, y: Tensor) -> float:
    """The optimal cost of two sets of one size, by the Hungarian algorithm."""
    cost = cdist(x.numpy(), y.numpy(), "sqeuclidean")
    return float(cost[linear_sum_assignment(cost)].mean())


def evaluation(dim: int, native: bool = True, **known: object) -> Evaluation:
    source, samples, target, second = (normal(40, dim, seed=seed) for seed in range(4))
    path = torch.stack([source, source + 1, samples])
    return Evaluation(source, samples, target, second, path, native, **known)


IN_THE_PLANE = {"w1", "w2"}
DISTANCES = {
    name
    for name, metric in METRICS.items()
    if metric.kind == "distance" and metric.features is None
}
NATIVE = {"transport_cost", "coupling_ratio", "straightness", "path_energy"}
PRIOR = {"radial_transport_cost"}
COSTLY = {"transport_cost", "path_energy", "radial_transport_cost"}


@pytest.mark.parametrize(
    ("dim", "native", "names"),
    [
        (2, True, DISTANCES | NATIVE),
        (3, False, DISTANCES | PRIOR),
        (64, True, DISTANCES | NATIVE - {"coupling_ratio"}),
        (64, False, DISTANCES | PRIOR),
    ],
)
def test_evaluate_gives_what_means_something_with_floors(
    dim: int, native: bool, names: set[str]
) -> None:
    values = evaluate(evaluation(dim, native))
    without: set[str] = set()
    if dim == 64:
        names = names - IN_THE_PLANE
        without = COSTLY  # samples are too sparse to know the optimal cost
    assert set(values) == names | {f"{name}_floor" for name in names - without}
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert len(DISTANCES) == 14


def test_what_is_known_of_the_task_adds_metrics() -> None:
    plain = set(evaluate(evaluation(2)))
    known = Known(1.0, lambda x: x + 1)
    mixture = Mixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1))
    more: dict[str, tuple[dict[str, object], set[str]]] = {
        "map": ({"known": known}, {"excess_cost", "map_error"}),
        "distribution": ({"distribution": StandardNormal((2,))}, {"stein"}),
        "modes": ({"distribution": mixture}, {"stein", "mode_error", "modes_missed"}),
        "no score": ({"distribution": TASKS["gaussian_to_moons"]().target()}, set()),
        "data": ({"train": normal(30, 2, seed=9)}, {"copied"}),
    }
    for what, expected in more.values():
        added = set(evaluate(evaluation(2, **what))) - plain
        assert added == expected | {f"{name}_floor" for name in expected}
    assert not set(evaluate(evaluation(2, native=False, known=known))) & {"excess_cost"}


def test_evaluate_compares_the_right_sets() -> None:
    distribution, train = StandardNormal((2,)), normal(30, 2, seed=9)
    data = evaluation(2, distribution=distribution, train=train)
    values, analytic = evaluate(data), evaluate(evaluation(2, distribution=distribution))
    halves = [data.split(k) for k in range(4)]
    pairs: dict[str, Callable[..., float]] = {
        "w2": lambda x, y: math.sqrt(assignment_cost(x, y)),
        "energy_distance": energy_distance,
        "coverage": METRICS["coverage"],
    }
    for name, distance in pairs.items():
        assert values[name] == pytest.approx(distance(data.samples, data.target))
        floor = distance(data.second_target, data.target)
        assert analytic[f"{name}_floor"] == pytest.approx(floor)
        # Of a data set the second set is what is trained on: halves of both, at random.
        floors = [distance(half.second_target, half.target) for half in halves]
        assert values[f"{name}_floor"] == pytest.approx(np.mean(floors))
    stein = METRICS["stein"]
    assert values["stein"] == stein(data.samples, data.target, distribution)
    assert analytic["stein_floor"] == stein(data.second_target, data.target, distribution)
    assert values["copied"] == METRICS["copied"](data.samples, data.target, train)
    assert values["copied_floor"] == 0.05
    cost = float((data.source - data.samples).square().sum(1).mean())
    assert values["transport_cost"] == pytest.approx(cost)
    optimal = assignment_cost(data.source, data.target)
    assert values["transport_cost_floor"] == pytest.approx(optimal)
    assert values["path_energy_floor"] == pytest.approx(optimal)
    radial = evaluate(evaluation(2, native=False))
    for name in ("", "_floor"):
        assert radial[f"radial_transport_cost{name}"] == values[f"transport_cost{name}"]
    assert values["coupling_ratio"] == pytest.approx(
        cost / assignment_cost(data.source, data.samples)
    )
    assert values["coupling_ratio_floor"] == values["straightness_floor"] == 1
    assert values["straightness"] > 1.2  # through source + 1: a detour
    assert values["path_energy"] > values["transport_cost"]


def test_the_floor_of_a_cost_is_the_exact_one_where_it_is_known() -> None:
    known = Known(7.0, lambda x: x + 1)
    for dim in (2, 64):
        values = evaluate(evaluation(dim, known=known))
        assert values["transport_cost_floor"] == values["path_energy_floor"] == 7.0


# References


def counted(values: list[str]) -> Callable[[Tensor, Tensor], float]:
    def mean_shift(samples: Tensor, target: Tensor) -> float:
        values.append("called")
        return float((samples.mean(0) - target.mean(0)).norm())

    return mean_shift


def test_references_are_measured_once_on_the_same_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And floors; another target, another name of the data or other metrics are other values."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    called: list[str] = []
    own = Metric("shift", "S", "distance", counted(called), floor_kind="measured")
    monkeypatch.setitem(METRICS, "shift", own)
    sets = {"identity": normal(40, 2), "noise": normal(40, 2, seed=7)}
    data = evaluation(2, native=False, references=lambda: sets, key="a task")
    names = ["shift", "transport_cost", "straightness", "w2"]

    def targets(data: Evaluation) -> tuple[Tensor, Tensor]:
        return data.target, data.second_target

    def values(data: Evaluation) -> tuple[dict[str, dict[str, float]], float]:
        return reference_values(data, names), evaluate(data, 3, rng(), names)["shift_floor"]

    first = values(data)
    found = first[0]
    assert set(found["identity"]) == {"shift", "transport_cost", "w2"}
    assert set(found["noise"]) == {"shift", "w2"}  # no map of the start points
    assert found["noise"]["w2"] == pytest.approx(w2(sets["noise"], data.target))
    assert found["identity"]["transport_cost"] == 0
    before = len(called)
    other_samples = dataclasses.replace(data, samples=data.samples + 1)
    assert values(other_samples) == first
    assert len(called) - before == 1 + 3  # of the samples and their parts
    seen = SimpleNamespace(record={"classifier_hash": "another"}, samples=lambda samples: {})
    for other in (
        dataclasses.replace(data, target=data.target + 1),
        dataclasses.replace(data, second_target=data.second_target + 1),
        dataclasses.replace(data, key="another"),
        dataclasses.replace(data, key=None),
        dataclasses.replace(data, extractors=seen),  # a network through which images are seen
    ):
        before = len(called)
        again = values(other)
        assert len(called) - before == 2 * (1 + 3) + 2
        same = [torch.equal(*sets) for sets in zip(targets(other), targets(data), strict=True)]
        assert (again[0] == first[0]) == same[0]
        assert (again == first) == all(same)


def test_the_references_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sampling method, another, and a task without an exact map."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))

    def outcome(method: str, task: str) -> Outcome:
        small = {"train.steps": 1, "train.batch": 8, "eval.n": 400, "sample.solver_steps": 2}
        settings = {name: [value] for name, value in {**small, "eval.metrics": "main"}.items()}
        (cell,) = Spec(methods=[method], tasks=[task], seeds=[0], settings=settings).cells()
        return run_cell(cell, tmp_path)

    first, second = (outcome(method, "moons_to_8gaussians") for method in ("fm", "ot-cfm"))
    found = first.references
    assert set(found) == {"perfect", "identity", "linear", "noise"}
    assert found == second.references
    assert first.metrics["w2_floor"] == second.metrics["w2_floor"]
    assert found["perfect"]["energy_distance"] < 0.15 < found["linear"]["energy_distance"]
    assert found["linear"]["frechet"] < 0.5 < found["noise"]["frechet"]
    assert found["identity"]["transport_cost"] == 0 < found["linear"]["transport_cost"]
    assert "transport_cost" not in found["noise"]
    assert not {"straightness", "excess_cost"} & {name for one in found.values() for name in one}
    images = outcome("fm", "gaussian_to_digits").references
    assert set(images) == {"identity", "linear", "noise"}
    assert images["linear"]["fd_classifier"] < images["noise"]["fd_classifier"]
    assert images["noise"]["confident"] < 0.5


# Intervals


def drawn(distribution: Distribution, n: int, seed: int, native: bool = True) -> Evaluation:
    """A perfect sampler: independent draws in every place."""
    source, samples, target, second = (
        distribution.sample(n, rng(100 * seed + k)) for k in range(4)
    )
    path = torch.stack([source, samples])
    return Evaluation(source, samples, target, second, path, native, distribution=distribution)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8gaussians", "gaussian_16"])
def test_two_draws_of_one_distribution_are_within_the_interval_of_the_floor(name: str) -> None:
    """In at least 90% of 50 repetitions, every metric."""
    tasks = {"8gaussians": "gaussian_to_8gaussians", "gaussian_16": "gaussian_to_gaussian_16"}
    distribution = TASKS[tasks[name]]().target()
    within: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for repetition in range(50):
        data = drawn(distribution, 800, 1000 + repetition, native=False)
        values = evaluate(data, 10, rng(repetition))
        for metric in METRICS:
            if metric in values and METRICS[metric].kind in ("distance", "distribution"):
                low, high = values[f"{metric}_low"], values[f"{metric}_high"]
                within.setdefault(metric, []).append(low <= values[f"{metric}_floor"] <= high)
                widths.setdefault(metric, []).append((high - low) / 2)
    assert len(within) >= 12
    shares = {metric: np.mean(hits) for metric, hits in within.items()}
    assert min(shares.values()) >= 0.9, shares


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "n"), [("gaussian_to_8gaussians", 1000), ("gaussian_to_gaussian_16", 300)]
)
def test_intervals_hold_the_expectation_over_draws_of_one_distribution(task: str, n: int) -> None:
    """In at least 93% of 200 repetitions, every metric that has an interval."""
    built = TASKS[task]()
    target = built.target()
    train = target.sample(4000, rng(10**6))
    found = []
    for k in range(200):
        draws = [built.source().sample(n, rng(10 * k))]
        draws += [target.sample(n, rng(10 * k + j)) for j in (1, 2, 3)]
        path = torch.stack([draws[0], draws[1]])
        more = {"distribution": target, "known": built.known(), "train": train}
        found.append(evaluate(Evaluation(*draws, path, True, **more), 10, rng(k)))
    names = [name for name in METRICS if f"{name}_low" in found[0]]
    assert {"c2st", "c2st_mlp", "copied", "knn_recall", "coverage", "energy_distance"} <= set(names)
    shares = {}
    for name in names:
        expected = np.mean([values[name] for values in found])
        shares[name] = np.mean(
            [values[f"{name}_low"] <= expected <= values[f"{name}_high"] for values in found]
        )
    del shares["straightness"]  # of straight lines: 1 up to rounding
    assert min(shares.values()) >= 0.93, shares


@pytest.mark.slow
def test_the_interval_of_a_coupling_within_one_distribution_holds_its_expectation() -> None:
    """In at least 93% of 200 repetitions, though the optimal cost vanishes with n."""
    standard, found = StandardNormal((2,)), []
    for k in range(200):
        data = drawn(standard, 1000, k)
        found.append(evaluate(data, 2, rng(k), ["coupling_ratio"]))
    expected = np.mean([values["coupling_ratio"] for values in found])
    ends = [(values["coupling_ratio_low"], values["coupling_ratio_high"]) for values in found]
    assert np.mean([low <= expected <= high for low, high in ends]) >= 0.93


@pytest.mark.parametrize("dim", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_a_shift_of_one_standard_deviation_is_seen_by_every_distance(dim: int) -> None:
    """Along one axis; of 64 too. Balls of neighbours do not claim to: they overlap."""
    blind = {"knn_precision", "knn_recall", "density"} | ({"coverage"} if dim == 64 else set())
    data = drawn(StandardNormal((dim,)), 1000, 0)
    moved = data.samples.clone()
    moved[:, 0] += 1
    values = evaluate(Evaluation(**{**vars(data), "samples": moved}), 10)
    for name, metric in METRICS.items():
        if metric.kind in ("distance", "distribution") and name in values and name not in blind:
            value, floor = values[name], values[f"{name}_floor"]
            assert not values[f"{name}_low"] <= floor <= values[f"{name}_high"], name
            assert metric.loss(value) > metric.loss(floor), name


@pytest.mark.slow
def test_intervals_are_as_wide_as_the_spread_over_draws() -> None:
    """Of samples of another distribution, where first order terms do not vanish."""
    standard = StandardNormal((2,))
    names = ["sliced_w2", "energy_distance", "frechet", "mmd", "transport_cost"]
    values: dict[str, list[float]] = {name: [] for name in names}
    halves: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(24):
        source, y, z = (standard.sample(400, rng(10 * seed + k)) for k in range(3))
        x = 1.5 * standard.sample(400, rng(10 * seed + 3)) + 0.5
        data = Evaluation(source, x, y, z, torch.stack([source, x]), True)
        found = evaluate(data, 10, rng(seed), names)
        assert {name for name in METRICS if name in found} == set(names)
        for name in names:
            values[name].append(found[name])
            halves[name].append((found[f"{name}_high"] - found[f"{name}_low"]) / 2)
    for name in names:
        expected = 2.26 * np.std(values[name], ddof=1)  # Student's t with 9 degrees of freedom
        assert np.mean(halves[name]) == pytest.approx(expected, rel=0.4), name


def test_intervals_are_of_the_seed_and_only_on_request() -> None:
    data = drawn(StandardNormal((2,)), 200, 0)
    first, again, other = (evaluate(data, 5, rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["sliced_w2_low"] != other["sliced_w2_low"]
    assert first["sliced_w2"] == other["sliced_w2"] == sliced_w2(data.samples, data.target)
    assert not any(name.endswith(("_low", "_high")) for name in evaluate(data))
    few = evaluate(drawn(StandardNormal((2,)), 30, 0), 5)
    known = {f"{name}_low" for name, metric in METRICS.items() if metric.error and name in few}
    assert {name for name in few if name.endswith("_low")} == known
    assert known == {"c2st_low", "c2st_mlp_low", "coupling_ratio_low"}


# Cost


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "seconds"), [(2, 10), (64, 15)])
def test_an_evaluation_takes_seconds_and_less_than_a_gigabyte(dim: int, seconds: float) -> None:
    """Of 2,000 samples, in seconds of one processor."""
    code = f"""
import torch
from tests.cell.test_evaluate import cost_of_an_evaluation
torch.set_num_threads(1)
print(*cost_of_an_evaluation({dim}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    used, kibibytes = map(float, done.stdout.split())
    assert used < seconds
    assert kibibytes < 2**20


def cost_of_an_evaluation(dim: int) -> tuple[float, int]:
    """Seconds of processor time, and by how much the peak of memory rose in KiB."""
    task = TASKS[f"gaussian_to_gaussian_{dim}"]()
    normal = task.target()
    source, target, second = (normal.low_variance(2000, rng(k)) for k in range(3))
    samples = 1.1 * normal.sample(2000, rng(3))
    path = torch.stack([torch.lerp(source, samples, k / 25) for k in range(26)])
    data = Evaluation(
        *(source, samples, target, second, path, True),
        distribution=normal,
        known=task.known(),
        train=second,
    )
    assert all(applies(metric, data) for metric in METRICS.values() if metric.kind == "known")
    before = peak_kibibytes()
    begin = time.process_time()
    evaluate(data, 10)
    return time.process_time() - begin, peak_kibibytes() - before


def test_the_two_target_sets_of_a_cell_share_no_sample() -> None:
    for task in ("gaussian_to_8gaussians", "gaussian_to_digits"):
        spec = Spec(methods=["fm"], tasks=[task], seeds=[0], settings={"eval.n": [200]})
        sets = evaluation_sets(CellContext.of(spec.cells()[0]))
        assert float(torch.cdist(sets.target.double(), sets.second_target.double()).min()) > 0
        assert float(torch.cdist(sets.source.double(), sets.target.double()).min()) > 0


def test_all_evaluation_sets_are_drawn_as_asked_for() -> None:
    """Means of 1,000 independent draws of a centred distribution are .03 deviations off."""

    def errors(how: str) -> list[float]:
        given = {"eval.n": [1000], "eval.draws": [how]}
        spec = Spec(methods=["fm"], tasks=["gaussian_to_gaussian_2"], seeds=[0], settings=given)
        sets = evaluation_sets(CellContext.of(spec.cells()[0]))
        return [float((x.mean(0) / x.std(0)).norm()) for x in sets]

    assert max(errors("low_variance")) < 0.01 < min(errors("iid"))


def test_the_linear_reference_is_fitted_to_training_samples() -> None:
    """Starts that are twice as wide as these have images that are twice as wide as the target."""
    spec = Spec(methods=["fm"], tasks=["gaussian_to_gaussian_2"], seeds=[0])
    context = CellContext.of(spec.cells()[0])
    source, target = training_samples(context)
    found = reference_sets(context, 2 * source + 1)
    torch.testing.assert_close(found["linear"].T.cov(), 4 * target.T.cov(), rtol=1e-3, atol=1e-3)
    assert torch.equal(found["identity"], 2 * source + 1)


def test_an_interval_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parts with the values 1, 2, 3 and 4: t(.975, 3) = 3.1824 times their deviation 1.2910,
    over sqrt(3), since a part has a quarter of the samples of one finite set."""
    given = iter([10.0, 1.0, 2.0, 3.0, 4.0])
    metric = Metric("made", "made", "coupling", lambda x, y: next(given), floor_kind="ideal")
    monkeypatch.setitem(METRICS, "made", metric)
    values = evaluate(evaluation(2), 4, rng(0), ["made"])
    assert values["made"] == 10
    assert values["made_high"] - 10 == pytest.approx(2.3721, abs=1e-4)
    assert 10 - values["made_low"] == pytest.approx(2.3721, abs=1e-4)


@pytest.mark.parametrize(("floor_kind", "error"), [("measured", 5.0), ("ideal", 3.0)])
def test_an_interval_of_known_errors_has_that_of_a_measured_floor_too(
    floor_kind: Any, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value of 30 with the error 3, a floor of 40 with the error 4: of the difference 5."""
    data = evaluation(2)
    made = Metric(
        *("made", "made", "distance", lambda x, y: 30 if x is data.samples else 40),
        floor_kind=floor_kind,
        error=lambda value, x, y: 4 * value / len(x),  # of 40 samples
    )
    monkeypatch.setitem(METRICS, "made", made)
    values = evaluate(data, 2, rng(0), ["made"])
    assert values["made_floor"] == (40 if floor_kind == "measured" else 0)
    assert values["made_high"] - 30 == pytest.approx(1.96 * error, rel=1e-4)
    assert 30 - values["made_low"] == pytest.approx(1.96 * error, rel=1e-4)


def level(samples: Tensor, target: Tensor) -> float:
    """Of a value and its floor: what the draw of the target does to both."""
    return float(target.mean())


def test_what_a_draw_does_to_value_and_floor_alike_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        METRICS, "level", Metric("level", "L", "distance", level, floor_kind="measured")
    )
    monkeypatch.setitem(
        METRICS, "alone", Metric("alone", "A", "distance", level, floor_kind="ideal")
    )
    values = evaluate(evaluation(2), 4, rng(0), ["level", "alone"])
    assert values["level_low"] == values["level"] == values["level_high"]
    assert values["alone_low"] < values["alone"] < values["alone_high"]


def test_floors_of_a_data_set_and_of_its_parts_are_between_mixed_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Held-out samples are 0 and training samples 1; a half of both is about a half."""
    means: list[float] = []
    own = Metric("own", "O", "distance", lambda x, y: means.append(float(y.mean())) or 0.0)
    monkeypatch.setitem(METRICS, "own", dataclasses.replace(own, floor_kind="measured"))
    zeros, ones = torch.zeros(200, 2), torch.ones(200, 2)
    data = Evaluation(zeros, zeros, zeros, ones, torch.stack([zeros, zeros]), True, train=ones)
    evaluate(data, 20, rng(0), ["own"])
    floors = [mean for mean in means if mean > 0]
    assert len(means) - len(floors) == 1 + 20  # the value, and that of each part
    assert len(floors) == 4 + 20
    assert 0.2 < min(floors) < max(floors) < 0.8


def test_rows_of_a_part_are_drawn_for_each_set_anew() -> None:
    for lines, first, second in evaluation(2).parts(3, rng()):
        for rows in (lines, first, second):
            assert len(set(rows.tolist())) == 10  # of 40, none twice
        assert len({tuple(sorted(rows.tolist())) for rows in (lines, first, second)}) == 3
