"""Every feature set of one cell, and what its record says about them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bench.features import cache
from bench.features.classifier import FEATURES, Classifier, shipped, trained
from bench.features.custom import Custom
from bench.features.inception import FidError, Inception, check_shape, weight_file
from datasets import Normalisation
from datasets.base import Labelled, digest_of

DARK = 1e-5  # grey that is added to the mean: a black image is grey, colours do not change


@dataclass(frozen=True)
class FeatureSets:
    """The images of an evaluation seen through one feature map, row by row in the same order."""

    samples: Tensor  # (n, F)
    target: Tensor  # (n, F)
    second_target: Tensor  # (n, F)
    source: Tensor | None = None  # (n, F) where the source is images too
    train: Tensor | None = None  # (N, F) the training images
    wanted: tuple[int, ...] = ()  # of class probabilities: the columns of the target's classes

    def seen(self, look: Callable[[Tensor], Tensor], wanted: tuple[int, ...] = ()) -> Self:
        """These sets through another map: ``look`` of each set there is."""
        seen: dict[str, Any] = {name: look(rows) for name, rows in self._there().items()}
        return dataclasses.replace(self, **seen, wanted=wanted)

    def part(self, lines: Tensor, first: Tensor, second: Tensor) -> Self:
        """Some rows: ``lines`` of the samples and the source, each index (k,).

        ``first`` and ``second`` are of the two target sets; the training images stay.
        """
        index = {"samples": lines, "source": lines, "target": first, "second_target": second}
        part: dict[str, Any] = {k: x[index[k]] for k, x in self._there().items() if k in index}
        return dataclasses.replace(self, **part)

    def _there(self) -> dict[str, Tensor]:
        return {name: rows for name, rows in vars(self).items() if isinstance(rows, Tensor)}


@dataclass(frozen=True)
class Pixels:
    """From vectors (n, D) in the units of a task to images (n, C, H, W) in [0, 1].

    Values beyond the range are cut off, as on a screen. The range is [0, 1] if the data are in it,
    else that of the data (0 to 16 for scikit-learn's digits).
    """

    shape: tuple[int, ...]
    normalisation: Normalisation
    low: float
    high: float

    @classmethod
    def of(cls, samples: Tensor, shape: tuple[int, ...], normalisation: Normalisation) -> "Pixels":
        """With the range of these samples (n, D)."""
        original = normalisation.undo(samples)
        low, high = float(original.min()), float(original.max())
        slack = 1e-4  # of rounding, there and back
        if -slack <= low and high <= 1 + slack:
            low, high = 0.0, 1.0
        return cls(shape, normalisation, low, high)

    def __call__(self, samples: Tensor) -> Tensor:
        original = self.normalisation.undo(samples.float())
        scaled = (original - self.low) / (self.high - self.low)
        return scaled.clamp(0, 1).reshape(-1, *self.shape)


def colours(images: Tensor) -> Tensor:
    r"""The direction in RGB of the brightness-weighted mean pixel, float64 unit vectors (n, 3).

    .. math:: c = s / |s|, \quad s = \mathrm{mean}_p\, w_p x_p + \epsilon (1, 1, 1)

    over the pixels p of images (n, 3, H, W) with colours x_p in [0, 1]^3; w_p is the mean of the
    three channels. Dark pixels count little, so the colour is that of what is drawn; how large or
    bright it is does not matter.
    """
    pixels = images.double().flatten(2)  # (n, 3, P)
    weights = pixels.mean(1, keepdim=True)
    return torch.nn.functional.normalize((weights * pixels).mean(2) + DARK, dim=1)


def labelled_images(labelled: Labelled, pixels: Pixels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (N, C, H, W) in [0, 1] and labels (N,), and those of the test (M, ...)."""
    train, test = pixels(labelled.train), pixels(labelled.test)
    return train, labelled.train_labels, test, labelled.test_labels


class FeatureExtractors:
    """The feature maps of a task of images, and ``record``, what they were made of.

    ``classifier`` and ``classes`` where the task has labelled images, ``colour`` where images have
    three channels and the source is images too, ``inception`` where its weights are (in
    ``fid_weights``, or the usual place for None) and images are large enough. The record has
    ``classifier_hash``, ``classifier_accuracy`` and ``fid_weights_hash``, or ``fid_reason``, why
    there is no FID. Inception runs on the device, the classifier on the CPU: the same everywhere.
    ``custom`` is of the network in the file ``features``, on the device; the record has
    ``features_file``, its name, and ``features_hash``.
    """

    def __init__(
        self,
        labelled: Labelled | None,
        pixels: Pixels,
        fid_weights: str | None = None,
        device: torch.device = torch.device("cpu"),
        features: str | None = None,
    ) -> None:
        self.pixels = pixels
        self.classifier: Classifier | None = None
        self.wanted: tuple[int, ...] = ()
        self.inception: Inception | None = None
        self.custom = Custom(Path(features), device) if features else None
        self.record: dict[str, Any] = {}
        if self.custom is not None:
            self.record |= {"features_file": self.custom.name, "features_hash": self.custom.hash}
        if labelled is not None:
            self.wanted, classes = labelled.wanted, len(labelled.names)
            self.classifier = shipped(labelled.name, pixels.shape, classes) or trained(
                *labelled_images(labelled, pixels), classes
            )
            self.record["classifier_hash"] = self.classifier.hash
            self.record["classifier_accuracy"] = self.classifier.accuracy
        try:
            check_shape(pixels.shape)
            self.inception = Inception(weight_file(fid_weights), device)
            self.record["fid_weights_hash"] = self.inception.hash
        except FidError as error:
            self.record["fid_reason"] = str(error)

    def sets(self, sets: FeatureSets) -> dict[str, FeatureSets]:
        """The features of sets of samples, each (n, D) in the units of the task, by map."""
        images = sets.seen(self.pixels)
        features: dict[str, FeatureSets] = {}
        classifier = self.classifier
        if classifier is not None:
            # Features and class probabilities side by side: each image is seen once.
            both = dataclasses.replace(images, train=None).seen(
                lambda x: torch.cat(classifier(x), 1)
            )
            if images.train is not None:
                both = dataclasses.replace(both, train=_kept(classifier, images.train))
            features["classifier"] = both.seen(lambda x: x[:, :FEATURES])
            features["classes"] = both.seen(lambda x: x[:, FEATURES:], self.wanted)
        if self.pixels.shape[0] == 3 and images.source is not None:
            features["colour"] = images.seen(colours)
        if self.custom is not None:
            three = dataclasses.replace(images, source=None, train=None)
            features["custom"] = three.seen(self.custom)
        if self.inception is not None:  # seconds an image batch: only what FID is made of
            real = (images.target, images.second_target)
            first, second = (self.inception.reference(x) for x in real)
            features["inception"] = FeatureSets(self.inception(images.samples), first, second)
        return features

    def samples(self, samples: Tensor) -> dict[str, Tensor]:
        """The features and class probabilities of other samples (n, D), by map."""
        images, features = self.pixels(samples), {}
        if self.classifier is not None:
            features["classifier"], features["classes"] = self.classifier(images)
        if self.inception is not None:
            features["inception"] = self.inception(images)
        if self.custom is not None:
            features["custom"] = self.custom(images)
        return features


def _kept(classifier: Classifier, images: Tensor) -> Tensor:
    """Features and class probabilities of the training images, which all cells of a task share."""
    name = f"training-{digest_of([classifier.hash, images])[:32]}"
    return cache.kept(name, lambda: {"seen": torch.cat(classifier(images), 1)})["seen"]
