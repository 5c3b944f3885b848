"""The exact field of stored samples: what Electrostatic Field Matching is without a network.

References:
    Kolesov et al., Field Matching: an Electrostatic Paradigm to Generate and Transfer Data,
    ICML 2025, https://arxiv.org/abs/2502.02367
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.base import ExactMethod, Transport, register
from methods.base import Field as CapacitorField
from methods.efm import CapacitorMethod
from methods.fields import ExactField
from methods.networks import NetworkFactory
from methods.solvers import Solver


@register
class ExactElectrostaticField(ExactMethod, CapacitorMethod):
    """Samples move along the exact field lines of ``charges`` training samples on each plate.

    Nothing is trained: beside ``efm`` it tells the error of the network from that of the
    transport. ``landing = charge`` moves the end of every line that landed to the charge of the
    target plate next to it, where the field of finitely many charges ends.
    """

    name: ClassVar[str] = "efm-exact"
    title: ClassVar[str] = "Exact electrostatic field"
    reference: ClassVar[str] = "Kolesov et al., ICML 2025, https://arxiv.org/abs/2502.02367"

    landing: Literal["plate", "charge"] = "plate"

    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        return ExactField(source[: self.charges], target[: self.charges], self.plate_distance)

    def field(self, model: nn.Module) -> CapacitorField:
        def exact(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            output: Tensor = model(x, z)
            return output[:, :-1], output[:, -1]

        return exact

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        result = super().transport(model, start, solver, path, rng)
        if self.landing == "plate":
            return result
        charges = model.negative
        assert isinstance(charges, Tensor)
        nearest = charges[torch.cdist(result.end, charges).argmin(1)]
        snapped = torch.where(result.landed[:, None], nearest, result.end)
        if result.path is None or result.heights is None:
            return result._replace(end=snapped)
        landing = torch.cat([result.path, snapped[None]])
        heights = torch.cat([result.heights, result.heights[-1:]])
        return result._replace(end=snapped, path=landing, heights=heights)
