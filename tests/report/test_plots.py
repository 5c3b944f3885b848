"""Which plots a run has: bars of every metric that asks for them, ablations, files that go."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

import bench.run
from bench.analysis.analysis import Analysis
from bench.analysis.leaderboard import GROUP, aggregate, with_setting
from bench.metrics import METRICS
from bench.metrics.base import Metric
from bench.report.plots.charts import ablation_figure, bar_figure
from bench.report.plots.draw import draw_plots

EIGHT = "gaussian_to_8gaussians"
MINE = Metric("mine", "My $metric", "distance", len, "the same", plotted=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of FM with two values of sigma and two seeds; without plots."""
    out = tmp_path_factory.mktemp("swept")
    arguments = ["--methods", "fm", "--tasks", EIGHT, "--seeds", "0,1", "--sigma", "0.1,0.5"]
    arguments += ["--steps", "10", "--batch", "32", "--set", "eval.n=32", "--threads", "1"]
    arguments += ["--set", "network.width=8", "--set", "eval.replicates=0"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bench.report.build.draw_plots", lambda *arguments, **options: [])
        assert bench.run.main([*arguments, "--out", str(out)]) == 0
    return out


def test_a_metric_of_a_plugin_has_bars(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "mine", MINE)
    analysis = Analysis.of(swept)  # recorded before the metric was there
    assert bar_figure(analysis.done, analysis.summary, "mine") is None
    done = analysis.done.assign(mine=[-1.0, -2.0, 3.0, 4.0], mine_floor=np.nan)
    figure = bar_figure(done, aggregate(done, GROUP), "mine")
    assert figure is not None
    (ax,) = figure.axes
    heights = sorted(bar.get_height() for bar in ax.patches)
    assert heights == sorted(done.groupby("setting")["mine"].mean())
    low, high = ax.get_ylim()
    assert low < -2 < 4 < high


def test_plots_are_named_in_the_log_and_those_of_before_go(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.report.plots.draw.METRICS", {"w2": METRICS["w2"], "mine": MINE})
    plots = swept / "plots"
    plots.mkdir(exist_ok=True)
    for name in ("bars_old.png", "bars_old.pdf", "bars.png", "mine_bars_old.png", "bars_old.txt"):
        (plots / name).write_bytes(b"")
    before, logged = dict(matplotlib.rcParams), list[str]()
    monkeypatch.setitem(METRICS, "mine", MINE)
    paths = draw_plots(Analysis.of(swept), swept, logged.append, fields=0)
    drawn = ["samples_" + EIGHT, "bars_w2", "ablation_sigma"]
    assert [path.name for path in paths] == [f"{name}.png" for name in drawn]
    assert logged == [f"drew {name}.png" for name in drawn]
    left = {path.name for path in plots.iterdir()}
    written = {f"{name}.{suffix}" for name in drawn for suffix in ("png", "pdf")}
    assert left == {*written, "bars.png", "mine_bars_old.png", "bars_old.txt"}
    assert dict(matplotlib.rcParams) == before


def table_of(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """One row a method, value of the axis and value of the other settings."""
    return aggregate(with_setting(rows, without=axis), ["task", "method", "setting", axis])


def test_an_ablation_shows_what_is_done_and_no_formula(swept: Path) -> None:
    rows = Analysis.of(swept).rows
    late = rows["sigma"] == 0.5
    failed = rows.assign(status=rows["status"].where(~late, "failed"))
    assert ablation_figure(table_of(failed, "sigma"), "sigma") is None
    axis = "$x"
    named = rows.rename(columns={"sigma": axis})
    lacking = rows[~late].assign(method="pfgm").drop(columns="sigma")
    figure = ablation_figure(table_of(pd.concat([named, lacking]), axis), axis)
    assert figure is not None
    assert figure.axes[-1].get_xlabel() == r"\$x"
    words = {text.get_text() for text in figure.legends[0].get_texts()}
    assert words == {"fm", r"pfgm (no \$x)", "floor"}
    (line,) = (
        line
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 2 and line.get_marker() == "o"
    )
    assert list(line.get_xdata()) == [0.1, 0.5]
