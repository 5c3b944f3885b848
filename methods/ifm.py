r"""Interaction Field Matching.

Pairs of charges are joined by tubes of a field whose flux is one, as between quarks. Its duality
with flows along Gaussian paths: https://arxiv.org/abs/2602.02261.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from methods.base import Draw, register
from methods.flow import GaussianPath, IndependentPairs, VelocityMethod, optimal_pairs


class TubePath(GaussianPath):
    """The width s(t) = sigma sin(pi t)."""

    sigma: float = Field(0.5, ge=0)  # ours; results/parametrisation has .1 and 1 beside it

    @classmethod
    def defaults(cls, dim: int, noise_source: bool, data_set: bool) -> dict[str, Any]:
        found = super().defaults(dim, noise_source, data_set)
        return {name: value for name, value in found.items() if name != "sigma"}

    def width(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.sigma * math.pi * torch.cos(math.pi * t)
        return self.sigma * torch.sin(math.pi * t), slope


@register
class InteractionFieldMatching(TubePath, VelocityMethod):
    r"""The field of tubes of unit flux, as a velocity in t = z / L.

    The tube of a pair is the vector field

    .. math:: E(x, z) = (u, 1)\, N(x; m, s^2 I), \quad m = (1 - t) x_0 + t x_1, \quad
              u = \frac{x_1 - x_0}{L} + \frac{s'}{s} (x - m), \quad s(t) = \sigma \sin(\pi t)

    with div E = 0. Its z component is the density of a Gaussian path and its direction that path's
    velocity, so the direction of the sum over pairs is the path's marginal velocity, and
    regressing the pairs' velocities learns it. L scales z and cancels. Pairs are independent,
    or those of the optimal coupling of ``block`` samples each (``coupling = ot``).

    The authors' released code has a factor |(x_1 - x_0, L)| / L on E_z and on the widening of the
    tube, so that its flux is not one (a few units apart in the plane it is off by some 14% at
    L = 6, and by less than .1% at L = 100); here it is 1.
    """

    name: ClassVar[str] = "ifm"
    title: ClassVar[str] = "Interaction Field Matching"
    reference: ClassVar[str] = "Manukhov et al., ICLR 2026, https://arxiv.org/abs/2506.02950"
    search: ClassVar = {"sigma": "0.05:2:log", "coupling": "independent|ot"}

    coupling: Literal["independent", "ot"] = "independent"
    block: int | None = Field(128, ge=1, le=4096)

    def idle(self) -> dict[str, Any]:
        return {} if self.coupling == "ot" else {"block": None}

    def pairs(self, source: Draw, target: Draw, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
        x0, x1 = super().pairs(source, target, n, rng)
        return x0, x1 if self.block is None else optimal_pairs(x0, x1, self.block)


@register
class ExactInteractionField(TubePath, IndependentPairs):
    """The velocity along the field that Interaction Field Matching learns."""

    name: ClassVar[str] = "ifm-exact"
    title: ClassVar[str] = "Exact interaction field"
    reference: ClassVar[str] = "Manukhov et al., ICLR 2026, https://arxiv.org/abs/2506.02950"
