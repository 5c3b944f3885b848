"""Random numbers with the device and dtype of the data."""

import torch
from torch import Generator, Tensor

from methods.electrostatics import unit


def seeded(rng: Generator | None, like: Tensor) -> Generator:
    """``rng``, or one of seed 0 on the device of ``like``."""
    return torch.Generator(like.device).manual_seed(0) if rng is None else rng


def uniform(shape: tuple[int, ...], like: Tensor, rng: Generator) -> Tensor:
    """U[0, 1)."""
    return torch.rand(shape, generator=rng, device=like.device, dtype=like.dtype)


def normal(shape: tuple[int, ...], like: Tensor, rng: Generator) -> Tensor:
    """N(0, 1)."""
    return torch.randn(shape, generator=rng, device=like.device, dtype=like.dtype)


def directions(count: int, n: int, like: Tensor, rng: Generator) -> Tensor:
    """Uniform directions in R^n, shape (count, n)."""
    return unit(normal((count, n), like, rng))[0]
