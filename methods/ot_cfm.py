"""Conditional Flow Matching with minibatch optimal transport."""

from typing import ClassVar

from pydantic import Field
from torch import Generator, Tensor

from methods.base import Draw, register
from methods.flow import ExactVelocityMethod, VelocityMethod, optimal_pairs


@register
class OptimalTransportFlowMatching(VelocityMethod):
    """Flow Matching whose pairs are those of the optimal coupling of ``block`` samples each.

    The larger the block, the nearer is its coupling to that of the distributions: 128 samples cost
    milliseconds, 512 a good 20 times as much. Also Pooladian et al., Multisample Flow Matching,
    ICML 2023, https://arxiv.org/abs/2304.14772.
    """

    name: ClassVar[str] = "ot-cfm"
    title: ClassVar[str] = "Flow Matching with minibatch optimal transport"
    reference: ClassVar[str] = "Tong et al., TMLR 2024, https://arxiv.org/abs/2302.00482"
    search: ClassVar = {"sigma": "0:0.3", "block": "32:256:int:log"}

    block: int = Field(128, ge=1, le=4096)  # the batch of Tong et al. on CIFAR-10

    def pairs(self, source: Draw, target: Draw, n: int, rng: Generator) -> tuple[Tensor, Tensor]:
        x0, x1 = super().pairs(source, target, n, rng)
        return x0, optimal_pairs(x0, x1, self.block)


@register
class ExactOptimalTransportFlow(ExactVelocityMethod):
    """The velocity that OT-CFM learns, from stored pairs coupled in blocks as in training."""

    name: ClassVar[str] = "ot-cfm-exact"
    title: ClassVar[str] = "Exact marginal velocity of OT-CFM"
    reference: ClassVar[str] = "Tong et al., TMLR 2024, https://arxiv.org/abs/2302.00482"

    block: int = Field(128, ge=1, le=4096)

    def stored(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return source, optimal_pairs(source, target, self.block)
