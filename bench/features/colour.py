"""The colour of an image as one vector."""

import torch
from torch import Tensor

DARK = 1e-5
"""Grey that is added to the mean: a black image is grey, a digit's colour does not change."""


def colours(images: Tensor) -> Tensor:
    r"""The direction in RGB of the brightness-weighted mean pixel, a unit vector.

    .. math:: c = s / |s|, \quad s = \mathrm{mean}_p\, w_p x_p + \epsilon (1, 1, 1)

    over the pixels p with colours x_p in [0, 1]^3; w_p is the mean of the three channels. Dark
    pixels count little, so the colour is that of what is drawn; how large or bright it is does not
    matter.

    Args:
        images: shape (n, 3, H, W), in [0, 1].

    Returns:
        Shape (n, 3), float64.
    """
    pixels = images.double().flatten(2)  # (n, 3, P)
    weights = pixels.mean(1, keepdim=True)
    return torch.nn.functional.normalize((weights * pixels).mean(2) + DARK, dim=1)
