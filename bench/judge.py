"""What the samples of a cell are judged by: its sets of samples, and for images their features."""

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from bench.evaluate import Evaluation
from bench.features import FeatureSets
from bench.features.build import Pixels, Views
from bench.metrics import fid_train
from bench.metrics.distances import moments_of
from datasets import Distribution, Task
from datasets.base import Empirical

FID_BLOCK = 4096
"""Images whose features are in memory at a time, 32 MB of them."""


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


def fid_to_training_set(
    fresh: Iterable[Tensor], held_out: Tensor, target: Distribution, views: Views
) -> dict[str, float]:
    """``fid_train`` and its floor; nothing without Inception or without a training set.

    Args:
        fresh: blocks of samples (k, D), drawn only where they are needed.
        held_out: real samples that are not of the training set, (m, D).
        target: the data set.
        views: its feature maps.
    """
    inception = views.inception
    if inception is None or not isinstance(target, Empirical):
        return {}

    def train() -> Iterator[Tensor]:
        return map(views.pixels, target.training_blocks(FID_BLOCK))

    whole = inception.reference_moments(train)
    found = inception.moments(map(views.pixels, fresh))
    real = moments_of(inception.reference(views.pixels(held_out)))
    return {"fid_train": fid_train(found, whole), "fid_train_floor": fid_train(real, whole)}


def same_units(samples: Tensor, source: Distribution, target: Distribution) -> Tensor:
    """Samples of the source in the units of the target."""
    if source.normalisation is target.normalisation:
        return samples
    return target.normalisation.apply(source.normalisation.undo(samples))
