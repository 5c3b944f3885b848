"""Sets of images, kept as bytes, and what is common to them: shrinking, colours, flips, a cache.

An image in bytes is a vector (D,) of uint8 with the shape (channels, height, width); in original
units it is that over 255, in [0, 1]; in those of a task it is standardised by one mean and one
standard deviation of the training pixels.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from datasets.base import (
    DataError,
    Draws,
    Empirical,
    Labelled,
    Normalisation,
    validation_part,
)
from datasets.cache import cache_folder

MOST_NUMBERS = 2**26
"""Pixel values of a part that is handed out as a whole, 256 MiB in float32: 21,845 images of
32x32x3, 5,461 of 64x64x3."""
BLOCK = 4096
"""Images that are decoded or coloured at a time."""
PART_SEED = 0
"""Of a larger set the same random images are handed out in every run."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``augment(images (n, C, H, W), rng)``: images of the same law, bytes as they are."""
Bytes = NDArray[np.uint8]


# ------------------------------------------------------------------------------------ distributions


@dataclass(frozen=True)
class ByteImages:
    """Some images of a data set, without a copy of them."""

    images: Tensor  # (N, D) uint8, of the whole set; perhaps mapped from a file
    rows: Tensor  # (n,) int64, those meant

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """The bytes of the images at the places ``index`` (k,), shape (k, D)."""
        return self.images[self.rows[index]]

    def where(self, chosen: Tensor) -> "ByteImages":
        """The images at places, or those where a mask (n,) is true."""
        return ByteImages(self.images, self.rows[chosen])

    def bounded(self) -> Tensor:
        """Places of all images; of a set larger than ``MOST_NUMBERS`` of some, in random order."""
        most = max(1, MOST_NUMBERS // self.images.shape[1])
        if len(self) <= most:
            return torch.arange(len(self))
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(PART_SEED))[:most]

    def which(self) -> Tensor:
        """Numbers 0, 1, ... of the different images, (n,): equal images have equal ones."""
        numbers: dict[bytes, int] = {}
        every = (self.images[row].numpy().tobytes() for row in self.rows.tolist())
        digests = (hashlib.blake2b(image).digest() for image in every)
        return torch.tensor([numbers.setdefault(digest, len(numbers)) for digest in digests])


class Images(Empirical):
    """The images of a data set, split into a training and a test part, and kept as bytes.

    That takes a quarter of the memory of float32, or none where they are mapped from a file:
    draws are decoded when they are made. Training draws may be augmented; ``train``, the draws
    of low variance and the second set are the images as they are.
    """

    def __init__(
        self,
        kept: ByteImages,
        held: ByteImages,
        shape: tuple[int, ...],
        normalisation: Normalisation,
        augment: Augment | None = None,
    ) -> None:
        self.kept, self.held, self.shape = kept, held, shape
        self.normalisation, self.augment = normalisation, augment

    @property
    def train(self) -> Tensor:  # type: ignore[override]  # nobody sets it
        """The training images, or as many of them as memory should hold, shape (n, D)."""
        return self.decode(self.kept[self.kept.bounded()])

    @property
    def test(self) -> Tensor:  # type: ignore[override]
        """The test images, or as many of them as memory should hold, shape (n, D)."""
        return self.decode(self.held[self.held.bounded()])

    def decode(self, images: Tensor) -> Tensor:
        """Bytes in the units of the task, (n, D)."""
        return self.normalisation.apply(images.float() / 255)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` training images with replacement, augmented."""
        return self.decode(self._drawn(n, rng))

    def sample_on(self, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """The same on a device, decoded there: a quarter of the bytes to move, and no CPU time."""
        own_units = isinstance(self.normalisation.shift, Tensor)
        if type(self).sample is not Images.sample or own_units:
            return super().sample_on(n, rng, device)
        return self.decode(self._drawn(n, rng).to(device))

    def _drawn(self, n: int, rng: torch.Generator) -> Tensor:
        images = self.kept[torch.randint(len(self.kept), (n,), generator=rng)]
        if self.augment is None:
            return images
        return self.augment(images.view(n, *self.shape), rng).flatten(1)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """The training images again and again in random orders: all as often, up to one."""
        size = len(self.kept)
        orders = [torch.randperm(size, generator=rng) for _ in range(0, n, size)]
        return self.decode(self.kept[torch.cat(orders)[:n]])

    def held_out(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """A random part of the test images, or all of them."""
        return self.decode(self.held[torch.randperm(len(self.held), generator=rng)[:n]])

    def second_set(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """A random part of the training images: real, and disjoint from the test images."""
        return self.decode(self.kept[torch.randperm(len(self.kept), generator=rng)[:n]])

    def training_blocks(self, size: int) -> Iterator[Tensor]:
        """All training images in their order, ``size`` at a time, each (k, D)."""
        for rows in torch.split(torch.arange(len(self.kept)), size):
            yield self.decode(self.kept[rows])

    def for_validation(self) -> Self:
        """The training images alone, split again as those of every data set."""
        held = validation_part(self.kept.which())
        parts = self.kept.where(~held), self.kept.where(held)
        return type(self)(*parts, self.shape, self.normalisation, self.augment)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size, split into training and test images.

    Raises:
        DataError: :meth:`law` for a class without images in one of the parts.
    """

    shape: tuple[int, ...]
    train: Tensor  # (N, D) uint8
    train_labels: Tensor  # (N,) int64
    test: Tensor  # (M, D) uint8
    test_labels: Tensor  # (M,)
    names: tuple[str, ...]

    @cached_property
    def normalisation(self) -> Normalisation:
        """One mean and one standard deviation, of the training pixels of all classes."""
        every = ByteImages(self.train, torch.arange(len(self.train)))
        counts = torch.bincount(every[every.bounded()].flatten(), minlength=256).double()
        values = torch.arange(256).double() / 255
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        if int((counts > 0).sum()) < 2:
            raise DataError("the training images are all of one value")
        return Normalisation(mean, variance**0.5)

    def law(self, classes: Iterable[int] | None = None, augment: Augment | None = None) -> Images:
        """The images of some classes, or of all."""
        wanted = torch.tensor(list(range(len(self.names)) if classes is None else classes))
        parts = []
        for name, images, labels in (
            ("training", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            rows = torch.isin(labels, wanted).nonzero()[:, 0]
            for label in [] if classes is None else wanted.tolist():
                if not bool((labels == label).any()):
                    raise DataError(f"no {name} image is of the class {self.names[label]}")
            if not len(rows):
                raise DataError(f"there are no {name} images")
            parts.append(ByteImages(images, rows))
        return Images(parts[0], parts[1], self.shape, self.normalisation, augment)

    def labelled(self, wanted: Iterable[int]) -> Labelled:
        """Images with their labels, as many of each part as memory should hold."""
        law = self.law()
        train, test = law.kept.bounded(), law.held.bounded()
        return Labelled(
            *(law.train, self.train_labels[train], law.test, self.test_labels[test]),
            names=self.names,
            wanted=tuple(wanted),
        )


# -------------------------------------------------------------------------------------- operations


def shrunk(images: Tensor, size: int) -> Tensor:
    """Images of another size, by antialiased linear interpolation.

    Args:
        images: shape (n, height, width), uint8.
        size: the new height and width.

    Returns:
        Shape (n, size, size), uint8; the same images if they have this size.
    """
    if images.shape[1:] == (size, size):
        return images
    resized = torch.nn.functional.interpolate(
        images[:, None].float(), (size, size), mode="bilinear", antialias=True
    )
    return resized[:, 0].round().clamp(0, 255).to(torch.uint8)


def hue(angle: Tensor) -> Tensor:
    r"""Red, green and blue of a colour of full saturation and brightness.

    .. math:: c_k = 1 - \max(0, \min(s_k, 4 - s_k, 1)),
        \quad s_k = (6 h + k) \bmod 6, \quad k = 5, 3, 1

    The largest of the three is 1 and the smallest 0.

    Args:
        angle: the hue h in [0, 1), shape (n,): 0 is red, 1/3 green, 2/3 blue.

    Returns:
        Shape (n, 3), in [0, 1].
    """
    s = (6 * angle[:, None] + torch.tensor([5.0, 3.0, 1.0])) % 6
    return 1 - torch.minimum(s, 4 - s).clamp(0, 1)


def colored(grey: Tensor, angle: Tensor) -> Tensor:
    """Images of one hue each: intensity times colour, so the largest channel is the intensity.

    Args:
        grey: shape (n, height, width), uint8.
        angle: hues in [0, 1), shape (n,).

    Returns:
        Shape (n, 3, height, width), uint8; made in blocks, as floats take four times the memory.

    References:
        Gushchin et al., Adversarial Schrodinger Bridge Matching, 2024, and Kolesov et al., Field
        Matching, ICML 2025, colour MNIST with a hue of each image like this.
    """
    shades, colours = grey[:, None], hue(angle)[:, :, None, None]
    starts = range(0, len(grey), BLOCK)
    blocks = [(shades[k : k + BLOCK] * colours[k : k + BLOCK]).round().byte() for k in starts]
    return torch.cat(blocks)


def recolored(images: Tensor, rng: torch.Generator) -> Tensor:
    """Coloured images (n, 3, H, W) with other, random hues; see :func:`colored`."""
    return colored(images.amax(1), torch.rand(len(images), generator=rng))


def flipped(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images (n, C, H, W) of which each is mirrored, left to right, with probability 1/2."""
    mirrored = torch.rand(len(images), generator=rng) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


# ------------------------------------------------------------------------------------------- cache


def cached_rows(
    name: str,
    shape: tuple[int, int],
    make: Callable[[], Iterable[Bytes]],
    valid: Callable[[Bytes], bool] = lambda rows: True,
) -> Tensor:
    """The rows that ``make`` yields, mapped from a file of the cache if it is there.

    A file that is spoiled is made again; where none can be written the rows are in memory.

    Args:
        name: says all that the rows depend on.
        shape: number and length of the rows.
        make: yields the rows (D,), uint8; called only if there is no file.
        valid: whether rows (N, D) of a file are what they should be, where that can be told.

    Returns:
        Shape ``shape``, uint8.
    """
    path = cache_folder() / f"{name}.npy"
    found = _mapped(path, shape, valid)
    if found is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                found = _mapped(path, shape, valid)  # another process may have made it
                if found is None:
                    _write(path, shape, make())
                    found = _mapped(path, shape, valid)
        except DataError:
            raise
        except OSError:  # no such folder, read only, full
            found = None
    if found is None:
        found = np.empty(shape, np.uint8)
        for place, row in zip(found, make(), strict=True):
            place[:] = row
    return torch.from_numpy(found)


def _mapped(path: Path, shape: tuple[int, int], valid: Callable[[Bytes], bool]) -> Bytes | None:
    try:
        # Copy on write: torch warns of memory that cannot be written.
        array: Any = np.load(path, mmap_mode="c", allow_pickle=False)
    except Exception:  # missing, or spoiled, which may raise anything
        return None
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != np.uint8:
        return None
    return array if valid(array) else None


def _write(path: Path, shape: tuple[int, int], rows: Iterable[Bytes]) -> None:
    """Writes an array row by row: through a mapping, a full disk would kill the process."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, header)
            for row in rows:
                file.write(row.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, where the system can: others wait and do not do the same work."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.with_suffix(".lock").open("w") as file:
        with contextlib.suppress(OSError):  # some network disks cannot
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
