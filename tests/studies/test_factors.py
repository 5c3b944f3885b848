"""Tables and plots of a suite's variations."""

from pathlib import Path

import pandas as pd
import pytest

import bench.config.catalogue
import studies.factors
from bench import run
from bench.config.files import read_config, suite_path
from bench.config.grid import Spec, Variation
from studies.factors import _fixed, factor_tables, factors_of

SUITE = """
methods = ["efm"]
tasks = ["gaussian_to_swiss_roll"]
seeds = [0, 1]
[train]
steps = 3
batch = 16
[eval]
n = 20
[efm]
charges = 8
[[vary]]
efm.L = [6.0, 30.0]
[[vary]]
efm.points = ["mix", "log"]
[[vary]]
efm.L = [6.0, 12.0]
efm.sigma = [0.5, 1.0]
[[vary]]
methods = ["fm"]
"""


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.toml").write_text(SUITE)
    monkeypatch.setattr(bench.config.catalogue, "SUITES", tmp_path)
    return tmp_path


def test_each_factor_has_its_own_cells_and_no_others(
    suites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = suites / "out"
    rows = run(suite="small", out=out, device="cpu")
    assert len(rows) == 2 * (1 + 1 + 1 + 4 - 1 + 1)  # the common point once; L = 6, sigma = 1 once
    spec = Spec(**read_config(suite_path("small")))
    tables = factor_tables(spec, rows)
    assert list(tables) == ["L", "points", "L_by_sigma"]
    assert list(tables["L"]["L"]) == [6.0, 30.0]
    assert list(tables["points"]["points"]) == ["log", "mix"]  # though mix has a sigma, log none
    assert len(tables["L_by_sigma"]) == 4
    for table in tables.values():
        assert (table["count"] == 2).all()
        assert table.attrs["fixed"] == ""
    at_30 = rows[(rows["method"] == "efm") & (rows["L"] == 30) & (rows["points"] == "mix")]
    found = tables["L"].set_index("L").loc[30.0]
    assert found["w2_mean"] == pytest.approx(at_30["w2"].mean())
    assert found["w2_median"] == pytest.approx(at_30["w2"].median())

    assert studies.factors.main(["small", str(out)]) == 0
    printed = capsys.readouterr().out.split()
    assert {Path(line).name for line in printed} == {
        f"factor_{name}.{kind}" for name in tables for kind in ("csv", "png")
    }
    stored = pd.read_csv(out / "factor_L.csv")
    assert list(stored["w2_mean"]) == pytest.approx(list(tables["L"]["w2_mean"]))
    assert all(Path(line).stat().st_size > 100 for line in printed)


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells" / "a").mkdir(parents=True)
    (tmp_path / "cells" / "a" / "record.json").write_text("{")
    for arguments, word in (
        (["none", str(tmp_path)], "suite"),
        (["efm_ablation", str(tmp_path / "cells")], "no recorded cells"),
        (["efm_ablation", str(tmp_path)], "truncated"),
    ):
        assert studies.factors.main(arguments) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1


def test_a_suite_without_variations_says_so_and_which_have_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cells" / "a").mkdir(parents=True)
    (tmp_path / "cells" / "a" / "record.json").write_text("{")
    assert studies.factors.main(["toy", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    begin = "studies.factors: suite: 'toy' has no variations [[vary]], nothing to tabulate; choose"
    assert shown.err.startswith(f"{begin} from ")
    chosen = shown.err.strip().partition("choose from ")[2].split(", ")
    assert "efm_ablation" in chosen
    assert "toy" not in chosen
    assert all(Spec(**read_config(suite_path(name))).vary for name in chosen)


def test_factors_are_the_settings_with_several_values() -> None:
    variation = Variation(
        methods=["efm"],
        settings={
            "efm.L": [3.0, 6.0],
            "efm.lines": ["two_sided"],
            "sigma": [1, 2],
            "efm.offset": [0.10],
        },
    )
    assert factors_of(variation) == ["L", "sigma"]
    assert _fixed(variation) == "efm, lines = two_sided, offset = 0.1"


@pytest.mark.parametrize("name", ["efm_ablation", "efm_two_sided"])
def test_the_suites_are_valid_and_small(name: str) -> None:
    cells = Spec(**read_config(suite_path(name))).cells()
    assert 50 < len(cells) < 600
    assert {cell.seed for cell in cells} == {0, 1, 2}
