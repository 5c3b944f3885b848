"""The standard normal source."""

from typing import Any

import torch
from torch import Tensor

from datasets.base import Distribution


class StandardNormal(Distribution):
    """N(0, I) in R^D."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(n, self.dim, generator=rng)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """Scrambled Sobol points through the normal quantile function."""
        seed = int(torch.randint(2**62, (), generator=rng))
        sobol: Any = torch.quasirandom.SobolEngine  # untyped in torch
        points: Tensor = sobol(self.dim, scramble=True, seed=seed).draw(n, dtype=torch.float64)
        # Points lie on a grid of 2^-30 that includes 0: its cells' middles have finite quantiles.
        normal: Tensor = torch.special.ndtri(points.clamp(max=1 - 2.0**-30) + 2.0**-31)
        return normal.float()
