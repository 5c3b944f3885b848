"""Networks f(x, embedding of s), and the embeddings of the scalar."""

import itertools
import math
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class NetworkFactory(Protocol):
    """``network(scalars, outputs, extra_inputs)`` builds a network for the task at hand."""

    def __call__(self, scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module: ...


class NetworkSettings(BaseModel):
    """The network of a run, the same for every method.

    ``skip`` adds a linear path from x to the output, gated by the scalar; ``auto`` has it from
    ``SKIP_DIM`` dimensions on, where a plain MLP cannot even learn a linear map in the budget.
    ``precision`` is that of the network's matrix products, in training and sampling; weights,
    fields, losses and solvers stay in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(128, ge=1, le=16_384)
    depth: int = Field(3, ge=1, le=1_000)
    skip: Literal["auto", "on", "off"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"

    def factory(self, *shape: int) -> NetworkFactory:
        """The network factory for data of a shape: (D,), or (channels, height, width)."""
        dim = math.prod(shape)
        skip = self.skip == "on" or (self.skip == "auto" and dim >= SKIP_DIM)

        def build(scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module:
            network = MLP(dim + extra_inputs, scalars, outputs, self.width, self.depth, skip)
            return network if self.precision == "float32" else HalfPrecision(network)

        return build


SKIP_DIM = 16


class HalfPrecision(nn.Module):
    """A network whose matrix products are in bfloat16; its output is float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """As the network, (B, inputs), (B, scalars) -> (B, outputs)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            output: Tensor = self.network(x, embedding)
        return output.float()


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` SiLU units on (x, embedding).

    With ``skip`` the output gains W_2 (g(embedding) * W_1 x): a linear map whose strength along
    each of its directions depends on the scalar, which is what the exact velocity between two
    Gaussians is.
    """

    def __init__(
        self, inputs: int, scalars: int, outputs: int, width: int, depth: int, skip: bool
    ) -> None:
        super().__init__()
        sizes = [inputs + scalars] + [width] * depth
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.skip = skip
        if skip:
            self.skip_in = nn.Linear(inputs, inputs, bias=False)
            self.skip_gate = nn.Linear(scalars, inputs)
            self.skip_out = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, inputs), embedding (B, scalars) -> (B, outputs)."""
        output: Tensor = self.layers(torch.cat([x, embedding], dim=1))
        if self.skip:
            output = output + self.skip_out(self.skip_gate(embedding) * self.skip_in(x))
        return output


class CosineEmbedding(nn.Module):
    """s in [0, 1] -> (s, cos(pi k s) for k = 1..size - 1)."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("frequency", math.pi * torch.arange(1, size), persistent=False)
        self.frequency: Tensor

    def forward(self, s: Tensor) -> Tensor:
        """s (B,) -> (B, size)."""
        return torch.cat([s[:, None], torch.cos(s[:, None] * self.frequency)], dim=1)


def radial_inputs(v: Tensor, height: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Bounded inputs for points that may lie far outside of the data.

    Args:
        v: standardised points, shape (B, D).
        height: standardised distance to a plate, shape (B, 1), counted in the radius if given.

    Returns:
        v compressed beyond three radii and magnified by ``GAIN`` (small clusters are invisible to
        the network at gain 1), next to v over its radius, shape (B, 2D); and the log of that
        radius sqrt(1 + |v|^2 / D + height^2), shape (B, 1).
    """
    dim = v.shape[1]
    squared = v.square().sum(1, keepdim=True) / dim
    radius = torch.sqrt(1 + squared + (0.0 if height is None else height**2))
    return torch.cat([GAIN * bounded(v), v / radius], dim=1), radius.log()


GAIN = 6.0


def bounded(v: Tensor) -> Tensor:
    """Standardised vectors (B, D), shortened to stay within three radii, 3 sqrt(D)."""
    return v / torch.sqrt(1 + v.square().sum(1, keepdim=True) / (9 * v.shape[1]))
