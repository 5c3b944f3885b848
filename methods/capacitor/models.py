"""Models of a capacitor's field: learned as one direction, learned plate by plate, or exact."""

import math

import torch
from torch import Tensor, nn

from methods.base import LOW_DIM
from methods.capacitor.lines import Capacitor, rms_radius
from methods.electrostatics import capacitor_field, log_sphere_area, superpose, unit
from methods.flow import Segments
from methods.networks import (
    NetworkFactory,
    NetworkSettings,
    ScaledNetwork,
    Standardised,
    radial_inputs,
)

PLATE_LAYER = 0.05  # height over a plate, in standard deviations of the data, that is resolved
LOG_WEIGHT = math.sqrt(0.5)  # of log|E| beside a direction; it enters the loss squared


class FieldModel(Standardised):
    r"""The learned direction f(x, z) ~ sqrt(D + 1) E / |E|.

    With ``network.far_field``, as in low dimension, where lines leave the data far behind, the
    network is a correction to the field of two point charges at the centres of the plates,

    .. math:: f = \sqrt{D + 1}\, e(\tilde x) + g\, N(\tilde x), \quad
              g = 1 / \min(\rho_P, \rho_Q), \quad
              \rho_P^2 = 1 + |\tilde x - \tilde c_P|^2 / s_P^2,

    with c the mean of a plate and s its root mean square radius. Far from both plates the
    quadrupoles of the plates are left, of first order beside the dipole of the pair, like g.

    Without, and preconditioned, f is the direction of (v / L, 1), in which the network corrects the
    best linear guess of the velocity v at t = z / L along segments with noise of level ``sigma``
    (:class:`~methods.flow.Segments`): so f_z > 0, as between the plates. Else, and where ``sigma``
    is None since what is learned has other lengths, f is the network.
    """

    def __init__(
        self,
        network: NetworkFactory,
        source: Tensor,
        target: Tensor,
        plate_distance: float,
        sigma: float | None = 0.0,
    ) -> None:
        super().__init__(torch.cat([source, target]))
        self.plate_distance, self.sigma = plate_distance, sigma or 0.0
        settings, self.dim = network.settings, source.shape[1]
        self.far_field = self.has_far_field(settings, self.dim)
        along_segments = sigma is not None and not self.far_field
        self.preconditioned = along_segments and settings.precondition == "on"
        self.centres = nn.Buffer(torch.stack([source.mean(0), target.mean(0)]))  # (2, D)
        self.radii = nn.Buffer(torch.stack([rms_radius(source), rms_radius(target)]))  # (2,)
        self.segments = Segments(source, target)
        layer, span = PLATE_LAYER * float(self.scale), (0.0, plate_distance)
        self.network = ScaledNetwork(network, self.dim + (not self.preconditioned), span, layer)

    @staticmethod
    def has_far_field(network: NetworkSettings, dim: int) -> bool:
        """Whether a network for data of dimension ``dim`` corrects the field of point charges."""
        return network.far_field == "on" or (network.far_field == "auto" and dim <= LOW_DIM)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> f (B, D+1)."""
        scale = math.sqrt(self.dim + 1)
        if self.preconditioned:
            return scale * self._along_segments(x, z)
        output: Tensor = self.network(x, self.standardise(x), z)
        if not self.far_field:
            return output
        direction, rho = self._point_charges(x, z)
        return scale * direction + output / rho.amin(1, keepdim=True)

    def _along_segments(self, x: Tensor, z: Tensor) -> Tensor:
        """Unit vectors (B, D+1) along (v / L, 1)."""
        t = (z / self.plate_distance).clamp(0, 1)[:, None]
        width = torch.full_like(t, self.sigma), torch.zeros_like(t)
        v, guess, error = self.segments.precondition(x, t, width)
        velocity = guess + error * self.network(x, v, z)
        return unit(torch.cat([velocity / self.plate_distance, torch.ones_like(t)], dim=1))[0]

    @property
    def capacitor(self) -> Capacitor:
        return Capacitor.between(self.plate_distance, self.centres, self.radii)

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
        return unit(field)[0], rho


class TwoPlates(nn.Module):
    """The fields of both plates, each learned by itself, and their superposition."""

    def __init__(
        self, network: NetworkFactory, source: Tensor, target: Tensor, plate_distance: float
    ) -> None:
        super().__init__()
        self.plate_distance = plate_distance
        self.source = PlateModel(network, source)
        self.target = PlateModel(network, target)

    @property
    def capacitor(self) -> Capacitor:
        plates = self.source, self.target
        centres = torch.stack(tuple(plate.shift for plate in plates))
        return Capacitor.between(self.plate_distance, centres, [plate.radius for plate in plates])

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> the columns of :func:`as_columns`, (B, 3 (D + 1) + 2)."""
        return as_columns(self.source(x, z), self.target(x, z - self.plate_distance))


def as_columns(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Direction of the superposition, then direction and ``LOG_WEIGHT`` log-norm of each plate."""
    plates = [torch.cat([e, LOG_WEIGHT * log[:, None]], dim=1) for e, log in (source, target)]
    return torch.cat([superpose(source, target)[0], *plates], dim=1)


def from_columns(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Direction (B, n) and log-norm (B,) of the superposition, from :func:`as_columns`."""
    n = (columns.shape[1] - 2) // 3
    source, target = columns[:, n:].chunk(2, dim=1)
    plates = [(plate[:, :-1], plate[:, -1] / LOG_WEIGHT) for plate in (source, target)]
    return superpose(plates[0], plates[1])


class PlateModel(Standardised):
    r"""Direction and log-norm of the field of one unit plate at z = 0.

    .. math:: E/|E| \propto \frac{(x - c, h)}{|(x - c, h)|} + g N_u, \quad
              \log|E| = -\log S - \frac{D}{2} \log(s^2 r^2) + g N_l, \quad
              r^2 = 1 + (|x - c|^2 + h^2) / s^2, \quad g = 1/r^2

    with c the mean and s the root mean square radius of the plate: far away it is the field of
    a point charge in c. All are functions of x and |h|, and the z component is odd in h: it jumps
    at the plate and nowhere else.
    """

    def __init__(self, network: NetworkFactory, samples: Tensor) -> None:
        super().__init__(samples)
        self.dim = samples.shape[1]
        self.radius = nn.Buffer(rms_radius(samples))
        self.network = network(3, self.dim + 2, extra_inputs=self.dim)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D), signed distance h (B,) to the plate -> direction (B, D + 1), log-norm (B,)."""
        height = (h.abs() / self.scale)[:, None]
        inputs, log_r = radial_inputs(self.standardise(x), height)
        layer = torch.log(height.square() + PLATE_LAYER**2) / 2
        output = self.network(inputs, torch.cat([log_r, height / log_r.exp(), layer], dim=1))
        offset = torch.cat([x - self.shift, h.abs()[:, None]], dim=1)
        squared = offset.square().sum(1, keepdim=True)
        r2 = 1 + squared / self.radius**2
        field = offset / (squared + torch.finfo(x.dtype).tiny).sqrt() + output[:, :-1] / r2
        direction, _ = unit(field)
        side = torch.where(h < 0, -1.0, 1.0).to(x.dtype)
        direction = torch.cat([direction[:, :-1], side[:, None] * direction[:, -1:]], dim=1)
        log_r2 = torch.log(self.radius**2 * r2)
        point_charge = -log_sphere_area(self.dim + 1) - self.dim / 2 * log_r2
        return direction, (point_charge + output[:, -1:] / r2)[:, 0]


class ExactField(nn.Module):
    """The field of stored charges: direction and log-norm, (B, D + 2). Nothing is learned."""

    def __init__(self, source: Tensor, target: Tensor, plate_distance: float) -> None:
        super().__init__()
        self.plate_distance = plate_distance
        self.positive, self.negative = nn.Buffer(source), nn.Buffer(target)
        self.capacitor = Capacitor.of(plate_distance, source, target)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, D), z (B,) -> E/|E| and log|E|, (B, D + 2)."""
        charges = self.positive, self.negative
        direction, log_norm = capacitor_field(x, z, *charges, self.plate_distance)
        return torch.cat([direction, log_norm[:, None]], dim=1)
