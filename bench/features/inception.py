"""The Inception features of FID: pytorch-fid's network and weights, without network access."""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from bench.features.cache import Tensors, kept
from bench.metrics.distances import Moments, merged, moments_of
from datasets.base import digest_of

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # pytorch-fid's, as torch keeps it once fetched
SMALLEST_SIDE = 16  # smaller images are blurs at 299x299, and the features of blurs say nothing
BATCH = 50
LARGEST_CACHED = 10_000  # images whose features are kept; 2048 numbers of 4 bytes each
RECIPE = "1"
NO_WEIGHTS = "no weights of pytorch-fid"


class FidError(ValueError):
    """There are no weights, a file is none, or images are of no use. One line."""


def weight_file(given: str | None) -> Path:
    """The file given by the user, else torch's for pytorch-fid; FidError if that is not there."""
    path = Path(given or f"{torch.hub.get_dir()}/checkpoints/{WEIGHTS}")
    if given is None and not path.is_file():
        words = f"put {WEIGHTS} into the folder checkpoints of torch.hub"
        raise FidError(f"{NO_WEIGHTS}: give --fid-weights FILE, or {words}")
    return path


def check_shape(shape: Sequence[int]) -> None:
    """Raises FidError if images (C, H, W) are none that Inception can say something about."""
    channels, height, width = shape
    if channels not in (1, 3) or min(height, width) < SMALLEST_SIDE:
        takes = f"Inception takes 1 or 3 channels, and {SMALLEST_SIDE} pixels a side or more"
        raise FidError(f"images are {channels}x{height}x{width}: {takes}")


class Inception:
    """Features of pytorch-fid's InceptionV3 before its last layer, computed on a device.

    A file that does not hold its weights is a :class:`FidError`.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        from pytorch_fid import inception as theirs  # and torchvision: seconds, only with weights

        self.device = device
        try:
            content = path.read_bytes()
            state = torch.load(path, map_location="cpu", weights_only=True)
            # pytorch-fid would fetch the weights itself.
            with mock.patch.object(theirs, "load_state_dict_from_url", return_value=state):
                block = theirs.InceptionV3.BLOCK_INDEX_BY_DIM[2048]
                self.network = theirs.InceptionV3([block]).eval().to(device)
        except Exception as error:  # zip and pickle raise a dozen types on a corrupt file
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise FidError(f"{path.name} does not hold pytorch-fid's weights: {words}") from None
        self.hash = digest_of([content])[:16]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, 2048), on the CPU, of images (n, C, H, W) in [0, 1], C = 1 or 3.

        They are rounded to 8 bits first, as images are that are stored and read again; grey is
        repeated. The network's own code resizes them.
        """
        found = []
        for part in torch.split(eight_bits(images), BATCH):
            features: Tensor = self.network(part.to(self.device).float() / 255)[0]
            found.append(features.flatten(1).cpu())
        return torch.cat(found)

    def reference(self, images: Tensor) -> Tensor:
        """Like a call, for images that many cells share: features are kept in the cache."""
        if len(images) > LARGEST_CACHED:
            return self(images)
        return self._kept("inception", [images], lambda: {"features": self(images)})["features"]

    def moments(self, blocks: Iterable[Tensor]) -> Moments:
        """Of the features of images, block by block: 50,000 features are 400 MB."""
        return functools.reduce(merged, (moments_of(self(images)) for images in blocks))

    def reference_moments(self, blocks: Callable[[], Iterable[Tensor]]) -> Moments:
        """Like :meth:`moments`, for images that many cells share: they are kept in the cache."""

        def make() -> Tensors:
            found = self.moments(blocks())._asdict()
            return {key: torch.as_tensor(value) for key, value in found.items()}

        found = self._kept("moments", blocks(), make)
        return Moments(int(found["n"]), found["mean"].numpy(), found["root"].numpy())

    def _kept(self, kind: str, blocks: Iterable[Tensor], make: Callable[[], Tensors]) -> Tensors:
        """What ``make`` returns, or what it has returned before for the same images."""
        head: list[str | Tensor] = [f"recipe {RECIPE} ", self.hash]
        return kept(f"{kind}-{digest_of(chain(head, map(eight_bits, blocks)))[:32]}", make)


def eight_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] as stored pixels, uint8, of three channels."""
    pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1)
