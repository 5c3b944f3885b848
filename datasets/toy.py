"""Two-dimensional tasks; roll, moons and S curve are scikit-learn's, with an explicit generator."""

import math

import torch
from pydantic import Field
from torch import Tensor

from datasets.base import Distribution, Task, register
from datasets.exact import Components, blurred_curve
from datasets.gaussians import FromNoise
from datasets.mixtures import Mixture


class NoisyCurve(Distribution):
    """A curve in the plane with noise of this standard deviation."""

    shape = (2,)

    def __init__(self, noise: float) -> None:
        self.noise = noise


class SwissRoll(NoisyCurve):
    """Columns 0 and 2 of ``sklearn.datasets.make_swiss_roll``, divided by 5.

    (t cos t, t sin t) + noise N(0, I), t ~ U(1.5 pi, 4.5 pi)
    """

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=rng))
        return (self.curve(t) + self.noise * torch.randn(n, 2, generator=rng)) / 5.0

    @staticmethod
    def curve(t: Tensor) -> Tensor:
        """The spiral in the units of scikit-learn, (n, 2)."""
        return torch.stack([t * t.cos(), t * t.sin()], dim=1)

    def components(self) -> Components | None:
        roll = (lambda t: self.curve(t) / 5.0, 1.5 * math.pi, 4.5 * math.pi)
        return blurred_curve([roll], torch.full((2,), self.noise / 5.0))


class EightGaussians(Mixture):
    """Eight equal N(mode, std^2 I), the modes equally spaced on a circle of ``radius``."""

    def __init__(self, radius: float, std: float) -> None:
        angle = torch.arange(8) * (2 * math.pi / 8)
        means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        super().__init__(means, torch.full((8,), std), torch.full((8,), 1 / 8))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.around(torch.randint(8, (n,), generator=rng), rng)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        return self.around(equal_counts(n, 8, rng), rng)


class Moons(NoisyCurve):
    """``sklearn.datasets.make_moons``, times 3 minus 1.

    Moons (cos a, sin a) and (1 - cos a, 1/2 - sin a) + noise N(0, I), a ~ U(0, pi)
    """

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self._on(torch.randint(2, (n,), generator=rng), rng)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        return self._on(equal_counts(n, 2, rng), rng)

    def _on(self, moon: Tensor, rng: torch.Generator) -> Tensor:
        angle = math.pi * torch.rand(len(moon), generator=rng)
        curve = torch.where(moon[:, None] == 0, self.upper(angle), self.lower(angle))
        return 3 * (curve + self.noise * torch.randn(len(moon), 2, generator=rng)) - 1

    @staticmethod
    def upper(angle: Tensor) -> Tensor:
        """One moon in the units of scikit-learn, (n, 2)."""
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    @staticmethod
    def lower(angle: Tensor) -> Tensor:
        """The other moon."""
        return torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)

    def components(self) -> Components | None:
        moons = [
            (lambda angle: 3 * self.upper(angle) - 1, 0.0, math.pi),
            (lambda angle: 3 * self.lower(angle) - 1, 0.0, math.pi),
        ]
        return blurred_curve(moons, torch.full((2,), 3 * self.noise))


class SCurve(NoisyCurve):
    """Columns 0 and 2 of ``sklearn.datasets.make_s_curve``, each brought to mean 0 and variance 1.

    (sin t, sign(t) (cos t - 1)) + noise N(0, I), t ~ U(-1.5 pi, 1.5 pi).
    """

    def __init__(self, noise: float) -> None:
        super().__init__(noise)
        # Means are zero by symmetry. E sin^2 = 1/2 and E (cos t - 1)^2 = 3/2 - 2 E cos t over
        # three half periods, E cos t = -2 / (3 pi).
        self.variances = torch.tensor([0.5, 1.5 + 4 / (3 * math.pi)]) + noise**2

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        t = 3 * math.pi * (torch.rand(n, generator=rng) - 0.5)
        noise = self.noise * torch.randn(n, 2, generator=rng)
        return (self.curve(t) + noise) / self.variances.sqrt()

    @staticmethod
    def curve(t: Tensor) -> Tensor:
        """The S in the units of scikit-learn, (n, 2)."""
        return torch.stack([t.sin(), t.sign() * (t.cos() - 1)], dim=1)

    def components(self) -> Components | None:
        stds = self.variances.sqrt()
        halves = [  # the curvature jumps where they meet
            (lambda t: self.curve(t) / stds, start, start + 1.5 * math.pi)
            for start in (-1.5 * math.pi, 0.0)
        ]
        return blurred_curve(halves, self.noise / stds)


def equal_counts(n: int, modes: int, rng: torch.Generator) -> Tensor:
    """Mode of each of ``n`` samples in random order: n / modes each, the remainder at random."""
    order = torch.randperm(modes, generator=rng)
    return order[torch.arange(n) % modes][torch.randperm(n, generator=rng)]


@register
class GaussianToSwissRoll(FromNoise):
    """N(0, I) to the swiss roll, the first experiment of the EFM paper."""

    name, title, dim = "gaussian_to_swiss_roll", "Gaussian to swiss roll", 2
    noise: float = Field(0.8, ge=0)

    def target(self) -> Distribution:
        return SwissRoll(self.noise)


class ToEightGaussians(Task):
    """What the tasks with the eight Gaussians as target share."""

    dim = 2
    radius: float = Field(5.0, gt=0)
    std: float = Field(0.316, gt=0)

    def target(self) -> Distribution:
        return EightGaussians(self.radius, self.std)


@register
class GaussianToEightGaussians(ToEightGaussians, FromNoise):
    """N(0, I) to eight Gaussians on a circle."""

    name, title = "gaussian_to_8gaussians", "Gaussian to 8 Gaussians"


@register
class MoonsToEightGaussians(ToEightGaussians):
    """Two moons to eight Gaussians: data to data, where the coupling matters."""

    name, title = "moons_to_8gaussians", "Moons to 8 Gaussians"
    noise: float = Field(0.05, ge=0)

    def source(self) -> Distribution:
        return Moons(self.noise)


@register
class GaussianToMoons(FromNoise):
    """N(0, I) to two moons."""

    name, title, dim = "gaussian_to_moons", "Gaussian to moons", 2
    noise: float = Field(0.05, ge=0)

    def target(self) -> Distribution:
        return Moons(self.noise)


@register
class GaussianToSCurve(FromNoise):
    """N(0, I) to an S-shaped curve."""

    name, title, dim = "gaussian_to_s_curve", "Gaussian to S curve", 2
    noise: float = Field(0.05, ge=0)

    def target(self) -> Distribution:
        return SCurve(self.noise)
