"""What a batch shows of the field: the exact field of Gaussians, the cosines, and the page."""

import csv
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import integrate
from torch import Tensor

from datasets.gaussians import StandardNormal
from methods.electrostatics import capacitor_field, poisson_field
from studies import batch_field
from studies.batch_field import (
    AVERAGES,
    COSINES,
    HEIGHTS,
    MANY,
    NEED_CHARGES,
    NEED_MANY,
    PLATE_DISTANCE,
    Number,
    digits_case,
    gaussian_case,
    gaussian_field,
    main,
    measure,
    measure_average,
    measure_others,
    on_segments,
    pair_direction,
    plate_field,
    standard_normal,
    summarise,
    tables,
    write,
)

REPOSITORY = Path(__file__).parents[2]
PUBLISHED = REPOSITORY / "results" / "efm_ablation"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found(numbers: Iterator[Number]) -> dict[tuple[int | None, float | None, str], float]:
    return {(number.charges, number.t, number.quantity): number.value for number in numbers}


# --- The field of Gaussians ----------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16, 256])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_field_of_narrow_gaussians_is_that_of_point_charges(dim: int, side: float) -> None:
    """Direction, magnitude and side."""
    means = normal(3, dim)
    x, height = normal(20, dim, seed=1), side * torch.linspace(0.5, 8, 20).double()
    wanted = poisson_field(x, height, means)
    direction, log_norm = gaussian_field(x, height, means, std=1e-6)
    torch.testing.assert_close(direction, wanted[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(log_norm, wanted[1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("h", [0.05, 0.5, 3.0, 50.0])
def test_field_of_a_gaussian_on_its_axis(h: float) -> None:
    """In the plane, against the integral over rings."""

    def ring(r: float) -> float:
        return r * math.exp(-r * r / 2) * h / (4 * math.pi * (r * r + h * h) ** 1.5)

    wanted = float(integrate.quad(ring, 0, 12, points=[min(h, 1.0)], epsabs=0)[0])
    height = torch.tensor([h], dtype=torch.float64)
    direction, log_norm = gaussian_field(normal(1, 2) * 0, height, normal(1, 2) * 0, std=1.0)
    assert direction[0].tolist() == pytest.approx([0, 0, 1])
    assert float(log_norm.exp()) == pytest.approx(wanted, rel=1e-7)


def test_field_of_the_distributions_is_the_limit_of_many_charges() -> None:
    """Away from the charges the error of N of them falls as 1/sqrt(N)."""
    case = gaussian_case(2)
    x, z = normal(50, 2, seed=3), torch.full((50,), 3.0, dtype=torch.float64)
    direction, log_norm = case.field(x, z)
    errors = []
    for count in (1_000, 100_000):
        charges = case.draw(count, torch.Generator().manual_seed(4))
        many = capacitor_field(x, z, *charges, PLATE_DISTANCE)
        errors.append(float((many[0] - direction).norm(dim=1).mean()))
        torch.testing.assert_close(many[1], log_norm, rtol=0, atol=3 / math.sqrt(count))
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("dim", [2, 64, 256])
def test_nodes_are_enough(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = gaussian_case(dim)
    p, q = case.draw(20, torch.Generator().manual_seed(0))
    at = [on_segments(p, q, t) for t in (0.02, 0.5, 0.98)]
    first = [case.field(x, z) for x, z in at]
    monkeypatch.setattr(batch_field, "NODES_A_LOG", 2 * batch_field.NODES_A_LOG)
    for (x, z), field in zip(at, first, strict=True):
        torch.testing.assert_close(case.field(x, z), field, rtol=0, atol=1e-9)


def test_plate_field_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, height = normal(30, 4), torch.linspace(0.1, 3, 30).double()
    whole = plate_field(standard_normal(4), x, height)
    monkeypatch.setattr(batch_field, "BLOCK", 7)
    torch.testing.assert_close(plate_field(standard_normal(4), x, height), whole)


def test_plate_field_of_an_unknown_distribution() -> None:
    with pytest.raises(TypeError, match="StandardNormal"):
        plate_field(StandardNormal((2,)), normal(1, 2), torch.ones(1).double())


def test_many_charges_of_a_data_set_are_its_training_samples() -> None:
    case = digits_case()
    positive, negative = case.draw_many(100, torch.Generator().manual_seed(0))
    assert (positive.shape, negative.shape) == ((100, 64), (898, 64))
    x, height = normal(3, 64), torch.ones(3).double()
    for ours, theirs in zip(
        plate_field(case.target, x, height), poisson_field(x, height, negative), strict=True
    ):
        assert torch.equal(ours, theirs)


# --- The cosines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 64, 256])
@pytest.mark.parametrize("t", HEIGHTS)
def test_direction_of_a_pair(dim: int, t: float) -> None:
    p, q = normal(1, dim), normal(1, dim, seed=1)
    wanted = capacitor_field(*on_segments(p, q, t), p, q, PLATE_DISTANCE)[0]
    torch.testing.assert_close(pair_direction(p, q), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 64])
def test_a_batch_of_one_pair_has_the_field_of_the_pair(dim: int) -> None:
    numbers = found(measure(gaussian_case(dim), [1], 50, HEIGHTS, 5, seed=0))
    for t in HEIGHTS:
        assert numbers[1, t, "included_pair"] == pytest.approx(1, abs=1e-9)
        assert numbers[1, t, "included_law"] == pytest.approx(numbers[None, t, "pair_law"])
        assert numbers[1, t, "independent_many"] < 0.99  # another pair


def test_in_the_plane_a_batch_shows_the_field() -> None:
    numbers = found(measure(gaussian_case(2), [2048], 4096, [0.5], 100, seed=0))
    assert all(numbers[2048, 0.5, f"{kind}_many"] > 0.999 for kind in ("included", "independent"))
    assert numbers[None, 0.5, "many_law"] > 0.999
    assert numbers[2048, 0.5, "included_pair"] < 0.98


def test_in_high_dimension_a_batch_shows_the_pair() -> None:
    heights = [0.02, 0.25, 0.5, 0.98]
    numbers = found(measure(gaussian_case(64), [256], 4096, heights, 100, seed=0))
    for t in heights:
        others = [numbers[256, t, name] for name in ("included_many", "included_law")]
        if t == 0.5:
            assert numbers[256, t, "included_pair"] > 0.9
            assert min(others) > 0.7
        else:
            assert numbers[256, t, "included_pair"] > 0.999
            assert max(others) < 0.2
            assert 0.4 < numbers[256, t, "independent_many"] < 0.8


def test_batches_of_all_sizes_hold_the_pairs_and_grow_into_the_field() -> None:
    case, sizes = gaussian_case(2), [16, 64, 1024]
    numbers = found(measure(case, sizes, 4096, [0.1], 200, seed=1))
    for kind in ("included_law", "independent_law"):
        cosines = [numbers[size, 0.1, kind] for size in sizes]
        assert cosines == sorted(cosines)
        assert cosines[-1] > 0.99 > cosines[0]
    # So near to a charge its own field is left, if it is one of the batch.
    near = found(measure(gaussian_case(16), sizes, 64, [0.001], 50, seed=1))
    assert all(near[size, 0.001, "included_pair"] > 0.9999 for size in sizes)
    assert all(near[size, 0.001, "independent_law"] < 0.9 for size in sizes)


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again, other = (
        list(measure(gaussian_case(4), [8], 16, [0.3], 10, seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert all(a.value != b.value for a, b in zip(first, other, strict=True))


def test_mean_direction_of_batches() -> None:
    """In the plane the mean of directions is the exact one; at D = 64 it loses the z part."""
    plane, high = (
        found(measure_average(gaussian_case(dim), 256, 16, [0.02], 50, seed=0)) for dim in (2, 64)
    )
    one = found(measure(gaussian_case(64), [256], 256, [0.02], 50, seed=0))
    assert plane[256, 0.02, "averaged_law"] > 0.98
    assert plane[256, 0.02, "averaged_z"] == pytest.approx(plane[256, 0.02, "law_z"], abs=0.1)
    assert high[256, 0.02, "averaged_law"] > one[256, 0.02, "independent_law"] + 0.05
    assert high[256, 0.02, "averaged_z"] < 0.1 < 0.3 < high[256, 0.02, "law_z"]


def test_numbers_without_t() -> None:
    plane, high = (found(measure_others(gaussian_case(d), 4000, 500, seed=0)) for d in (2, 64))
    assert plane[None, None, "backward_law"] == pytest.approx(
        plane[None, None, "backward_many"], abs=0.03
    )
    assert high[None, None, "backward_law"] == pytest.approx(0.5, abs=0.001)
    case = gaussian_case(64)
    p, q = case.draw(4000, torch.Generator().manual_seed(9))
    length = torch.sqrt((q - p).square().sum(1) + PLATE_DISTANCE**2)
    assert high[None, None, "spread_of_lengths"] == pytest.approx(
        float(length.std(correction=0) / length.mean()), rel=0.15
    )


# --- Tables, plot, command line ------------------------------------------------------------------


def small_summary(seeds: range) -> pd.DataFrame:
    """All that the tables and the plot hold, of invented numbers."""
    numbers = []
    for seed in seeds:
        for name in COSINES:
            size = None if name in ("many_law", "pair_law") else 256
            for t in HEIGHTS:
                numbers.append(Number("gaussians", 16, size, MANY, t, name, 9, seed, 0.5 + seed))
        for t in (0.02, 0.5):
            for size in NEED_CHARGES:
                for name, value in (("included_many", size / 16_384), ("independent_many", 0.5)):
                    numbers.append(
                        Number("gaussians", 16, size, NEED_MANY, t, name, 9, seed, value)
                    )
            for name in AVERAGES:
                numbers.append(Number("gaussians", 16, 256, None, t, name, 9, seed, 0.25))
            numbers.append(
                Number("gaussians", 16, 256, NEED_MANY, t, "independent_law", 9, seed, 0.125)
            )
        for name in batch_field.OTHERS:
            numbers.append(Number("gaussians", 16, None, MANY, None, name, 9, seed, 0.75))
    return summarise(numbers)


def test_summary_and_tables(tmp_path: Path) -> None:
    summary = small_summary(range(3))
    rows = summary[summary["quantity"] == "included_pair"]
    assert rows["mean"].tolist() == [1.5] * 7
    assert rows["std"].tolist() == [1.0] * 7
    assert set(summary["seeds"]) == {3}
    text = tables(summary)
    assert text.count("| D = 16 | " + " | ".join(["1.50 ± 1.00"] * 7) + " |") == 4
    assert "| D = 16 | 0.75 ± 0.00 | 0.75 ± 0.00 | 0.75 ± 0.00 |" in text
    cells = "0.02 ± 0.00 | 0.06 ± 0.00 | 0.25 ± 0.00 | 1.00 ± 0.00"
    assert f"| D = 16 | 0.02 | included | {cells} | 16,384 |" in text
    assert "| D = 16 | 0.5 | independent | " + "0.50 ± 0.00 | " * 4 + "over 16,384 |" in text
    assert "| D = 16 | 0.5 | 0.12 ± 0.00 | " + " | ".join(["0.25 ± 0.00"] * 3) + " |" in text
    # What is written can be read again.
    paths = write(summary, tmp_path / "new")
    assert [path.name for path in paths] == ["high_dimension.csv", "high_dimension.png"]
    assert tables(pd.read_csv(paths[0])) == text


def test_tables_of_one_seed_have_no_deviation() -> None:
    assert "±" not in tables(small_summary(range(1)))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--out"),
        (["--out", "x", "--points", "1"], "points: must be from 2 to 100000, got 1"),
        (["--out", "x", "--points", "many"], "'many'"),
        (["--out", "x", "--seeds", "a"], "seeds: expected numbers"),
        (["--out", "x", "--seeds", ""], "seeds: empty"),
        (["--out", "x", "--point", "5"], "--point"),
        (["--out", __file__], "out: expected a folder"),
    ],
)
def test_wrong_arguments(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("studies.batch_field: ")
    assert named in shown.err


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "DIMS": (2, 16),
        "MANY": 300,
        "NEED_DIMS": (2,),
        "NEED_MANY": 400,
        "NEED_CHARGES": (256, 300),
        "BATCHES": 2,
    }.items():
        monkeypatch.setattr(batch_field, name, value)
    assert main(["--out", str(tmp_path), "--seeds", "0,1", "--points", "10"]) == 0
    with (tmp_path / "high_dimension.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = {(row["case"], row["dim"]) for row in rows}
    assert cases == {("gaussians", "2"), ("gaussians", "16"), ("gaussian_to_digits", "64")}
    assert {row["quantity"] for row in rows} == {*COSINES, *AVERAGES, *batch_field.OTHERS}
    assert {(row["points"], row["seeds"]) for row in rows} == {("10", "2")}
    assert all(-1 <= float(row["mean"]) <= 1 for row in rows)
    assert (tmp_path / "high_dimension.png").read_bytes().startswith(b"\x89PNG")
    assert "| D = 16 |" in capsys.readouterr().out


def test_module_exits_with_2_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "studies.batch_field", "--seeds", "0"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# --- What is published ---------------------------------------------------------------------------


def test_published_page_holds_the_published_numbers() -> None:
    page = (PUBLISHED / "HIGH_DIMENSION.md").read_text(encoding="utf-8")
    lines = tables(pd.read_csv(PUBLISHED / "high_dimension.csv")).splitlines()
    numbers = [line for line in lines if line.startswith("| D") or line.startswith("| digits")]
    assert len(numbers) == 4 * 9 + 9 + 18 + 9
    assert [line for line in numbers if line not in page.splitlines()] == []


@pytest.mark.parametrize("dim", [2, 64])
def test_published_numbers_come_again(dim: int) -> None:
    """Those that the field of many has no part in: the draws come before its own."""
    published = pd.read_csv(PUBLISHED / "high_dimension.csv")
    numbers = []
    for seed in range(3):
        numbers += measure(gaussian_case(dim), [256], 8, [0.1, 0.5], 500, seed)
    again = summarise(numbers).set_index(["t", "quantity"])
    rows = published[(published["dim"] == dim) & (published["many"] == MANY)]
    rows = rows[(rows["case"] == "gaussians") & rows["t"].isin([0.1, 0.5])]
    wanted = rows.set_index(["t", "quantity"])
    for name in ("included_pair", "included_law", "independent_law", "pair_law"):
        for t in (0.1, 0.5):
            for column in ("mean", "std"):
                got = again.loc[(t, name), column]
                assert got == pytest.approx(wanted.loc[(t, name), column], abs=2e-4)
