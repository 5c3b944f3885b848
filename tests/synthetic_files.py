"""Small image data sets in the real formats and layouts, for tests without the real files.

``python -m tests.synthetic_files ROOT`` writes them all: a folder for ``--data-root``.
"""

import pickle
import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "celeba": (218, 178, 3)}
NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
ATTRIBUTES = ["Bald", "Male", "Young"]


def pictures(labels: NDArray[np.int64], shape: tuple[int, int, int], seed: int) -> Bytes:
    """Blobs on a dark ground whose place and colour tell the label, (n, height, width, channels).

    No two are equal, and none is symmetric.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    rows, columns = np.mgrid[:height, :width]
    images = np.empty((len(labels), *shape), np.uint8)
    for image, label in zip(images, labels, strict=True):
        angle = 0.6 * label + 0.1 + 0.05 * rng.standard_normal()
        middle = 0.5 + 0.22 * np.array([np.sin(angle), np.cos(angle)])
        apart = ((rows / height - middle[0]) ** 2 + (columns / width - middle[1]) ** 2) / 0.02
        colour = 170 + 70 * np.sin(label + np.arange(channels) + 0.2 * rng.standard_normal())
        image[:] = (np.exp(-apart)[..., None] * colour + rng.integers(0, 12, shape)).clip(0, 255)
    return images


def labels_in_turn(n: int, classes: int = 10) -> NDArray[np.int64]:
    """0, 1, ..., 0, 1, ...: all classes as often, up to one."""
    return np.arange(n) % classes


def write_mnist(root: Path, train: int = 200, test: int = 100) -> None:
    """``MNIST/raw`` with the four idx files, unpacked, as torchvision leaves them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, n) in enumerate({"train": train, "t10k": test}.items()):
        labels = labels_in_turn(n)
        images = pictures(labels, SHAPES["mnist"], seed)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, n) + labels.astype(np.uint8).tobytes()
        )


def write_cifar10(root: Path, train: int = 200, test: int = 100) -> None:
    """``cifar-10-batches-py`` with five batches of a fifth each, the test batch and the names."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {f"data_batch_{k}": train // 5 for k in range(1, 6)} | {"test_batch": test}
    for seed, (name, n) in enumerate(sizes.items()):
        labels = labels_in_turn(n)
        images = pictures(labels, SHAPES["cifar10"], seed)
        content = {
            "batch_label": name,
            "labels": labels.tolist(),
            "data": images.transpose(0, 3, 1, 2).reshape(n, -1),
            "filenames": [f"{k}.png" for k in range(n)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"label_names": NAMES, "num_cases_per_batch": train // 5, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_celeba(root: Path, train: int = 40, valid: int = 10, test: int = 20) -> None:
    """``celeba`` with its JPEG files and lists; half of each part are men."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    parts = [0] * train + [1] * valid + [2] * test
    male = labels_in_turn(len(parts), 2)
    names = [f"{k + 1:06}.jpg" for k in range(len(parts))]
    for name, image in zip(names, pictures(male, SHAPES["celeba"], 0), strict=True):
        Image.fromarray(image).save(folder / "img_align_celeba" / name, quality=95)
    signs = [f"-1 {2 * one - 1:2d}  1" for one in male]
    lists: dict[str, list[str]] = {
        "list_eval_partition.txt": [],
        "identity_CelebA.txt": [],
        "list_bbox_celeba.txt": [str(len(names)), "image_id x_1 y_1 width height"],
        "list_landmarks_align_celeba.txt": [str(len(names)), "lefteye_x lefteye_y"],
        "list_attr_celeba.txt": [str(len(names)), " ".join(ATTRIBUTES)],
    }
    for name, part, sign in zip(names, parts, signs, strict=True):
        lists["list_eval_partition.txt"].append(f"{name} {part}")
        lists["identity_CelebA.txt"].append(f"{name} 1")
        lists["list_bbox_celeba.txt"].append(f"{name}    95  71 226 313")
        lists["list_landmarks_align_celeba.txt"].append(f"{name} 69  109")
        lists["list_attr_celeba.txt"].append(f"{name} {sign}")
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def write_folders(root: Path, n: int = 30, names: tuple[str, str] = ("a", "b")) -> None:
    """Two folders of images in several formats and sizes, one within another."""
    for label, name in enumerate(names):
        (root / name / "more").mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(pictures(np.full(n, 3 * label), (48, 40, 3), label)):
            ending = ("png", "jpg", "bmp", "webp")[k % 4]
            place = root / name / ("more" if k % 3 == 0 else "")
            Image.fromarray(image).save(place / f"{k:04}.{ending}")
        (root / name / "notes.txt").write_text("no image")


def write_all(root: Path, train: int = 200, test: int = 100) -> Path:
    """All data sets; CelebA with a fifth of the images."""
    write_mnist(root, train, test)
    write_cifar10(root, train, test)
    write_celeba(root, max(4, train // 5), 4, max(4, test // 5))
    write_folders(root, max(10, train // 5))
    return root


if __name__ == "__main__":
    print(write_all(Path(sys.argv[1]), *map(int, sys.argv[2:])))
