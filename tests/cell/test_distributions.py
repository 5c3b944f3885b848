"""Cells whose model is made of the distributions of a task, not of samples."""

from pathlib import Path

import pytest
import torch

from bench.cell.context import CellContext
from bench.cell.draws import build_model
from bench.cell.run import run_cell
from bench.config.cell import Cell
from bench.config.grid import Spec


def one_cell(task: str) -> Cell:
    settings = {"efm-exact.of": ["distributions"], "L": [6.0], "eval.n": [64]}
    settings |= {"eval.metrics": ["main"], "eval.replicates": [0]}
    (cell,) = Spec(methods=["efm-exact"], tasks=[task], seeds=[0], settings=settings).cells()
    return cell


@pytest.mark.parametrize("task", ["gaussian_to_8gaussians", "gaussian_to_s_curve"])
def test_the_field_of_a_task_is_that_of_its_samples(task: str) -> None:
    context = CellContext.of(one_cell(task))
    charges = type(context.method)(L=6.0)
    by_samples = build_model(context, charges)
    x, z = context.source.sample(50, torch.Generator().manual_seed(0)), torch.full((50,), 3.0)
    torch.testing.assert_close(build_model(context)(x, z), by_samples(x, z), rtol=0, atol=0.02)


def test_such_a_cell_runs_or_is_skipped_with_the_reason(tmp_path: Path) -> None:
    done = run_cell(one_cell("gaussian_to_8gaussians"), tmp_path)
    assert done.status == "done", done.reason
    assert done.parameters == 0
    skipped = run_cell(one_cell("gaussian_to_gaussian_2"), tmp_path)
    assert skipped.status == "skipped"
    assert skipped.reason is not None
    assert "no mixture of Gaussians" in skipped.reason
