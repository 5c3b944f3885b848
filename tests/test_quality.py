"""What the methods reach at the budget of the default suite: the bars of the project.

2,000 steps of batch 512, MLP 3x128, median of three seeds, held-out draws. A change that makes
one of these fail makes the benchmark compare something else than the published methods.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench import run
from bench.folder import cell_folder

pytestmark = pytest.mark.slow

RADII = 15.0  # three times the radius of the circle of modes


def cells(out: Path, method: str, task: str, **axes: Any) -> pd.DataFrame:
    """The finished cells of three seeds."""
    rows = run(methods=[method], tasks=[task], seeds=[0, 1, 2], out=out, device="cpu", **axes)
    assert (rows["status"] == "done").all(), rows["reason"].tolist()
    return rows


def test_fm_swiss_roll(tmp_path: Path) -> None:
    assert cells(tmp_path, "fm", "gaussian_to_swiss_roll")["w2"].median() <= 0.32


def test_fm_8gaussians(tmp_path: Path) -> None:
    assert cells(tmp_path, "fm", "gaussian_to_8gaussians")["w2"].median() <= 0.75


@pytest.mark.parametrize("plate_distance", [6, 30])
def test_efm_swiss_roll(tmp_path: Path, plate_distance: float) -> None:
    rows = cells(tmp_path, "efm", "gaussian_to_swiss_roll", L=plate_distance)
    assert rows["w2"].median() <= 0.45


def test_digits_fm_and_efm(tmp_path: Path) -> None:
    medians = {
        method: cells(tmp_path / method, method, "gaussian_to_digits")["sliced_w2"].median()
        for method in ("fm", "efm")
    }
    assert medians["fm"] <= 0.08
    assert medians["efm"] <= 0.08
    assert medians["efm"] <= 1.10 * medians["fm"]


def test_pfgm_8gaussians_without_outliers(tmp_path: Path) -> None:
    rows = cells(tmp_path, "pfgm", "gaussian_to_8gaussians")
    assert rows["sliced_w2"].median() <= 0.45
    shares = []
    for cell_id in rows["id"]:
        with np.load(cell_folder(tmp_path, cell_id) / "samples.npz") as arrays:
            shares.append((np.linalg.norm(arrays["samples"], axis=1) > RADII).mean())
    assert np.median(shares) <= 0.005


def test_fm_couples_moons_and_8gaussians_at_a_price(tmp_path: Path) -> None:
    rows = cells(tmp_path, "fm", "moons_to_8gaussians")
    assert 1.08 <= rows["coupling_ratio"].median() <= 1.2
