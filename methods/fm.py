"""Flow Matching with independent coupling."""

from typing import ClassVar

from methods.base import register
from methods.flow import IndependentPairs, VelocityMethod


@register
class FlowMatching(VelocityMethod):
    """Pairs are independent and the width is ``sigma``.

    ``sigma = 0`` is Lipman's path with sigma_min = 0 (rectified flow); ``sigma > 0`` is the
    Gaussian path of Tong et al., TMLR 2024, https://arxiv.org/abs/2302.00482.
    """

    name: ClassVar[str] = "fm"
    title: ClassVar[str] = "Flow Matching"
    reference: ClassVar[str] = "Lipman et al., ICLR 2023, https://arxiv.org/abs/2210.02747"
    search: ClassVar = {"sigma": "0:0.3"}


@register
class ExactFlowMatching(IndependentPairs):
    """The velocity that Flow Matching with independent coupling learns."""

    name: ClassVar[str] = "fm-exact"
    title: ClassVar[str] = "Exact marginal velocity of Flow Matching"
    reference: ClassVar[str] = "Lipman et al., ICLR 2023, https://arxiv.org/abs/2210.02747"
