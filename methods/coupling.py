"""Optimal couplings of minibatches."""

import ot
import torch
from torch import Tensor

MAX_SIMPLEX_ITERATIONS = 10_000_000
"""POT's own limit is too low for large blocks, and it goes on with what it has."""


def optimal_pairs(x0: Tensor, x1: Tensor, block: int) -> Tensor:
    r"""``x1`` in the order that pairs it optimally with ``x0``, block by block.

    Within each run of ``block`` rows the permutation that minimises the sum of |x_0 - x_1|^2: an
    optimal plan between two sets of equal size and weight is one (Birkhoff). POT's network simplex
    costs about the third power of the block's size. The last block may be smaller.

    Args:
        x0: shape (B, D).
        x1: shape (B, D).
        block: rows that are paired with each other, at least 1; 1 leaves ``x1`` as it is.

    References:
        Tong et al., TMLR 2024, https://arxiv.org/abs/2302.00482, section 3.2
    """
    parts = zip(torch.split(x0, block), torch.split(x1, block), strict=True)
    return torch.cat([_paired(a, b) for a, b in parts])


def _paired(x0: Tensor, x1: Tensor) -> Tensor:
    cost = torch.cdist(x0.double(), x1.double()).square().cpu().numpy()
    plan = ot.emd([], [], cost, numItermax=MAX_SIMPLEX_ITERATIONS)
    # A plan of the simplex method is a corner of the polytope: one entry 1/B in each row.
    order = torch.from_numpy(plan.argmax(1)).to(x1.device)
    return x1[order]
