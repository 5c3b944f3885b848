"""Networks f(x, embedding of s), and the embeddings of the scalar.

Methods hand over flat vectors and do not know which network is behind them: an MLP, or for images
a U-Net, which sees them as images.
"""

import contextlib
import itertools
import math
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class NetworkFactory(Protocol):
    """``network(scalars, outputs, extra_inputs)`` builds a network for the task at hand."""

    def __call__(self, scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module: ...


class NetworkSettings(BaseModel):
    """The network of a run, the same for every method.

    ``architecture``: ``auto`` takes a U-Net for images of at least ``UNET_SIDE`` pixels a side and
    an MLP for everything else. ``width``, ``depth`` and ``skip`` are those of the MLP, ``unet`` (a
    size, see :data:`UNETS`) and ``dropout`` those of the U-Net. ``skip`` adds a linear path from x
    to the output, gated by the scalar; ``auto`` has it from ``SKIP_DIM`` dimensions on, where a
    plain MLP cannot even learn a linear map in the budget. ``precision`` is that of the network's
    matrix products, in training and sampling; weights, fields, losses and solvers stay in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["auto", "mlp", "unet"] = "auto"
    width: int = Field(128, ge=1, le=16_384)
    depth: int = Field(3, ge=1, le=1_000)
    skip: Literal["auto", "on", "off"] = "auto"
    unet: Literal["tiny", "small", "paper"] = "tiny"
    dropout: float = Field(0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"

    def factory(self, *shape: int) -> NetworkFactory:
        """The network factory for data of a shape: (D,), or (channels, height, width).

        Raises:
            ValueError: a U-Net is asked for, and the data are no images.
        """
        dim = math.prod(shape)
        unet = self.kind(*shape) == "unet"
        if unet and len(shape) != 3:
            raise ValueError(f"architecture = unet is for images, and the data have shape {shape}")
        skip = self.skip == "on" or (self.skip == "auto" and dim >= SKIP_DIM)

        def build(scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module:
            network: nn.Module
            if unet:
                size = UNETS[self.unet]
                network = UNet(shape, scalars, outputs, extra_inputs, size, self.dropout)
            else:
                network = MLP(dim + extra_inputs, scalars, outputs, self.width, self.depth, skip)
            return network if self.precision == "float32" else HalfPrecision(network)

        return build

    def kind(self, *shape: int) -> Literal["unet", "mlp"]:
        """The architecture that data of a shape get."""
        if self.architecture == "auto":
            large = len(shape) == 3 and min(shape[1:]) >= UNET_SIDE
            return "unet" if large else "mlp"
        return self.architecture

    def used(self, *shape: int) -> "NetworkSettings":
        """These settings with the defaults of what the network of a shape does not have."""
        fields = type(self).model_fields
        idle = {name: fields[name].default for name in IDLE[self.kind(*shape)]}
        return self.model_copy(update=idle)


SKIP_DIM = 16
IDLE = {"unet": ("width", "depth", "skip"), "mlp": ("unet", "dropout")}
"""Settings that one architecture does not have."""
UNET_SIDE = 16


class HalfPrecision(nn.Module):
    """A network whose matrix products are in bfloat16; its output is float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """As the network, (B, inputs), (B, scalars) -> (B, outputs)."""
        # torch knows no autocast of meta tensors, which hold no numbers to round.
        precision = contextlib.nullcontext() if x.is_meta else self._half(x.device.type)
        with precision:
            output: Tensor = self.network(x, embedding)
        return output.float()

    @staticmethod
    def _half(device: str) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16)


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


class UNetSize(NamedTuple):
    """Channels of each resolution, residual blocks in it, sides at which there is attention."""

    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head: int | None  # channels of a head of the attention; None for a single head
    groups: int  # of the normalisation; divides all channels


UNETS = {
    "tiny": UNetSize((16, 32, 64), 1, (), 8, 8),
    "small": UNetSize((32, 64, 96), 1, (), 8, 8),
    "paper": UNetSize((128, 256, 256, 256), 4, (16,), None, 32),
}
"""Sizes of the U-Net: .6, 1.7 and 59 million parameters for colour images. ``paper`` is as large as
the DDPM++ of the papers on CIFAR-10. All have attention at the lowest resolution."""


class UNet(nn.Module):
    """diffusers' ``UNet2DModel`` on flat vectors that are images.

    Extra inputs are further channels. Of the outputs the first are images of the same size; what is
    beyond them (the z component of a field, say) is made of channels that are averaged over the
    image. The embedding of the scalar goes through two layers into all residual blocks in place of
    the model's own, whose sinusoids of whole time steps hardly see small z.

    A side that cannot be halved as often as the size asks has fewer resolutions: three at 28.

    Args:
        shape: (channels, height, width).
        scalars, outputs, extra_inputs: as for :class:`NetworkFactory`.
        size: one of :data:`UNETS`.
        dropout: of the residual blocks, in training.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        scalars: int,
        outputs: int,
        extra_inputs: int,
        size: UNetSize,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        import diffusers  # takes seconds, and only images need it

        self.image = shape[1:]
        pixels = math.prod(self.image)
        planes, self.pooled = divmod(outputs, pixels)
        sides = [min(self.image) >> level for level in range(len(size.channels))]
        levels = sum(all(side % (1 << k) == 0 for side in self.image) for k in range(len(sides)))
        attended = [side in size.attention for side in sides[:levels]]
        self.embedding = nn.Sequential(
            nn.Linear(scalars, 4 * size.channels[0]),
            nn.SiLU(),
            nn.Linear(4 * size.channels[0], 4 * size.channels[0]),
        )
        model: Any = diffusers.UNet2DModel
        self.unet: nn.Module = model(
            in_channels=shape[0] + extra_inputs // pixels,
            out_channels=planes + self.pooled,
            block_out_channels=size.channels[:levels],
            layers_per_block=size.blocks,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attended[::-1]],
            attention_head_dim=size.head,
            norm_num_groups=size.groups,
            class_embed_type="identity",
            dropout=dropout,
        )
        self.unet.get_submodule("time_embedding").requires_grad_(False)  # of the constant 0
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, inputs), embedding (B, scalars) -> (B, outputs)."""
        images = x.reshape(len(x), -1, *self.image).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.unet(images, 0, self.embedding(embedding)).sample
        planes = maps.shape[1] - self.pooled
        return torch.cat([maps[:, :planes].flatten(1), maps[:, planes:].mean((2, 3))], dim=1)


def architecture_of(model: nn.Module) -> str | None:
    """``unet`` or ``mlp``, or None for a model without either."""
    for kind, name in ((UNet, "unet"), (MLP, "mlp")):
        if any(isinstance(module, kind) for module in model.modules()):
            return name
    return None


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
