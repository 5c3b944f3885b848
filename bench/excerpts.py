"""What is kept of a cell of images for its pictures, so that they need no data set later.

A few paths, and the nearest training images of the samples that are judged best and worst.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.metrics.base import Array
from bench.metrics.neighbours import nearest
from datasets import Distribution
from datasets.base import Empirical

FRAMES, FOLLOWED = 9, 4
"""States of a path that are kept, and paths."""
RANKED = 6
"""Best samples that are kept with their neighbours, and worst ones."""
BLOCK = 4096
"""Training images that are compared at a time."""

Judge = Callable[[Tensor, Tensor], Array]
"""``judge(samples (n, D), held-out target (m, D))``: (n,), smaller is better."""


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether data of a shape are images: (channels, height, width)."""
    return len(shape) == 3


def excerpts(
    target: Distribution,
    samples: Tensor,
    held_out: Tensor,
    path: Tensor | None,
    judge: Judge = nearest,
) -> dict[str, Tensor]:
    """Arrays by name: ``shape``, ``paths``, ``ranked``, ``neighbours``, ``distances``.

    None for data that are no images; no ``paths`` where the method gives none, and no neighbours
    where the target is no data set. What is given is in the units of the task, images are
    returned in the original units.

    Args:
        target: the law of the target.
        samples: shape (n, D).
        held_out: held-out target samples, shape (m, D).
        path: shape (T+1, k, D), k > 0: the way of the first samples.
        judge: which samples are good.

    Returns:
        ``shape`` (3,): channels, height, width.
        ``paths`` (T', S, D): of S <= ``FOLLOWED`` samples T' <= ``FRAMES`` states, evenly from the
        first to the last; in the units of the target everywhere.
        ``ranked`` (2k, D): the k <= ``RANKED`` best samples, best first, then the k worst, worst
        last. ``neighbours`` (2k, D): the nearest training image of each.
        ``distances`` (2k, 2): its judgement, and its distance to that image, units of the task.
    """
    if not is_image(target.shape):
        return {}
    original = target.normalisation.undo
    kept = {"shape": torch.tensor(target.shape)}
    if path is not None:
        kept["paths"] = original(frames(path))
    if isinstance(target, Empirical):
        judged = torch.from_numpy(judge(samples, held_out))
        ranked = extremes(judged)
        found, distance = nearest_images(samples[ranked], target.train)
        kept |= {"ranked": original(samples[ranked]), "neighbours": original(found)}
        kept["distances"] = torch.stack([judged[ranked], distance], dim=1)
    return kept


def frames(path: Tensor) -> Tensor:
    """The states of a path (T+1, k, D) that are kept, of the samples that are followed."""
    last = len(path) - 1
    chosen = [round(last * k / (FRAMES - 1)) for k in range(FRAMES)]
    return path[list(dict.fromkeys(chosen)), :FOLLOWED]


def extremes(judged: Tensor) -> Tensor:
    """Indices of the best, best first, and of the worst, worst last; none is both."""
    order = judged.argsort(stable=True)
    k = min(RANKED, len(order) // 2)
    return torch.cat([order[:k], order[len(order) - k :]])


def nearest_images(points: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest row of ``train`` (N, D) to each point (n, D), and its distance (n,).

    Differences are formed, in double precision: what is a copy has the distance 0.
    """
    best = torch.full((len(points),), torch.inf, dtype=torch.float64)
    found = torch.empty_like(points)
    for start in range(0, len(train), BLOCK):
        block = train[start : start + BLOCK]
        distances = torch.cdist(
            points.double(), block.double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        distance, index = distances.min(dim=1)
        closer = distance < best
        best = torch.where(closer, distance, best)
        found[closer] = block[index[closer]]
    return found, best
