"""Two-dimensional tasks with analytic laws.

The swiss roll, the moons and the S curve are those of scikit-learn, written with an explicit
generator; tests compare them with scikit-learn's own functions.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datasets.base import Distribution, Task, register
from datasets.gaussians import StandardNormal
from datasets.mixtures import Mixture


class SwissRoll(Distribution):
    """Columns 0 and 2 of ``sklearn.datasets.make_swiss_roll``, divided by ``divisor``.

    (t cos t, t sin t) + noise N(0, I), t ~ U(1.5 pi, 4.5 pi)
    """

    shape = (2,)

    def __init__(self, noise: float, divisor: float = 5.0) -> None:
        self.noise, self.divisor = noise, divisor

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=rng))
        curve = torch.stack([t * t.cos(), t * t.sin()], dim=1)
        return (curve + self.noise * torch.randn(n, 2, generator=rng)) / self.divisor


class EightGaussians(Mixture):
    """Eight equal N(mode, std^2 I), the modes equally spaced on a circle of ``radius``."""

    def __init__(self, radius: float, std: float) -> None:
        angle = torch.arange(8) * (2 * math.pi / 8)
        means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        super().__init__(means, torch.full((8,), std), torch.full((8,), 1 / 8))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.around(torch.randint(8, (n,), generator=rng), rng)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """Equal counts per mode."""
        return self.around(equal_counts(n, 8, rng), rng)


class Moons(Distribution):
    """The law of ``sklearn.datasets.make_moons``, times 3 minus 1.

    Upper moon (cos a, sin a), lower moon (1 - cos a, 1/2 - sin a), a ~ U(0, pi), plus
    noise N(0, I).
    """

    shape = (2,)

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self._on(torch.randint(2, (n,), generator=rng), rng)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """Equal counts per moon."""
        return self._on(equal_counts(n, 2, rng), rng)

    def _on(self, moon: Tensor, rng: torch.Generator) -> Tensor:
        angle = math.pi * torch.rand(len(moon), generator=rng)
        upper = torch.stack([angle.cos(), angle.sin()], dim=1)
        lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
        curve = torch.where(moon[:, None] == 0, upper, lower)
        return 3 * (curve + self.noise * torch.randn(len(moon), 2, generator=rng)) - 1


class SCurve(Distribution):
    """Columns 0 and 2 of ``sklearn.datasets.make_s_curve``, each brought to mean 0 and variance 1.

    (sin t, sign(t) (cos t - 1)) + noise N(0, I), t ~ U(-1.5 pi, 1.5 pi).
    """

    shape = (2,)

    def __init__(self, noise: float) -> None:
        self.noise = noise
        # Means are zero by symmetry. E sin^2 = 1/2 and E (cos t - 1)^2 = 3/2 - 2 E cos t over
        # three half periods, E cos t = -2 / (3 pi).
        self.variances = torch.tensor([0.5, 1.5 + 4 / (3 * math.pi)]) + noise**2

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        t = 3 * math.pi * (torch.rand(n, generator=rng) - 0.5)
        curve = torch.stack([t.sin(), t.sign() * (t.cos() - 1)], dim=1)
        return (curve + self.noise * torch.randn(n, 2, generator=rng)) / self.variances.sqrt()


def equal_counts(n: int, modes: int, rng: torch.Generator) -> Tensor:
    """Mode of each of ``n`` samples in random order: n / modes each, the remainder at random."""
    order = torch.randperm(modes, generator=rng)
    return order[torch.arange(n) % modes][torch.randperm(n, generator=rng)]


class FromNormal(Task):
    """What the tasks from N(0, I) in the plane share."""

    dim: ClassVar[int] = 2
    noise_source: ClassVar[bool] = True

    def source(self) -> Distribution:
        return StandardNormal((2,))


@register
class GaussianToSwissRoll(FromNormal):
    """N(0, I) to the swiss roll, the first experiment of the EFM paper."""

    name: ClassVar[str] = "gaussian_to_swiss_roll"
    title: ClassVar[str] = "Gaussian to swiss roll"

    noise: float = Field(0.8, ge=0)

    def target(self) -> Distribution:
        return SwissRoll(self.noise)


class ToEightGaussians(Task):
    """What the tasks with the eight Gaussians as target share."""

    dim: ClassVar[int] = 2

    radius: float = Field(5.0, gt=0)
    std: float = Field(0.316, gt=0)

    def target(self) -> Distribution:
        return EightGaussians(self.radius, self.std)


@register
class GaussianToEightGaussians(ToEightGaussians, FromNormal):
    """N(0, I) to eight Gaussians on a circle."""

    name: ClassVar[str] = "gaussian_to_8gaussians"
    title: ClassVar[str] = "Gaussian to 8 Gaussians"


@register
class MoonsToEightGaussians(ToEightGaussians):
    """Two moons to eight Gaussians: data to data, where the coupling matters."""

    name: ClassVar[str] = "moons_to_8gaussians"
    title: ClassVar[str] = "Moons to 8 Gaussians"
    noise_source: ClassVar[bool] = False

    noise: float = Field(0.05, ge=0)

    def source(self) -> Distribution:
        return Moons(self.noise)


@register
class GaussianToMoons(FromNormal):
    """N(0, I) to two moons."""

    name: ClassVar[str] = "gaussian_to_moons"
    title: ClassVar[str] = "Gaussian to moons"

    noise: float = Field(0.05, ge=0)

    def target(self) -> Distribution:
        return Moons(self.noise)


@register
class GaussianToSCurve(FromNormal):
    """N(0, I) to an S-shaped curve."""

    name: ClassVar[str] = "gaussian_to_s_curve"
    title: ClassVar[str] = "Gaussian to S curve"

    noise: float = Field(0.05, ge=0)

    def target(self) -> Distribution:
        return SCurve(self.noise)
