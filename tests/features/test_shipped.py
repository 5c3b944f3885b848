"""The classifiers whose weights are shipped: what they are, and what does not change them."""

import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.cell.run import run_cell
from bench.config.grid import Spec
from bench.features import classifier as classifiers
from bench.features.build import FeatureExtractors, FeatureSets, Pixels
from bench.features.classifier import RECIPE, WEIGHTS, shipped
from bench.metrics.distances import frechet
from datasets import TASKS, Empirical, Task
from datasets.colored_digits import ColoredDigitsThreeToTwo, GaussianToColoredDigits
from studies import classifiers as study

ROOT = Path(__file__).parents[2]

# Hash, and the share of test images that is named right, as studies.classifiers has printed them.
SHIPPED = {
    "digits_8": ("885cc534197d43a2", 0.9844),
    "colored_digits_16": ("af3f5b35b6107253", 0.9588),
    "colored_digits_28": ("db3792e2c2131ac1", 0.9520),
    "patches_32": ("13e16fd1dbf3552e", 0.9795),
}
# Of noise N(0, I) and of training images, n = 400, to held-out images of the same number.
DISTANCES = {
    "gaussian_to_digits": (134.3266, 0.66683),
    "gaussian_to_colored_digits": (120.5771, 1.46717),
}


@pytest.fixture
def untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a training that would fail."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifiers, "fit", None)
    return tmp_path / "cache"


def extractors_of(task: Task) -> FeatureExtractors:
    target = task.target()
    assert isinstance(target, Empirical)
    pixels = Pixels.of(target.train, target.shape, target.normalisation)
    return FeatureExtractors(task.labelled(), pixels)


def test_recipe_and_files_are_those_of_the_study() -> None:
    """Another recipe needs other files: python -m studies.classifiers."""
    assert RECIPE == "3"
    assert {path.stem for path in WEIGHTS.iterdir()} == set(SHIPPED)
    names = [labelled.name for task in study.TASKS if (labelled := task.labelled())]
    assert names == list(SHIPPED)


@pytest.mark.parametrize("task", study.TASKS, ids=SHIPPED)
def test_shipped_weights_are_as_stated(task: Task, untrained: Path) -> None:
    extractors, labelled = extractors_of(task), task.labelled()
    assert labelled is not None
    assert labelled.name is not None
    known, accuracy = SHIPPED[labelled.name]
    found = extractors.classifier
    assert found is not None
    assert found.hash == extractors.record["classifier_hash"] == known
    assert extractors.record["classifier_accuracy"] == pytest.approx(accuracy, abs=1e-4)
    _, probabilities = found(extractors.pixels(labelled.test))
    right = (probabilities.argmax(1) == labelled.test_labels).double().mean()
    assert float(right) == pytest.approx(accuracy, abs=2 / len(labelled.test) + 1e-4)
    features, _ = found(extractors.pixels(labelled.train))
    assert float(features.var(0).mean()) == pytest.approx(1, rel=1e-3)  # the unit
    weights = found.network.state_dict().values()
    assert {x.dtype for x in weights} == {torch.float32, torch.int64}
    assert (WEIGHTS / f"{labelled.name}.safetensors").stat().st_size < 400_000


@pytest.mark.parametrize(
    "task", [TASKS["digits_3_to_2"](), ColoredDigitsThreeToTwo(), ColoredDigitsThreeToTwo(size=28)]
)
def test_the_other_task_of_the_same_images_has_the_same_weights(
    task: Task, untrained: Path
) -> None:
    labelled = task.labelled()
    assert labelled is not None
    extractors = extractors_of(task)
    assert extractors.record["classifier_hash"] == SHIPPED[str(labelled.name)][0]
    assert extractors.wanted == (2,)
    assert not untrained.exists() or not list(untrained.rglob("classifier*"))


@pytest.mark.parametrize("task", DISTANCES)
def test_distances_depend_on_neither_cache_nor_environment(
    task: str, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TASKS[task]().target()
    rng = torch.Generator().manual_seed(0)
    held, train = target.held_out(400, rng, "iid"), target.second_set(400, rng, "iid")
    noise = torch.randn(400, target.dim, generator=rng)

    def distances(cache: Path, seed: int) -> list[float]:
        monkeypatch.setenv("BENCH_CACHE", str(cache))
        torch.manual_seed(seed)
        seen = [
            extractors_of(TASKS[task]()).sets(FeatureSets(x, held, train))["classifier"]
            for x in (noise, train)
        ]
        return [frechet(sets.samples, sets.target) for sets in seen]

    first = distances(tmp_path / "one", 1)
    assert first == distances(tmp_path / "other", 2)
    assert first == pytest.approx(DISTANCES[task], rel=1e-3)


def test_only_the_images_of_the_name_have_its_weights() -> None:
    assert shipped(None, (1, 8, 8), 10) is None
    assert shipped("of nobody", (1, 8, 8), 10) is None
    for other in ({"digits": "7"}, {"crop": "off"}, {"size": 20}):
        labelled = GaussianToColoredDigits(**other).labelled()
        assert labelled is not None
        assert shipped(labelled.name, (3, 16, 16), 10) is None


def test_corrupt_weights_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier trained in their place would be another one."""
    whole = (WEIGHTS / "digits_8.safetensors").read_bytes()
    monkeypatch.setattr(classifiers, "WEIGHTS", tmp_path)
    path = tmp_path / "digits_8.safetensors"
    for corrupt in (b"", whole[:-1], whole[:-3] + b"\x01\x02\x03"):
        path.write_bytes(corrupt)
        with pytest.raises(ValueError, match=r"digits_8\.safetensors is corrupt"):
            shipped("digits_8", (1, 8, 8), 10)
    path.write_bytes(whole)
    assert shipped("digits_8", (1, 8, 8), 10) is not None


def test_a_record_has_the_hash_of_the_shipped_weights(untrained: Path, tmp_path: Path) -> None:
    settings = {"train.steps": [2], "eval.n": [40], "sample.solver_steps": [1]}
    for split in ("test", "validation"):
        spec = Spec(
            methods=["fm"],
            tasks=["digits_3_to_2"],
            seeds=[0],
            settings={**settings, "eval.metrics": ["main"], "eval.split": [split]},
        )
        (cell,) = spec.cells()
        record = run_cell(cell, tmp_path)
        assert record.status == "done", record.reason
        assert record.classifier_hash == SHIPPED["digits_8"][0]
        assert record.metrics["fd_classifier"] > 0


def test_the_package_has_the_weights() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["bench"]
    packed = {path for pattern in patterns for path in (ROOT / "bench").glob(pattern)}
    assert packed >= {WEIGHTS / f"{name}.safetensors" for name in SHIPPED}


def test_the_study_writes_what_is_loaded_and_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers, "STEPS", 2)
    monkeypatch.setattr(study, "WEIGHTS", tmp_path)
    monkeypatch.setattr(classifiers, "WEIGHTS", tmp_path)
    written: list[bytes] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        name, path = study.publish(study.TASKS[0])
        written.append(path.read_bytes())
    assert written[0] == written[1]
    found = shipped(name, (1, 8, 8), 10)
    assert found is not None
    assert found.hash != SHIPPED[name][0]
    images: Tensor = torch.rand(3, 1, 8, 8)
    assert found(images)[0].shape == (3, 64)
