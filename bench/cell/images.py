"""What cells of images have of their own: features, FID by the protocol of the papers, excerpts.

Excerpts are stored for pictures, which need no data set later: a few paths, and the nearest
training images of the best and the worst samples.
"""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from bench.cell.context import CellContext, RunContext
from bench.cell.evaluate import Evaluation
from bench.features.build import FeatureExtractors, FeatureSets, Pixels
from bench.features.inception import FidError
from bench.metrics.images import fid_train
from bench.metrics.neighbours import nearest
from datasets import Distribution
from datasets.base import Empirical

# Numbers of the images that are seen through Inception at a time: 64 MB, and some copies.
FID_NUMBERS = 2**24
FRAMES, FOLLOWED = 9, 4  # states of a path that are kept, and paths
RANKED = 6  # best samples that are kept with their neighbours, and worst ones
BLOCK = 4096  # training images that are compared at a time


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether data of a shape are images: (channels, height, width)."""
    return len(shape) == 3


def with_features(data: Evaluation, context: CellContext, run: RunContext) -> Evaluation:
    """With the features of every set, if the samples are images.

    Of the source where it is images too.
    """
    shape, units = context.target.shape, context.target.normalisation
    if not is_image(shape):
        return data
    pixels = Pixels.of(data.target if data.train is None else data.train, shape, units)
    labelled = context.labelled()
    extractors = FeatureExtractors(labelled, pixels, run.fid_weights, run.device, run.features)
    source = None
    if data.native and not context.task.noise_source:
        own = context.source.normalisation
        source = data.source if own is units else units.apply(own.undo(data.source))
    sets = FeatureSets(data.samples, data.target, data.second_target, source, data.train)
    return dataclasses.replace(data, features=extractors.sets(sets), extractors=extractors)


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


def excerpts(
    target: Distribution, samples: Tensor, held_out: Tensor, path: Tensor
) -> dict[str, Tensor]:
    """Arrays by name: ``shape``, ``paths``, ``ranked``, ``neighbours``, ``distances``.

    None for data that are no images, and no neighbours where the target is no data set. Samples
    (n, D), held-out target samples (m, D) and the path (T+1, k, D), k > 0, of the first samples
    are in the units of the task; images are returned in the original units.

    Returns:
        ``shape`` (3,): channels, height, width.
        ``paths`` (T', S, D): of S <= ``FOLLOWED`` samples T' <= ``FRAMES`` states, evenly from the
        first to the last; in the units of the target everywhere.
        ``ranked`` (2k, D): the k <= ``RANKED`` samples that are nearest to held-out ones, the
        nearest first, then the k farthest. ``neighbours`` (2k, D): the nearest training image of
        each. ``distances`` (2k, 2): to the held-out and to the training image, units of the task.
    """
    if not is_image(target.shape):
        return {}
    original = target.normalisation.undo
    kept = {"shape": torch.tensor(target.shape), "paths": original(frames(path))}
    if isinstance(target, Empirical):
        distances = torch.from_numpy(nearest(samples, held_out))
        ranked = extremes(distances)
        found, distance = nearest_images(samples[ranked], target.train)
        kept |= {"ranked": original(samples[ranked]), "neighbours": original(found)}
        kept["distances"] = torch.stack([distances[ranked], distance], dim=1)
    return kept


def frames(path: Tensor) -> Tensor:
    """The states of a path (T+1, k, D) that are kept, of the samples that are followed."""
    chosen = [round((len(path) - 1) * k / (FRAMES - 1)) for k in range(FRAMES)]
    return path[list(dict.fromkeys(chosen)), :FOLLOWED]


def extremes(distances: Tensor) -> Tensor:
    """Indices of the best, best first, and of the worst, worst last; none is both."""
    order = distances.argsort(stable=True)
    k = min(RANKED, len(order) // 2)
    return torch.cat([order[:k], order[len(order) - k :]])


def nearest_images(points: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest row of ``train`` (N, D) to each point (n, D), and its distance (n,).

    Differences are formed, in double precision: what is a copy has the distance 0.
    """
    exactly = "donot_use_mm_for_euclid_dist"
    parts = [
        torch.cdist(points.double(), block.double(), compute_mode=exactly)
        for block in torch.split(train, BLOCK)
    ]
    distance, index = torch.cat(parts, dim=1).min(dim=1)
    return train[index], distance
