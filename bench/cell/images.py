"""The features of images that a cell is evaluated on, and FID by the protocol of the papers."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from bench.cell.context import CellContext, RunContext
from bench.cell.evaluate import Evaluation
from bench.cell.excerpts import is_image
from bench.features import FeatureSets
from bench.features.build import FeatureExtractors, Pixels
from bench.features.inception import FidError
from bench.metrics.images import fid_train
from datasets import Distribution
from datasets.base import Empirical

# Numbers of the images that are seen through Inception at a time: 64 MB, and some copies.
FID_NUMBERS = 2**24


def with_features(data: Evaluation, context: CellContext, run: RunContext) -> Evaluation:
    """With the features of every set, if the samples are images.

    Of the training set as many as there are samples: metrics of memory compare no more. Of the
    source where it is images too.
    """
    shape, units = context.target.shape, context.target.normalisation
    if not is_image(shape):
        return data
    pixels = Pixels.of(data.target if data.train is None else data.train, shape, units)
    extractors = FeatureExtractors(context.task, pixels, run.fid_weights, run.device)
    source = None
    if data.native and not context.task.noise_source:
        own = context.source.normalisation
        source = data.source if own is units else units.apply(own.undo(data.source))
    train = None if data.train is None else data.train[: len(data.samples)]
    sets = FeatureSets(data.samples, data.target, data.second_target, source, train)
    return dataclasses.replace(data, features=extractors.sets(sets), extractors=extractors)


def with_samples(data: Evaluation, samples: Tensor) -> Evaluation:
    """With other samples, for distances alone: classes and colours are left out."""
    seen = {} if data.extractors is None else data.extractors.samples(samples)
    sets = {k: dataclasses.replace(data.features[k], samples=own) for k, own in seen.items()}
    return dataclasses.replace(data, samples=samples, features=sets)


def fid_block(dim: int) -> int:
    """Images of ``dim`` numbers that are seen through Inception at a time."""
    return max(1, FID_NUMBERS // dim)


def fid_to_training_set(
    fresh: Iterable[Tensor], target: Distribution, extractors: FeatureExtractors
) -> dict[str, float]:
    """``fid_train``, and that of all test images; nothing without Inception or a training set.

    The blocks of ``fresh`` samples (k, D) are drawn only where they are needed.

    Raises:
        FidError: samples that are not finite, or fewer than two images of a kind.
    """
    inception, pixels, size = extractors.inception, extractors.pixels, fid_block(target.dim)
    if inception is None or not isinstance(target, Empirical):
        return {}
    whole = inception.reference_moments(lambda: map(pixels, target.training_blocks(size)))
    real = inception.reference_moments(lambda: map(pixels, torch.split(target.test, size)))
    found = inception.moments(map(pixels, map(_finite, fresh)))
    if min(found.n, whole.n, real.n) < 2:
        raise FidError("fid_train: one image has no covariance")
    return {"fid_train": fid_train(found, whole), "fid_train_floor": fid_train(real, whole)}


def _finite(samples: Tensor) -> Tensor:
    if lost := int((~samples.isfinite()).any(1).sum()):
        raise FidError(f"fid_train: {lost} of {len(samples)} samples are not finite")
    return samples
