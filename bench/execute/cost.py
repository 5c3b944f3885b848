"""What a cell costs: parameters, memory and time; for dry runs, the order of cells, the time left.

The model is built without memory (torch's meta device) and its multiply-adds are counted. That is
rough: evaluation is not in it, nor what a method computes beside its network.
"""

import functools
import math
import timeit
from collections import defaultdict
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.config.cell import Cell
from bench.config.errors import printable
from bench.store.records import Record
from datasets import TASKS
from methods import Method
from methods.networks import NetworkFactory, matched

WEIGHT_BYTES = 4 * 5  # a float32 parameter, its gradient, its average, and two moments of Adam
BACKWARD = 3  # a training step costs as much as that many forward passes
CALL_SECONDS = 1e-3  # a step, of training or the solver, whatever the network: Python, kernels
CPU_PACE, GPU_PACE = 5e10, 2e13  # float32 operations a second of a few cores, and of a large GPU
STATISTICS = 256  # random numbers in place of the samples that models take their scale from
PROBE = 1024  # side of the matrices whose product is timed
MAX_SETTINGS = 40  # rows of the table, the first ones


class Cost(NamedTuple):
    """Of one cell, in training and sampling."""

    operations: float
    calls: float
    parameters: int = 0
    memory: float = 0.0  # bytes
    problem: str | None = None  # why the network cannot be built; the operations are then guessed

    def seconds(self, pace: float = CPU_PACE) -> float:
        """At so many operations a second."""
        return self.operations / pace + self.calls * CALL_SECONDS


_known: dict[tuple[Any, ...], Cost] = {}


def kind_of(cell: Cell) -> tuple[Any, ...]:
    """What determines the cost of a cell: all but its seed."""
    hyperparameters, parameters = cell.hyperparameters.items(), cell.task_parameters.items()
    settings = cell.train, cell.network, cell.sample, cell.eval
    return cell.method, tuple(hyperparameters), cell.task, tuple(parameters), *settings


def cost_of(cell: Cell) -> Cost:
    """What a cell costs; counted once for all cells of its kind."""
    kind = kind_of(cell)
    if kind not in _known:
        _known[kind] = _counted(cell)
    return _known[kind]


def _counted(cell: Cell) -> Cost:
    train, n = cell.train, cell.eval.n
    steps = train.steps * train.accumulate
    evaluations = cell.sample.solver_steps * (1 if cell.sample.solver == "euler" else 2)
    try:
        method, task = cell.build_method(), cell.build_task()
        shape, dim = task.shape, math.prod(task.shape)
        if not method.trained:  # every line sees every stored sample
            return Cost(2.0 * evaluations * n * dim * method.samples, evaluations)
        model = weightless(method, cell.network.factory(*shape), dim)
        (forward, kept), (_, kept_by_two) = (_one_pass(model, dim, k) for k in (1, 2))
    except Exception as error:  # what would end the cell, a plug-in's too, must not end this
        inputs, width = TASKS[cell.task].dim, cell.network.width
        guess = 2.0 * width * (2 * inputs + cell.network.depth * width)
        why = " ".join(str(error).split())
        return Cost(BACKWARD * steps * train.batch * guess, steps, problem=why)
    n += cell.eval.fid_n if task.noise_source and len(shape) == 3 else 0
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Cost(
        operations=float(forward) * (BACKWARD * steps * train.batch + evaluations * n),
        calls=steps + evaluations,
        parameters=weights,
        memory=WEIGHT_BYTES * weights + train.batch * (kept_by_two - kept),
    )


def weightless(method: Method, network: NetworkFactory, dim: int) -> nn.Module:
    """The model of a method on the meta device: shapes, and no numbers."""
    samples = torch.randn(STATISTICS, dim, generator=torch.Generator().manual_seed(0))

    def build(factory: NetworkFactory) -> nn.Module:
        return method.model(factory, samples, samples)

    with torch.random.fork_rng(devices=[]):
        return build(replace(matched(network, build), device="meta")).to("meta")


def _one_pass(model: nn.Module, dim: int, samples: int) -> tuple[int, int]:
    """Operations of a forward pass, and the bytes that it keeps for the backward pass."""
    storages: dict[int, int] = {}
    held = []  # so that no storage takes the place of another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        held.append(tensor)
        return tensor

    points, scalars = torch.ones(samples, dim, device="meta"), torch.ones(samples, device="meta")
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(points, scalars)
    return counter.get_total_flops(), sum(storages.values())


class Expectation:
    """Expected seconds of cells: their cost at the pace of the nearest cells that are known.

    The pace is that of the same method on the same task, else that of the method, else that of
    all; with nothing known that of :data:`CPU_PACE`.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])

    def learn(self, cell: Cell, record: Record) -> None:
        """Takes note of a finished cell."""
        if record.status in ("done", "timeout"):
            for key in ((cell.method, cell.task), (cell.method,), ()):
                self.totals[key][0] += record.seconds
                self.totals[key][1] += cost_of(cell).seconds()

    def pace(self, method: str, task: str) -> float:
        """Seconds that cells take for a second of :meth:`Cost.seconds`."""
        for key in ((method, task), (method,), ()):
            if key in self.totals:
                seconds, expected = self.totals[key]
                return seconds / expected
        return 1.0

    def seconds(self, cell: Cell) -> float:
        """What a cell is expected to take."""
        return cost_of(cell).seconds() * self.pace(cell.method, cell.task)


def forecast(cells: list[Cell], device: str, threads: int | None) -> list[str]:
    """Lines of a table: what cells of each kind take, and all together."""
    kinds: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        kinds[kind_of(cell)].append(cell)
    pace = operations_a_second(device, threads)
    lines, costs = [], []
    for same in list(kinds.values())[:MAX_SETTINGS]:
        cell, cost = same[0], cost_of(same[0])
        words = (
            f"{cost.parameters:>11,} parameters {cost.memory / 2**20:>9,.0f} MB"
            f" {in_words(cost.seconds(pace)):>8}"
            if cost.problem is None
            else f"no estimate: {printable(cost.problem[:200])}"
        )
        lines.append(f"{len(same):5} x {cell.method:12} {cell.task:28} {words}")
        costs += [] if cost.problem else [cost] * len(same)
    if len(kinds) > MAX_SETTINGS:
        lines.append(f"and {len(kinds) - MAX_SETTINGS:,} settings more, not estimated")
    here, there = (sum(cost.seconds(one) for cost in costs) for one in (pace, GPU_PACE))
    lines.append(
        f"training and sampling one after the other: {in_words(here)} on {device} at"
        f" {pace / 1e9:,.0f} GFLOP/s; {in_words(there)} at {GPU_PACE / 1e12:.0f} TFLOP/s, a large"
        " GPU. Rough: evaluation is not in it"
    )
    return lines


@functools.cache
def operations_a_second(device: str, threads: int | None) -> float:
    """Floating-point operations a second of products of float32 matrices on a device."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        matrix = torch.ones(PROBE, PROBE, device=device)
        runs, seconds = timeit.Timer(lambda: (matrix @ matrix)[0, 0].item()).autorange()
        return 2 * PROBE**3 * runs / seconds
    finally:
        torch.set_num_threads(before)


def in_words(seconds: float) -> str:
    """A duration to two digits: 40 s, 12 min, 3.5 h, 12 d."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{seconds:.0f} s"
