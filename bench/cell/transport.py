"""The transport of many samples, block by block."""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bench.cell.context import CellContext
from bench.cell.draws import generator
from methods import Method
from methods.base import Transport
from methods.solvers import Solver

# Numbers of the states that are transported at a time: 8 MB, and what the network makes of it.
BLOCK_NUMBERS = 2**21
PATH_NUMBERS = 2**26  # of the path that is kept: 256 MB


def timed_transport(
    context: CellContext, model: nn.Module, start: Tensor, solver: Solver, path: bool = False
) -> tuple[Transport, float]:
    """The transport of the held-out source samples, and its seconds."""
    rng = generator(context.cell, "transport", start.device)
    begin = time.perf_counter()
    transport = transported(context.method, model, start, solver, rng, path)
    transport.landed.cpu()  # waits for a GPU
    return transport, time.perf_counter() - begin


@torch.no_grad()
def transported(
    method: Method,
    model: nn.Module,
    start: Tensor,
    solver: Solver,
    rng: torch.Generator,
    path: bool = False,
) -> Transport:
    """The transport of ``start`` (B, D), in blocks of at most ``BLOCK_NUMBERS`` numbers.

    The path is that of the first block, which is at most ``PATH_NUMBERS`` long: all paths of
    20,000 colour images would take 12 GB.
    """
    size = first = max(1, BLOCK_NUMBERS // start.shape[1])
    if path:
        first = min(size, max(1, PATH_NUMBERS // ((solver.solver_steps + 1) * start.shape[1])))
    blocks = [start[:first], *(torch.split(start[first:], size) if len(start) > first else ())]
    parts = [
        method.transport(model, block, solver, path=path and place == 0, rng=rng)
        for place, block in enumerate(blocks)
    ]
    if len(parts) == 1:
        return parts[0]
    sizes = [len(block) for block in blocks]

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=sizes[: len(values)]))

    return parts[0]._replace(
        end=torch.cat([part.end for part in parts]),
        landed=torch.cat([part.landed for part in parts]),
        nfe=math.ceil(mean([part.nfe for part in parts])),
        diagnostics={
            # That of the path is known for the first block alone.
            name: mean([part.diagnostics[name] for part in parts if name in part.diagnostics])
            for name in parts[0].diagnostics
        },
    )
