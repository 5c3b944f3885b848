"""Every feature set of one cell, and what its record says about them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.features import inception
from bench.features.classifier import FEATURES, Classifier, classifier
from bench.features.colour import colours
from bench.features.sets import FeatureSets
from datasets import Normalisation, Task
from datasets.base import Labelled


@dataclass(frozen=True)
class Pixels:
    """From vectors in the units of a task to images in [0, 1].

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
        """Images (n, C, H, W) of samples (n, D)."""
        original = self.normalisation.undo(samples.float())
        scaled = (original - self.low) / (self.high - self.low)
        return scaled.clamp(0, 1).reshape(-1, *self.shape)


class Views:
    """The feature maps of a task of images, and ``record``, what they were made of.

    ``classifier`` and ``classes`` where the task has labelled images, ``colour`` where images have
    three channels and the source is images too, ``inception`` where its weights are and images are
    large enough. The record has ``classifier_hash``, ``classifier_accuracy`` and
    ``fid_weights_hash``, or ``fid_reason``, why there is no FID.

    Args:
        task: for its labelled images.
        pixels: how its samples become images.
        fid_weights: the weight file of pytorch-fid; None for its usual place.
        device: where Inception runs. The classifier runs on the CPU, the same everywhere.
    """

    def __init__(
        self,
        task: Task,
        pixels: Pixels,
        fid_weights: str | None = None,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.pixels = pixels
        self.judge: Classifier | None = None
        self.wanted: tuple[int, ...] = ()
        self.inception: inception.Inception | None = None
        self.record: dict[str, Any] = {}
        labelled = task.labelled()
        if labelled is not None:
            self.judge, self.wanted = classifier_of(labelled, pixels), labelled.wanted
            self.record["classifier_hash"] = self.judge.hash
            self.record["classifier_accuracy"] = self.judge.accuracy
        try:
            inception.check_shape(pixels.shape)
            path = inception.weight_file(fid_weights)
            self.inception = inception.Inception(path, device)
            self.record["fid_weights_hash"] = self.inception.hash
        except inception.FidError as error:
            self.record["fid_reason"] = str(error)

    def sets(self, sets: FeatureSets) -> dict[str, FeatureSets]:
        """The features of sets of samples, each (n, D) in the units of the task, by map."""
        images = sets.seen(self.pixels)
        features: dict[str, FeatureSets] = {}
        if self.judge is not None:
            both = images.seen(self._classified)
            features["classifier"] = both.seen(lambda x: x[:, :FEATURES])
            features["classes"] = both.seen(lambda x: x[:, FEATURES:], self.wanted)
        if self.pixels.shape[0] == 3 and images.source is not None:
            features["colour"] = images.seen(colours)
        if self.inception is not None:  # seconds an image batch: only what FID is made of
            real = (images.target, images.second_target)
            first, second = (self.inception.reference(x) for x in real)
            features["inception"] = FeatureSets(self.inception(images.samples), first, second)
        return features

    def samples(self, samples: Tensor) -> dict[str, Tensor]:
        """The features of other samples (n, D) that distances are made of, by map."""
        images, features = self.pixels(samples), {}
        if self.judge is not None:
            features["classifier"] = self._classified(images)[:, :FEATURES]
        if self.inception is not None:
            features["inception"] = self.inception(images)
        return features

    def _classified(self, images: Tensor) -> Tensor:
        """Features and class probabilities side by side, (n, F + K)."""
        assert self.judge is not None
        return torch.cat(self.judge(images), 1)


def classifier_of(labelled: Labelled, pixels: Pixels) -> Classifier:
    """The classifier of labelled samples in the units of the task."""
    train, test = pixels(labelled.train), pixels(labelled.test)
    return classifier(
        *(train, labelled.train_labels, test, labelled.test_labels, len(labelled.names))
    )
