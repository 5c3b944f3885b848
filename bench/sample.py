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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

from bench import sweep
from bench.analysis.words import few
from bench.cell.context import CellContext
from bench.cell.draws import generator
from bench.cell.images import is_image
from bench.cell.stored import read_model, reason_of, recorded_cell
from bench.cell.transport import transported
from bench.command import FAILED, OK, Parser, count, entry, log, terminable
from bench.config.cell import Cell
from bench.config.errors import SpecError, validated
from bench.execute.devices import assign_device
from bench.execute.progress import names_of
from bench.report.plots.samples import scatter_figure
from bench.report.plots.style import DPI
from bench.store.folder import MODEL, RECORD, cell_folder, write_atomically, writing
from bench.store.records import Record, read_record, read_records
from datasets.base import check_samples
from methods.solvers import Solver

PROGRAM = "bench.sample"
CHOICES = ("task", "method", "seed", "cell")  # options that choose a cell
N, MAX_N = 64, 1_000_000
MAX_SHOWN = 2500  # images in a picture
PICTURE = 960  # pixels across a picture, about; small images are enlarged to it


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return entry(PROGRAM, lambda words: _run(_parser().read(words)), argv)


@terminable()
def _run(arguments: argparse.Namespace) -> int:
    _prepare(arguments)
    device = torch.device(assign_device(arguments.device))
    context, network = load(chosen_folder(arguments), device)
    cell, source, target = context.cell, context.source, context.target
    solver = cell.sample
    if (steps := arguments.solver_steps) is not None:
        settings = solver.model_dump() | {"solver_steps": steps}
        solver = validated("sample", lambda: Solver(**settings))
    inputs = _inputs(context, arguments)
    images, many = is_image(target.shape), len(inputs) > MAX_SHOWN
    if arguments.out.suffix == ".png" and (many if images else target.dim != 2):
        what = f"at most {MAX_SHOWN:,} images" if images else "images and two-dimensional data"
        has = f"{len(inputs)} inputs" if images else f"{cell.task} with D = {target.dim}"
        raise SpecError(f"out: a .png shows {what}, got {has}; give a name that ends in .npz")
    # Seed 0 repeats the noise of the evaluation: from its inputs come its samples.
    purpose = f"transport {arguments.draw_seed}" if arguments.draw_seed else "transport"
    start = context.method.start(inputs.to(device))
    rng = generator(cell, purpose, device)
    ends = transported(context.method, network, start, solver, rng).end.cpu()
    if lost := int((~ends.isfinite()).any(1).sum()):
        log(PROGRAM, f"{lost} of {len(ends)} samples are not finite; nothing is written")
        return FAILED
    starts = source.normalisation.undo(inputs).reshape(-1, *target.shape)
    samples = target.normalisation.undo(ends).reshape(-1, *target.shape)
    content = io.BytesIO()
    if arguments.out.suffix == ".npz":
        np.savez_compressed(content, source=starts.numpy(), samples=samples.numpy())
    else:
        _draw(context, starts, samples, content)
    write_atomically(arguments.out, content.getvalue())
    print(f"{len(samples)} samples of {cell.label} ({cell.id}): {arguments.out}")
    return OK


def load(folder: Path, device: torch.device) -> tuple[CellContext, nn.Module]:
    """A recorded cell, and its model on a device.

    Raises:
        SpecError: a cell that is not done, a model that is missing or of another cell.
        RecordError: a cell that the current code cannot build.
    """
    record = read_record(folder.absolute() / RECORD)
    if record.status != "done":
        why = f"{record.status} ({record.reason})" if record.reason else record.status
        raise SpecError(f"cell {record.id}: {why}; it has no model to sample from")
    context = recorded_cell(record)
    try:
        return context, read_model(folder / MODEL, context).to(device)
    except ValueError as error:
        raise SpecError(f"cell {record.id}: {reason_of(error)}") from None


def _inputs(context: CellContext, arguments: argparse.Namespace) -> Tensor:
    """Inputs of the user's, fresh source samples, or held-out ones of a translation, (n, D)."""
    wanted, source = arguments.n, context.source
    if arguments.inputs is not None:
        inputs = read_inputs(arguments.inputs, source.shape)
        if wanted is not None and wanted > len(inputs):
            raise SpecError(f"n: {arguments.inputs} has {len(inputs)} inputs, got {wanted}")
        return source.normalisation.apply(inputs[:wanted]).float()
    n, rng = wanted or N, generator(context.cell, f"sample {arguments.draw_seed}")
    noise = context.task.noise_source
    inputs = source.sample(n, rng) if noise else source.held_out(n, rng, "iid")
    if wanted is not None and len(inputs) < wanted:
        log(PROGRAM, f"{context.task.name} has {len(inputs)} held-out inputs; all are taken")
    return check_samples(inputs, source.dim, "source")


def read_inputs(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The array ``source`` of a file, in original units, shape (n, D).

    Raises:
        SpecError: no such file, or one that holds anything else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            array = stored["source"]
    except Exception as error:  # zip, deflate and npy raise a dozen types on a corrupt file
        why = f"no array 'source' can be read from {str(path)!r} ({reason_of(error)})"
        raise SpecError(f"inputs: {why}") from None
    dim = math.prod(shape)
    if array.dtype.kind not in "fiu" or array.shape[1:] not in ((dim,), shape) or not len(array):
        choices = f"(n, {dim}) or (n, {', '.join(map(str, shape))})"
        found = f"{array.dtype} {array.shape}"
        raise SpecError(f"inputs: expected numbers of shape {choices}, got {found}")
    if not np.isfinite(rows := array.reshape(len(array), dim).astype(np.float32, order="C")).all():
        raise SpecError("inputs: holds NaN or infinity")
    return torch.from_numpy(rows)


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
        wanted, there = getattr(arguments, option), _values(records, option)
        records = [record for record in records if wanted in (None, _value(record, option))]
        if not records:
            raise SpecError(f"{option}: no cell has {wanted!r}, choose from {few(there, 20, ', ')}")
    # What has failed is not meant where something else is.
    records = [record for record in records if record.status == "done"] or records
    if len(records) > 1:
        options = {option: _values(records, option) for option in CHOICES[:-1]}
        words = [f"--{o} {few(values, 20, ', ')}" for o, values in options.items() if values[1:]]
        names = names_of([Cell.model_validate(record.cell.model_dump()) for record in records])
        named = few((f"{cell} ({name})" for cell, name in names.items()), 20, ", ")
        words = words or [f"--cell {named}"]
        raise SpecError(f"run: {len(records)} cells fit, choose by {'; '.join(words)}")
    return run if alone else cell_folder(run, records[0].id)


def _value(record: Record, option: str) -> Any:
    return record.id if option == "cell" else getattr(record.cell, option)


def _values(records: Sequence[Record], option: str) -> list[str]:
    return [str(value) for value in sorted({_value(record, option) for record in records})]


def _draw(context: CellContext, source: Tensor, samples: Tensor, file: io.BytesIO) -> None:
    """A PNG in original units: dots (n, 2) beside source and target, or a grid of images."""
    rng, target = generator(context.cell, "picture"), context.target
    if is_image(target.shape):  # (n, C, H, W), clipped to the range of real ones
        inputs = None if context.task.noise_source else source
        real = target.normalisation.undo(target.held_out(N, rng, "iid"))
        real = real if inputs is None else torch.cat([real, inputs.flatten(1)])
        span = float(real.min()), float(real.max())
        save_image(image_grid(samples, inputs, span), file, format="png")
    else:
        real = target.normalisation.undo(target.held_out(len(samples), rng, "low_variance"))
        clouds = {"source": source, "target": real, "samples": samples}
        arrays = {name: cloud.double().numpy() for name, cloud in clouds.items()}
        figure = scatter_figure({context.method.name: arrays}, context.task.title)
        figure.savefig(file, format="png", dpi=DPI)


def image_grid(samples: Tensor, inputs: Tensor | None, span: tuple[float, float]) -> Tensor:
    """Images (n, C, H, W), about as many rows as columns; each under its input if given.

    Returns:
        (3, height, width) in [0, 1], every image enlarged by a whole number.
    """
    n, tiles, gap = len(samples), samples, 1
    if inputs is not None:  # a white line between the two, a wider gap between pairs
        line = torch.full_like(samples[:, :, :1], span[1])
        n, tiles, gap = 2 * n, torch.cat([inputs, line, samples], dim=2), 3
    if tiles.shape[1] != 3:
        tiles = tiles.mean(1, keepdim=True)
    columns = math.isqrt(n - 1) + 1
    image: Tensor = make_grid(tiles, columns, gap, normalize=True, value_range=span, pad_value=1.0)
    times = max(1, min(8, PICTURE // image.shape[2]))
    return image.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _prepare(arguments: argparse.Namespace) -> None:
    """Refuses at once what cannot be used, and loads plug-ins."""
    out: Path = arguments.out
    if out.suffix not in (".png", ".npz"):
        raise SpecError(f"out: expected a name that ends in .png or .npz, got {str(out)!r}")
    with writing(out):
        if out.is_dir():
            raise SpecError(f"out: {str(out)!r} is a folder")
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    if arguments.n is not None and not 1 <= arguments.n <= MAX_N:
        raise SpecError(f"n: must be a number from 1 to {MAX_N}, got {arguments.n}")
    sweep.load(arguments.plugins, arguments.data_root)


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
    add("--data-root", metavar="DIR", help="where data sets of yours lie, see README")
    parser.add_plugins()
    return parser


if __name__ == "__main__":
    sys.exit(main())
