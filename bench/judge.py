"""What the samples of a cell are judged by: its sets of samples, and for images their features."""

import dataclasses

import torch
from torch import Tensor

from bench.evaluate import Evaluation
from bench.features import FeatureSets
from bench.features.build import Pixels, Views
from datasets import Distribution, Task


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


def same_units(samples: Tensor, source: Distribution, target: Distribution) -> Tensor:
    """Samples of the source in the units of the target."""
    if source.normalisation is target.normalisation:
        return samples
    return target.normalisation.apply(source.normalisation.undo(samples))
