"""The suites of the papers at full network size, on synthetic files in the real formats."""

import os
import tomllib
from pathlib import Path

import pytest

from bench.config.catalogue import suites
from bench.config.cell import Cell
from bench.config.files import merge, read_config, suite_path
from bench.execute.cost import cost_of
from bench.run import main
from bench.store.records import read_records
from tests.synthetic_files import write_all

PAPERS = ("colored_generation", "colored_translation", "cifar10")
FEWER = {"colored_generation": "efm", "colored_translation": "fm", "cifar10": "pfgm,edm"}
SHORT = [
    *("--steps", "3", "--batch", "2", "--set", "eval.n=5", "--set", "eval.fid_n=0"),
    *("--set", "train.warmup=1"),
    *("--set", "sample.solver=euler", "--set", "sample.solver_steps=1"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_all(folder)
    return folder


def cells_of(suite: str) -> list[Cell]:
    return merge(read_config(suite_path(suite)), {}).cells()


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "methods"), FEWER.items())
def test_three_steps_and_one_sampling(
    suite: str,
    methods: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of some methods; all of ``PAPERS`` with ``BENCH_FULL`` set, 20 s of one core a cell."""
    monkeypatch.setattr("methods.capacitor.diagnostics.LINES", 2)  # 256 take minutes of a CPU
    chosen = [] if os.environ.get("BENCH_FULL") else ["--methods", methods, "--set", "efm.L=30"]
    arguments = ["--suite", suite, "--data-root", str(root), "--out", str(tmp_path), *SHORT]
    assert main([*arguments, *chosen, "--threads", "1", "--device", "cpu"]) == 0, (
        capsys.readouterr().err
    )
    records = list(read_records(tmp_path))
    assert len(records) == (len(methods.split(",")) if chosen else len(cells_of(suite)))
    for record in records:
        assert record.status == "done"
        assert 55e6 < record.parameters < 62e6
        assert record.cell.network["dropout"] == 0.1
        assert record.metrics["fd_classifier"] > 0


@pytest.mark.parametrize("suite", PAPERS)
def test_a_dry_run_says_what_a_suite_takes(
    suite: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", suite, "--out", str(tmp_path), "--dry-run", "--device", "cpu"]
    assert main([*arguments, "--data-root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "not here" not in printed
    assert printed.count("parameters") == len(cells_of(suite))
    assert "MB" in printed
    assert "on cpu at" in printed
    assert "large GPU" in printed


@pytest.mark.parametrize("suite", PAPERS)
def test_without_the_files_nothing_is_started(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENCH_DATA_ROOT", raising=False)
    assert main(["--suite", suite, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no folder of data sets is given: --data-root" in line
    assert not list((tmp_path / "out" / "cells").glob("*"))
    assert main(["--suite", suite, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "not here: " in capsys.readouterr().out


@pytest.mark.parametrize("suite", [*PAPERS, "colored_digits"])
def test_the_sibling_for_a_cpu_has_the_same_methods_and_small_images(suite: str) -> None:
    own = cells_of(f"{suite}_cpu")
    if suite in PAPERS:
        assert {cell.method for cell in own} == {cell.method for cell in cells_of(suite)}
    for cell in own:
        assert cell.build_task().shape == (3, 16, 16)
        assert cell.network.unet == "tiny"
        assert cell.build_task().check() is None
        assert cost_of(cell).seconds(5e10) < 20 * 60


@pytest.mark.parametrize("path", suites().values(), ids=lambda path: path.stem)
def test_every_suite_says_what_it_is_and_has_cells(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert tomllib.loads(path.read_text())
    assert cells_of(path.stem)
