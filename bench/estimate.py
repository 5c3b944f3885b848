"""What a cell will take, before it is run: parameters, memory and time.

The model is built without memory (torch's meta device) and its multiply-adds are counted; the pace
of this machine is measured once on a product of matrices. That is a rough figure: small networks
stay behind the pace, and the time of evaluation is not in it.
"""

import functools
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.spec import Cell, printable
from methods import Method
from methods.networks import NetworkFactory

WEIGHT_BYTES = 4 * 5
"""A parameter in float32: itself, its gradient, its average, and two moments of Adam."""
BACKWARD = 3
"""A training step costs as much as that many forward passes."""
PROBE = 1024
"""Side of the matrices whose product is timed."""
PROBE_SECONDS = 0.2
STATISTICS = 256
"""Random numbers in place of the samples that models take their scale from."""


class Estimate(NamedTuple):
    """Of one cell."""

    parameters: int
    memory: float  # bytes of the network in training
    seconds: float  # of training and sampling, at the pace of a device


def estimate(cell: Cell, shape: tuple[int, ...], pace: float) -> Estimate:
    """What a cell takes on a device that does ``pace`` operations a second.

    Args:
        cell: what is to be run.
        shape: of its samples.
        pace: see :func:`operations_a_second`.
    """
    method = cell.build_method()
    if not method.trained:
        return Estimate(0, 0.0, 0.0)
    model = weightless(method, cell.network.factory(*shape), math.prod(shape))
    activations = _saved_bytes(model, math.prod(shape))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(1, math.prod(shape), device="meta"), torch.ones(1, device="meta"))
    forward = counter.get_total_flops()
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    samples = cell.train.steps * cell.train.batch * cell.train.accumulate * BACKWARD
    evaluations = cell.sample.solver_steps * (1 if cell.sample.solver == "euler" else 2)
    task = cell.build_task()
    again = cell.eval.fid_n if task.noise_source and len(shape) == 3 else 0
    sampled = (cell.eval.n + again) * evaluations
    return Estimate(
        sum(trained),
        WEIGHT_BYTES * sum(trained) + cell.train.batch * activations,
        forward * (samples + sampled) / pace,
    )


def weightless(method: Method, network: NetworkFactory, dim: int) -> nn.Module:
    """The model of a method on the meta device: shapes, and no numbers."""
    samples = torch.randn(STATISTICS, dim, generator=torch.Generator().manual_seed(0))

    def on_meta(scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module:
        with torch.device("meta"):
            return network(scalars, outputs, extra_inputs)

    with torch.random.fork_rng(devices=[]):
        return method.model(on_meta, samples, samples).to("meta")


def _saved_bytes(model: nn.Module, dim: int) -> int:
    """Bytes that the forward pass keeps for the backward pass, for each sample more."""

    def kept(samples: int) -> int:
        storages: dict[int, int] = {}
        held = []  # so that no storage takes the place of another

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
            held.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            points = torch.ones(samples, dim, device="meta")
            model(points, torch.ones(samples, device="meta"))
        return sum(storages.values())

    return kept(2) - kept(1)


@functools.cache
def operations_a_second(device: str, threads: int | None = None) -> float:
    """Floating-point operations a second of products of float32 matrices on a device."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        matrix = torch.ones(PROBE, PROBE, device=device)
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < PROBE_SECONDS:
            (matrix @ matrix)[0, 0].item()
            done += 1
        return 2 * PROBE**3 * done / (time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)


GPU_PACE = 2e13
"""What a large GPU does in float32: for runs that are only planned here."""
MAX_SETTINGS = 40
"""Rows of the table, the first ones."""


def forecast(cells: list[Cell], device: str, threads: int | None) -> list[str]:
    """Lines of a table: what cells of each task, method and network take, and all together."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        parts = cell.train, cell.network, cell.sample, cell.eval, cell.hyperparameters
        words = [part if isinstance(part, dict) else part.model_dump() for part in parts]
        key = cell.task, str(cell.task_parameters), cell.method, *map(str, words)
        groups.setdefault(key, []).append(cell)
    pace = operations_a_second(device, threads)
    lines, total = [], 0.0
    for same in list(groups.values())[:MAX_SETTINGS]:
        cell = same[0]
        name = f"{len(same):5} x {cell.method:12} {cell.task:28}"
        try:
            found = estimate(cell, cell.build_task().shape, pace)
        except Exception as error:  # what would end the cell, a plugin's too, must not end this
            lines.append(f"{name} no estimate: {printable(' '.join(str(error).split())[:200])}")
            continue
        total += found.seconds * len(same)
        lines.append(
            f"{name} {found.parameters:>11,} parameters"
            f" {found.memory / 2**20:>9,.0f} MB {in_words(found.seconds):>8}"
        )
    if len(groups) > MAX_SETTINGS:
        lines.append(f"and {len(groups) - MAX_SETTINGS:,} settings more, not estimated")
    place = f"{device} at {pace / 1e9:,.0f} GFLOP/s"
    on_gpu = total * pace / GPU_PACE
    lines.append(
        f"training and sampling one after the other: {in_words(total)} on {place};"
        f" {in_words(on_gpu)} at {GPU_PACE / 1e12:.0f} TFLOP/s, a large GPU. Rough: small networks"
        " stay behind the pace, and evaluation is not in it"
    )
    return lines


def in_words(seconds: float) -> str:
    """A duration to two digits: 40 s, 12 min, 3.5 h, 12 d."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{seconds:.0f} s"
