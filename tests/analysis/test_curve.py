"""Quality against cost: checkpoints of one run, fewer solver steps, the Pareto table and plot."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bench import run
from bench.analysis.curves import COSTS, curves, measured, pareto
from bench.cell.curve import halvings
from bench.cell.train import train
from bench.config.settings import TrainSettings
from bench.report.build import write_report
from bench.report.plots.charts import curve_figure
from bench.store.records import read_records
from methods.base import Regression

EIGHT = "gaussian_to_8gaussians"
SETTINGS: dict[str, Any] = {
    "eval.n": 60,
    "eval.replicates": 0,
    "network.width": 8,
    "sample.solver_steps": 10,
}


def test_halvings() -> None:
    assert halvings(25, 3) == [12, 6, 3]
    assert halvings(3, 8) == [1]
    assert halvings(100, 0) == []


def test_snapshots_are_the_models_of_shorter_trainings_without_the_schedule() -> None:
    """A constant learning rate makes the first half of a run a run of half the length."""

    def fitted(steps: int, checkpoints: list[int]) -> Any:
        torch.manual_seed(0)
        model, generator = Line(), torch.Generator().manual_seed(1)

        def batch() -> Regression:
            x = torch.randn(32, 1, generator=generator)
            return Regression(x, x[:, 0], 3 * x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bench.cell.train.learning_rate_factor", lambda step, settings: 1.0)
            return train(model, batch, TrainSettings(steps=steps, lr=0.01), None, checkpoints)

    long, short = fitted(100, [50, 25]), fitted(50, [])
    assert [snapshot.step for snapshot in long.snapshots] == [25, 50]
    assert torch.equal(long.snapshots[1].model.line.weight, short.model.line.weight)
    assert not torch.equal(long.snapshots[1].model.line.weight, long.model.line.weight)
    assert 0 < long.snapshots[0].seconds < long.snapshots[1].seconds < long.seconds
    assert short.snapshots == ()


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return self.line(x)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("curve")
    run(
        methods=["fm", "fm-exact", "pfgm"],
        tasks=[EIGHT, "gaussian_to_digits", "moons_to_8gaussians"],
        seeds=[0, 1],
        out=out,
        steps=16,
        batch=16,
        **SETTINGS,
        **{"eval.curve": 3, "fm-exact.charges": 50},
    )
    return out


def test_a_run_has_the_points_of_its_curves(swept: Path) -> None:
    points = pd.read_csv(swept / "curves.csv")
    fm = points[(points["method"] == "fm") & (points["task"] == EIGHT) & (points["seed"] == 0)]
    stages = list(zip(fm["train_steps"], fm["solver_steps"], fm["nfe"], strict=True))
    assert stages == [
        *((2, 10, 20), (4, 10, 20), (8, 10, 20)),
        *((16, 1, 2), (16, 2, 4), (16, 5, 10), (16, 10, 20)),
    ]
    rows = pd.read_csv(swept / "results.csv").set_index("id")
    own = fm[(fm["train_steps"] == 16) & (fm["solver_steps"] == 10)].iloc[0]
    pd.testing.assert_series_equal(
        own[measured()].astype(float), rows.loc[own["id"], measured()].astype(float),
        check_names=False, check_exact=True,
    )  # fmt: skip
    exact = points[points["method"] == "fm-exact"]
    assert set(exact["train_steps"]) == {0}
    assert set(exact["solver_steps"]) == {1, 2, 5, 10}
    digits = points[points["task"] == "gaussian_to_digits"]
    assert digits["w2"].isna().all()
    assert digits["sliced_w2"].notna().all()
    # PFGM cannot start from data, so it has no point there.
    assert "pfgm" not in set(points[points["task"] == "moons_to_8gaussians"]["method"])


def test_points_are_what_runs_of_that_cost_give(swept: Path, tmp_path: Path) -> None:
    """The same weights with fewer solver steps, the same samples: a run with those steps."""
    few = run(
        methods=["fm"],
        tasks=[EIGHT],
        seeds=[0],
        out=tmp_path,
        steps=16,
        batch=16,
        **(SETTINGS | {"sample.solver_steps": 5}),
    )
    points = pd.read_csv(swept / "curves.csv").query("method == 'fm' and task == @EIGHT")
    half = points.query("seed == 0 and solver_steps == 5").iloc[0]
    assert half["w2"] == pytest.approx(few["w2"].iloc[0], rel=1e-9)
    assert half["nfe"] == few["nfe"].iloc[0]


def test_the_curve_leaves_the_result_as_it_is(swept: Path, tmp_path: Path) -> None:
    plain = run(
        methods=["fm"], tasks=[EIGHT], seeds=[0], out=tmp_path, steps=16, batch=16, **SETTINGS
    )
    rows = pd.read_csv(swept / "results.csv").query("method == 'fm' and seed == 0")
    same = rows[rows["task"] == EIGHT].iloc[0]
    for name in ("w2", "sliced_w2", "transport_cost"):
        assert same[name] == pytest.approx(plain[name].iloc[0], rel=1e-12)


def table_of(*points: tuple[str, int, int, float, float, float]) -> pd.DataFrame:
    columns = ["method", "train_steps", "nfe", "train_seconds", "sample_seconds", "w2"]
    made = pd.DataFrame(points, columns=columns)
    made = made.assign(
        task=EIGHT, setting="", solver_steps=made["nfe"], seed=0, id=range(len(made))
    )
    return made.assign(**{name: np.nan for name in measured() if name != "w2"})


def test_the_front_is_what_nothing_as_cheap_beats() -> None:
    made = table_of(
        ("a", 10, 4, 1.0, 0.5, 3.0),
        ("a", 20, 8, 2.0, 0.5, 2.0),
        ("b", 10, 4, 0.5, 0.1, 4.0),
        ("b", 20, 6, 9.0, 0.5, 1.0),
        ("c-exact", 0, 2, 0.0, 0.1, 0.5),
    )
    found = pareto(made).set_index(["method", "train_steps"])
    front = {cost: set(found.index[found[f"best_for_{cost}"]]) for cost in COSTS}
    assert front["nfe"] == {("a", 10), ("b", 20)}
    assert front["seconds"] == {("b", 10), ("a", 10), ("a", 20), ("b", 20)}
    assert found.loc[("a", 10), "seconds"] == 1.5
    assert set(found["metric"]) == {"w2"}
    assert not found.loc[("c-exact", 0), ["best_for_nfe", "best_for_seconds"]].any()


def test_no_point_is_better_and_cheaper_than_one_of_the_front(swept: Path) -> None:
    table = pd.read_csv(swept / "pareto.csv")
    assert (table["seeds"] == 2).all()
    trained = table[table["train_steps"] > 0]
    for cost in COSTS:
        for _, rows in trained.groupby("task"):
            for row in rows.to_dict("records"):
                better = (rows["distance"] < row["distance"]) & (rows[cost] <= row[cost])
                assert row[f"best_for_{cost}"] == (not better.any())


def test_a_checkpoint_that_diverged_has_no_distance_and_is_no_front() -> None:
    made = table_of(("a", 10, 4, 1.0, 0.5, np.nan), ("a", 20, 8, 2.0, 0.5, 2.0))
    found = pareto(made)
    assert found["best_for_nfe"].tolist() == [False, True]


def test_a_seed_without_a_distance_leaves_the_point_without_one() -> None:
    """One of three that did not diverge must not stand for all three."""
    made = pd.concat(
        [table_of(("a", 10, 4, 1.0, 0.5, value)).assign(seed=k) for k, value in
         enumerate((0.1, np.nan, np.nan))]
        + [table_of(("b", 10, 4, 1.0, 0.5, 0.5)).assign(seed=k) for k in range(3)],
        ignore_index=True,
    )  # fmt: skip
    found = pareto(made).set_index("method")
    assert np.isnan(found.loc["a", "distance"])
    assert found["best_for_nfe"].to_dict() == {"a": False, "b": True}
    assert (found["seeds"] == 3).all()


def test_the_plot_has_every_method_and_is_only_drawn_for_curves(swept: Path) -> None:
    table = pd.read_csv(swept / "pareto.csv", dtype={"setting": str}).fillna({"setting": ""})
    figure = curve_figure(table, EIGHT, 0.2)
    assert figure is not None
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["fm", "fm-exact", "pfgm", "Pareto front", "floor"]
    steps = figure.axes[1].get_lines()
    assert {line.get_label() for line in steps} >= {"fm", "pfgm"}
    single = table.groupby("method").tail(1)
    assert curve_figure(single[single["task"] == EIGHT], EIGHT, 0.2) is None
    write_report(swept, fields=0)
    assert (swept / "plots" / f"curves_{EIGHT}.png").is_file()
    assert f"curves_{EIGHT}.png" in (swept / "report.html").read_text()


def test_curves_of_records_without_any_are_their_results(swept: Path) -> None:
    rows = pd.read_csv(swept / "results.csv")
    alone = curves(rows, {record.id: [] for record in read_records(swept)})
    assert len(alone) == (rows["status"] == "done").sum()
