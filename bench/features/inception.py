"""The Inception features of FID: pytorch-fid's network and weights, without network access."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.features import cache
from bench.metrics.distances import Moments, merged, moments_of

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
"""The file of pytorch-fid's weights, as torch keeps it once it is fetched."""
SMALLEST_SIDE = 16
"""Images below this are blurs at 299x299, and the features of blurs say nothing."""
BATCH = 50
LARGEST_CACHED = 10_000
"""Images whose features are kept; 2048 numbers of 4 bytes each."""
RECIPE = "1"
NO_WEIGHTS = "no weights of pytorch-fid"


class FidError(ValueError):
    """There are no weights, a file is none, or images are of no use. One line."""


def weight_file(given: str | None) -> Path:
    """The file given by the user, else the one that torch has fetched for pytorch-fid.

    Raises:
        FidError: there is none.
    """
    usual = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    path = usual if given is None else Path(given)
    if not path.is_file():
        raise FidError(
            f"{NO_WEIGHTS}: give --fid-weights FILE, or put {WEIGHTS} into the folder"
            " checkpoints of torch.hub"
            if given is None
            else f"no weight file {given}"
        )
    return path


def check_shape(shape: Sequence[int]) -> None:
    """Whether images (C, H, W) are ones that Inception can say something about.

    Raises:
        FidError: they are not.
    """
    channels, height, width = shape
    if channels not in (1, 3) or min(height, width) < SMALLEST_SIDE:
        raise FidError(
            f"images are {channels}x{height}x{width}: Inception takes 1 or 3 channels, and"
            f" {SMALLEST_SIDE} pixels a side or more"
        )


class Inception:
    """Features of pytorch-fid's InceptionV3 before its last layer.

    Args:
        path: the weights.
        device: where features are computed; they are returned on the CPU.

    Raises:
        FidError: a file that does not hold these weights.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        try:
            content = path.read_bytes()
            state = torch.load(path, map_location="cpu", weights_only=True)
            network = _network(state)
        except Exception as error:  # zip and pickle raise a dozen types on a spoiled file
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise FidError(f"{path.name} does not hold pytorch-fid's weights: {words}") from None
        self.network = network.eval().to(device)
        self.hash = cache.digest_of([content])[:16]

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, 2048) of images (n, C, H, W) in [0, 1], C = 1 or 3.

        They are rounded to 8 bits first, as images are that are stored and read again; grey is
        repeated. The network's own code resizes them.
        """
        found = [self._features(part) for part in torch.split(eight_bits(images), BATCH)]
        return torch.cat(found)

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels.to(self.device).float() / 255)[0]
        return features.flatten(1).cpu()

    def reference(self, images: Tensor) -> Tensor:
        """Like a call, for images that many cells share: features are kept in the cache."""
        pixels = eight_bits(images)
        name = f"inception-{cache.digest_of([f'recipe {RECIPE} ', self.hash, pixels])[:32]}"
        stored = cache.load(name)
        if stored is not None and "features" in stored[0]:
            return stored[0]["features"]
        features = self(images)
        if len(images) <= LARGEST_CACHED:
            cache.store(name, {"features": features}, {"weights": self.hash})
        return features

    def moments(self, blocks: Iterable[Tensor]) -> Moments:
        """Of the features of images, block by block: 50,000 features are 400 MB."""
        return functools.reduce(merged, (moments_of(self(images)) for images in blocks))

    def reference_moments(self, blocks: Callable[[], Iterable[Tensor]]) -> Moments:
        """Like :meth:`moments`, for images that many cells share: they are kept in the cache."""
        made_of: list[str | Tensor] = [f"recipe {RECIPE} ", self.hash]
        parts = itertools.chain(made_of, map(eight_bits, blocks()))
        name = f"moments-{cache.digest_of(parts)[:32]}"
        stored = cache.load(name)
        if stored is not None and set(stored[0]) == set(Moments._fields):
            kept = {key: tensor.numpy() for key, tensor in stored[0].items()}
            return Moments(int(kept["n"]), kept["mean"], kept["root"])
        found = self.moments(blocks())
        tensors = {key: torch.as_tensor(value) for key, value in found._asdict().items()}
        cache.store(name, tensors, {"weights": self.hash})
        return found


def eight_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] as stored pixels, uint8, of three channels."""
    pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1)


def _network(state: Any) -> nn.Module:
    """pytorch-fid's network with these weights, which it would otherwise fetch itself."""
    from pytorch_fid import inception  # and torchvision: seconds, for those who have weights

    with _instead_of_fetching(inception, state):
        block = inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]
        network: nn.Module = inception.InceptionV3([block])
    return network


@contextmanager
def _instead_of_fetching(module: Any, state: Any) -> Iterator[None]:
    fetch = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda *args, **options: state
    try:
        yield
    finally:
        module.load_state_dict_from_url = fetch
