"""Features of a network that the user gives."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import run
from bench.analysis.fairness import comparability
from bench.config.errors import SpecError
from bench.features.build import FeatureExtractors, FeatureSets, Pixels
from bench.features.custom import Custom, FeaturesError
from bench.metrics import METRICS
from bench.metrics.distances import frechet
from datasets import Empirical
from datasets.base import digest_of
from datasets.scikit_learn import DigitsThreeToTwo

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.s:FutureWarning")
CPU = torch.device("cpu")


class Corner(nn.Module):
    """The 2x2 pixels of a corner, of the second channel, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.dropout = nn.Dropout()  # only in training

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.weight * images[:, 1, 2:4, 3:5].flatten(1))


class Whole(Corner):
    """Images as they are."""

    def forward(self, images: Tensor) -> Tensor:
        return images


class Picky(Corner):
    """A linear layer of another size."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ torch.ones(5, 2)


def written(folder: Path, module: nn.Module) -> Path:
    path = folder / "mine.pt"
    torch.jit.save(torch.jit.script(module), path)
    return path


def test_the_distance_is_that_of_the_features_of_the_network(tmp_path: Path) -> None:
    path, task = written(tmp_path, Corner()), DigitsThreeToTwo()
    source, target = task.source(), task.target()
    assert isinstance(source, Empirical)
    assert isinstance(target, Empirical)
    x, y, z = source.test[:60], target.test[:70], target.train[:60]
    pixels = Pixels.of(target.train, target.shape, target.normalisation)
    extractors = FeatureExtractors(task.labelled(), pixels, None, CPU, str(path))
    sets = extractors.sets(FeatureSets(x, y, z, x, z))["custom"]
    corners = [3 * pixels(rows)[:, 0, 2:4, 3:5].flatten(1) for rows in (x, y, z)]
    for found, expected in zip(
        (sets.samples, sets.target, sets.second_target), corners, strict=True
    ):
        assert torch.equal(found, expected)
    assert METRICS["fd_custom"](sets.samples, sets.target) == frechet(corners[0], corners[1]) > 0.1
    assert sets.source is sets.train is None  # nothing needs them
    assert extractors.record["features_file"] == "mine.pt"
    assert extractors.record["features_hash"] == digest_of([path.read_bytes()])[:16]


def test_from_the_option_to_the_tables(tmp_path: Path) -> None:
    path = written(tmp_path, Corner())
    chosen = {"train.steps": 2, "sample.solver_steps": 1, "eval.n": 30, "eval.metrics": "main"}
    arguments = {"methods": ["fm"], "tasks": ["digits_3_to_2"], **chosen}
    rows = run(seeds=[0], out=tmp_path / "out", features=str(path), **arguments)
    (row,) = rows.to_dict("records")
    assert row["status"] == "done", row["reason"]
    assert row["fd_custom"] > 0
    assert row["fd_custom_floor"] > 0
    assert row["features_file"] == "mine.pt"
    assert row["features_hash"] == digest_of([path.read_bytes()])[:16]
    both = run(seeds=[0, 1], out=tmp_path / "out", **arguments)
    assert "1 of 2 cells lack fd_custom" in comparability(both)
    with pytest.raises(SpecError, match=r"features: no file .*nowhere\.pt"):
        run(seeds=[0], out=tmp_path / "out", features=str(tmp_path / "nowhere.pt"), **arguments)


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_what_is_no_network_is_one_line_and_no_python_is_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "mine.pt", tmp_path / "trace"
    torch.save({"weight": torch.ones(3), "more": Evil(trace)}, path)
    contents = [b"", b"no network", pickle.dumps(Evil(trace)), path.read_bytes()]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(FeaturesError, match=r"^mine\.pt is no TorchScript: .+$"):
            Custom(path, CPU)
    assert not trace.exists()
    for module, words in ((Whole(), r"does not return features \(B, F\)"), (Picky(), "fails on")):
        with pytest.raises(FeaturesError, match=rf"^mine\.pt {words}.*$"):
            Custom(written(tmp_path, module), CPU)(torch.rand(4, 1, 8, 8))
