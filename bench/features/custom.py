"""Features of a network that the user gives (``--features FILE``): DINOv2's, say.

The file is TorchScript, which holds network and weights in one: no architecture need be known here,
reading it runs no Python of the file's, as unpickling would, and later versions of torch read it.
They call it deprecated; but ``torch.export.load`` unpickles what it cannot read otherwise.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.base import digest_of

BATCH = 50


class FeaturesError(ValueError):
    """A file that is no network, or does not return features. One line."""


class Custom:
    """A TorchScript module from images (B, 3, H, W) in [0, 1] to features (B, F), on a device.

    It does itself what its images need: another size, the mean and deviation of its training.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.name, self.device = path.name, device
        content = path.read_bytes()
        self.hash = digest_of([content])[:16]
        try:
            with warnings.catch_warnings(category=FutureWarning, action="ignore"):
                load: Any = torch.jit.load  # untyped in torch
                self.network = load(io.BytesIO(content), device).eval()
        except (RuntimeError, ValueError) as error:
            raise self._error("is no TorchScript", error) from None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, F), on the CPU, of images (n, C, H, W) in [0, 1], C = 1 (repeated) or 3."""
        found = []
        for part in torch.split(images, BATCH):
            colour = part.to(self.device).expand(-1, 3, -1, -1)
            try:
                features = self.network(colour)
            except RuntimeError as error:
                raise self._error(f"fails on images {tuple(colour.shape)}", error) from None
            if not isinstance(features, Tensor) or features.shape[:-1] != (len(part),):
                raise FeaturesError(f"{self.name} does not return features (B, F)")
            found.append(features.float().cpu())
        return torch.cat(found)

    def _error(self, what: str, error: Exception) -> FeaturesError:
        # TorchScript's messages end with the reason, after a traceback of many lines.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        return FeaturesError(f"{self.name} {what}: {reason.strip()[:200]}")
