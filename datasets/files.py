"""Image data sets that the user supplies: MNIST, CIFAR-10, CelebA and any two folders of images.

They lie under one folder, that of ``--data-root``, as torchvision lays them out. Nothing is
downloaded, and no check sum is asked for: files of other images in the same format do.
"""

import contextlib
import os
import pickle
from abc import abstractmethod
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field, field_validator
from torch import Tensor

from datasets.base import DATA_ROOT, DataError, Distribution, Labelled, Task, register
from datasets.gaussians import StandardNormal
from datasets.images import Bytes, Images, ImageSet, cached_rows, flipped, shrunk

MNIST_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_TRAIN, CIFAR_TEST = [f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]
CIFAR_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CELEBA_IMAGES, CELEBA_PARTS, CELEBA_ATTRIBUTES = (
    "img_align_celeba",
    "list_eval_partition.txt",
    "list_attr_celeba.txt",
)
CELEBA_CROP = 140
"""The middle square of the 178x218 pixels, as in the papers (Song et al. 2021, Xu et al. 2022)."""
SPLIT_SEED = 0
"""The same files of a folder are held out in every run."""
LAYOUT = {
    "MNIST": f"MNIST/raw with {', '.join(MNIST_FILES)} must lie there"
    " (torchvision.datasets.MNIST(root, download=True) fetches it)",
    "CIFAR-10": f"{CIFAR_FOLDER} with data_batch_1 to data_batch_5 and test_batch must lie there"
    " (torchvision.datasets.CIFAR10(root, download=True) fetches it)",
    "CelebA": f"celeba with the folder {CELEBA_IMAGES} of 178x218 images, {CELEBA_PARTS} and"
    f" {CELEBA_ATTRIBUTES} must lie there (torchvision.datasets.CelebA(root, download=True)"
    " fetches it)",
    "folders": "one folder of images for each side must lie there, in any format that PIL reads",
}
"""What must lie in the folder of data sets."""
REMEDY = "--data-root names the folder of data sets"


def data_root(kind: str) -> Path:
    """The folder of the user's data sets.

    Raises:
        DataError: none is given; says what of ``kind`` should lie there.
    """
    given = os.environ.get(DATA_ROOT)
    if not given:
        raise DataError(
            f"no folder of data sets is given: --data-root or {DATA_ROOT} names it, and"
            f" {LAYOUT[kind]}"
        )
    return Path(given).expanduser().absolute()


def _missing(kind: str, root: Path, what: str) -> DataError:
    return DataError(f"no {kind} under {root}, {what}: {LAYOUT[kind]}; {REMEDY}")


def _spoiled(path: Path, reason: object) -> DataError:
    words = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
    return DataError(f"{path} is spoiled ({words}): fetch or make it again")


@contextlib.contextmanager
def errors_of(task: str) -> Iterator[None]:
    """Errors of files are of one kind and on one line, which begins with the name of the task.

    Raises:
        DataError: in place of that, or of an error of the system.
    """
    try:
        yield
    except (DataError, OSError) as error:
        words = " ".join(str(error).split())
        raise DataError(f"{task}: {words.removeprefix(f'{task}: ')}") from None


# ------------------------------------------------------------------------------------------ formats


def _mnist_part(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import MNIST

    path = root / "MNIST" / "raw" / MNIST_FILES[0 if train else 2]
    try:
        official = MNIST(root, train=train)
    except Exception as error:  # it parses bytes, and anything may be wrong with them
        raise _spoiled(path, error) from None
    images, labels = official.data, official.targets
    if images.shape[1:] != (28, 28) or not 0 < len(images) == len(labels) or labels.max() > 9:
        found = f"{tuple(images.shape)} and {len(labels)} labels"
        raise _spoiled(path, f"expected n images of 28x28 and n labels 0 to 9, got {found}")
    return images.flatten(1), labels


@cache
def mnist(root: Path) -> ImageSet:
    """MNIST in its official split, 1x28x28, read by torchvision."""
    folder = root / "MNIST" / "raw"
    lacking = [name for name in MNIST_FILES if not (folder / name).is_file()]
    if lacking:
        raise _missing("MNIST", root, f"{lacking[0]} is not in {folder}")
    shape, names = (1, 28, 28), tuple("0123456789")
    return ImageSet(shape, *_mnist_part(root, True), *_mnist_part(root, False), names)


@cache
def _mnist_resized(root: Path, size: int) -> ImageSet:
    whole = mnist(root)
    train, test = (
        shrunk(part.view(-1, 28, 28), size).flatten(1) for part in (whole.train, whole.test)
    )
    labels = whole.train_labels, whole.test_labels
    return ImageSet((1, size, size), train, labels[0], test, labels[1], whole.names)


class ArraysOnly(pickle.Unpickler):
    """Reads arrays, lists and words: a pickle may otherwise run any code when it is read."""

    ALLOWED = (
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
        *(("numpy._core.multiarray", "_reconstruct"), ("numpy._core.numeric", "_frombuffer")),
    )

    def find_class(self, module: str, name: str) -> Any:
        """A class of the list, for one that the pickle names."""
        module = module.replace("numpy.core.", "numpy._core.")  # that of numpy 1
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return super().find_class(module, name)


def _cifar_batch(path: Path) -> tuple[Bytes, list[int]]:
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, encoding="latin1").load()
        images, labels = np.asarray(content["data"]), [int(label) for label in content["labels"]]
    except Exception as error:  # a spoiled pickle may raise anything
        raise _spoiled(path, error) from None
    if images.dtype != np.uint8 or images.shape != (len(labels), 3 * 32 * 32) or not labels:
        raise _spoiled(
            path, f"expected bytes (n, 3072) and n labels, got {images.dtype} {images.shape}"
        )
    if not set(labels) <= set(range(10)):
        raise _spoiled(path, "labels other than 0 to 9")
    return images, labels


@cache
def cifar10(root: Path) -> ImageSet:
    """CIFAR-10 in its official split, 3x32x32."""
    folder = root / CIFAR_FOLDER
    parts: list[Tensor] = []
    for names in (CIFAR_TRAIN, CIFAR_TEST):
        for name in names:
            if not (folder / name).is_file():
                raise _missing("CIFAR-10", root, f"{name} is not in {folder}")
        batches = [_cifar_batch(folder / name) for name in names]
        parts.append(torch.from_numpy(np.concatenate([images for images, _ in batches])))
        parts.append(torch.tensor([label for _, labels in batches for label in labels]))
    train, train_labels, test, test_labels = parts
    return ImageSet((3, 32, 32), train, train_labels, test, test_labels, CIFAR_NAMES)


class CelebaLists(NamedTuple):
    """File names and attribute of the training and of the test images."""

    names: tuple[list[str], list[str]]
    male: tuple[Tensor, Tensor]  # 1 for men, 0 for women


@cache
def celeba_lists(root: Path) -> CelebaLists:
    """The lists of CelebA; its validation images (part 1) are used for nothing."""
    folder = root / "celeba"
    for path in (folder / CELEBA_PARTS, folder / CELEBA_ATTRIBUTES):
        if not path.is_file():
            raise _missing("CelebA", root, f"{path.name} is not in {folder}")
    if not (folder / CELEBA_IMAGES).is_dir():
        raise _missing("CelebA", root, f"{CELEBA_IMAGES} is not in {folder}")
    path = folder / CELEBA_PARTS
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        part_of = {name: int(part) for name, part in lines}
        path = folder / CELEBA_ATTRIBUTES
        _, header, *rows = path.read_text().splitlines()
        column = header.split().index("Male") + 1
        cells = [row.split() for row in rows if row.strip()]
        male_of = {row[0]: {"1": 1, "-1": 0}[row[column]] for row in cells}
        names = [name for name in part_of if part_of[name] != 1]
        male = {name: male_of[name] for name in names}
    except (ValueError, LookupError) as error:  # of what kind, the one file or the other
        raise _spoiled(path, error) from None
    there = {entry.name for entry in os.scandir(folder / CELEBA_IMAGES)}
    lacking = [name for name in names if name not in there]
    if lacking:
        what = f"{len(lacking)} of its images are not in {folder / CELEBA_IMAGES} ({lacking[0]})"
        raise _missing("CelebA", root, what)
    parts = [name for name in names if part_of[name] == 0], [n for n in names if part_of[n] == 2]
    if not all(parts):
        raise _spoiled(folder / CELEBA_PARTS, "expected images of part 0 and of part 2")
    labels = [torch.tensor([male[name] for name in part]) for part in parts]
    return CelebaLists(parts, (labels[0], labels[1]))


@cache
def celeba(root: Path, size: int) -> ImageSet:
    """CelebA in its official split, the middle square of each image at another size."""
    lists = celeba_lists(root)
    folder = root / "celeba" / CELEBA_IMAGES
    files = [folder / name for part in lists.names for name in part]
    images, n = decoded(files, size, CELEBA_CROP), len(lists.names[0])
    male = lists.male
    return ImageSet((3, size, size), images[:n], male[0], images[n:], male[1], ("female", "male"))


def decoded(files: list[Path], size: int, crop: int | None) -> Tensor:
    """The images of files in colour, (n, 3 * size * size), kept in the cache.

    Args:
        files: what to read.
        size: height and width of the result.
        crop: side of the middle square that is shown; None for the largest.

    Raises:
        DataError: a file that is no image.
    """
    digest = blake2b(digest_size=16)
    digest.update(f"1 {size} {crop}".encode())
    for file in files:
        found = file.stat()
        digest.update(os.fsencode(file) + f" {found.st_size} {found.st_mtime_ns}\n".encode())
    shape = len(files), 3 * size * size
    return cached_rows(
        f"images-{digest.hexdigest()}", shape, lambda: (_decoded(f, size, crop) for f in files)
    )


def _decoded(file: Path, size: int, crop: int | None) -> Bytes:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}: only images of 8 bits are read")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise what they like
        raise _spoiled(file, error) from None
    side = min(upright.size) if crop is None else min(crop, *upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = upright.crop((left, top, left + side, top + side))
    # Linear, and antialiased where it shrinks.
    shown = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(shown).transpose(2, 0, 1).reshape(-1)


@cache
def folder_files(root: Path, name: str) -> list[Path]:
    """The images in a folder and in those within, in the order of their names."""
    folder = root / name
    if not folder.is_dir():
        raise _missing("folders", root, f"{name!r} is no folder there")
    endings = Image.registered_extensions()
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()
    ]
    if len(files) < 3:
        raise _missing("folders", root, f"{len(files)} images in {name!r}, 3 are the least")
    return files


@cache
def folder_pair(root: Path, names: tuple[str, str], size: int, held_share: float) -> ImageSet:
    """Two folders as two classes; a share of the files of each is held out."""
    rng = torch.Generator().manual_seed(SPLIT_SEED)
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
    return ImageSet((3, size, size), train, labels[0], test, labels[1], names)


# -------------------------------------------------------------------------------------------- tasks


class FilesTask(Task):
    """What the tasks have in common; all that reads files may raise :class:`DataError`."""

    user_files: ClassVar[bool] = True
    kind: ClassVar[str]
    """The key of ``LAYOUT``."""
    wanted: ClassVar[tuple[int, ...]]
    """The classes of the target."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width); known without the files."""

    @abstractmethod
    def read(self, root: Path) -> ImageSet:
        """All images, of that shape."""

    def augmented(self) -> bool:
        """Whether training draws are mirrored at random."""
        return False

    def images(self) -> ImageSet:
        """All images, from under the folder of data sets."""
        with errors_of(self.name):
            return self.read(data_root(self.kind))

    def law(self, classes: tuple[int, ...]) -> Images:
        """The images of some classes."""
        with errors_of(self.name):
            return self.images().law(classes, flipped if self.augmented() else None)

    def source(self) -> Distribution:
        return StandardNormal(self.shape)

    def target(self) -> Distribution:
        return self.law(self.wanted)

    def labelled(self) -> Labelled:
        with errors_of(self.name):
            return self.images().labelled(self.wanted)

    def check(self) -> None:
        self.images()


@register
class GaussianToMnist(FilesTask):
    """N(0, I) to MNIST, the official 60,000 training and 10,000 test images."""

    name: ClassVar[str] = "gaussian_to_mnist"
    title: ClassVar[str] = "Gaussian to MNIST"
    dim: ClassVar[int] = 28 * 28
    noise_source: ClassVar[bool] = True
    kind: ClassVar[str] = "MNIST"
    wanted: ClassVar[tuple[int, ...]] = tuple(range(10))

    size: int = Field(28, ge=8, le=64, multiple_of=4)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, self.size, self.size)

    def read(self, root: Path) -> ImageSet:
        return _mnist_resized(root, self.size)


class FlippedTask(FilesTask):
    """Images that may be mirrored when they are trained on; never those that are compared with."""

    flip: Literal["on", "off"] = "off"

    def augmented(self) -> bool:
        return self.flip == "on"


@register
class GaussianToCifar10(FlippedTask):
    """N(0, I) to CIFAR-10, the official 50,000 training and 10,000 test images."""

    name: ClassVar[str] = "gaussian_to_cifar10"
    title: ClassVar[str] = "Gaussian to CIFAR-10"
    dim: ClassVar[int] = 3 * 32 * 32
    noise_source: ClassVar[bool] = True
    kind: ClassVar[str] = "CIFAR-10"
    wanted: ClassVar[tuple[int, ...]] = tuple(range(10))

    flip: Literal["on", "off"] = "on"

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, 32, 32)

    def read(self, root: Path) -> ImageSet:
        return cifar10(root)


class CelebaTask(FlippedTask):
    """CelebA, 162,770 training and 19,962 test images of the official split."""

    kind: ClassVar[str] = "CelebA"
    dim: ClassVar[int] = 3 * 64 * 64

    size: int = Field(64, ge=8, le=140, multiple_of=4)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    def read(self, root: Path) -> ImageSet:
        return celeba(root, self.size)

    def check(self) -> None:
        with errors_of(self.name):
            celeba_lists(data_root(self.kind))


@register
class GaussianToCeleba(CelebaTask):
    """N(0, I) to the faces of CelebA."""

    name: ClassVar[str] = "gaussian_to_celeba"
    title: ClassVar[str] = "Gaussian to CelebA"
    noise_source: ClassVar[bool] = True
    wanted: ClassVar[tuple[int, ...]] = (0, 1)


@register
class CelebaMaleToFemale(CelebaTask):
    """Faces of men to faces of women."""

    name: ClassVar[str] = "celeba_male_to_female"
    title: ClassVar[str] = "CelebA, male to female"
    noise_source: ClassVar[bool] = False
    wanted: ClassVar[tuple[int, ...]] = (0,)

    def source(self) -> Distribution:
        return self.law((1,))


@register
class CelebaFemaleToMale(CelebaTask):
    """Faces of women to faces of men."""

    name: ClassVar[str] = "celeba_female_to_male"
    title: ClassVar[str] = "CelebA, female to male"
    noise_source: ClassVar[bool] = False
    wanted: ClassVar[tuple[int, ...]] = (1,)

    def source(self) -> Distribution:
        return self.law((0,))


@register
class FolderAToB(FlippedTask):
    """The images of one folder to those of another, both under the folder of data sets.

    The middle square of each is brought to ``size``, and ``held_share`` of the files of each
    folder are for the test.
    """

    name: ClassVar[str] = "folder_a_to_b"
    title: ClassVar[str] = "One folder of images to another"
    dim: ClassVar[int] = 3 * 64 * 64
    noise_source: ClassVar[bool] = False
    kind: ClassVar[str] = "folders"
    wanted: ClassVar[tuple[int, ...]] = (1,)

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

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    def read(self, root: Path) -> ImageSet:
        return folder_pair(root, (self.folder_a, self.folder_b), self.size, self.held_share)

    def source(self) -> Distribution:
        return self.law((0,))

    def check(self) -> None:
        with errors_of(self.name):
            for folder in (self.folder_a, self.folder_b):
                folder_files(data_root(self.kind), folder)
