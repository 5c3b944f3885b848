"""What the samples of a cell are judged by: its sets of samples, and for images their features."""

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from bench.evaluate import Evaluation
from bench.features import FeatureSets
from bench.features.build import Pixels, Views
from bench.features.inception import FidError
from bench.metrics import fid_train
from datasets import Distribution, Task
from datasets.base import Empirical

FID_NUMBERS = 2**24
"""Numbers of the images that are seen through Inception at a time: 64 MB, and some copies."""


def views_of(
    task: Task,
    target: Distribution,
    real: Tensor,
    fid_weights: str | None,
    device: torch.device,
) -> Views | None:
    """The feature maps of a task whose samples are images; None of another.

    Args:
        task: the task.
        target: its target.
        real: real samples, whose pixels have the range of images, (N, D).
        fid_weights: the weight file of pytorch-fid; None for its usual place.
        device: where Inception runs.
    """
    if len(target.shape) != 3:
        return None
    pixels = Pixels.of(real, target.shape, target.normalisation)
    return Views(task, pixels, fid_weights, device)


def with_features(data: Evaluation, views: Views | None, source: Tensor | None) -> Evaluation:
    """With the features of every set; of the training set as many as there are samples.

    Metrics of memory compare no more. ``source`` is None where lines start at noise.
    """
    if views is None:
        return data
    train = None if data.train is None else data.train[: len(data.samples)]
    sets = FeatureSets(data.samples, data.target, data.second_target, source, train)
    return dataclasses.replace(data, features=views.sets(sets))


def with_samples(data: Evaluation, samples: Tensor, views: Views | None) -> Evaluation:
    """With other samples, for distances alone: classes and colours are left out."""
    seen = {} if views is None else views.samples(samples)
    features = {
        name: dataclasses.replace(data.features[name], samples=own) for name, own in seen.items()
    }
    return dataclasses.replace(data, samples=samples, features=features)


def fid_block(dim: int) -> int:
    """Images of ``dim`` numbers that are seen through Inception at a time."""
    return max(1, FID_NUMBERS // dim)


def fid_to_training_set(
    fresh: Iterable[Tensor], target: Distribution, views: Views
) -> dict[str, float]:
    """``fid_train``, and that of all test images; nothing without Inception or a training set.

    Args:
        fresh: blocks of samples (k, D), drawn only where they are needed.
        target: the data set.
        views: its feature maps.

    Raises:
        FidError: samples that are not finite, or fewer than two images of a kind.
    """
    inception = views.inception
    if inception is None or not isinstance(target, Empirical):
        return {}

    size = fid_block(target.dim)

    def train() -> Iterator[Tensor]:
        return map(views.pixels, target.training_blocks(size))

    def test() -> Iterator[Tensor]:
        return map(views.pixels, torch.split(target.test, size))

    def finite() -> Iterator[Tensor]:
        for samples in fresh:
            if lost := int((~samples.isfinite()).any(1).sum()):
                raise FidError(f"fid_train: {lost} of {len(samples)} samples are not finite")
            yield views.pixels(samples)

    whole, real = inception.reference_moments(train), inception.reference_moments(test)
    found = inception.moments(finite())
    if min(found.n, whole.n, real.n) < 2:
        raise FidError("fid_train: one image has no covariance")
    return {"fid_train": fid_train(found, whole), "fid_train_floor": fid_train(real, whole)}


def same_units(samples: Tensor, source: Distribution, target: Distribution) -> Tensor:
    """Samples of the source in the units of the target."""
    if source.normalisation is target.normalisation:
        return samples
    return target.normalisation.apply(source.normalisation.undo(samples))
