"""Colour patches of the two photographs that ship with scikit-learn: a temple and a flower.

Training and test patches come from different vertical strips, in turn: no pixel is in both.
"""

from functools import cache

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import load_sample_image
from torch import Tensor

from datasets.base import Split, register
from datasets.gaussians import FromNoise
from datasets.images import ImageSet, SizedTask

PHOTOGRAPHS = "china", "flower"
STRIP = 64  # columns: the photographs have ten strips
PATCHES = 2000  # of each photograph and part; none is at the place of another


def places(height: int, width: int, size: int, part: int, rng: torch.Generator) -> Tensor:
    """Upper left corners (row, column) of patches inside the strips of a part, (PATCHES, 2).

    Part 0, for training, has the strips of even numbers, and part 1, for the test, the others.
    """
    columns = torch.arange(width - size + 1)
    first, last = columns // STRIP, (columns + size - 1) // STRIP
    columns = columns[(first == last) & (first % 2 == part)]
    rows = height - size + 1
    chosen = torch.randperm(rows * len(columns), generator=rng)[:PATCHES]
    return torch.stack([chosen // len(columns), columns[chosen % len(columns)]], dim=1)


@cache
def patches(size: int) -> ImageSet:
    """The patches of both photographs."""
    rng = torch.Generator().manual_seed(0)  # the same places in every run
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name in PHOTOGRAPHS:
        photograph = load_sample_image(f"{name}.jpg")
        height, width, _ = photograph.shape
        windows = np.lib.stride_tricks.sliding_window_view(photograph, (size, size), axis=(0, 1))
        for part in (0, 1):
            rows, columns = places(height, width, size, part, rng).numpy().T
            parts[part].append(torch.from_numpy(windows[rows, columns]).flatten(1))
    labels = torch.arange(len(PHOTOGRAPHS)).repeat_interleave(PATCHES)
    train, test = (torch.cat(part) for part in parts)
    return ImageSet((3, size, size), Split(train, labels, test, labels), PHOTOGRAPHS)


class Patches(SizedTask):
    """What the tasks share."""

    dim = 3 * 32 * 32
    size: int = Field(32, ge=8, le=STRIP // 2, multiple_of=4)

    def images(self) -> ImageSet:
        return patches(self.size)

    def tuned(self) -> set[tuple[int, ...]]:
        """Those of both tasks, which share one set of labelled images."""
        return {(0, 1), (0,), (1,)}

    def labelled_name(self) -> str:
        return f"patches_{self.size}"


@register
class GaussianToPatches(FromNoise, Patches):
    """N(0, I) to patches of both photographs."""

    name, title = "gaussian_to_patches", "Gaussian to colour patches"
    target_classes = (0, 1)


@register
class PatchesAToB(Patches):
    """Patches of the temple to patches of the flower."""

    name, title = "patches_a_to_b", "Patches, temple to flower"
    source_classes, target_classes = (0,), (1,)
