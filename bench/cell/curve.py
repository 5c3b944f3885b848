"""Quality against cost: one trained model with fewer solver steps, and as it was on the way."""

from typing import Any

from torch import Tensor

from bench.cell.context import CellContext
from bench.cell.evaluate import Evaluation, plain_values
from bench.cell.train import Snapshot, Trained
from bench.cell.transport import timed_transport
from bench.metrics import METRICS


def halvings(whole: int, count: int) -> list[int]:
    """whole / 2, whole / 4, ..., whole / 2^count, rounded down, as far as they are not 0."""
    return [whole >> k for k in range(1, count + 1) if whole >> k]


def measure_curve(
    context: CellContext, trained: Trained, start: Tensor, data: Evaluation
) -> list[dict[str, Any]]:
    """The points of a cell's curve, with its own result among them; as plain numbers.

    The lines of the held-out source samples begin at ``start`` (n, D); ``eval.curve`` says how
    often the solver's steps are halved.
    """
    cell, solver = context.cell, context.cell.sample
    whole = solver.solver_steps
    # Adaptive solvers choose their steps; theirs are only where a path is recorded.
    numbers = [whole] if solver.adaptive else [whole, *halvings(whole, cell.eval.curve)]
    final = Snapshot(cell.train.steps, trained.seconds, trained.model)
    stages = [(snapshot, solver) for snapshot in trained.snapshots]
    stages += [(final, solver.model_copy(update={"solver_steps": number})) for number in numbers]
    metrics = [name for name, metric in METRICS.items() if metric.curve]
    points = []
    for stage, chosen in stages:
        transport, seconds = timed_transport(context, stage.model, start, chosen)
        samples = transport.end.cpu()
        point = {
            "train_steps": stage.step,
            "solver_steps": chosen.solver_steps,
            "nfe": transport.nfe,
            "train_seconds": stage.seconds,
            "sample_seconds": seconds,
        }
        if bool(samples.isfinite().all()):
            point |= plain_values(data.with_samples(samples), metrics)
        points.append(point)
    return points
