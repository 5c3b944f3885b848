"""What a finished cell has stored: read again, its files trusted in nothing."""

import math
import textwrap
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from bench.cell import training_samples
from bench.excerpts import FOLLOWED, FRAMES, RANKED, is_image
from bench.folder import RECORD
from bench.records import read_record
from bench.spec import Cell, printable
from datasets import Distribution
from methods import Method
from methods.networks import UNet

MAX_MODEL_BYTES = 2**31
MAX_SAMPLE_BYTES, MAX_IMAGE_BYTES = 2**28, 2**32
"""Unpacked; of images only a few are kept in memory."""
MAX_SHAPE_BYTES = 1000
MAX_VALUE = 1e100
"""Largest value of a sample: sums of larger ones leave the range of a float."""
MAX_IMAGES = 64
"""Images of each kind that are read."""
MAX_SIDE = 1024
MAX_WORDS = 200
Array = NDArray[np.float64]


class Ranked(NamedTuple):
    """The best samples and then the worst, with what they are near to."""

    samples: Array  # (2k, C, H, W)
    neighbours: Array  # (2k, C, H, W): the nearest training images
    distances: Array  # (2k, 2): the judgement, and the distance to that image


class StoredImages(NamedTuple):
    """What pictures of a cell of images are made of, in the original units of the data.

    The rows of ``source`` and ``samples`` go together.
    """

    source: Array  # (n, C, H, W)
    samples: Array  # (n, C, H, W)
    target: Array  # (m, C, H, W)
    paths: Array | None  # (T', S, C, H, W)
    ranked: Ranked | None


def reason_of(error: Exception) -> str:
    """An error in one printable line."""
    words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(printable(" ".join(words.split())), MAX_WORDS)


def read_cell(folder: Path) -> Cell:
    """The cell that was recorded in a folder.

    Raises:
        ValueError: no record, or one of a cell that the current code would run otherwise.
    """
    record = read_record(folder / RECORD)
    cell = Cell.model_validate(record["cell"])
    method, task = cell.build_method(), cell.build_task()
    now = method.hyperparameters(), task.version, task.parameters()
    if now != (cell.hyperparameters, cell.task_version, cell.task_parameters):
        raise ValueError("recorded with other settings or data than there are now")
    return cell


def read_model(
    path: Path, cell: Cell, method: Method, source: Distribution, target: Distribution
) -> nn.Module:
    """The trained model of a cell.

    The file may be of any origin: it is read as numbers alone, and the network takes no memory
    until they are known to fit.

    Raises:
        ValueError: a file that is missing, too large, unreadable or of another model.
    """
    if not path.is_file():
        raise ValueError(f"no {path.name}")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_MODEL_BYTES:,} bytes")
    try:
        weights = safetensors.torch.load(path.read_bytes())
    except Exception as error:  # SafetensorError, or KeyError for a type that torch lacks
        raise ValueError(f"{path.name} cannot be read ({reason_of(error)})") from None
    network = cell.network.factory(*target.shape)

    def weightless(scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module:
        with torch.device("meta"):
            return network(scalars, outputs, extra_inputs)

    samples = training_samples(cell, source, target, method.samples)
    with torch.random.fork_rng(devices=[]):
        model = method.model(weightless, samples[0], samples[1])
    expected = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    if expected != {name: (value.shape, value.dtype) for name, value in weights.items()}:
        raise ValueError(f"{path.name} does not fit the model of the current code")
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ValueError(f"{path.name} holds numbers that are not finite")
    model.load_state_dict(weights, strict=True, assign=True)
    for module in model.modules():
        if isinstance(module, UNet):  # as it was made: faster on a GPU
            module.to(memory_format=torch.channels_last)
    return model.eval()


def read_samples(path: Path, dim: int) -> dict[str, Array]:
    """``source``, ``samples`` and ``target`` of a cell, shape (n, ``dim``) each.

    The file may be of any origin: nothing in it is unpickled, and nothing in it is believed.

    Raises:
        ValueError: a file that is missing, unreadable or holds anything else; one line.
    """
    arrays = _arrays(path, MAX_SAMPLE_BYTES)
    return {name: _table(path, name, arrays.get(name), dim) for name in SETS}


def read_images(path: Path, shape: tuple[int, ...]) -> StoredImages:
    """The first images of a cell, and what it has kept of their paths and neighbours.

    Args:
        path: the file, of any origin.
        shape: channels, height and width.

    Raises:
        ValueError: a file that is missing, unreadable or holds anything else; one line.
    """
    arrays = _arrays(path, MAX_IMAGE_BYTES, MAX_IMAGES)

    def images(name: str) -> Array:
        return _table(path, name, arrays.get(name), math.prod(shape)).reshape(-1, *shape)

    paths = ranked = None
    if "paths" in arrays:
        size = arrays["paths"].shape
        if len(size) != 3 or not (1 <= size[0] <= FRAMES and 1 <= size[1] <= FOLLOWED):
            raise ValueError(f"paths in {path.name} is not made of frames")
        arrays["paths"] = arrays["paths"].reshape(-1, size[2])
        paths = images("paths").reshape(*size[:2], *shape)
    if "ranked" in arrays:
        distances = _table(path, "distances", arrays.get("distances"), 2)
        ranked = Ranked(images("ranked"), images("neighbours"), distances)
        count = len(distances)
        if {*map(len, ranked)} != {count} or count % 2 or count > 2 * RANKED:
            raise ValueError(f"ranked in {path.name} does not fit its neighbours")
    return StoredImages(images("source"), images("samples"), images("target"), paths, ranked)


def stored_shape(path: Path) -> tuple[int, ...] | None:
    """Channels, height and width of the images of a cell; None if it does not say so."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("shape.npy").file_size > MAX_SHAPE_BYTES:
                return None
        with np.load(path, allow_pickle=False) as stored:
            shape = stored["shape"]
    except Exception:  # no file, a spoiled one, or one without: whoever reads it says so
        return None
    known = shape.dtype.kind == "i" and shape.shape == (3,)
    found = tuple(map(int, shape)) if known else ()
    return found if is_image(found) and 1 <= min(found) <= max(found) <= MAX_SIDE else None


SETS = ("source", "samples", "target")
EXTRAS = ("paths", "ranked", "neighbours", "distances")


def _arrays(path: Path, limit: int, rows: int | None = None) -> dict[str, NDArray[Any]]:
    """The first rows of ``SETS``, and with ``rows`` of ``EXTRAS`` where they are there."""
    if not path.is_file():
        raise ValueError(f"no {path.name}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > limit:
            raise ValueError(f"{size:,} bytes are too many")
        with np.load(path, allow_pickle=False) as stored:
            extras = [] if rows is None else [name for name in EXTRAS if name in stored.files]
            # Copied, so that the rest leaves the memory.
            return {name: stored[name][:rows].copy() for name in (*SETS, *extras)}
    except Exception as error:  # zip, deflate and npy raise a dozen types on a spoiled file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path.name} cannot be read ({reason})") from None


def _table(path: Path, name: str, array: NDArray[Any] | None, dim: int) -> Array:
    """An array as finite numbers of shape (n, ``dim``), n > 0."""
    if array is None:
        raise ValueError(f"{path.name} cannot be read ({name} is missing)")
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != dim or not len(array):
        raise ValueError(f"{name} in {path.name} is not a table of numbers with {dim} columns")
    table: Array = array.astype(np.float64)
    if not (np.abs(table) < MAX_VALUE).all():
        raise ValueError(f"{name} in {path.name} is not finite")
    return table
