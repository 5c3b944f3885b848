"""Exact electrostatic fields of point charges in R^{D+1}, in log space.

Coulomb's law in R^n, n = D + 1, with S the area of the unit sphere. The weights |x~ - y_i|^{-n}
leave the float range from D of about 64 (float32) or 784 (float64) on, so everything here is a
softmax: logarithms of the weights, one maximum, and a field handed out as a unit direction and
log|E|.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Up to this dimension the differences to all charges are formed coordinate by coordinate:
# faster than matrix products there, and without cancellation.
LOW_DIM = 8
# The charges nearest to a point whose distance is recomputed without cancellation. More than
# one, because a batch drawn with replacement holds some charges several times; of more copies
# than these the direction is still exact, but log|E| loses digits close to them.
NEAREST = 8
BLOCK_PAIRS = 2**18  # points x charges held at a time, 2 MB: larger blocks are ten times as slow
MIN_ROWS = 64  # points a block at least: fewer make the matrix products slow


# The field of one unit plate without 1/S and the sum of the weights |x~ - y_i|^{-n}, both over one
# scale, and its logarithm: (B, D+1), (B,) and (B,), float64. On a charge the logarithm is +inf.
_Plate = tuple[Tensor, Tensor, Tensor]


def capacitor_field(
    x: Tensor, z: Tensor, positive: Tensor, negative: Tensor, plate_distance: float
) -> tuple[Tensor, Tensor]:
    r"""Direction and log-norm of the field of two charged plates in R^{D+1}.

    .. math:: E(\tilde x) = \frac1S \Bigl[
        \frac1N \sum_i \frac{\tilde x - (p_i, 0)}{|\tilde x - (p_i, 0)|^{D+1}}
      - \frac1M \sum_j \frac{\tilde x - (q_j, L)}{|\tilde x - (q_j, L)|^{D+1}} \Bigr]

    The plates are added under one common maximum of their log-weights: scaling each by its own
    would destroy the superposition. Strictly between the plates E_z > 0.

    Args:
        x, z: data and plate coordinates of the points, shapes (B, D) and (B,).
        positive: unit total charge on the plate z = 0, shape (N, D).
        negative: unit total (negative) charge on the plate z = L, shape (M, D).
        plate_distance: L > 0, in the units of x.

    Returns:
        E/|E|, shape (B, D+1), z last, and log|E|, shape (B,), both in the dtype of ``x``. On a
        charge |E| is infinite and the direction zero.

    Raises:
        ValueError: shapes that do not fit, no charges, or a plate distance that is not positive.

    References:
        Kolesov et al., Field Matching, ICML 2025, https://arxiv.org/abs/2502.02367
    """
    if not (math.isfinite(plate_distance) and plate_distance > 0):
        raise ValueError(f"plate_distance must be positive and finite, got {plate_distance}")
    source = poisson_field(x.double(), z, positive, "positive")
    # In double: at L = 500 a rounded distance to the plate is a wrong direction at D = 12288.
    target = poisson_field(x.double(), z.double() - plate_distance, negative, "negative")
    direction, log_norm = superpose(source, target)
    return direction.to(x.dtype), log_norm.to(x.dtype)


def superpose(
    positive: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The field of one plate minus that of another: all three as of :func:`poisson_field`."""
    log_scale = torch.maximum(positive[1], negative[1])
    field = positive[0] * _ratio(positive[1], log_scale)
    field = field - negative[0] * _ratio(negative[1], log_scale)
    return _direction_and_norm(field, log_scale)


def poisson_field(
    x: Tensor, z: Tensor, charges: Tensor, name: str = "charges"
) -> tuple[Tensor, Tensor]:
    r"""Direction and log-norm of the field of one unit plate at z = 0 in R^{D+1}.

    .. math:: E(\tilde x) = \frac1{S N} \sum_i
              \frac{\tilde x - (y_i, 0)}{|\tilde x - (y_i, 0)|^{D+1}}

    The ``charges`` (N, D) have unit total charge, and errors call them ``name``. Points, results
    and errors are those of :func:`capacitor_field`.

    References:
        Xu et al., Poisson Flow Generative Models, NeurIPS 2022, https://arxiv.org/abs/2209.11178
    """
    field, _, log_scale = _plate_field(x, z, charges, name)
    direction, log_norm = _direction_and_norm(field, log_scale)
    return direction.to(x.dtype), (log_norm - log_sphere_area(x.shape[1] + 1)).to(x.dtype)


def mean_displacement(x: Tensor, z: Tensor, charges: Tensor) -> Tensor:
    r"""The field of a plate with its weights normalised: a displacement in the units of x.

    .. math:: \sum_i w_i (\tilde x - (y_i, 0)), \quad
              w_i \propto |\tilde x - (y_i, 0)|^{-(D+1)}, \quad \sum_i w_i = 1

    Shape (B, D+1), zero on a charge; all else is as in :func:`poisson_field` (eq. 5 of its source).
    Its z component is z, so E_x / E_z = (x - sum_i w_i y_i) / z.
    """
    field, weight, _ = _plate_field(x, z, charges, "charges")
    return (field / weight.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).to(x.dtype)


def plate_flux(x: Tensor, h: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
    r"""The mean charge (B, D) of the flux at (x, h), and the log-density (B,) of the flux.

    .. math:: y = \sum_i w_i y_i = x - h E_x / E_z, \quad
              \log q = \log \frac1N \sum_i |h| / |\tilde x - (y_i, 0)|^{D+1} = \log|E_z| + const.,

    with the weights w of :func:`mean_displacement`; the constant depends on D alone. All else is as
    in :func:`poisson_field`, but both are of float64.
    """
    field, weight, log_scale = _plate_field(x, h, charges, "charges")
    weight = weight.clamp_min(torch.finfo(torch.float64).tiny)
    log_density = h.double().abs().log() + weight.log() + log_scale
    return x.double() - field[:, :-1] / weight[:, None], log_density


def unit(field: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (B, n) and lengths (B,) of vectors (B, n); of zero the direction is zero."""
    norm = torch.linalg.vector_norm(field, dim=1)
    return field / norm.clamp_min(torch.finfo(field.dtype).tiny)[:, None], norm


def softened(u: Tensor, gamma: float, scale: float) -> Tensor:
    """scale u / (|u| + gamma) for vectors u (B, n): of about the length ``scale`` beyond gamma."""
    shortened: Tensor = scale * u / (torch.linalg.vector_norm(u, dim=1, keepdim=True) + gamma)
    return shortened


def in_blocks(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, s: Tensor, charges: int
) -> Tensor:
    """``function(x, s)`` for ``BLOCK_PAIRS`` pairs of a point and one of ``charges`` at a time."""
    rows = max(1, BLOCK_PAIRS // charges)
    blocks = zip(torch.split(x, rows), torch.split(s, rows), strict=True)
    return torch.cat([function(*block) for block in blocks])


def log_sphere_area(n: int) -> float:
    """log of the area 2 pi^{n/2} / Gamma(n/2) of the unit sphere in R^n."""
    return math.log(2.0) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)


def _ratio(log_scale: Tensor, reference: Tensor) -> Tensor:
    """exp(log_scale - reference), shape (B, 1); two infinities make 1, not NaN."""
    difference = torch.where(log_scale == reference, 0.0, log_scale - reference)
    return difference.exp()[:, None]


def _direction_and_norm(field: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """E/|E| and log|E| of ``field * exp(log_scale)``: zero and infinite on a charge."""
    direction, norm = unit(field)
    return direction, (log_scale + norm.log()).masked_fill(torch.isinf(log_scale), math.inf)


def _plate_field(x: Tensor, height: Tensor, charges: Tensor, name: str) -> _Plate:
    """The field of unit ``charges`` at ``x`` (B, D), ``height`` (B,) above their plate."""
    shapes = tuple(x.shape), tuple(height.shape), tuple(charges.shape)
    if x.ndim != 2 or height.shape != x.shape[:1]:
        raise ValueError(f"x must be (B, D) and z (B,), got {shapes[0]} and {shapes[1]}")
    dim = x.shape[1]
    if charges.ndim != 2 or charges.shape[1] != dim or not len(charges):
        raise ValueError(f"{name} must have shape (N, {dim}) with N > 0, got {shapes[2]}")
    by_coordinate = dim <= LOW_DIM
    sums = _sums_by_coordinate if by_coordinate else _sums_by_product
    rows = max(1 if by_coordinate else MIN_ROWS, BLOCK_PAIRS // len(charges))
    charges = charges.double()
    pieces = zip(torch.split(x, rows), torch.split(height, rows), strict=True)
    blocks = [sums(piece.double(), h.double(), charges) for piece, h in pieces]
    field, weight, log_scale = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return field, weight, log_scale


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
    return torch.stack([*parts, total * height], dim=1), total, log_scale


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
    return torch.cat([field_x, (total * height)[:, None]], dim=1), total, log_scale
