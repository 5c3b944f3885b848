r"""Interaction Field Matching.

Pairs of charges are joined by tubes of a field whose flux is one, as between quarks. Their sum
carries samples of the source along its lines to the target.

References:
    Manukhov et al., Interaction Field Matching: Overcoming Limitations of Electrostatic Models,
    ICLR 2026, https://arxiv.org/abs/2506.02950
    The duality with flows along Gaussian paths: https://arxiv.org/abs/2602.02261
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from methods.base import Draw, register
from methods.coupling import optimal_pairs
from methods.fm import VelocityMethod


@register
class InteractionFieldMatching(VelocityMethod):
    r"""The field of tubes of unit flux, as a velocity in t = z / L.

    The tube of a pair is the vector field of :func:`tube_field`. Its z component is the density of
    a Gaussian path and its direction that path's velocity, so the direction of the sum over pairs
    is the marginal velocity of the path with the bell-shaped width

    .. math:: s(t) = \sigma \sin(\pi t)

    and regressing the pairs' velocities learns it. L scales z and cancels. Pairs are independent,
    or those of the optimal coupling of ``block`` samples each (``coupling = ot``).

    The authors' released code has a factor |(x_1 - x_0, L)| / L on E_z and on the widening of the
    tube, which makes it differ from a field of unit flux (for pairs of the plane a few units apart
    by some 14% at L = 6, and by less than .1% at L = 100); here it is 1.
    """

    name: ClassVar[str] = "ifm"
    title: ClassVar[str] = "Interaction Field Matching"
    reference: ClassVar[str] = "Manukhov et al., ICLR 2026, https://arxiv.org/abs/2506.02950"
    search: ClassVar[Mapping[str, str]] = {"sigma": "0.05:2:log", "coupling": "independent|ot"}

    sigma: float = Field(0.5, ge=0)
    coupling: Literal["independent", "ot"] = "independent"
    block: int | None = Field(128, ge=1, le=4096)

    @field_validator("block")
    @classmethod
    def _independent_pairs_have_no_blocks(
        cls, block: int | None, info: ValidationInfo
    ) -> int | None:
        if info.data.get("coupling") != "ot":
            return None
        if block is None:
            raise ValueError("a number is needed with coupling = ot")
        return block

    def pairs(
        self, source: Draw, target: Draw, n: int, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        x0, x1 = super().pairs(source, target, n, rng)
        return x0, x1 if self.block is None else optimal_pairs(x0, x1, self.block)

    def width(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return bell(t, self.sigma)


def bell(t: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """s(t) = sigma sin(pi t) and its derivative, shapes of t."""
    return sigma * torch.sin(math.pi * t), sigma * math.pi * torch.cos(math.pi * t)


def tube_field(
    x: Tensor, z: Tensor, x0: Tensor, x1: Tensor, plate_distance: float, sigma: float
) -> tuple[Tensor, Tensor]:
    r"""Direction and log-norm of the field of tubes between pairs of charges.

    .. math:: E(x, z) = \frac1K \sum_k (u_k, 1)\, N(x; m_k, s^2 I), \quad
              m_k = (1 - t) x_0^k + t x_1^k, \quad
              u_k = \frac{x_1^k - x_0^k}{L} + \frac{s'}{s} (x - m_k), \quad t = z / L

    with s(z) = sigma sin(pi z / L). Every tube carries the flux 1 through each plane between the
    plates, and div E = 0.

    Args:
        x: shape (B, D).
        z: shape (B,), strictly between 0 and L.
        x0, x1: the ends of the K tubes on the plates z = 0 and z = L, each (K, D).
        plate_distance: L.
        sigma: the width of the tubes half-way.

    Returns:
        E / |E|, shape (B, D+1), z last; and log|E|, shape (B,).

    References:
        Manukhov et al., https://arxiv.org/abs/2506.02950
    """
    t = (z / plate_distance)[:, None]
    s, slope = bell(t, sigma)
    offset = x[:, None] - torch.lerp(x0, x1, t[:, :, None])  # (B, K, D)
    across = (x1 - x0 + (slope / s)[:, :, None] * offset) / plate_distance
    log_density = -(offset / s[:, :, None]).square().sum(2) / 2
    share = torch.softmax(log_density, dim=1)
    field = torch.cat([(share[:, :, None] * across).sum(1), torch.ones_like(t)], dim=1)
    norm = torch.linalg.vector_norm(field, dim=1)
    log_sum = torch.logsumexp(log_density, dim=1) - math.log(len(x0))
    log_scale = x.shape[1] * (s[:, 0].log() + math.log(2 * math.pi) / 2)
    return field / norm[:, None], log_sum - log_scale + norm.log()
