"""How the samples are spread over the modes of a mixture."""

import math

import torch
from torch import Tensor

from bench.metrics.base import metric
from datasets import Distribution
from datasets.mixtures import Mixture

MISSED = 0.25  # a mode with less than this part of its share is missed


def mode_shares(samples: Tensor, mixture: Mixture) -> Tensor:
    """The share of samples (n, D) in each mode, by the largest posterior probability, (K,)."""
    counts = torch.bincount(mixture.mode(samples), minlength=len(mixture.weights))
    return counts.double() / len(samples)


@metric("mode_error", "mode error", "distribution", headline="plain")
def mode_error(samples: Tensor, target: Tensor, distribution: Distribution) -> float:
    """sum_k |share_k - w_k| / 2, the total variation between mode counts and weights; no unit.

    Of samples (n, D); NaN unless the distribution of the target is a mixture. 0 is ideal, 1 is the
    worst. It does not see where in a mode samples are.
    """
    if not isinstance(distribution, Mixture):
        return math.nan
    shares = mode_shares(samples, distribution)
    return float((shares - distribution.weights.double()).abs().sum() / 2)


@metric("modes_missed", "modes missed", "distribution")
def modes_missed(samples: Tensor, target: Tensor, distribution: Distribution) -> float:
    """The number of modes with less than a quarter of the samples they should have; 0 is ideal.

    Of samples (n, D), enough for dozens in every mode; NaN unless the distribution of the target is
    a mixture.
    """
    if not isinstance(distribution, Mixture):
        return math.nan
    shares = mode_shares(samples, distribution)
    return float((shares < MISSED * distribution.weights.double()).sum())
