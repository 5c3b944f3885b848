"""Image data sets that the user supplies: MNIST, CIFAR-10, CelebA and any two folders of images.

They lie under one folder, that of ``--data-root``, as torchvision lays them out. Nothing is
downloaded, and no check sum is asked for: files of other images in the same format do.
"""

import contextlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field, field_validator
from torch import Tensor

from datasets.base import DATA_ROOT, DataError, Split, register
from datasets.cache import Bytes, cached_rows
from datasets.gaussians import FromNoise
from datasets.images import Augment, ImageSet, ImageTask, SizedTask, flipped, shrunk

MNIST_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_FILES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
CIFAR_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CELEBA_IMAGES = "img_align_celeba"
CELEBA_PARTS, CELEBA_ATTRIBUTES = "list_eval_partition.txt", "list_attr_celeba.txt"
CELEBA_FILES = (CELEBA_PARTS, CELEBA_ATTRIBUTES, CELEBA_IMAGES)
CELEBA_CROP = 140  # of 178x218 pixels, as in the papers (Song et al. 2021, Xu et al. 2022)
FETCHED = "must lie there (torchvision.datasets.{}(root, download=True) fetches it)"
LAYOUT = {  # what must lie in the folder of data sets
    "MNIST": f"MNIST/raw with {', '.join(MNIST_FILES)} {FETCHED.format('MNIST')}",
    "CIFAR-10": f"{CIFAR_FOLDER} with data_batch_1 to data_batch_5 and test_batch"
    f" {FETCHED.format('CIFAR10')}",
    "CelebA": f"celeba with the folder {CELEBA_IMAGES} of 178x218 images, {CELEBA_PARTS} and"
    f" {CELEBA_ATTRIBUTES} {FETCHED.format('CelebA')}",
    "folders": "one folder of images for each side must lie there, in any format that PIL reads",
}
Reader = TypeVar("Reader", bound=Callable[..., Any])


def data_root(kind: str) -> Path:
    """The folder of the user's data sets; without one DataError says what should lie there."""
    if not (given := os.environ.get(DATA_ROOT)):
        names = f"--data-root or {DATA_ROOT} names it"
        raise DataError(f"no folder of data sets is given: {names}, and {LAYOUT[kind]}")
    return Path(given).expanduser().absolute()


def _missing(kind: str, root: Path, what: str) -> DataError:
    remedy = "--data-root names the folder of data sets"
    return DataError(f"no {kind} under {root}, {what}: {LAYOUT[kind]}; {remedy}")


def _existing(kind: str, root: Path, folder: Path, names: Iterable[str]) -> list[Path]:
    """The files or folders of these names, all of which are there."""
    for name in names:
        if not (folder / name).exists():
            raise _missing(kind, root, f"{name} is not in {folder}")
    return [folder / name for name in names]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a reader raises in the block into a DataError: the file is corrupt."""
    try:
        yield
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is corrupt ({words}): fetch or make it again") from None


def stamp(files: Iterable[Path], head: str = "") -> str:
    """Hash of names, sizes and times of change of files or folders, and of ``head``."""
    digest = blake2b(head.encode(), digest_size=16)
    for file in files:
        found = file.stat()
        digest.update(os.fsencode(file) + f" {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def kept(files: Callable[..., Iterable[Path]]) -> Callable[[Reader], Reader]:
    """Decorator: what a reader returns is kept until one of ``files(*its arguments)`` changes."""

    def decorate(read: Any) -> Any:
        return wraps(read)(lambda *args: _read_once(stamp(files(*args)), read, *args))

    return decorate


@lru_cache(maxsize=8)  # of all readers together
def _read_once(stamp: str, read: Callable[..., Any], *args: Any) -> Any:
    return read(*args)


@kept(lambda root, *_: _existing("MNIST", root, root / "MNIST" / "raw", MNIST_FILES))
def mnist(root: Path, size: int = 28) -> ImageSet:
    """MNIST in its official split, read by torchvision and brought to a size."""
    from torchvision.datasets import MNIST

    parts: list[Tensor] = []
    for name, train in ((MNIST_FILES[0], True), (MNIST_FILES[2], False)):
        with reading(root / "MNIST" / "raw" / name):
            official = MNIST(root, train=train)
            images, labels = official.data, official.targets
            right = images.shape[1:] == (28, 28) and 0 < len(images) == len(labels)
            if not right or labels.max() > 9:
                found = f"{tuple(images.shape)} and {len(labels)} labels"
                raise ValueError(f"expected n images of 28x28 and n labels 0 to 9, got {found}")
        parts += [shrunk(images, size).flatten(1), labels]
    return ImageSet((1, size, size), Split(*parts), tuple("0123456789"))


class ArraysOnly(pickle.Unpickler):
    """Reads arrays, lists and words: a pickle may otherwise run any code when it is read."""

    ALLOWED = (
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
        *(("numpy._core.multiarray", "_reconstruct"), ("numpy._core.numeric", "_frombuffer")),
    )

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # that of numpy 1
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return super().find_class(module, name)


@kept(lambda root: _existing("CIFAR-10", root, root / CIFAR_FOLDER, CIFAR_FILES))
def cifar10(root: Path) -> ImageSet:
    """CIFAR-10 in its official split, 3x32x32."""
    batches = (_cifar_batch(root / CIFAR_FOLDER / name) for name in CIFAR_FILES)
    images, labels = zip(*batches, strict=True)
    train, train_labels = torch.cat(images[:-1]), torch.cat(labels[:-1])
    return ImageSet((3, 32, 32), Split(train, train_labels, images[-1], labels[-1]), CIFAR_NAMES)


def _cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    with reading(path), path.open("rb") as file:
        content = ArraysOnly(file, encoding="latin1").load()
        images, labels = np.asarray(content["data"]), [int(label) for label in content["labels"]]
        right = images.dtype == np.uint8 and images.shape == (len(labels), 3 * 32 * 32)
        if not (right and labels and set(labels) <= set(range(10))):
            found = f"{images.dtype} {images.shape} and {len(labels)} labels"
            raise ValueError(f"expected bytes (n, 3072) and n labels 0 to 9, got {found}")
    return torch.from_numpy(images), torch.tensor(labels)


@kept(lambda root: _existing("CelebA", root, root / "celeba", CELEBA_FILES))
def celeba_lists(root: Path) -> tuple[list[Path], Tensor, int]:
    """The images of CelebA, which are of men (1, else 0), and how many are for training.

    Training images come first, then test images; those for validation are used for nothing.
    """
    parts, attributes, images = (root / "celeba" / name for name in CELEBA_FILES)
    names: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    with reading(parts):
        for line in parts.read_text().splitlines():
            name, part = line.split()
            names[part].append(name)
        if not (names["0"] and names["2"]):
            raise ValueError("expected images of part 0 and of part 2")
    chosen = names["0"] + names["2"]
    with reading(attributes):
        _, header, *rows = attributes.read_text().splitlines()
        column = header.split().index("Male") + 1
        male_of = {row.split()[0]: {"1": 1, "-1": 0}[row.split()[column]] for row in rows}
        male = torch.tensor([male_of[name] for name in chosen])
    there = set(os.listdir(images))
    if lacking := [name for name in chosen if name not in there]:
        what = f"{len(lacking)} of its images are not in {images} ({lacking[0]})"
        raise _missing("CelebA", root, what)
    return [images / name for name in chosen], male, len(names["0"])


@kept(lambda root, size: celeba_lists(root)[0])
def celeba(root: Path, size: int) -> ImageSet:
    """CelebA in its official split, the middle square of each image at another size."""
    files, male, n = celeba_lists(root)
    images = decoded(files, size, CELEBA_CROP)
    split = Split(images[:n], male[:n], images[n:], male[n:])
    return ImageSet((3, size, size), split, ("female", "male"))


def decoded(files: list[Path], size: int, crop: int | None) -> Tensor:
    """The images of files in colour, uint8 (n, 3 * size * size), kept in the cache.

    Shown is the middle square of side ``crop``, or the largest one for None.
    """
    name = f"images-{stamp(files, f'1 {size} {crop}')}"
    shape = len(files), 3 * size * size
    return cached_rows(name, shape, lambda: (_decoded(file, size, crop) for file in files))


def _decoded(file: Path, size: int, crop: int | None) -> Bytes:
    with reading(file), Image.open(file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}: only images of 8 bits are read")
        upright = ImageOps.exif_transpose(image).convert("RGB")
    side = min(upright.size) if crop is None else min(crop, *upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.crop((left, top, left + side, top + side))
    shown = square.resize((size, size), Image.Resampling.BILINEAR)  # antialiased where it shrinks
    return np.asarray(shown).transpose(2, 0, 1).reshape(-1)


def folder_files(root: Path, name: str) -> list[Path]:
    """The images in a folder and in those within, in the order of their names."""
    folder = root / name
    if not folder.is_dir():
        raise _missing("folders", root, f"{name!r} is no folder there")
    endings = Image.registered_extensions()
    shown = (path for path in sorted(folder.rglob("*")) if not path.name.startswith("."))
    files = [path for path in shown if path.suffix.lower() in endings and path.is_file()]
    if len(files) < 3:
        raise _missing("folders", root, f"{len(files)} images in {name!r}, 3 are the least")
    return files


@kept(lambda root, names, *_: [file for name in names for file in folder_files(root, name)])
def folder_pair(root: Path, names: tuple[str, str], size: int, held_share: float) -> ImageSet:
    """Two folders as two classes; a share of the files of each is held out."""
    rng = torch.Generator().manual_seed(0)  # the same files are held out in every run
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name in names:
        files = folder_files(root, name)
        images = decoded(files, size, None)
        order = torch.randperm(len(files), generator=rng)
        held = min(max(1, round(held_share * len(files))), len(files) - 2)
        for part, rows in zip(parts, (order[held:], order[:held]), strict=True):
            part.append(images[rows.sort().values])
    labels = [torch.arange(2).repeat_interleave(torch.tensor([*map(len, part)])) for part in parts]
    train, test = (torch.cat(part) for part in parts)
    return ImageSet((3, size, size), Split(train, labels[0], test, labels[1]), names)


class FilesTask(ImageTask):
    """What the tasks share; all that reads files may raise :class:`DataError`."""

    user_files = True

    def check(self) -> None:
        with self.errors():
            self.images()


@register
class GaussianToMnist(FromNoise, FilesTask, SizedTask):
    """N(0, I) to MNIST, the official 60,000 training and 10,000 test images."""

    name, title, dim = "gaussian_to_mnist", "Gaussian to MNIST", 28 * 28
    channels = 1
    target_classes = tuple(range(10))
    size: int = Field(28, ge=8, le=64, multiple_of=4)

    def images(self) -> ImageSet:
        return mnist(data_root("MNIST"), self.size)


class FlippedTask(FilesTask):
    """Images that may be mirrored when they are trained on; never those that are compared with."""

    flip: Literal["on", "off"] = "off"

    def augment(self) -> Augment | None:
        return flipped if self.flip == "on" else None


@register
class GaussianToCifar10(FromNoise, FlippedTask):
    """N(0, I) to CIFAR-10, the official 50,000 training and 10,000 test images."""

    name, title, dim = "gaussian_to_cifar10", "Gaussian to CIFAR-10", 3 * 32 * 32
    target_classes = tuple(range(10))
    flip: Literal["on", "off"] = "on"

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, 32, 32)

    def images(self) -> ImageSet:
        return cifar10(data_root("CIFAR-10"))


class CelebaTask(FlippedTask, SizedTask):
    """CelebA, 162,770 training and 19,962 test images of the official split."""

    dim = 3 * 64 * 64
    size: int = Field(64, ge=8, le=140, multiple_of=4)

    def images(self) -> ImageSet:
        return celeba(data_root("CelebA"), self.size)

    def check(self) -> None:
        with self.errors():
            celeba_lists(data_root("CelebA"))


@register
class GaussianToCeleba(FromNoise, CelebaTask):
    """N(0, I) to the faces of CelebA."""

    name, title = "gaussian_to_celeba", "Gaussian to CelebA"
    target_classes = (0, 1)


@register
class CelebaMaleToFemale(CelebaTask):
    """Faces of men to faces of women."""

    name, title = "celeba_male_to_female", "CelebA, male to female"
    source_classes, target_classes = (1,), (0,)


@register
class CelebaFemaleToMale(CelebaTask):
    """Faces of women to faces of men."""

    name, title = "celeba_female_to_male", "CelebA, female to male"
    source_classes, target_classes = (0,), (1,)


@register
class FolderAToB(FlippedTask, SizedTask):
    """The images of one folder to those of another, both under the folder of data sets.

    The middle square of each is brought to ``size``, and ``held_share`` of the files of each
    folder are for the test.
    """

    name, title, dim = "folder_a_to_b", "One folder of images to another", 3 * 64 * 64
    source_classes, target_classes = (0,), (1,)
    folder_a: str = "a"
    folder_b: str = "b"
    size: int = Field(64, ge=8, le=256, multiple_of=4)
    held_share: float = Field(0.2, gt=0, lt=1)

    @field_validator("folder_a", "folder_b", mode="before")
    @classmethod
    def _within(cls, value: Any) -> str:
        """A path that does not lead out of the folder of data sets; 2 is a name as well."""
        name = str(value) if isinstance(value, str | int) else ""
        path = Path(name)
        if not name.isprintable() or not path.parts or path.is_absolute() or ".." in path.parts:
            raise ValueError("expected the name of a folder under --data-root")
        return path.as_posix()

    def images(self) -> ImageSet:
        names = self.folder_a, self.folder_b
        return folder_pair(data_root("folders"), names, self.size, self.held_share)

    def check(self) -> None:
        with self.errors():
            for folder in (self.folder_a, self.folder_b):
                folder_files(data_root("folders"), folder)
