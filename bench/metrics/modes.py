"""How the samples are spread over the modes of a mixture."""

import torch
from torch import Tensor

from bench.metrics.base import metric
from datasets import Distribution
from datasets.mixtures import Mixture

MISSED = 0.25
"""A mode with less than this part of its share is missed."""


def mode_shares(samples: Tensor, law: Mixture) -> Tensor:
    """The share of samples (n, D) in each mode, by the largest posterior probability, (K,)."""
    counts = torch.bincount(law.mode(samples), minlength=len(law.weights))
    return counts.double() / len(samples)


@metric("mode_error", "mode error", "law")
def mode_error(samples: Tensor, target: Tensor, law: Distribution) -> float:
    """sum_k |share_k - w_k| / 2, the total variation between mode counts and weights; no unit.

    0 is ideal, 1 is the worst. It does not see where in a mode samples are.

    Args:
        samples: shape (n, D).
        target: not used.
        law: of the target; NaN if it is no mixture.
    """
    if not isinstance(law, Mixture):
        return float("nan")
    return float((mode_shares(samples, law) - law.weights.double()).abs().sum() / 2)


@metric("modes_missed", "modes missed", "law")
def modes_missed(samples: Tensor, target: Tensor, law: Distribution) -> float:
    """The number of modes with less than a quarter of the samples they should have; 0 is ideal.

    Args:
        samples: shape (n, D), enough for dozens in every mode.
        target: not used.
        law: of the target; NaN if it is no mixture.
    """
    if not isinstance(law, Mixture):
        return float("nan")
    return float((mode_shares(samples, law) < MISSED * law.weights.double()).sum())
