"""Parts of a cell: transport in blocks, seeds, and what a record says of the network."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cell as cells
from bench.cell import build_model, generator, laws, run_cell, transported
from bench.records import row
from bench.spec import Cell, Spec


def one_cell(method: str, task: str = "gaussian_to_swiss_roll", **settings: Any) -> Cell:
    small = {"train.steps": 20, "train.batch": 16, "eval.n": 64, "sample.solver_steps": 5}
    given = {name: [value] for name, value in {**small, **settings}.items()}
    (cell,) = Spec(methods=[method], tasks=[task], seeds=[0], settings=given).cells()
    return cell


@pytest.mark.parametrize("method", ["fm", "efm", "pfgm", "edm"])
def test_samples_do_not_depend_on_the_blocks_they_are_transported_in(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = one_cell(method)
    built, (source, target) = cell.build_method(), laws(cell, cell.build_task())
    model = build_model(cell, built, source, target)
    start = built.start(source.sample(50, generator(cell, "x")))

    def ends(numbers: int) -> Any:
        monkeypatch.setattr(cells, "BLOCK_NUMBERS", numbers)
        return transported(built, model, start, cell.sample, generator(cell, "y"), path=True)

    whole, parts = ends(10**6), ends(2 * 20)  # 20 samples of two numbers at a time
    torch.testing.assert_close(parts.end, whole.end)
    assert torch.equal(parts.landed, whole.landed)
    assert parts.nfe == whole.nfe
    assert parts.path.shape[1:] == (20, 2)
    torch.testing.assert_close(parts.path, whole.path[:, :20])
    assert set(parts.diagnostics) == set(whole.diagnostics)


def test_evaluations_a_line_are_the_mean_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = one_cell("fm", **{"sample.solver": "dopri5"})
    built, (source, target) = cell.build_method(), laws(cell, cell.build_task())
    model = build_model(cell, built, source, target)
    start = 5 * source.sample(30, generator(cell, "x"))
    alone = [built.transport(model, block, cell.sample).nfe for block in torch.split(start, 20)]
    monkeypatch.setattr(cells, "BLOCK_NUMBERS", 40)
    found = transported(built, model, start, cell.sample, generator(cell, "y"))
    assert found.nfe == math.ceil((20 * alone[0] + 10 * alone[1]) / 30)


def test_a_cell_in_blocks_has_all_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = one_cell("fm")
    whole = run_cell(cell, tmp_path)["metrics"]
    monkeypatch.setattr(cells, "BLOCK_NUMBERS", 2 * 50)
    parts = run_cell(cell, tmp_path)["metrics"]
    assert set(parts) == set(whole)
    of_lines = ("straightness", "path_energy")  # of the first block alone
    for name, value in whole.items():
        if not name.startswith(of_lines):
            assert parts[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert parts["straightness"] != whole["straightness"]


@pytest.mark.parametrize(
    ("settings", "used", "idle"),
    [
        ({}, ["width", "depth", "skip"], ["unet", "dropout"]),
        ({"network.architecture": "unet"}, ["unet", "dropout"], ["width", "depth", "skip"]),
    ],
)
def test_settings_that_the_network_lacks_are_empty(
    settings: dict[str, str], used: list[str], idle: list[str], tmp_path: Path
) -> None:
    cell = one_cell("fm", "gaussian_to_digits", **{"train.steps": 2, **settings})
    outcome = run_cell(cell, tmp_path)
    found = row({"cell": cell.model_dump(mode="json"), **outcome})
    assert all(found[name] is not None for name in used)
    assert all(found[name] is None for name in idle)


def test_the_general_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    cell = one_cell(
        *("fm", "gaussian_to_digits"),
        **{"train.steps": 2, "network.architecture": "unet", "network.dropout": 0.5},
    )
    first = run_cell(cell, tmp_path)["metrics"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert run_cell(cell, tmp_path)["metrics"] == first
