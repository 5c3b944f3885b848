"""scikit-learn's real handwritten digits, 8x8 pixels with values 0 to 16."""

from functools import cache
from typing import ClassVar

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from datasets.base import Distribution, Empirical, Labelled, Normalisation, Task, register
from datasets.gaussians import StandardNormal

PIXELS = Normalisation(shift=8.0, scale=8.0)
"""Pixels 0..16 to [-1, 1]."""
SHAPE = (1, 8, 8)
SPLIT_SEED = 0
"""Half of the images of each digit are held out, the same ones in every run."""


@cache
def _split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, test images (n, 64) and their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images, labels, test_size=0.5, random_state=SPLIT_SEED, stratify=labels
    )
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return train, test, train_labels, test_labels


def digits(label: int | None = None) -> Empirical:
    """The images of one digit, or of all, in [-1, 1]."""
    train, test, train_labels, test_labels = _split()
    if label is not None:
        train, test = train[train_labels == label], test[test_labels == label]
    return Empirical(train, test, SHAPE, PIXELS)


def labelled_digits(wanted: tuple[int, ...]) -> Labelled:
    """All digits with their labels, in [-1, 1]."""
    train, test, train_labels, test_labels = _split()
    parts = PIXELS.apply(train.float()), train_labels, PIXELS.apply(test.float()), test_labels
    return Labelled(*parts, names=tuple("0123456789"), wanted=wanted)


@register
class GaussianToDigits(Task):
    """N(0, I) to the digits 0 to 9."""

    name: ClassVar[str] = "gaussian_to_digits"
    title: ClassVar[str] = "Gaussian to digits"
    dim: ClassVar[int] = 64
    noise_source: ClassVar[bool] = True

    def source(self) -> Distribution:
        return StandardNormal(SHAPE)

    def target(self) -> Distribution:
        return digits()

    def labelled(self) -> Labelled:
        return labelled_digits(tuple(range(10)))


@register
class DigitsThreeToTwo(Task):
    """Handwritten 3s to handwritten 2s: real data on both plates."""

    name: ClassVar[str] = "digits_3_to_2"
    title: ClassVar[str] = "Digits 3 to 2"
    dim: ClassVar[int] = 64
    noise_source: ClassVar[bool] = False

    def source(self) -> Distribution:
        return digits(3)

    def target(self) -> Distribution:
        return digits(2)

    def labelled(self) -> Labelled:
        return labelled_digits((2,))
