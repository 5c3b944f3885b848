"""Models of a capacitor's field: learned as one direction, learned plate by plate, or exact."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from methods.base import LOW_DIM
from methods.electrostatics import capacitor_field, log_sphere_area, superpose
from methods.lines import Capacitor, rms_radius
from methods.networks import CosineEmbedding, NetworkFactory, radial_inputs

ZEmbedding = Literal["plates", "raw", "fourier"]

PLATE_LAYER = 0.05
"""Height over a plate, in standard deviations of the data, that the network resolves."""
LOG_WEIGHT = math.sqrt(0.5)
"""Weight of log|E| beside a direction; it enters the loss squared."""


class FieldModel(nn.Module):
    r"""The learned direction f(x, z) ~ sqrt(D + 1) E / |E|.

    z enters as asinh of the distances to both plates, which resolves the layers at the plates at
    every L (``plates``), or for comparison as z/L (``raw``) or z/L and its cosines (``fourier``).
    In low dimension, where lines leave the data far behind, the network is a correction to the
    field of two point charges at the centres of the plates,

    .. math:: f = \sqrt{D + 1}\, e(\tilde x) + g\, N(\tilde x), \quad
              g = 1 / \min(\rho_P, \rho_Q), \quad
              \rho_P^2 = 1 + |\tilde x - \tilde c_P|^2 / s_P^2,

    with c the mean of a plate and s its root mean square radius. Centred charges have no dipole
    moment; far from both plates their quadrupoles are left, of first order beside the dipole of
    the pair, like g.
    """

    def __init__(
        self,
        network: NetworkFactory,
        source: Tensor,
        target: Tensor,
        plate_distance: float,
        z_embedding: ZEmbedding = "plates",
    ) -> None:
        super().__init__()
        samples = torch.cat([source, target])
        self.z_embedding = z_embedding
        self.cosines = CosineEmbedding()
        scalars = {"plates": 2, "raw": 1, "fourier": self.cosines.size}[z_embedding]
        self.plate_distance = plate_distance
        self.dim = source.shape[1]
        self.far_field = self.dim <= LOW_DIM
        self.register_buffer("shift", samples.mean(0))
        self.register_buffer("scale", samples.std(0).mean())
        self.register_buffer("centres", torch.stack([source.mean(0), target.mean(0)]))
        self.register_buffer("radii", torch.stack([rms_radius(source), rms_radius(target)]))
        self.shift: Tensor
        self.scale: Tensor
        self.centres: Tensor  # (2, D)
        self.radii: Tensor  # (2,)
        if self.far_field:
            self.network = network(scalars + 1, self.dim + 1, extra_inputs=self.dim)
        else:
            self.network = network(scalars, self.dim + 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> f (B, D+1)."""
        v = (x - self.shift) / self.scale
        embedding = self._embed(z)
        if not self.far_field:
            correction: Tensor = self.network(v, embedding)
            return correction
        inputs, log_radius = radial_inputs(v)
        correction = self.network(inputs, torch.cat([embedding, log_radius], dim=1))
        direction, rho = self._point_charges(x, z)
        gate = 1 / rho.amin(1, keepdim=True)
        return math.sqrt(self.dim + 1) * direction + gate * correction

    @property
    def capacitor(self) -> Capacitor:
        """Where the plates are."""
        return Capacitor.between(self.plate_distance, *self.centres, *self.radii)

    def _embed(self, z: Tensor) -> Tensor:
        if self.z_embedding == "raw":
            return (z / self.plate_distance)[:, None]
        if self.z_embedding == "fourier":
            cosines: Tensor = self.cosines(z / self.plate_distance)
            return cosines
        heights = torch.stack([z, self.plate_distance - z], dim=1)
        return torch.asinh(heights / (PLATE_LAYER * self.scale))

    def _point_charges(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Direction of the field of the two centres, softened by their radii; rho (B, 2)."""
        offsets = [
            torch.cat([x - centre, (z - height)[:, None]], dim=1)
            for centre, height in zip(self.centres, (0.0, self.plate_distance), strict=True)
        ]
        squared = torch.stack([offset.square().sum(1) for offset in offsets], dim=1)  # (B, 2)
        rho = torch.sqrt(1 + squared / self.radii**2)
        distance = rho * self.radii
        weight = (distance.amin(1, keepdim=True) / distance) ** (self.dim + 1)
        field = weight[:, :1] * offsets[0] - weight[:, 1:] * offsets[1]
        norm = torch.linalg.vector_norm(field, dim=1, keepdim=True)
        return field / norm.clamp_min(torch.finfo(x.dtype).tiny), rho


class TwoPlates(nn.Module):
    """The fields of both plates, each learned by itself, and their superposition.

    Each plate's direction and log|E| are functions of x and the distance |h| to it, and the z
    component is odd in h: so it jumps at its own plate and nowhere else. That it points away from
    the plate is learned.
    """

    def __init__(
        self, network: NetworkFactory, source: Tensor, target: Tensor, plate_distance: float
    ) -> None:
        super().__init__()
        self.plate_distance = plate_distance
        self.source = PlateModel(network, source)
        self.target = PlateModel(network, target)

    @property
    def capacitor(self) -> Capacitor:
        """Where the plates are."""
        plates = self.source, self.target
        centres, radii = [plate.centre for plate in plates], [plate.radius for plate in plates]
        return Capacitor.between(self.plate_distance, *centres, *radii)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> the columns of :func:`as_columns`, (B, 3 (D + 1) + 2)."""
        return as_columns(self.source(x, z), self.target(x, z - self.plate_distance))


def as_columns(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Direction of the superposition, and direction and log-norm of each plate, side by side.

    The log-norms are weighed by ``LOG_WEIGHT``, as they enter the loss.

    Args:
        source, target: direction (B, n) and log-norm (B,) of the fields of the plates.
    """
    direction, _ = superpose(source, target)
    parts = [direction]
    for plate_direction, log_norm in (source, target):
        parts += [plate_direction, LOG_WEIGHT * log_norm[:, None]]
    return torch.cat(parts, dim=1)


def from_columns(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Direction (B, n) and log-norm (B,) of the superposition, from :func:`as_columns`."""
    n = (columns.shape[1] - 2) // 3
    source, target = columns[:, n:].chunk(2, dim=1)
    plates = [(plate[:, :-1], plate[:, -1] / LOG_WEIGHT) for plate in (source, target)]
    return superpose(plates[0], plates[1])


class PlateModel(nn.Module):
    r"""Direction and log-norm of the field of one unit plate at z = 0.

    .. math:: E/|E| \propto \frac{(x - c, h)}{|(x - c, h)|} + g N_u, \quad
              \log|E| = -\log S - \frac{D}{2} \log(s^2 r^2) + g N_l, \quad
              r^2 = 1 + (|x - c|^2 + h^2) / s^2, \quad g = 1/r^2

    with c the mean and s the root mean square radius of the plate: far away it is the field of
    a point charge in c, by construction.
    """

    def __init__(self, network: NetworkFactory, samples: Tensor) -> None:
        super().__init__()
        self.dim = samples.shape[1]
        self.register_buffer("centre", samples.mean(0))
        self.register_buffer("scale", samples.std(0).mean())
        self.register_buffer("radius", rms_radius(samples))
        self.centre: Tensor
        self.scale: Tensor
        self.radius: Tensor
        self.network = network(3, self.dim + 2, extra_inputs=self.dim)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D), signed distance h (B,) to the plate -> direction (B, D + 1), log-norm (B,)."""
        height = (h.abs() / self.scale)[:, None]
        inputs, log_r = radial_inputs((x - self.centre) / self.scale, height)
        layer = torch.log(height.square() + PLATE_LAYER**2) / 2
        output = self.network(inputs, torch.cat([log_r, height / log_r.exp(), layer], dim=1))
        offset = torch.cat([x - self.centre, h.abs()[:, None]], dim=1)
        squared = offset.square().sum(1, keepdim=True)
        r2 = 1 + squared / self.radius**2
        tiny = torch.finfo(x.dtype).tiny
        field = offset / (squared + tiny).sqrt() + output[:, :-1] / r2
        norm = torch.linalg.vector_norm(field, dim=1, keepdim=True)
        direction = field / norm.clamp_min(tiny)
        side = torch.where(h < 0, -1.0, 1.0).to(x.dtype)
        direction = torch.cat([direction[:, :-1], side[:, None] * direction[:, -1:]], dim=1)
        point_charge = -log_sphere_area(self.dim + 1) - self.dim / 2 * torch.log(
            self.radius**2 * r2
        )
        return direction, (point_charge + output[:, -1:] / r2)[:, 0]


class ExactField(nn.Module):
    """The field of stored charges: direction and log-norm, (B, D + 2). Nothing is learned."""

    def __init__(self, source: Tensor, target: Tensor, plate_distance: float) -> None:
        super().__init__()
        self.plate_distance = plate_distance
        self.register_buffer("positive", source)
        self.register_buffer("negative", target)
        self.positive: Tensor
        self.negative: Tensor
        self.capacitor = Capacitor.of(plate_distance, source, target)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> E/|E| and log|E|, (B, D + 2)."""
        field = capacitor_field(x, z, self.positive, self.negative, self.plate_distance)
        return torch.cat([field[0], field[1][:, None]], dim=1)
