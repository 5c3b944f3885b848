"""What a finished cell has stored, read again; nothing in a file is unpickled or run."""

import contextlib
import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from torch import nn

from bench.cell.context import CellContext
from bench.cell.draws import build_model
from bench.config.cell import Cell
from bench.config.errors import SpecError, printable
from bench.store.records import Record, RecordError
from datasets import TASKS
from methods import METHODS

MAX_IMAGES = 64  # of each kind that are shown
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
    paths: Array  # (T', S, C, H, W)
    ranked: Ranked | None  # None where the target is no data set


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
        ValueError: a file that is missing, unreadable or of another model.
    """
    with _reading(path):
        weights = safetensors.torch.load_file(path)
    model = build_model(context)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise ValueError(f"{path.name} does not fit the model of the current code") from None
    return model.eval()


def read_samples(path: Path, dim: int) -> dict[str, Array]:
    """``source``, ``samples`` and ``target`` of a cell, shape (n, ``dim``) each.

    Raises:
        ValueError: a file that is missing, unreadable or holds anything else; one line.
    """
    with _reading(path), np.load(path, allow_pickle=False) as stored:
        return {name: _table(stored, name, (dim,)) for name in SETS}


def read_images(path: Path) -> StoredImages | None:
    """The first images of a cell, with some paths and neighbours; None if its data are no images.

    Raises:
        ValueError: a file that is missing, unreadable or holds anything else; one line.
    """
    with _reading(path), np.load(path, allow_pickle=False) as stored:
        if "shape" not in stored:
            return None
        shape = tuple(stored["shape"].tolist())
        source, samples, target, paths = (
            _table(stored, name, shape, MAX_IMAGES) for name in (*SETS, "paths")
        )
        ranked = None
        if "ranked" in stored:
            best, neighbours = (_table(stored, name, shape) for name in ("ranked", "neighbours"))
            ranked = Ranked(best, neighbours, _table(stored, "distances", (2,)))
        return StoredImages(source, samples, target, paths, ranked)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever a reader raises in the block into a ValueError of one line."""
    if not path.is_file():
        raise ValueError(f"no {path.name}")
    try:
        yield
    except Exception as error:  # a dozen types on a corrupt file
        raise ValueError(f"{path.name} cannot be read ({reason_of(error)})") from None


def _table(
    stored: Mapping[str, Array], name: str, shape: tuple[int, ...], rows: int | None = None
) -> Array:
    """The first rows of an array of a file, or all, as finite numbers; the last axis in a shape."""
    array = stored[name][:rows]
    if array.dtype.kind != "f" or array.shape[-1:] != (math.prod(shape),) or not array.size:
        raise ValueError(f"{name} is not a table of numbers with {math.prod(shape)} columns")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array.astype(np.float64).reshape(*array.shape[:-1], *shape)
