"""Colour patches of the two photographs that ship with scikit-learn: a temple and a flower.

Training and test patches come from different vertical strips, in turn: no pixel is in both.
"""

from functools import cache
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import load_sample_image
from torch import Tensor

from datasets.base import Distribution, Labelled, Task, register
from datasets.gaussians import StandardNormal
from datasets.images import Bytes, ImageSet

PHOTOGRAPHS = "china", "flower"
STRIP = 64
"""Width of a strip: the photographs have ten."""
PATCHES = 2000
"""Patches of each photograph and part; none is at the place of another."""
PLACE_SEED = 0
"""They lie at the same places in every run."""


def places(height: int, width: int, size: int, part: int, rng: torch.Generator) -> Tensor:
    """Upper left corners (row, column) of patches inside the strips of a part, (PATCHES, 2).

    Args:
        height: of the photograph.
        width: of the photograph.
        size: of a patch.
        part: 0 for training, 1 for test: the strips with even, or with odd numbers.
        rng: chooses the places.
    """
    columns = torch.arange(width - size + 1)
    first, last = columns // STRIP, (columns + size - 1) // STRIP
    columns = columns[(first == last) & (first % 2 == part)]
    rows = height - size + 1
    chosen = torch.randperm(rows * len(columns), generator=rng)[:PATCHES]
    return torch.stack([chosen // len(columns), columns[chosen % len(columns)]], dim=1)


def _cut(photograph: Bytes, corners: Tensor, size: int) -> Tensor:
    """The patches (n, 3 * size * size) at corners (n, 2)."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (size, size), axis=(0, 1))
    row, column = corners.numpy().T
    return torch.from_numpy(windows[row, column]).flatten(1)


@cache
def patches(size: int) -> ImageSet:
    """The patches of both photographs."""
    rng = torch.Generator().manual_seed(PLACE_SEED)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name in PHOTOGRAPHS:
        photograph = load_sample_image(f"{name}.jpg")
        for part in (0, 1):
            corners = places(photograph.shape[0], photograph.shape[1], size, part, rng)
            parts[part].append(_cut(photograph, corners, size))
    labels = torch.arange(len(PHOTOGRAPHS)).repeat_interleave(PATCHES)
    train, test = (torch.cat(part) for part in parts)
    return ImageSet((3, size, size), train, labels, test, labels, PHOTOGRAPHS)


class Patches(Task):
    """What the tasks have in common."""

    size: int = Field(32, ge=8, le=STRIP // 2, multiple_of=4)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)


@register
class GaussianToPatches(Patches):
    """N(0, I) to patches of both photographs."""

    name: ClassVar[str] = "gaussian_to_patches"
    title: ClassVar[str] = "Gaussian to colour patches"
    dim: ClassVar[int] = 3 * 32 * 32
    noise_source: ClassVar[bool] = True

    def source(self) -> Distribution:
        return StandardNormal(self.shape)

    def target(self) -> Distribution:
        return patches(self.size).law()

    def labelled(self) -> Labelled:
        return patches(self.size).labelled((0, 1))


@register
class PatchesAToB(Patches):
    """Patches of the temple to patches of the flower."""

    name: ClassVar[str] = "patches_a_to_b"
    title: ClassVar[str] = "Patches, temple to flower"
    dim: ClassVar[int] = 3 * 32 * 32
    noise_source: ClassVar[bool] = False

    def source(self) -> Distribution:
        return patches(self.size).law((0,))

    def target(self) -> Distribution:
        return patches(self.size).law((1,))

    def labelled(self) -> Labelled:
        return patches(self.size).labelled((1,))
