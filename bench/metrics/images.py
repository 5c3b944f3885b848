"""Metrics of images: distances of features, what a classifier sees, and which colour is kept.

Pixels say little about images: these are functions of features that :mod:`bench.features` has
computed once. ``fid``, ``kid`` and ``cmmd`` are of the Inception network of pytorch-fid, and need
its weights; their like of the task's own classifier need no download, have names of their own, and
must not be set beside published numbers.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from bench.metrics.base import Array, metric, squared_distances, to_numpy
from bench.metrics.distances import Moments, frechet, frechet_of_moments
from bench.metrics.kernels import mean_kernel
from bench.metrics.neighbours import coverage, density, memorised, precision, recall
from bench.metrics.transport import transport_cost

SURE = 0.8
"""The probability from which a classifier is sure of a class."""
WIDTH, SCALE = 10.0, 1000.0
"""Of CMMD: the kernel's sigma, and the factor that makes its values readable."""


@metric("fid", "FID", "distance", features="inception")
def fid(samples: Tensor, target: Tensor) -> float:
    """Fréchet Inception Distance: :func:`frechet` of the 2048 features of pytorch-fid's network.

    0 is ideal, lower is better; no unit. Biased upwards for few samples: read it with its floor,
    and compare values of one n only. This one is against the held-out target samples; published
    values are of :func:`fid_train`.

    Args:
        samples: features, shape (n, F), n > 1.
        target: features, shape (m, F), m > 1.

    References:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium, NeurIPS 2017.
    """
    return frechet(samples, target)


@metric(
    "fid_train",
    "FID to the training set",
    "distance",
    "all test images, fewer than the samples as a rule: a value may be below it",
    features="moments",
)
def fid_train(samples: Moments, target: Moments) -> float:
    """FID by the protocol of the papers: ``eval.fid_n`` fresh samples beside all training images.

    0 is ideal, lower is better; no unit. Copies of the training images have the best value: read it
    with :func:`fid` and what says whether they were learned by heart.

    Args:
        samples: moments of the features, shape (n, F), of fresh samples; n = 50,000 in the papers.
        target: those of all training images, as they are (not mirrored).

    References:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium, NeurIPS 2017; the protocol: Karras et al., Elucidating the Design Space of
        Diffusion-Based Generative Models, NeurIPS 2022, appendix F.
    """
    return frechet_of_moments(samples, target)


@metric("fd_classifier", "FD (classifier)", "distance", features="classifier")
def fd_classifier(samples: Tensor, target: Tensor) -> float:
    """:func:`frechet` of the features of the task's classifier: like FID, and not FID.

    0 is ideal, lower is better; the mean variance of a feature of the training images is the unit.
    Biased upwards for few samples: read it with its floor, and compare values of one n only.

    Args:
        samples: features, shape (n, F), n > 1.
        target: features, shape (m, F), m > 1.
    """
    return frechet(samples, target)


@metric("kid", "KID", "distance", features="inception")
@metric("kd_classifier", "KD (classifier)", "distance", features="classifier")
def kernel_distance(samples: Tensor, target: Tensor) -> float:
    """Kernel Inception Distance: unbiased MMD^2 of features with k(x, y) = (x^T y / F + 1)^3.

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j). 0 is ideal, and its
    mean on equal laws for every n: it is below 0 by chance. Of all pairs; others take the mean over
    random subsets. KID is of Inception's features; of a classifier's it is another number.

    Args:
        samples: features, shape (n, F), n > 1.
        target: features, shape (m, F), m > 1.

    References:
        Binkowski et al., Demystifying MMD GANs, ICLR 2018.
    """
    x, y = to_numpy(samples), to_numpy(target)

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    def within(a: Array) -> float:
        own = ((np.square(a).sum(1) / a.shape[1] + 1) ** 3).mean()
        return float((len(a) * mean_kernel(kernel, a, a) - own) / (len(a) - 1))

    return within(x) + within(y) - 2 * mean_kernel(kernel, x, y)


@metric("cmmd", "CMMD-style (Inception)", "distance", features="inception")
@metric("cmmd_classifier", "CMMD-style (classifier)", "distance", features="classifier")
def cmmd(samples: Tensor, target: Tensor) -> float:
    """CMMD's recipe: 1000 MMD^2 of unit features with k(x, y) = exp(-|x - y|^2 / (2 10^2)).

    Means over all pairs, the pairs of a sample with itself among them, after each feature vector is
    divided by its norm. 0 is ideal, lower is better; no unit. CMMD itself is of CLIP's features: of
    others it is another number. With a sigma this wide it is nearly 10 times the squared distance
    of the mean unit vectors.

    Args:
        samples: features, shape (n, F).
        target: features, shape (m, F).

    References:
        Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image Generation,
        CVPR 2024.
    """
    x, y = (_unit(to_numpy(features)) for features in (samples, target))

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray(np.exp(squared_distances(a, b) / (-2 * WIDTH**2)))

    within = mean_kernel(kernel, x, x) + mean_kernel(kernel, y, y)
    return SCALE * max(within - 2 * mean_kernel(kernel, x, y), 0.0)


def _unit(x: Array) -> Array:
    """Each row (n, F) over its norm; a row of zeros stays."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1))


for _name, _function, _better in (
    ("precision", precision, "higher"),
    ("recall", recall, "higher"),
    ("density", density, "nearest"),
    ("coverage", coverage, "higher"),
):
    _seen: dict[str, Any] = {"better": _better, "ideal": 1.0, "features": "classifier"}
    metric(f"classifier_{_name}", f"{_name} (classifier)", "distance", **_seen)(_function)

metric(
    "feature_memorised",
    "memorised share (classifier)",
    "memory",
    "1/2, by symmetry: fresh data are as near to the one as to the other",
    better="nearest",
    ideal=0.5,
    features="classifier",
)(memorised)


@metric(
    "label_success",
    "label success",
    "label",
    better="higher",
    ideal=1.0,
    features="classes",
)
def label_success(probabilities: Tensor, wanted: tuple[int, ...]) -> float:
    """Share of samples whose likeliest class is one that the target consists of.

    1 is ideal, higher is better; no unit. NaN where the target consists of every class: there
    nothing is asked for. A classifier names some class for noise too: read :func:`confident`
    beside it.

    Args:
        probabilities: of the classes, shape (n, K).
        wanted: the classes of the target.
    """
    if len(wanted) == probabilities.shape[1]:
        return math.nan
    found = to_numpy(probabilities).argmax(1)
    return float(np.isin(found, wanted).mean())


@metric(
    "confident",
    "confident",
    "label",
    better="higher",
    ideal=1.0,
    features="classes",
)
def confident(probabilities: Tensor, wanted: tuple[int, ...]) -> float:
    """Share of samples of which the classifier is sure that they are of one class of the target.

    That is p > .8 for the likeliest class, and this one is wanted. 1 is ideal, higher is better;
    the floor is what real images have; no unit.

    Args:
        probabilities: of the classes, shape (n, K).
        wanted: the classes of the target.
    """
    p = to_numpy(probabilities)
    return float(((p.max(1) > SURE) & np.isin(p.argmax(1), wanted)).mean())


@metric(
    "feature_cost",
    "transport cost (classifier)",
    "coupling",
    "none: features of another class are elsewhere",
    features="classifier",
)
def feature_cost(source: Tensor, samples: Tensor) -> float:
    """mean |phi(x) - phi(T(x))|^2 of the features phi of the classifier; lower is cheaper.

    Of image to image. There is no ideal: another class has other features. Among maps that reach
    the target the cheap one keeps more of the image. Units of :func:`fd_classifier`.

    Args:
        source: features of the start points, shape (n, F).
        samples: features of their images T(x) in the same order, shape (n, F).
    """
    return transport_cost(source, samples)


@metric(
    "colour_shift",
    "colour shift",
    "coupling",
    "0, the colour is kept",
    features="colour",
)
def colour_shift(source: Tensor, samples: Tensor) -> float:
    """mean |c(x) - c(T(x))|: how far the map turns the colour c of an image; 0 is ideal.

    c is a unit vector in RGB, from :func:`bench.features.colour.colours`: values are from 0 to
    sqrt(2) = red to green. Of image to image, in colour.

    Args:
        source: colours of the start points, shape (n, 3).
        samples: colours of their images T(x) in the same order, shape (n, 3).
    """
    x, y = to_numpy(source), to_numpy(samples)
    return float(np.linalg.norm(x - y, axis=1).mean())


@metric(
    "colour_shift_ratio",
    "colour shift ratio",
    "coupling",
    "0, the colour is kept",
    features="colour",
)
def colour_shift_ratio(source: Tensor, samples: Tensor) -> float:
    """:func:`colour_shift` over its value with the inputs shuffled; 0 is ideal, 1 no memory.

    mean_i |c(x_i) - c(T(x_i))| / mean_{ij} |c(x_i) - c(T(x_j))|, over all pairs: the expectation
    over shuffles. NaN where all have one colour.

    Args:
        source: colours of the start points, shape (n, 3).
        samples: colours of their images T(x) in the same order, shape (n, 3).
    """
    x, y = to_numpy(source), to_numpy(samples)
    shuffled = mean_kernel(lambda a, b: np.sqrt(squared_distances(a, b)), x, y)
    return colour_shift(source, samples) / shuffled if shuffled > 0 else math.nan
