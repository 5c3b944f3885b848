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


def feature_sets(
    task: Task,
    shape: tuple[int, ...],
    normalisation: Normalisation,
    sets: FeatureSets,
    fid_weights: str | None = None,
    device: torch.device = torch.device("cpu"),
) -> tuple[dict[str, FeatureSets], dict[str, Any]]:
    """The features of every set of a cell of images, by feature map, and what made them.

    The classifier and its classes where the task has labelled images, colours where images have
    three channels and the source is images too, and Inception's where its weights are and images
    are large enough. The record has ``classifier_hash``, ``classifier_accuracy`` and
    ``fid_weights_hash``, or ``fid_reason``, why there is no FID. A task that is not of images has
    nothing of all this.

    Args:
        task: for its labelled images.
        shape: of a sample.
        normalisation: of all sets.
        sets: the samples themselves, each set (n, D) in the units of the task.
        fid_weights: the weight file of pytorch-fid; None for its usual place.
        device: where Inception runs. The classifier runs on the CPU, the same everywhere.
    """
    if len(shape) != 3:
        return {}, {}
    real = sets.target if sets.train is None else sets.train
    pixels = Pixels.of(real, shape, normalisation)
    images = sets.seen(pixels)
    features: dict[str, FeatureSets] = {}
    record: dict[str, Any] = {}
    labelled = task.labelled()
    if labelled is not None:
        judge = classifier_of(labelled, pixels)
        both = images.seen(lambda x: torch.cat(judge(x), 1))
        features["classifier"] = both.seen(lambda x: x[:, :FEATURES])
        features["classes"] = both.seen(lambda x: x[:, FEATURES:], labelled.wanted)
        record |= {"classifier_hash": judge.hash, "classifier_accuracy": judge.accuracy}
    if shape[0] == 3 and images.source is not None:
        features["colour"] = images.seen(colours)
    try:
        features["inception"], record["fid_weights_hash"] = _inception(images, fid_weights, device)
    except inception.WeightsError as error:
        record["fid_reason"] = str(error)
    return features, record


def classifier_of(labelled: Labelled, pixels: Pixels) -> Classifier:
    """The classifier of labelled samples in the units of the task."""
    train, test = pixels(labelled.train), pixels(labelled.test)
    return classifier(
        *(train, labelled.train_labels, test, labelled.test_labels, len(labelled.names))
    )


def _inception(
    images: FeatureSets, fid_weights: str | None, device: torch.device
) -> tuple[FeatureSets, str]:
    """Of samples and target sets, and the hash of the weights.

    Raises:
        inception.WeightsError: no weights, or images of no use.
    """
    channels, height, width = images.samples.shape[1:]
    if channels not in (1, 3) or min(height, width) < inception.SMALLEST_SIDE:
        raise inception.WeightsError(
            f"images are {channels}x{height}x{width}: Inception takes 1 or 3 channels, and"
            f" {inception.SMALLEST_SIDE} pixels a side or more"
        )
    network = inception.Inception(inception.weight_file(fid_weights), device)
    first, second = (network.reference(x) for x in (images.target, images.second_target))
    return FeatureSets(network(images.samples), first, second), network.hash
