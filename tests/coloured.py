"""A plugin for tests: small colour images, a red square on black and a blue one."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datasets import Distribution, Empirical, Normalisation, Task, register
from datasets.base import DataError
from datasets.gaussians import StandardNormal

HERE = True
"""Whether the images of the tasks are there."""


def squares(channel: int, size: int, count: int, seed: int) -> Tensor:
    """Images (count, 3 size size) in [0, 1]: a square of one colour, somewhere."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, size, size)
    for image in images:
        row, column = torch.randint(size - 2, (2,), generator=rng)
        image[channel, row : row + 3, column : column + 3] = 1 - 0.5 * torch.rand(1, generator=rng)
    return images.flatten(1)


def data(channel: int, size: int) -> Distribution:
    """The squares of one colour in [-1, 1]."""
    if not HERE:
        raise DataError("squares: the images are gone")
    parts = squares(channel, size, 90, 0), squares(channel, size, 40, 1)
    return Empirical(*parts, (3, size, size), Normalisation(0.5, 0.5))


@register
class RedToBlue(Task):
    """Red squares to blue ones."""

    name: ClassVar[str] = "red_to_blue"
    title: ClassVar[str] = "Red to blue"
    dim: ClassVar[int] = 3 * 36
    noise_source: ClassVar[bool] = False
    size: int = Field(6, ge=4, le=8)

    def source(self) -> Distribution:
        return data(0, self.size)

    def target(self) -> Distribution:
        return data(2, self.size)


@register
class GaussianToRed(Task):
    """N(0, I) to red squares."""

    name: ClassVar[str] = "gaussian_to_red"
    title: ClassVar[str] = "Gaussian to red"
    dim: ClassVar[int] = 3 * 36
    noise_source: ClassVar[bool] = True
    size: int = Field(6, ge=4, le=8)

    def source(self) -> Distribution:
        return StandardNormal((3, self.size, self.size))

    def target(self) -> Distribution:
        return data(0, self.size)
