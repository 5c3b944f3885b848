"""Real data that ship with scikit-learn: handwritten digits, and tables of wine and breast cancer.

Digits have 8x8 pixels with values 0 to 16, brought to [-1, 1]. The columns of tables are
standardised by the training rows of all classes.
"""

from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from datasets.base import (
    Distribution,
    Empirical,
    Labelled,
    Normalisation,
    Split,
    Task,
    halves,
    register,
)
from datasets.gaussians import FromNoise

LOADERS = {"digits": load_digits, "wine": load_wine, "cancer": load_breast_cancer}
TEN = tuple(range(10))
PIXELS = Normalisation(shift=8.0, scale=8.0)


@cache
def _split(name: str) -> Split:
    return halves(*LOADERS[name](return_X_y=True))


def samples(name: str, label: int | None = None) -> Empirical:
    """The images or rows of one class, or of all."""
    train, train_labels, test, test_labels = _split(name)
    digits = name == "digits"
    units = PIXELS if digits else Normalisation(train.mean(0).float(), train.std(0).float())
    if label is not None:
        train, test = train[train_labels == label], test[test_labels == label]
    return Empirical(train, test, (1, 8, 8) if digits else train.shape[1:], units)


@cache
def labelled_digits() -> Labelled:
    """All digits, one set for both tasks: without the images that tuning of either evaluates on."""
    split = _split("digits").map(lambda images: PIXELS.apply(images.float()))
    parts = (samples("digits", label).for_validation() for label in (None, 2, 3))
    held = torch.cat([part.test for part in parts])
    kept = ~(split.train[:, None] == held).all(2).any(1)
    split = split._replace(train=split.train[kept], train_labels=split.train_labels[kept])
    return Labelled(*split, names=tuple(map(str, TEN)), wanted=TEN, name="digits_8")


class Digits(Task):
    """What the tasks with digits as target share."""

    dim = 64

    def target(self) -> Distribution:
        return samples("digits")

    def labelled(self) -> Labelled:
        return labelled_digits()


@register
class GaussianToDigits(FromNoise, Digits):
    """N(0, I) to the digits 0 to 9."""

    name, title = "gaussian_to_digits", "Gaussian to digits"


@register
class DigitsThreeToTwo(Digits):
    """Handwritten 3s to handwritten 2s: real data on both plates."""

    name, title = "digits_3_to_2", "Digits 3 to 2"
    data_set_source = True

    def source(self) -> Distribution:
        return samples("digits", 3)

    def target(self) -> Distribution:
        return samples("digits", 2)

    def labelled(self) -> Labelled:
        return super().labelled()._replace(wanted=(2,))


@register
class GaussianToWine(FromNoise):
    """N(0, I) to 178 wines: 13 measurements of three cultivars."""

    name, title, dim = "gaussian_to_wine", "Gaussian to wine", 13

    def target(self) -> Distribution:
        return samples("wine")


@register
class GaussianToCancer(FromNoise):
    """N(0, I) to 569 tumours: 30 measurements of cell nuclei."""

    name, title, dim = "gaussian_to_cancer", "Gaussian to breast cancer", 30

    def target(self) -> Distribution:
        return samples("cancer")


@register
class CancerBenignToMalignant(Task):
    """Benign tumours to malignant ones: real data on both plates."""

    name, title, dim = "cancer_benign_to_malignant", "Breast cancer, benign to malignant", 30
    data_set_source = True

    def source(self) -> Distribution:
        return samples("cancer", 1)

    def target(self) -> Distribution:
        return samples("cancer", 0)
