"""Exact electrostatic fields of point charges in R^{D+1}, in log space.

Coulomb's law in R^n, n = D + 1, with the area S = 2 pi^{n/2} / Gamma(n/2) of the unit
sphere: a unit charge spread evenly over N points y_i has the field

    E(x~) = 1/S * 1/N * sum_i (x~ - y_i) / |x~ - y_i|^n.

The weights |x~ - y_i|^{-n} leave the float range from D of about 64 (float32) or 784
(float64) on, so everything here is a softmax: logarithms of the weights, one maximum,
and a field handed out as a unit direction and log|E|.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Up to this dimension the differences to all charges are formed coordinate by coordinate:
# faster than matrix products there, and without cancellation.
LOW_DIM = 8
# The charges nearest to a point whose distance is recomputed without cancellation. More than
# one, because a batch drawn with replacement holds some charges several times; of more copies
# than these the direction is still exact, but log|E| loses digits close to them.
NEAREST = 8
# About this many point-charge pairs are held at a time (2 MB in float64): larger blocks leave the
# cache, and what they are made of is taken from the system anew each time, ten times as slow.
BLOCK_PAIRS = 2**18
# Points a block at least: fewer make the matrix products slow.
MIN_ROWS = 64


class _Plate(NamedTuple):
    """The field of one unit plate, without 1/S: ``field * exp(log_scale)``."""

    field: Tensor  # (B, D+1), float64
    weight: Tensor  # (B,), float64: sum of the weights |x~ - y_i|^{-n}, in the same scale
    log_scale: Tensor  # (B,), float64; +inf on a charge


def capacitor_field(
    x: Tensor, z: Tensor, positive: Tensor, negative: Tensor, plate_distance: float
) -> tuple[Tensor, Tensor]:
    r"""Direction and log-norm of the field of two charged plates in R^{D+1}.

    .. math:: E(\tilde x) = \frac1S \Bigl[
        \frac1N \sum_i \frac{\tilde x - (p_i, 0)}{|\tilde x - (p_i, 0)|^{D+1}}
      - \frac1M \sum_j \frac{\tilde x - (q_j, L)}{|\tilde x - (q_j, L)|^{D+1}} \Bigr]

    The plates are added under one common maximum of their log-weights: scaling each plate by
    its own would destroy the superposition. Strictly between the plates E_z > 0.

    Args:
        x: data coordinates of the points, shape (B, D).
        z: plate coordinates of the points, shape (B,).
        positive: unit total charge on the plate z = 0, shape (N, D).
        negative: unit total (negative) charge on the plate z = L, shape (M, D).
        plate_distance: L > 0, in the units of x.

    Returns:
        ``direction`` E/|E|, shape (B, D+1), z last, and ``log_norm`` log|E|, shape (B,), both
        in the dtype of ``x``. On a charge |E| is infinite and the direction zero.

    Raises:
        ValueError: shapes that do not fit, no charges, or a plate distance that is not
            positive.

    References:
        Kolesov et al., Field Matching: an Electrostatic Paradigm to Generate and Transfer
        Data, ICML 2025, https://arxiv.org/abs/2502.02367
    """
    if not (math.isfinite(plate_distance) and plate_distance > 0):
        raise ValueError(f"plate_distance must be positive and finite, got {plate_distance}")
    source = _plate_field(x, z, positive, "positive")
    # In double: at L = 500 a rounded distance to the plate is a wrong direction at D = 12288.
    target = _plate_field(x, z.double() - plate_distance, negative, "negative")
    fields = [_direction_and_norm(plate.field, plate.log_scale) for plate in (source, target)]
    direction, log_norm = superpose(fields[0], fields[1])
    return direction.to(x.dtype), log_norm.to(x.dtype)


def superpose(
    positive: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The field of a positive plate minus that of a plate of the same charge.

    Args:
        positive, negative: direction (B, D+1) and log-norm (B,) of the field of either plate, as
            :func:`poisson_field` gives them.

    Returns:
        Direction and log-norm of the difference; where a log-norm is infinite, zero and infinite.
    """
    log_scale = torch.maximum(positive[1], negative[1])
    field = positive[0] * _ratio(positive[1], log_scale)
    field = field - negative[0] * _ratio(negative[1], log_scale)
    norm = torch.linalg.vector_norm(field, dim=1)
    direction = field / norm.clamp_min(torch.finfo(field.dtype).tiny)[:, None]
    log_norm = (log_scale + norm.log()).masked_fill(torch.isinf(log_scale), math.inf)
    return direction, log_norm


def poisson_field(x: Tensor, z: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
    r"""Direction and log-norm of the field of one unit plate at z = 0 in R^{D+1}.

    .. math:: E(\tilde x) = \frac1{S N} \sum_i
              \frac{\tilde x - (y_i, 0)}{|\tilde x - (y_i, 0)|^{D+1}}

    Args:
        x: data coordinates of the points, shape (B, D).
        z: augmented coordinates of the points, shape (B,).
        charges: unit total charge on z = 0, shape (N, D).

    Returns:
        As :func:`capacitor_field`.

    Raises:
        ValueError: shapes that do not fit, or no charges.

    References:
        Xu et al., Poisson Flow Generative Models, NeurIPS 2022,
        https://arxiv.org/abs/2209.11178
    """
    plate = _plate_field(x, z, charges, "charges")
    direction, log_norm = _direction_and_norm(plate.field, plate.log_scale)
    return direction.to(x.dtype), log_norm.to(x.dtype)


def mean_displacement(x: Tensor, z: Tensor, charges: Tensor) -> Tensor:
    r"""The field of a plate with its weights normalised: a displacement in the units of x.

    .. math:: \sum_i w_i (\tilde x - (y_i, 0)), \quad
              w_i \propto |\tilde x - (y_i, 0)|^{-(D+1)}, \quad \sum_i w_i = 1

    Parallel to :func:`poisson_field`; its z component is z, so E_x / E_z = (x - sum_i w_i y_i) / z.

    Args:
        x: data coordinates of the points, shape (B, D).
        z: augmented coordinates of the points, shape (B,).
        charges: the charges on z = 0, shape (N, D).

    Returns:
        The weighted mean, shape (B, D+1), in the dtype of ``x``; zero on a charge.

    Raises:
        ValueError: shapes that do not fit, or no charges.

    References:
        Xu et al., Poisson Flow Generative Models, NeurIPS 2022, eq. 5.
    """
    plate = _plate_field(x, z, charges, "charges")
    tiny = torch.finfo(torch.float64).tiny
    return (plate.field / plate.weight.clamp_min(tiny)[:, None]).to(x.dtype)


def log_sphere_area(n: int) -> float:
    """log of the area 2 pi^{n/2} / Gamma(n/2) of the unit sphere in R^n."""
    return math.log(2.0) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)


def _ratio(log_scale: Tensor, reference: Tensor) -> Tensor:
    """exp(log_scale - reference), shape (B, 1); two infinities make 1, not NaN."""
    difference = torch.where(log_scale == reference, 0.0, log_scale - reference)
    return difference.exp()[:, None]


def _direction_and_norm(field: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(field, dim=1)
    direction = field / norm.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    log_norm = log_scale + norm.log() - log_sphere_area(field.shape[1])
    log_norm = log_norm.masked_fill(torch.isinf(log_scale), math.inf)
    return direction, log_norm


def _plate_field(x: Tensor, height: Tensor, charges: Tensor, name: str) -> _Plate:
    """The field of unit ``charges`` at ``x`` (B, D), ``height`` (B,) above their plate."""
    if x.ndim != 2 or height.shape != x.shape[:1]:
        raise ValueError(
            f"x must be (B, D) and z (B,), got {tuple(x.shape)} and {tuple(height.shape)}"
        )
    if charges.ndim != 2 or charges.shape[1] != x.shape[1] or not len(charges):
        raise ValueError(
            f"{name} must have shape (N, {x.shape[1]}) with N > 0, got {tuple(charges.shape)}"
        )
    by_coordinate = x.shape[1] <= LOW_DIM
    sums = _sums_by_coordinate if by_coordinate else _sums_by_product
    rows = max(1 if by_coordinate else MIN_ROWS, BLOCK_PAIRS // len(charges))
    charges = charges.double()
    blocks = [
        sums(x_block.double(), h_block.double(), charges)
        for x_block, h_block in zip(torch.split(x, rows), torch.split(height, rows), strict=True)
    ]
    return _Plate(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _weights(squared: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Weights |x~ - y_i|^{-n} / N under their row's maximum, and the log of that maximum."""
    log_weight = squared.log_().mul_(-n / 2)
    log_scale = log_weight.amax(1)
    weight = log_weight.sub_(log_scale[:, None]).exp_()
    # On a charge inf - inf is NaN: that charge alone is left, and its difference is zero.
    weight.masked_fill_(torch.isinf(log_scale)[:, None], 0.0)
    return weight, log_scale - math.log(squared.shape[1])


def _sums_by_coordinate(x: Tensor, height: Tensor, charges: Tensor) -> _Plate:
    differences = [x[:, k, None] - charges[None, :, k] for k in range(x.shape[1])]  # D x (B, N)
    squared = height.square()[:, None].expand(-1, len(charges)).clone()
    for difference in differences:
        squared.addcmul_(difference, difference)
    weight, log_scale = _weights(squared, x.shape[1] + 1)
    parts = [torch.linalg.vecdot(weight, difference) for difference in differences]
    total = weight.sum(1)
    return _Plate(torch.stack([*parts, total * height], dim=1), total, log_scale)


def _sums_by_product(x: Tensor, height: Tensor, charges: Tensor) -> _Plate:
    """Two matrix products instead of the (B, N, D) differences.

    |x|^2 + |y|^2 - 2 x.y loses all digits near a charge, where its weight is the largest; so the
    nearest charges are taken out of the products and their differences formed exactly.
    """
    centre = charges.mean(0)  # distances do not change, and there is less to cancel
    points, sites = x, charges
    x, charges = x - centre, charges - centre
    squared = torch.addmm(charges.square().sum(1), x, charges.T, alpha=-2)
    squared += x.square().sum(1, keepdim=True)
    near = squared.topk(min(NEAREST, len(charges)), largest=False).indices  # (B, k)
    near_difference = points[:, None] - sites[near]  # (B, k, D), before any rounding
    squared.clamp_min_(torch.finfo(torch.float64).tiny)
    squared.scatter_(1, near, near_difference.square().sum(2))
    squared += height.square()[:, None]
    weight, log_scale = _weights(squared, x.shape[1] + 1)
    near_weight = weight.gather(1, near)
    total = weight.sum(1)
    weight.scatter_(1, near, 0.0)
    field_x = torch.addmm(x * weight.sum(1, keepdim=True), weight, charges, alpha=-1)
    field_x += torch.einsum("bk,bkd->bd", near_weight, near_difference)
    return _Plate(torch.cat([field_x, (total * height)[:, None]], dim=1), total, log_scale)
