"""Sets of images, kept as bytes, the tasks of such sets, and operations on images in bytes.

An image in bytes is a vector (D,) of uint8, in the order (channels, height, width). Original units
are bytes / 255; those of a task are standardised by one mean and deviation of the training pixels.
"""

import contextlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from typing import ClassVar, Self

import torch
from torch import Tensor

from datasets.base import (
    DataError,
    Distribution,
    Empirical,
    Labelled,
    Normalisation,
    Split,
    Task,
    digest_of,
    validation_part,
)

MOST_NUMBERS = 2**26  # pixel values of a part that is decoded as a whole: 256 MiB
BLOCK = 4096  # images that are hashed or coloured at a time

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``augment(images (n, C, H, W), rng)``: images of the same distribution, bytes as they are."""


@dataclass(frozen=True)
class ByteImages:
    """Some images of a data set, without a copy of them."""

    images: Tensor  # (N, D) uint8, of the whole set; perhaps mapped from a file
    rows: Tensor  # (n,) int64, which of them

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The bytes of the images at the places ``index`` (k,), shape (k, D)."""
        return self.images[self.rows[index]]

    def bounded(self) -> Tensor:
        """Places of all images; of a set larger than ``MOST_NUMBERS`` of some, always the same."""
        most = max(1, MOST_NUMBERS // self.images.shape[1])
        if len(self) <= most:
            return torch.arange(len(self))
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:most]

    def blocks(self) -> Iterator[Tensor]:
        """The bytes of all images in their order, ``BLOCK`` at a time, each (k, D)."""
        return (self.images[rows] for rows in torch.split(self.rows, BLOCK))

    def which(self) -> Tensor:
        """Numbers 0, 1, ... of the different images, (n,); equal images have the same."""
        numbers: dict[bytes, int] = {}
        every = (blake2b(self.images[row].numpy().tobytes()).digest() for row in self.rows.tolist())
        return torch.tensor([numbers.setdefault(digest, len(numbers)) for digest in every])


class Images(Empirical):
    """The images of a data set, kept as bytes: a quarter of float32, or mapped from a file.

    Draws are decoded when they are made. Training draws may be augmented; ``train``, the draws of
    low variance and the second set are the images as they are.
    """

    def __init__(
        self,
        train_bytes: ByteImages,
        test_bytes: ByteImages,
        shape: tuple[int, ...],
        normalisation: Normalisation,
        augment: Augment | None = None,
    ) -> None:
        self.train_bytes, self.test_bytes, self.shape = train_bytes, test_bytes, shape
        self.normalisation, self.augment = normalisation, augment

    @property
    def train(self) -> Tensor:  # type: ignore[override]  # nobody sets it
        """The training images, or as many of them as memory should hold."""
        return self.decode(self.train_bytes[self.train_bytes.bounded()])

    @property
    def test(self) -> Tensor:  # type: ignore[override]
        return self.decode(self.test_bytes[self.test_bytes.bounded()])

    @property
    def parts(self) -> tuple[ByteImages, ByteImages]:
        return self.train_bytes, self.test_bytes

    def decode(self, kept: Tensor) -> Tensor:
        """Bytes in the units of the task, (n, D)."""
        return self.normalisation.apply(kept.float() / 255)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.decode(self._drawn(n, rng))

    def sample_on(self, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """Decoded on the device: a quarter of the bytes to move, and no CPU time."""
        own_units = isinstance(self.normalisation.shift, Tensor)
        if type(self).sample is not Images.sample or own_units:
            return super().sample_on(n, rng, device)
        return self.decode(self._drawn(n, rng).to(device))

    def _drawn(self, n: int, rng: torch.Generator) -> Tensor:
        images = self.train_bytes[torch.randint(len(self.train_bytes), (n,), generator=rng)]
        if self.augment is None:
            return images
        return self.augment(images.view(n, *self.shape), rng).flatten(1)

    def for_validation(self, seed: int = 0) -> Self:
        images, rows = self.train_bytes.images, self.train_bytes.rows
        held = validation_part(self.train_bytes.which(), seed)
        parts = ByteImages(images, rows[~held]), ByteImages(images, rows[held])
        return type(self)(*parts, self.shape, self.normalisation, self.augment)

    def digest(self) -> str:
        head = json.dumps([self.normalisation.record(), self.shape, *map(len, self.parts)])
        return digest_of(chain([head], self.train_bytes.blocks(), self.test_bytes.blocks()))[:16]


@dataclass(frozen=True, eq=False)  # tensors have no equality: a set is equal to itself alone
class ImageSet:
    """Labelled images of one size, split into training and test images."""

    shape: tuple[int, ...]
    split: Split  # samples (n, D) uint8
    names: tuple[str, ...]  # the classes in words

    @cached_property
    def normalisation(self) -> Normalisation:
        """One mean and one standard deviation, of the training pixels of all classes."""
        every = ByteImages(self.split.train, torch.arange(len(self.split.train)))
        counts = torch.bincount(every[every.bounded()].flatten(), minlength=256).double()
        values = torch.arange(256).double() / 255
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        if int((counts > 0).sum()) < 2:
            raise DataError("the training images are all of one value")
        return Normalisation(mean, variance**0.5)

    def distribution(
        self, classes: Iterable[int] | None = None, augment: Augment | None = None
    ) -> Images:
        """The images of some classes, or of all; DataError where a part has none of a class."""
        parts = []
        for part, (images, labels) in {"training": self.split[:2], "test": self.split[2:]}.items():
            wanted = set(labels.tolist() if classes is None else classes)
            if lacking := sorted(wanted - set(labels.tolist())):
                raise DataError(f"no {part} image is of the class {self.names[lacking[0]]}")
            rows = torch.isin(labels, torch.tensor(sorted(wanted))).nonzero()[:, 0]
            parts.append(ByteImages(images, rows))
        return Images(parts[0], parts[1], self.shape, self.normalisation, augment)

    def labelled(
        self,
        wanted: Iterable[int],
        tuned: Iterable[tuple[int, ...]] = (),
        name: str | None = None,
    ) -> Labelled:
        """Images with their labels, as many of each part as memory should hold.

        Left out of the training images are those that tuning evaluates on: the part for validation
        of each choice of classes in ``tuned``.
        """
        every = self.distribution()
        rows = every.train_bytes.rows
        for classes in tuned:
            rows = rows[~torch.isin(rows, self._validation_rows(classes))]
        learned = Images(
            ByteImages(self.split.train, rows), every.test_bytes, self.shape, self.normalisation
        )
        train_labels = self.split.train_labels[rows[learned.train_bytes.bounded()]]
        test_labels = self.split.test_labels[every.test_bytes.bounded()]
        parts = learned.train, train_labels, learned.test, test_labels
        return Labelled(*parts, self.names, tuple(wanted), name)

    def _validation_rows(self, classes: tuple[int, ...]) -> Tensor:
        """Which training images of some classes are for validation, (k,) int64."""
        images = self.distribution(classes)
        try:
            return images.for_validation().test_bytes.rows
        except ValueError:  # all are equal: these tuning refuses, and nothing else
            return torch.empty(0, dtype=torch.int64)


class ImageTask(Task):
    """Some classes of a set of images are the target, and others the source."""

    data_set_source = True
    source_classes: ClassVar[tuple[int, ...]]  # where the source is not noise
    target_classes: ClassVar[tuple[int, ...]]

    @abstractmethod
    def images(self) -> ImageSet:
        """The images of all classes."""

    def wanted(self) -> tuple[int, ...]:
        """The classes of the target."""
        return self.target_classes

    def tuned(self) -> set[tuple[int, ...]]:
        """The choices of classes whose images for validation no classifier is trained on."""
        return {self.wanted()} if self.noise_source else {self.wanted(), self.source_classes}

    def labelled_name(self) -> str | None:
        """Of the labelled images, where they are always the same ones; None elsewhere."""
        return None

    def augment(self) -> Augment | None:
        """What is done to images that are drawn for training."""
        return None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of files become a DataError of one line that begins with the name of the task."""
        try:
            yield
        except (DataError, OSError) as error:
            raise DataError(f"{self.name}: {' '.join(str(error).split())}") from None

    def distribution(self, classes: tuple[int, ...]) -> Images:
        """The images of some classes; DataError where files are missing or corrupt."""
        with self.errors():
            return self.images().distribution(classes, self.augment())

    def source(self) -> Distribution:
        return self.distribution(self.source_classes)

    def target(self) -> Distribution:
        return self.distribution(self.wanted())

    def labelled(self) -> Labelled:
        with self.errors():
            return self.images().labelled(self.wanted(), self.tuned(), self.labelled_name())

    def _labels(self) -> list[Tensor]:
        with self.errors():  # without decoding the images
            return [self.images().split.train_labels, self.images().split.test_labels]


class SizedTask(ImageTask):
    """Square images, brought to a size."""

    channels: ClassVar[int] = 3
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)


def shrunk(images: Tensor, size: int) -> Tensor:
    """Images (n, H, W) in bytes as (n, size, size), by antialiased linear interpolation."""
    if images.shape[1:] == (size, size):
        return images
    shape, images = (size, size), images[:, None].float()
    resized = torch.nn.functional.interpolate(images, shape, mode="bilinear", antialias=True)
    return resized[:, 0].round().clamp(0, 255).to(torch.uint8)


def hue(angle: Tensor) -> Tensor:
    r"""Red, green and blue in [0, 1] of full colours of hues h in [0, 1), shapes (n,) to (n, 3).

    .. math:: c_k = 1 - \max(0, \min(s_k, 4 - s_k, 1)),
        \quad s_k = (6 h + k) \bmod 6, \quad k = 5, 3, 1

    ``matplotlib.colors.hsv_to_rgb`` rounds otherwise: three pixels in a million would differ.
    """
    s = (6 * angle[:, None] + torch.tensor([5.0, 3.0, 1.0])) % 6
    return 1 - torch.minimum(s, 4 - s).clamp(0, 1)


def colored(grey: Tensor, angle: Tensor) -> Tensor:
    """Images (n, 3, H, W) of one hue each, in bytes, from grey ones (n, H, W) and hues (n,).

    Intensity times colour, so the largest channel is the intensity. Made in blocks, as floats take
    four times the memory.

    References:
        Gushchin et al., Adversarial Schrodinger Bridge Matching, 2024, and Kolesov et al., Field
        Matching, ICML 2025, colour MNIST with a hue of each image like this.
    """
    blocks = zip(torch.split(grey, BLOCK), torch.split(hue(angle), BLOCK), strict=True)
    return torch.cat([(x[:, None] * c[:, :, None, None]).round().byte() for x, c in blocks])


def recolored(images: Tensor, rng: torch.Generator) -> Tensor:
    """Coloured images (n, 3, H, W) with other, random hues; see :func:`colored`."""
    return colored(images.amax(1), torch.rand(len(images), generator=rng))


def flipped(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images (n, C, H, W) of which each is mirrored, left to right, with probability 1/2."""
    mirrored = torch.rand(len(images), generator=rng) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
