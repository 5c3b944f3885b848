"""What a finished cell has stored, read again; nothing in a file is unpickled or run."""

import math
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from torch import nn

from bench.cell.context import CellContext
from bench.cell.draws import build_model
from bench.cell.excerpts import is_image
from bench.config.cell import Cell
from bench.config.errors import SpecError, printable
from bench.store.records import Record, RecordError
from datasets import TASKS
from methods import METHODS

MAX_MODEL_BYTES = 2**31
MAX_SAMPLE_BYTES, MAX_IMAGE_BYTES = 2**28, 2**32  # unpacked; few images are kept in memory
MAX_VALUE = 1e100  # of a sample: sums of larger ones leave the range of a float
MAX_IMAGES, MAX_SIDE = 64, 1024  # images of each kind that are read, and pixels of a side
SETS = ("source", "samples", "target")
Array = NDArray[np.float64]


class Ranked(NamedTuple):
    """The best samples, nearest to held-out images, then the worst, with what they are near to."""

    samples: Array  # (2k, C, H, W)
    neighbours: Array  # (2k, C, H, W): the nearest training images
    distances: Array  # (2k, 2): to the nearest held-out image, and to that one


class StoredImages(NamedTuple):
    """What pictures of a cell of images are made of, in the original units of the data."""

    source: Array  # (n, C, H, W)
    samples: Array  # (n, C, H, W), row by row where the source leads
    target: Array  # (m, C, H, W)
    paths: Array | None  # (T', S, C, H, W)
    ranked: Ranked | None


def reason_of(error: Exception) -> str:
    """An error in one printable line."""
    words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(printable(" ".join(words.split())), 200)


def recorded_cell(record: Record) -> CellContext:
    """The cell of a record, built by the current code.

    Plug-ins that the record names are not loaded: a file must not be able to have code run.

    Raises:
        SpecError: its method or task is not known.
        RecordError: the current code would run another cell, or cannot build this one.
    """
    named = ", ".join(record.plugins) or "none"
    for kind, known in (("method", list(METHODS)), ("task", list(TASKS))):
        if (name := getattr(record.cell, kind)) not in known:
            raise SpecError(f"{kind}: {name!r} is not known; the record names the plugins: {named}")
    try:
        cell = Cell.model_validate(record.cell.model_dump())
        context = CellContext.of(cell)
    except ValueError as error:  # a setting that is refused, or data that are missing
        raise RecordError(f"cell {record.id}: {reason_of(error)}") from None
    now = context.method.hyperparameters(), context.task.version, context.task.parameters()
    then = cell.hyperparameters, cell.task_version, cell.task_parameters
    if cell.id != record.id or now != then:
        raise RecordError(f"cell {record.id}: recorded with other settings or data than now")
    return context


def read_model(path: Path, context: CellContext) -> nn.Module:
    """The trained model of a cell.

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
    model = build_model(context)
    expected = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    if expected != {name: (value.shape, value.dtype) for name, value in weights.items()}:
        raise ValueError(f"{path.name} does not fit the model of the current code")
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ValueError(f"{path.name} holds numbers that are not finite")
    model.load_state_dict(weights)
    return model.eval()


def read_samples(path: Path, dim: int) -> dict[str, Array]:
    """``source``, ``samples`` and ``target`` of a cell, shape (n, ``dim``) each.

    Raises:
        ValueError: a file that is missing, unreadable or holds anything else; one line.
    """
    return _tables(path, MAX_SAMPLE_BYTES, dict.fromkeys(SETS, (dim,)))


def read_images(path: Path, shape: tuple[int, ...]) -> StoredImages:
    """The first images of a cell, (channels, height, width), with some paths and neighbours.

    Raises:
        ValueError: a file that is missing, unreadable or holds anything else; one line.
    """
    shapes = dict.fromkeys((*SETS, "paths", "ranked", "neighbours"), shape) | {"distances": (2,)}
    tables = _tables(path, MAX_IMAGE_BYTES, shapes, MAX_IMAGES)
    source, samples, target = (tables[name] for name in SETS)
    best = [tables[name] for name in ("ranked", "neighbours", "distances") if name in tables]
    ranked = Ranked(*best) if len(best) == 3 else None
    return StoredImages(source, samples, target, tables.get("paths"), ranked)


def stored_shape(path: Path) -> tuple[int, ...] | None:
    """Channels, height and width of the images of a cell; None if it does not say so."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            shape = tuple(int(side) for side in stored["shape"])
    except Exception:  # no file, a corrupt one, or one without: whoever reads it says so
        return None
    return shape if is_image(shape) and 1 <= min(shape) <= max(shape) <= MAX_SIDE else None


def _tables(
    path: Path, limit: int, shapes: Mapping[str, tuple[int, ...]], rows: int | None = None
) -> dict[str, Array]:
    """The arrays of a file that are there, as finite numbers; the last axis in these shapes.

    It must have ``SETS``, and may unpack to ``limit`` bytes. None for all ``rows`` of each array.
    """
    if not path.is_file():
        raise ValueError(f"no {path.name}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > limit:
            raise ValueError(f"{size:,} bytes are too many")
        with np.load(path, allow_pickle=False) as stored:
            there = [name for name in shapes if name in SETS or name in stored]
            # Copied, so that the rest leaves the memory.
            arrays = {name: stored[name][:rows].copy() for name in there}
    except Exception as error:  # zip, deflate and npy raise a dozen types on a corrupt file
        raise ValueError(f"{path.name} cannot be read ({reason_of(error)})") from None
    tables: dict[str, Array] = {}
    for name, array in arrays.items():
        dim, axes = math.prod(shapes[name]), 2 if name == "paths" else 1
        if array.dtype.kind != "f" or array.shape[axes:] != (dim,) or not array.size:
            raise ValueError(f"{name} in {path.name} is not a table of numbers with {dim} columns")
        tables[name] = array.astype(np.float64).reshape(*array.shape[:axes], *shapes[name])
        if not (np.abs(tables[name]) < MAX_VALUE).all():
            raise ValueError(f"{name} in {path.name} is not finite")
    return tables
