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

from bench.metrics.base import EVERYWHERE, SHARE, Array, metric, squared_distances, to_numpy
from bench.metrics.distances import Moments, frechet, frechet_of_moments
from bench.metrics.kernels import mean_kernel
from bench.metrics.transport import transport_cost

SURE = 0.8  # the probability from which a classifier is sure of a class
WIDTH, SCALE = 10.0, 1000.0  # of CMMD: the kernel's sigma, a factor for readable values
SEEN: dict[str, Any] = {"features": "classifier", "headline": "images"}
PICTURED: dict[str, Any] = {"headline": "images", "quick": True}
LABELS: dict[str, Any] = {"features": "classes", **PICTURED, **SHARE}
COLOURS: dict[str, Any] = {"features": "colour", "floor": "0, the colour is kept"}


@metric("fid", "FID", "distance", features="inception", main=5, headline="images", **EVERYWHERE)
def fid(samples: Tensor, target: Tensor) -> float:
    """Fréchet Inception Distance: :func:`frechet` of the 2048 features of pytorch-fid's network.

    Of features of samples (n, F) and target (m, F), n, m > 1. 0 is ideal, lower is better; no unit.
    Biased upwards for few samples: read it with its floor, and compare values of one n only. This
    one is against the held-out target samples; published values are of :func:`fid_train`.

    References:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium, NeurIPS 2017.
    """
    return frechet(samples, target)


@metric(
    "fid_train",
    "FID to the training set",
    "distance",
    features="moments",
    headline="images",
    floor="all test images, fewer than the samples as a rule: a value may be below it",
)
def fid_train(samples: Moments, target: Moments) -> float:
    """FID by the protocol of the papers: ``eval.fid_n`` fresh samples beside all training images.

    0 is ideal, lower is better; no unit. Copies of the training images have the best value: read it
    with :func:`fid` and what says whether they were learned by heart. Of the moments of features
    (n, F), n = 50,000 in the papers, and of those of all training images as they are (not
    mirrored).

    References:
        Heusel et al., NeurIPS 2017; the protocol: Karras et al., Elucidating the Design Space of
        Diffusion-Based Generative Models, NeurIPS 2022, appendix F.
    """
    return frechet_of_moments(samples, target)


@metric("fd_classifier", "FD (classifier)", "distance", main=4, **SEEN, **EVERYWHERE)
def fd_classifier(samples: Tensor, target: Tensor) -> float:
    """:func:`frechet` of the features of the task's classifier: like FID, and not FID.

    Of features of samples (n, F) and target (m, F), n, m > 1. 0 is ideal, lower is better; the mean
    variance of a feature of the training images is the unit. Biased upwards for few samples: read
    it with its floor, and compare values of one n only.
    """
    return frechet(samples, target)


@metric("fd_custom", "FD (own network)", "distance", features="custom", **PICTURED)
def fd_custom(samples: Tensor, target: Tensor) -> float:
    """:func:`frechet` of the features of a network of the user's (``--features FILE``).

    Of features of samples (n, F) and target (m, F), n, m > 1. 0 is ideal, lower is better; no unit.
    Biased upwards for few samples. Comparable under one ``features_hash`` only. DINOv2's features
    agree better with what people say of images than Inception's.

    References:
        Stein et al., Exposing Flaws of Generative Model Evaluation Metrics and Their Unfair
        Treatment of Diffusion Models, NeurIPS 2023.
    """
    return frechet(samples, target)


@metric("kid", "KID", "distance", features="inception")
@metric("kd_classifier", "KD (classifier)", "distance", features="classifier")
def kernel_distance(samples: Tensor, target: Tensor) -> float:
    """Kernel Inception Distance: unbiased MMD^2 of features with k(x, y) = (x^T y / F + 1)^3.

    Of features x (n, F) of samples and y (m, F) of the target, n, m > 1: mean_{i != j} k(x_i, x_j)
    + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j). 0 is ideal, and its mean on equal
    distributions for every n: it is below 0 by chance. Of all pairs; others take the mean over
    random subsets. KID is of Inception's features; of a classifier's it is another number.

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

    Of features x (n, F) of samples and y (m, F) of the target. Means over all pairs, the pairs of a
    sample with itself among them, after each feature vector is divided by its norm. 0 is ideal,
    lower is better; no unit. CMMD itself is of CLIP's features: of others it is another number.
    With a sigma this wide it is nearly 10 times the squared distance of the mean unit vectors.

    References:
        Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image Generation,
        CVPR 2024.
    """

    def unit(features: Tensor) -> Array:  # a row of zeros stays
        a = to_numpy(features)
        norms = np.linalg.norm(a, axis=1, keepdims=True)
        return np.asarray(a / np.where(norms > 0, norms, 1))

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray(np.exp(squared_distances(a, b) / (-2 * WIDTH**2)))

    x, y = unit(samples), unit(target)
    within = mean_kernel(kernel, x, x) + mean_kernel(kernel, y, y)
    return SCALE * max(within - 2 * mean_kernel(kernel, x, y), 0.0)


@metric("label_success", "label success", "label", **LABELS)
def label_success(probabilities: Tensor, wanted: tuple[int, ...]) -> float:
    """Share of samples whose likeliest class is one that the target consists of.

    Of probabilities (n, K) of the classes, and the classes wanted. 1 is ideal, higher is better; no
    unit. NaN where the target consists of every class: there nothing is asked for. A classifier
    names some class for noise too: read :func:`confident` beside it.
    """
    if len(wanted) == probabilities.shape[1]:
        return math.nan
    return float(np.isin(to_numpy(probabilities).argmax(1), wanted).mean())


@metric("confident", "confident", "label", **LABELS)
def confident(probabilities: Tensor, wanted: tuple[int, ...]) -> float:
    """Share of samples of which the classifier is sure that they are of one class of the target.

    Of probabilities (n, K) of the classes, and the classes wanted. Sure is p > .8 for the likeliest
    class, and this one is wanted. 1 is ideal, higher is better; the floor is what real images have;
    no unit.
    """
    p = to_numpy(probabilities)
    return float(((p.max(1) > SURE) & np.isin(p.argmax(1), wanted)).mean())


@metric(
    "feature_cost",
    "transport cost (classifier)",
    "coupling",
    features="classifier",
    ranked=False,
    floor_kind="none",
    floor="none: features of another class are elsewhere",
)
def feature_cost(source: Tensor, samples: Tensor) -> float:
    """mean |phi(x) - phi(T(x))|^2 of the features phi of the classifier; lower is cheaper.

    Of image to image: features (n, F) of the start points and of their images T(x) in the same
    order. There is no ideal: another class has other features. Among maps that reach the target the
    cheap one keeps more of the image. Units of :func:`fd_classifier`.
    """
    return transport_cost(source, samples)


@metric("colour_shift", "colour shift", "coupling", **COLOURS)
def colour_shift(source: Tensor, samples: Tensor) -> float:
    """mean |c(x) - c(T(x))|: how far the map turns the colour c of an image; 0 is ideal.

    Of colours (n, 3) of the start points and of their images T(x) in the same order. c is a unit
    vector in RGB, from :func:`bench.features.colour.colours`: values are from 0 to sqrt(2) = red to
    green. Of image to image, in colour.
    """
    x, y = to_numpy(source), to_numpy(samples)
    return float(np.linalg.norm(x - y, axis=1).mean())


@metric("colour_shift_ratio", "colour shift ratio", "coupling", **COLOURS, **PICTURED)
def colour_shift_ratio(source: Tensor, samples: Tensor) -> float:
    """:func:`colour_shift` over its value with the inputs shuffled; 0 is ideal, 1 no memory.

    Of colours (n, 3) of the start points and of their images T(x) in the same order: mean_i |c(x_i)
    - c(T(x_i))| / mean_{ij} |c(x_i) - c(T(x_j))|, over all pairs: the expectation over shuffles.
    NaN where all have one colour.
    """
    x, y = to_numpy(source), to_numpy(samples)
    shuffled = mean_kernel(lambda a, b: np.sqrt(squared_distances(a, b)), x, y)
    return colour_shift(source, samples) / shuffled if shuffled > 0 else math.nan
