"""Networks f(x, embedding of s) of flat vectors x, and the embeddings of the scalar.

Methods do not know which network is behind them: an MLP, or a U-Net, which sees x as images.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

LOW_DIM = 8  # up to here field lines bulge far out of the data; defaults differ above it
SKIP_DIM = 16
UNET_SIDE = 16
IDLE = {"unet": ("width", "depth", "skip", "match"), "mlp": ("unet", "dropout")}
"""Settings that one architecture does not have."""


class NetworkSettings(BaseModel):
    """The network of a run, the same for every method.

    ``architecture = auto`` takes a U-Net for images of at least ``UNET_SIDE`` pixels a side and an
    MLP for everything else. ``width``, ``depth`` and ``skip`` are those of the MLP, ``unet`` (a
    size, see :data:`UNETS`) and ``dropout`` those of the U-Net. ``skip`` adds a linear path from x
    to the output, gated by the scalar; ``auto`` has it from ``SKIP_DIM`` dimensions on, where a
    plain MLP cannot even learn a linear map in the budget. ``precision`` is that of the network's
    matrix products; weights, fields, losses and solvers stay in float32.

    How a model is made of its network decides more than the method does, so these are settings too,
    with the same choices for every method that can have them:

    * ``inputs`` and ``embedding``: what the network sees of a point and of the scalar
      (:class:`ScaledNetwork`); ``auto`` is ``radial`` and ``ends`` up to ``LOW_DIM`` dimensions,
      ``standardised`` and ``full`` above;
    * ``precondition``: the model is a x + b F(c x, s), with a, b, c such that inputs and outputs of
      F have unit variance (Karras et al., NeurIPS 2022, section 5); ``off``: the output of F in the
      units of the data;
    * ``far_field``: fields go over into those of point charges far from the data by construction.
      ``auto`` has that for EFM up to ``LOW_DIM`` dimensions, where lines leave the data far behind,
      and for PFGM, whose lines come from far away, always;
    * ``match = parameters``: the width is such that the model of every method has as many weights
      as a plain network of ``width``, from x and a scalar to D outputs (:func:`matched`); with
      ``match = width`` all have that width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["auto", "mlp", "unet"] = "auto"
    width: int = Field(128, ge=1, le=16_384)
    depth: int = Field(3, ge=1, le=1_000)
    skip: Literal["auto", "on", "off"] = "auto"
    inputs: Literal["auto", "radial", "standardised", "raw"] = "auto"
    embedding: Literal["auto", "full", "plain", "cosine", "ends"] = "auto"
    precondition: Literal["on", "off"] = "on"
    far_field: Literal["auto", "on", "off"] = "auto"
    match: Literal["parameters", "width"] = "parameters"
    unet: Literal["tiny", "small", "paper"] = "tiny"
    dropout: float = Field(0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"

    def factory(self, *shape: int) -> "NetworkFactory":
        """The network factory for data of a shape: (D,), or (channels, height, width)."""
        self.kind(*shape)  # refuses what does not go together
        return NetworkFactory(self, shape)

    def kind(self, *shape: int) -> Literal["unet", "mlp"]:
        """The architecture that data of a shape get; a ValueError for a U-Net without images."""
        if self.architecture == "auto":
            return "unet" if len(shape) == 3 and min(shape[1:]) >= UNET_SIDE else "mlp"
        if self.architecture == "unet" and len(shape) != 3:
            raise ValueError(f"architecture = unet is for images, and the data have shape {shape}")
        return self.architecture

    def used(self, *shape: int) -> "NetworkSettings":
        """These settings with the defaults of what the network of a shape does not have."""
        return self.without(IDLE[self.kind(*shape)])

    def without(self, names: Iterable[str]) -> "NetworkSettings":
        """These settings with the defaults of those that make no difference."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in names})


@dataclass(frozen=True)
class NetworkFactory:
    """``network(scalars, outputs, extra_inputs)`` builds a network for the task at hand."""

    settings: NetworkSettings
    shape: tuple[int, ...]  # of the data
    device: str = "cpu"  # where weights are made; ``meta`` for shapes without numbers

    def __call__(self, scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module:
        network = NETWORKS[self.settings.kind(*self.shape)]
        with torch.device(self.device):
            built = network(self.settings, self.shape, scalars, outputs, extra_inputs)
        return built if self.settings.precision == "float32" else HalfPrecision(built)


def parameters_of(model: nn.Module) -> int:
    """The number of weights that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def matched(
    network: NetworkFactory, build: Callable[[NetworkFactory], nn.Module]
) -> NetworkFactory:
    """The factory for whose width ``build(factory)`` has the parameters of a plain network.

    The plain network goes from x and one scalar to D outputs. A U-Net, whose size has no width, and
    a model without a network stay as they are, as does everything with ``match = width``, and a
    model that would be left with less than half of the width (two plates in high dimension, whose
    linear paths alone have more weights): tables name the numbers.
    """
    settings, dim = network.settings, math.prod(network.shape)
    if settings.match == "width" or settings.kind(*network.shape) == "unet":
        return network
    wanted = parameters_of(replace(network, device="meta")(1, dim))

    def with_width(width: int) -> NetworkFactory:
        return replace(network, settings=settings.model_copy(update={"width": width}))

    def count(width: int) -> int:
        return parameters_of(build(replace(with_width(width), device="meta")))

    if not count(settings.width):
        return network
    above = bisect.bisect_left(range(4 * settings.width), wanted, lo=1, key=count)
    width = min(above, max(above - 1, 1), key=lambda w: abs(count(w) - wanted))
    return with_width(width) if 2 * width >= settings.width else network


class HalfPrecision(nn.Module):
    """A network whose matrix products are in bfloat16; its output is float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # torch knows no autocast of meta tensors, which hold no numbers to round.
        device = "cpu" if x.is_meta else x.device.type
        with torch.autocast(device, torch.bfloat16, enabled=not x.is_meta):
            output: Tensor = self.network(x, embedding)
        return output.float()


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` SiLU units on (x, embedding).

    ``skip`` adds W_2 (g(embedding) * W_1 x), a linear map whose strength along each of its
    directions depends on the scalar, as the exact velocity between two Gaussians is.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        shape: tuple[int, ...],
        scalars: int,
        outputs: int,
        extra_inputs: int = 0,
    ) -> None:
        super().__init__()
        dim, width = math.prod(shape), settings.width
        inputs = dim + extra_inputs
        sizes = [inputs + scalars] + [width] * settings.depth
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.skip = settings.skip == "on" or (settings.skip == "auto" and dim >= SKIP_DIM)
        if self.skip:
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
"""Sizes of the U-Net: .6, 1.7 and 59 million parameters for colour images (``paper`` is as large as
the DDPM++ of the papers on CIFAR-10), with attention at the lowest resolution."""


class UNet(nn.Module):
    """diffusers' ``UNet2DModel`` on flat vectors that are images.

    Extra inputs are further channels. Of the outputs the first are images of the same size; the
    rest (the z component of a field, say) are channels averaged over the image. The embedding of
    the scalar replaces the model's own, whose sinusoids of whole time steps hardly see small z. A
    side that cannot be halved as often as the size asks has fewer resolutions: three at 28.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        shape: tuple[int, ...],
        scalars: int,
        outputs: int,
        extra_inputs: int = 0,
    ) -> None:
        super().__init__()
        import diffusers  # takes seconds, and only images need it

        size = UNETS[settings.unet]
        self.image = shape[1:]
        pixels = math.prod(self.image)
        planes, self.pooled = divmod(outputs, pixels)
        sides = [min(self.image) >> level for level in range(len(size.channels))]
        levels = sum(all(side % (1 << k) == 0 for side in self.image) for k in range(len(sides)))
        attended = [side in size.attention for side in sides[:levels]]
        width = 4 * size.channels[0]
        layers = nn.Linear(scalars, width), nn.SiLU(), nn.Linear(width, width)
        self.embedding = nn.Sequential(*layers)
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
            dropout=settings.dropout,
        )
        self.unet.get_submodule("time_embedding").requires_grad_(False)  # of the constant 0
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, inputs), embedding (B, scalars) -> (B, outputs)."""
        images = x.reshape(len(x), -1, *self.image).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.unet(images, 0, self.embedding(embedding)).sample
        planes = maps.shape[1] - self.pooled
        return torch.cat([maps[:, :planes].flatten(1), maps[:, planes:].mean((2, 3))], dim=1)


NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "unet": UNet}  # by name


def architecture_of(model: nn.Module) -> str | None:
    """The name of the architecture in a model; None for a model without a network."""
    for name, network in NETWORKS.items():
        if any(isinstance(module, network) for module in model.modules()):
            return name
    return None


class Standardised(nn.Module):
    """A model in units of its data: their mean, and their standard deviation over coordinates."""

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        self.shift = nn.Buffer(samples.mean(0))  # (D,)
        self.scale = nn.Buffer(samples.std(0).mean())  # ()

    def standardise(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class CosineEmbedding(nn.Module):
    """s (B,) in [0, 1] -> (s, cos(pi k s) for k = 1..size - 1), (B, size)."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.size = size
        self.frequency = nn.Buffer(math.pi * torch.arange(1, size), persistent=False)

    def forward(self, s: Tensor) -> Tensor:
        return torch.cat([s[:, None], torch.cos(s[:, None] * self.frequency)], dim=1)


class ScaledNetwork(nn.Module):
    r"""F(v, s): the network behind a model, with the inputs and the embedding of the settings.

    ``inputs`` is what it sees of a point: ``raw`` x as it is, ``standardised`` v in the unit that
    the model gives it (where points may be far outside of the data, at a given ``height``, over its
    radius sqrt(1 + |v|^2 / D + height^2)), or :func:`radial_inputs` of v and the log of its radius
    (``radial``), which are bounded too, and in which small clusters can be told apart.

    ``embedding`` is what it sees of the scalar s in [low, high] = ``span``: s itself (``plain``),
    the cosines of its part of the span (``cosine``), or the distances to both ends in units of
    ``layer``, asinh((s - low) / layer) and asinh((high - s) / layer) (``ends``), which resolve what
    happens next to them; ``full`` has the last two.

    ``flags`` is the number of further scalars, which it sees as they are.
    """

    def __init__(
        self,
        network: NetworkFactory,
        outputs: int,
        span: tuple[float, float] = (0.0, 1.0),
        layer: float | None = None,
        flags: int = 0,
    ) -> None:
        super().__init__()
        dim, settings = math.prod(network.shape), network.settings
        self.inputs, self.kind = settings.inputs, settings.embedding
        if self.inputs == "auto":
            self.inputs = "radial" if dim <= LOW_DIM else "standardised"
        if self.kind == "auto":
            self.kind = "ends" if dim <= LOW_DIM else "full"
        self.low, self.high = span
        self.layer = LAYER * (self.high - self.low) if layer is None else layer
        self.cosines = CosineEmbedding()
        size = self.cosines.size
        scalars = {"full": size + 2, "plain": 1, "cosine": size, "ends": 2}[self.kind]
        radial = self.inputs == "radial"
        self.network = network(scalars + radial + flags, outputs, extra_inputs=dim * radial)

    def forward(
        self,
        x: Tensor,
        v: Tensor,
        s: Tensor,
        height: Tensor | None = None,
        flags: Tensor | None = None,
    ) -> Tensor:
        """x and v (B, D), s (B,), for the radius ``height`` (B, 1), (B, flags) -> (B, outputs)."""
        embedding = self._embed(s)
        if flags is not None:
            embedding = torch.cat([embedding, flags], dim=1)
        if self.inputs == "radial":
            v, log_radius = radial_inputs(v, height)
            embedding = torch.cat([embedding, log_radius], dim=1)
        elif height is not None:
            v = v / radius_of(v, height)
        output: Tensor = self.network(x if self.inputs == "raw" else v, embedding)
        return output

    def _embed(self, s: Tensor) -> Tensor:
        if self.kind == "plain":
            return s[:, None]
        cosines: Tensor = self.cosines((s - self.low) / (self.high - self.low))
        ends = torch.asinh(torch.stack([s - self.low, self.high - s], dim=1) / self.layer)
        return {"full": torch.cat([cosines, ends], 1), "cosine": cosines, "ends": ends}[self.kind]


LAYER = 0.05  # part of the span of a scalar next to its ends that ``ends`` resolves
GAIN = 6.0  # small clusters are invisible to the network at gain 1


def radial_inputs(v: Tensor, height: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Bounded inputs (B, 2D) for standardised points v (B, D), maybe far outside of the data.

    v compressed beyond three radii and magnified by ``GAIN``, next to v over its radius; and the
    log of that radius sqrt(1 + |v|^2 / D + height^2), shape (B, 1), with ``height`` (B, 1) the
    standardised distance to a plate, if given.
    """
    radius = radius_of(v, height)
    return torch.cat([GAIN * bounded(v), v / radius], dim=1), radius.log()


def radius_of(v: Tensor, height: Tensor | None = None) -> Tensor:
    """sqrt(1 + |v|^2 / D + height^2) of standardised points (B, D) and heights (B, 1), (B, 1)."""
    squared = v.square().mean(1, keepdim=True)
    return torch.sqrt(1 + squared + (0.0 if height is None else height**2))


def bounded(v: Tensor) -> Tensor:
    """Standardised vectors (B, D), shortened to stay within three radii, 3 sqrt(D)."""
    return v / torch.sqrt(1 + v.square().sum(1, keepdim=True) / (9 * v.shape[1]))
