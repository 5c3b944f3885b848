"""Several tasks and few seeds in one number: interquartile means, improvement, profiles.

Of scores that are comparable over tasks (:func:`bench.analysis.references.score`; smaller is
better), by the runs of a competitor: an array of seeds for every task. Intervals are of the
stratified bootstrap: the seeds of every task are drawn again, with replacement, and the tasks stay.

References:
    Agarwal, Schwarzer, Castro, Courville and Bellemare, Deep Reinforcement Learning at the Edge of
    the Statistical Precipice, NeurIPS 2021, https://arxiv.org/abs/2108.13264
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values = NDArray[np.float64]
Counts = NDArray[np.signedinteger]
Runs = Sequence[Values]
"""The scores of one competitor, shape (seeds,) for every task."""

REPLICATES = 2000
PERCENTILES = (2.5, 97.5)
MIN_RUNS = 3  # seeds of a task below which its draws say nothing about others
TAUS = np.round(np.arange(-0.1, 1.505, 0.01), 2)
"""Where the profiles are evaluated: from better than perfect to worse than noise."""


def draw(runs: Runs, rng: np.random.Generator) -> list[Counts]:
    """How often each seed is drawn: for every task shape (REPLICATES, seeds), rows sum to seeds."""
    return [rng.multinomial(len(own), np.full(len(own), 1 / len(own)), REPLICATES) for own in runs]


def interquartile_mean(runs: Runs, counts: Sequence[Counts] | None = None) -> Values:
    """The mean of the middle half of all runs of all tasks.

    Of N runs the floor(N / 4) smallest and as many of the largest are left out. With ``counts``
    (:func:`draw`) one mean a draw, in which a run counts as often as it was drawn.
    """
    values = np.concatenate(runs)
    times = np.ones(len(values), int) if counts is None else np.concatenate(counts, axis=-1)
    order, size = np.argsort(values), len(values)
    cut = size // 4
    ends = np.clip(np.cumsum(times[..., order], axis=-1), cut, size - cut)
    kept = np.diff(ends, prepend=cut)  # how often each counts, once the ends are cut off
    return np.asarray(kept @ values[order] / (size - 2 * cut))


def improvement(
    a: Runs, b: Runs, counts: tuple[Sequence[Counts], Sequence[Counts]] | None = None
) -> Values:
    r"""The probability that a run of a is better than one of b, on a task drawn at random.

    .. math:: \frac1M \sum_m \frac{1}{N_m K_m} \sum_{i,j} [a_{mi} < b_{mj}] + [a_{mi} = b_{mj}]/2

    over M tasks, with N_m runs of a and K_m of b: the mean of the Mann-Whitney statistics. With
    ``counts`` (:func:`draw`, of a and of b) one value a draw.
    """
    every = []
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        better = (x[:, None] < y) + 0.5 * (x[:, None] == y)
        u, v = (
            (np.ones(len(x)), np.ones(len(y))) if counts is None else (counts[0][k], counts[1][k])
        )
        every.append(((u @ better) * v).sum(-1) / better.size)
    return np.asarray(np.mean(every, axis=0))


def profile(runs: Runs) -> Values:
    """The share of all runs of all tasks whose score is at most tau, for every tau of ``TAUS``."""
    values = np.sort(np.concatenate(runs))
    return np.asarray(np.searchsorted(values, TAUS, side="right") / len(values))


def interval(draws: Values, *runs: Runs) -> tuple[float, float]:
    """The middle 95% of the draws; none where a task has fewer than ``MIN_RUNS`` runs."""
    if min(len(own) for tasks in runs for own in tasks) < MIN_RUNS:
        return np.nan, np.nan
    low, high = np.percentile(draws, PERCENTILES)
    return float(low), float(high)


def aggregates(
    scores: Mapping[str, Runs],
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Interquartile means, probabilities of improvement and profiles of several competitors.

    Args:
        scores: the runs of each, over the same tasks.

    Returns:
        ``iqm, iqm_low, iqm_high``, a row a competitor by its name; ``a, b, improvement, low,
        high``, a row a pair; ``name, tau, share``, a row a competitor and tau.
    """
    rng = np.random.default_rng(0)
    drawn = {name: draw(runs, rng) for name, runs in scores.items()}
    means = {
        name: (
            float(interquartile_mean(runs)),
            *interval(interquartile_mean(runs, drawn[name]), runs),
        )
        for name, runs in scores.items()
    }
    pairs = [
        (a, b, float(improvement(own, other)), *interval(draws, own, other))
        for a, own in scores.items()
        for b, other in scores.items()
        if a != b
        for draws in [improvement(own, other, (drawn[a], drawn[b]))]
    ]
    shares = [
        (name, tau, share)
        for name, runs in scores.items()
        for tau, share in zip(TAUS, profile(runs), strict=True)
    ]
    return (
        pd.DataFrame.from_dict(means, orient="index", columns=["iqm", "iqm_low", "iqm_high"]),
        pd.DataFrame(pairs, columns=["a", "b", "improvement", "low", "high"]),
        pd.DataFrame(shares, columns=["name", "tau", "share"]),
    )
