"""Real tables that ship with scikit-learn: wine (13 columns) and breast cancer (30 columns)."""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.model_selection import train_test_split
from torch import Tensor

from datasets.base import Distribution, Empirical, Normalisation, Task, register
from datasets.gaussians import StandardNormal

SPLIT_SEED = 0
"""Half of the rows of each class are held out, the same ones in every run."""
MALIGNANT, BENIGN = 0, 1

LOADERS: dict[str, Callable[..., Any]] = {"wine": load_wine, "cancer": load_breast_cancer}


@cache
def _split(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training rows, test rows (n, D) and their classes."""
    rows, classes = LOADERS[name](return_X_y=True)
    parts = train_test_split(
        rows, classes, test_size=0.5, random_state=SPLIT_SEED, stratify=classes
    )
    train, test, train_classes, test_classes = (torch.from_numpy(part) for part in parts)
    return train, test, train_classes, test_classes


def rows(name: str, label: int | None = None) -> Empirical:
    """The rows of one class, or of all, standardised by the training rows of all classes."""
    train, test, train_classes, test_classes = _split(name)
    normalisation = Normalisation(train.mean(0).float(), train.std(0).float())
    if label is not None:
        train, test = train[train_classes == label], test[test_classes == label]
    return Empirical(train, test, (train.shape[1],), normalisation)


@register
class GaussianToWine(Task):
    """N(0, I) to 178 wines: 13 measurements of three cultivars."""

    name: ClassVar[str] = "gaussian_to_wine"
    title: ClassVar[str] = "Gaussian to wine"
    dim: ClassVar[int] = 13
    noise_source: ClassVar[bool] = True

    def source(self) -> Distribution:
        return StandardNormal((self.dim,))

    def target(self) -> Distribution:
        return rows("wine")


@register
class GaussianToCancer(Task):
    """N(0, I) to 569 tumours: 30 measurements of cell nuclei."""

    name: ClassVar[str] = "gaussian_to_cancer"
    title: ClassVar[str] = "Gaussian to breast cancer"
    dim: ClassVar[int] = 30
    noise_source: ClassVar[bool] = True

    def source(self) -> Distribution:
        return StandardNormal((self.dim,))

    def target(self) -> Distribution:
        return rows("cancer")


@register
class CancerBenignToMalignant(Task):
    """Benign tumours to malignant ones: real data on both plates."""

    name: ClassVar[str] = "cancer_benign_to_malignant"
    title: ClassVar[str] = "Breast cancer, benign to malignant"
    dim: ClassVar[int] = 30
    noise_source: ClassVar[bool] = False

    def source(self) -> Distribution:
        return rows("cancer", BENIGN)

    def target(self) -> Distribution:
        return rows("cancer", MALIGNANT)
