"""Samples, or maps of given inputs, from the stored model of a cell.

    python -m bench.sample results/runs/X --method fm --task gaussian_to_digits --out fm.png
    python -m bench.sample results/runs/X/cells/ID --n 10000 --out samples.npz
    python -m bench.sample results/runs/X --cell ID --inputs mine.npz --out outputs.npz

RUN is an output folder of bench.run, or the folder of one cell in it. Of a task with noise fresh
source samples are drawn and transported; of a translation held-out inputs of the task are. Or give
inputs of your own: an .npz file with an array ``source`` in original units, of shape (n, D) or
(n, channels, height, width).

An .npz has ``source`` and ``samples`` in original units, row by row: images of shape (n, channels,
height, width), other data (n, D). A .png shows them: images in a grid, inputs above their outputs;
two-dimensional data as dots.

The same command gives the same samples. With ``--draw-seed 0`` the random numbers of a stochastic
transport are those of the cell's own evaluation.
"""

import argparse
import io
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.cell import generator, laws, transported
from bench.command import FAILED, INTERRUPTED, MISUSED, OK, Parser, count, tell, terminable
from bench.excerpts import is_image
from bench.execute import resolve_device
from bench.folder import MODEL, RECORD, Record, StorageError, cell_folder, write_atomically, writing
from bench.images import DPI, enlarged, montage
from bench.leaderboard import few
from bench.plots import scatter_figure
from bench.plugins import load_plugin
from bench.records import RecordError, read_record, read_records
from bench.session import use_data_root
from bench.slots import deal
from bench.spec import Cell, SpecError, validated
from bench.stored import Array, read_cell, read_model, reason_of
from datasets import TASKS, Distribution
from datasets.base import check_samples
from methods import METHODS, Method
from methods.solvers import Solver

PROGRAM = "bench.sample"
SUFFIXES = (".png", ".npz")
N = 64
MAX_N = 1_000_000
MAX_INPUT_BYTES = 2**32
MAX_SHOWN = 2500
"""Images in a picture."""
PICTURE = 960
"""Pixels across a picture, about; small images are enlarged to it."""


class Model(NamedTuple):
    """A cell that is ready to sample."""

    cell: Cell
    method: Method
    source: Distribution
    target: Distribution
    network: nn.Module
    paired: bool
    """Whether the source is data: a translation."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        arguments = _parser().read(sys.argv[1:] if argv is None else argv)
        _prepare(arguments)
        with terminable():
            return _run(arguments)
    except (SpecError, RecordError, StorageError) as error:
        tell(PROGRAM, str(error))
        return MISUSED
    except KeyboardInterrupt:
        tell(PROGRAM, "interrupted")
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    device = deal(resolve_device(arguments.device), 0, torch.cuda.device_count())
    folder = chosen_folder(arguments)
    model = load(folder, torch.device(device))
    solver = model.cell.sample
    if (steps := arguments.solver_steps) is not None:
        settings = solver.model_dump() | {"solver_steps": steps}
        solver = validated("sample", lambda: Solver(**settings))
    inputs = _inputs(model, arguments)
    if arguments.out.suffix == ".png":
        _check_picture(model, len(inputs))
    samples = transport(model, inputs, solver, arguments.draw_seed)
    if lost := int((~samples.isfinite()).any(1).sum()):
        tell(PROGRAM, f"{lost} of {len(samples)} samples are not finite; nothing is written")
        return FAILED
    source, ends = model.source.normalisation.undo(inputs), model.target.normalisation.undo(samples)
    if arguments.out.suffix == ".npz":
        shape = model.target.shape
        content = io.BytesIO()
        one, other = (rows.reshape(-1, *shape).numpy() for rows in (source, ends))
        np.savez_compressed(content, source=one, samples=other)
        write_atomically(arguments.out, content.getvalue())
    else:
        write_atomically(arguments.out, _picture(model, source, ends))
    print(f"{len(ends)} samples of {model.cell.label} ({model.cell.id}): {arguments.out}")
    return OK


def load(folder: Path, device: torch.device) -> Model:
    """The model of a cell, on a device.

    Raises:
        SpecError: a cell that is not done, a model that is missing or of another cell, data that
            are missing.
    """
    record = read_record(folder.absolute() / RECORD)
    name = f"cell {record['id']}"
    if record["status"] != "done":
        reason = f" ({record['reason']})" if record.get("reason") else ""
        raise SpecError(f"{name}: {record['status']}{reason}; it has no model to sample from")
    words = record["cell"]
    for kind, known in (("method", METHODS), ("task", TASKS)):
        if words[kind] not in known:
            named = ", ".join(record.get("plugins", {})) or "none"
            raise SpecError(
                f"{kind}: {words[kind]!r} is not known; the record names the plugins: {named}"
            )
    try:
        cell = read_cell(folder.absolute())
        method, task = cell.build_method(), cell.build_task()
        source, target = laws(cell, task)
        network = read_model(folder / MODEL, cell, method, source, target)
    except ValueError as error:
        raise SpecError(f"{name}: {reason_of(error)}") from None
    return Model(cell, method, source, target, network.to(device), not task.noise_source)


def draw(model: Model, n: int, seed: int) -> Tensor:
    """Fresh source samples, or at most ``n`` held-out inputs of a translation, shape (k, D)."""
    rng = generator(model.cell, f"sample {seed}")
    source = model.source
    inputs = source.held_out(n, rng, "iid") if model.paired else source.sample(n, rng)
    return check_samples(inputs, source.dim, "source")


def transport(model: Model, inputs: Tensor, solver: Solver, seed: int = 0) -> Tensor:
    """Where the lines of the inputs (n, D) end, shape (n, D), on the CPU; units of the task."""
    device = next((p.device for p in model.network.state_dict().values()), torch.device("cpu"))
    # Seed 0 repeats the noise of the evaluation: from its inputs come its samples.
    purpose = f"transport {seed}" if seed else "transport"
    rng = generator(model.cell, purpose, device)
    start = model.method.start(inputs.to(device))
    return transported(model.method, model.network, start, solver, rng).end.cpu()


def _inputs(model: Model, arguments: argparse.Namespace) -> Tensor:
    """The inputs that are asked for, in the units of the task."""
    n = arguments.n
    if arguments.inputs is not None:
        inputs = read_inputs(arguments.inputs, model.source.shape)
        if n is not None and n > len(inputs):
            raise SpecError(f"n: {arguments.inputs} has {len(inputs)} inputs, got {n}")
        return model.source.normalisation.apply(inputs[:n]).float()
    inputs = draw(model, N if n is None else n, arguments.draw_seed)
    if n is not None and len(inputs) < n:
        tell(PROGRAM, f"{model.cell.task} has {len(inputs)} held-out inputs; all are taken")
    return inputs


def read_inputs(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The array ``source`` of a file, in original units, shape (n, D).

    Raises:
        SpecError: no such file, or one that holds anything else.
    """
    if not path.is_file():
        raise SpecError(f"inputs: no file {str(path)!r}")
    if path.stat().st_size > MAX_INPUT_BYTES:
        raise SpecError(f"inputs: {str(path)!r} is larger than {MAX_INPUT_BYTES:,} bytes")
    try:
        with np.load(path, allow_pickle=False) as stored:
            array = stored["source"]
    except Exception as error:  # zip, deflate and npy raise a dozen types on a spoiled file
        raise SpecError(
            f"inputs: no array 'source' can be read from {str(path)!r} ({reason_of(error)})"
        ) from None
    dim = math.prod(shape)
    choices = " or ".join(f"(n, {', '.join(map(str, s))})" for s in dict.fromkeys([(dim,), shape]))
    if array.dtype.kind not in "fiu" or array.shape[1:] not in ((dim,), shape) or not len(array):
        raise SpecError(
            f"inputs: expected numbers of shape {choices}, got {array.dtype} {array.shape}"
        )
    rows = np.ascontiguousarray(array.reshape(len(array), dim), dtype=np.float32)
    flat = torch.from_numpy(rows)
    if not bool(flat.isfinite().all()):
        raise SpecError("inputs: holds NaN or infinity")
    return flat


# Which cell


def chosen_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the one cell that is meant.

    Raises:
        SpecError: none fits, or several do; says what there is to choose from.
        RecordError: a file that is not a record.
    """
    run: Path = arguments.run
    try:
        alone = (run / RECORD).is_file()
        records = [read_record(run.absolute() / RECORD)] if alone else list(read_records(run))
    except OSError as error:  # a name that is too long, or a folder that cannot be read
        raise SpecError(f"run: cannot read {str(run)!r}: {error.strerror}") from None
    if not records:
        raise SpecError(f"run: expected a folder of bench.run or of a cell, got {str(run)!r}")
    for option in CHOICES:
        wanted = getattr(arguments, option)
        there = _values(records, option)
        records = [record for record in records if wanted in (None, _value(record, option))]
        if not records:
            raise SpecError(f"{option}: no cell has {wanted!r}, choose from {few(there, 20, ', ')}")
    if len(records) > 1:  # what has failed is not meant
        records = [record for record in records if record["status"] == "done"] or records
    if len(records) > 1:
        raise SpecError(_ambiguous(records))
    return run if alone else cell_folder(run, str(records[0]["id"]))


CHOICES = ("task", "method", "seed", "cell")
"""Options that choose a cell."""


def _value(record: Record, option: str) -> Any:
    return record["id"] if option == "cell" else record["cell"][option]


def _values(records: list[Record], option: str) -> list[str]:
    return [str(value) for value in sorted({_value(record, option) for record in records})]


def _ambiguous(records: list[Record]) -> str:
    """What to choose from, where several cells fit."""
    words = []
    for option in CHOICES[:-1]:
        values = _values(records, option)
        if len(values) > 1:
            words.append(f"--{option} {few(values, 20, ', ')}")
    if not words:
        cells = [f"{record['id']}{_settings(record, records)}" for record in records]
        words = [f"--cell {few(cells, 20, ', ')}"]
    return f"run: {len(records)} cells fit, choose by {'; '.join(words)}"


def _settings(record: Record, records: list[Record]) -> str:
    """The settings in which a record differs from others, in brackets."""
    flat = [
        {
            f"{section}.{name}": value
            for section, part in other["cell"].items()
            if isinstance(part, dict)
            for name, value in part.items()
        }
        for other in [record, *records]
    ]
    own, *others = flat
    differing = [
        f"{name.partition('.')[2]}={value}"
        for name, value in own.items()
        if any(other.get(name) != value for other in others)
    ]
    return f" ({', '.join(differing)})" if differing else ""


# Pictures


def _check_picture(model: Model, n: int) -> None:
    """Raises :class:`SpecError` for what no picture shows."""
    if is_image(model.target.shape):
        if n > MAX_SHOWN:
            raise SpecError(f"n: a .png shows at most {MAX_SHOWN:,} images, got {n}; give an .npz")
    elif model.target.dim != 2:
        raise SpecError(
            f"out: a .png is for images and two-dimensional data, and {model.cell.task} has"
            f" D = {model.target.dim}; give a name that ends in .npz"
        )


def _picture(model: Model, source: Tensor, samples: Tensor) -> bytes:
    """A PNG of samples (n, D) in original units."""
    if not is_image(model.target.shape):
        rng = generator(model.cell, "picture")
        held_out = model.target.held_out(len(samples), rng, "low_variance")
        target = model.target.normalisation.undo(held_out)
        clouds = {"source": source, "target": target, "samples": samples}
        arrays = {name: cloud.double().numpy() for name, cloud in clouds.items()}
        figure = scatter_figure({model.cell.method: arrays}, TASKS[model.cell.task].title)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI)
        plt.close(figure)
        return content.getvalue()
    rng = generator(model.cell, "picture")
    real = [model.target.normalisation.undo(model.target.held_out(N, rng, "iid"))]
    if model.paired:
        real.append(source)
    span = min(float(x.min()) for x in real), max(float(x.max()) for x in real)
    shape = model.target.shape
    images = samples.double().numpy().reshape(-1, *shape)
    inputs = source.double().numpy().reshape(-1, *shape) if model.paired else None
    return png_of(image_grid(images, inputs, span))


def image_grid(samples: Array, inputs: Array | None, span: tuple[float, float]) -> Array:
    """Images (n, C, H, W), about as many rows as columns; under ``inputs`` if given.

    Returns:
        (height, width, 3) in [0, 1], every image enlarged by a whole number.
    """
    columns = math.isqrt(max(len(samples) * (1 if inputs is None else 2) - 1, 0)) + 1
    columns = min(columns, len(samples))
    rows = [slice(start, start + columns) for start in range(0, len(samples), columns)]
    both = [part for part in (inputs, samples) if part is not None]
    pieces = []
    for row in rows:
        for part in both:
            pieces += [montage(part[row], columns, span)]
            pieces += [np.ones((1, pieces[0].shape[1], 3))]
        pieces += [pieces[-1]] * 2 * (len(both) - 1)  # a wider gap between pairs
    image = np.concatenate(pieces[: 1 - 2 * len(both)])
    return enlarged(image, max(1, min(8, PICTURE // image.shape[1])))


def png_of(image: Array) -> bytes:
    """An image (H, W, 3) in [0, 1] as a PNG."""
    content = io.BytesIO()
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(content, format="PNG")
    return content.getvalue()


# The command line


def _prepare(arguments: argparse.Namespace) -> None:
    """Checks what can be checked at once, and loads plugins.

    Raises:
        SpecError: a value that cannot be used.
        StorageError: a folder that cannot be written.
    """
    out: Path = arguments.out
    if out.suffix not in SUFFIXES:
        raise SpecError(f"out: expected a name that ends in .png or .npz, got {str(out)!r}")
    with writing(out):
        if out.is_dir():
            raise SpecError(f"out: {str(out)!r} is a folder")
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    if arguments.n is not None and not 1 <= arguments.n <= MAX_N:
        raise SpecError(f"n: must be a number from 1 to {MAX_N}, got {arguments.n}")
    use_data_root(arguments.data_root)
    for plugin in arguments.plugin:
        load_plugin(plugin)


def _parser() -> Parser:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="output folder of bench.run, or of one cell")
    add("--out", type=Path, required=True, metavar="FILE", help="FILE.png or FILE.npz")
    add("--n", type=count, metavar="N", help=f"samples; default {N}, or all of the inputs")
    add("--task", metavar="NAME", help="the cell's task")
    add("--method", metavar="NAME", help="its method")
    add("--seed", type=count, metavar="N", help="its seed")
    add("--cell", metavar="ID", help="its id, the name of its folder")
    add("--inputs", type=Path, metavar="FILE.npz", help="inputs of yours, array 'source'")
    add("--draw-seed", type=count, default=0, metavar="N", help="of the fresh draws; default 0")
    add("--solver-steps", type=count, metavar="N", help="in place of the cell's own")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--plugin", action="append", default=[], metavar="FILE.py", help="your method or task")
    add("--data-root", metavar="DIR", help="where data sets of yours lie, see README")
    return parser


if __name__ == "__main__":
    sys.exit(main())
