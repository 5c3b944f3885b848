"""What is kept of a cell of images for its pictures, so that they need no data set later.

A few paths, and the nearest training images of the best and the worst samples.
"""

import torch
from torch import Tensor

from bench.metrics.neighbours import nearest
from datasets import Distribution
from datasets.base import Empirical

FRAMES, FOLLOWED = 9, 4  # states of a path that are kept, and paths
RANKED = 6  # best samples that are kept with their neighbours, and worst ones
BLOCK = 4096  # training images that are compared at a time


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether data of a shape are images: (channels, height, width)."""
    return len(shape) == 3


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
