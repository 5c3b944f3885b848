"""One cell: draw the data, train, transport fresh source samples, evaluate."""

import contextlib
import errno
import functools
import hashlib
import io
import math
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import threadpoolctl
import torch
from torch import Tensor, nn

from bench.checkpoint import Checkpoints, Source
from bench.curve import JUDGED, halvings, measure_curve
from bench.evaluate import MAIN, Evaluation, evaluate, plain_values
from bench.excerpts import excerpts
from bench.features.inception import FidError
from bench.folder import (
    CHECKPOINT,
    MODEL,
    SAMPLES,
    TRACEBACK,
    StorageError,
    outcome_of,
    write_atomically,
)
from bench.judge import (
    fid_block,
    fid_to_training_set,
    same_units,
    views_of,
    with_features,
    with_samples,
)
from bench.metrics import METRICS
from bench.metrics.neighbours import nearest
from bench.records import MEMORY
from bench.spec import Cell
from bench.train import Trained, train
from datasets import Distribution, Stream, Task
from datasets.base import Empirical, check_samples
from methods import Method
from methods.base import MODEL_SAMPLES, Transport
from methods.networks import architecture_of
from methods.solvers import Solver

Notify = Callable[[str, int, int, float | None], None]
"""``notify(stage, step, steps, loss)``: where a cell stands."""

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
BLOCK_NUMBERS = 2**21
"""Numbers of the states that are transported at a time: 8 MB, and what the network makes of it."""
PATH_NUMBERS = 2**26
"""Numbers of the path that is kept: 256 MB."""
MAX_REASON = 500
"""Characters of an exception that stand in the tables; the traceback file has it all."""


class Saving(NamedTuple):
    """When training is saved."""

    every: int | None = None
    """Steps between two checkpoints; None for one every few minutes."""
    written: Callable[[], None] = lambda: None
    """Called after each."""


class Parts(NamedTuple):
    """A cell, and what it names."""

    cell: Cell
    method: Method
    task: Task
    source: Distribution
    target: Distribution


class Place(NamedTuple):
    """Where a cell runs, and who is told."""

    folder: Path
    device: torch.device
    tell: Notify
    saving: Saving
    fid_weights: str | None


def run_cell(
    cell: Cell,
    folder: Path,
    device: str = "cpu",
    threads: int = 1,
    notify: Notify | None = None,
    saving: Saving = Saving(),
    fid_weights: str | None = None,
) -> dict[str, Any]:
    """Runs a cell; an exception of the cell becomes its status.

    Args:
        cell: what to run.
        folder: where samples, checkpoint and traceback are put.
        device: a torch device.
        threads: CPU threads to use.
        notify: told where the cell stands.
        saving: when training is saved. A checkpoint in the folder is gone on from.
        fid_weights: the weight file of pytorch-fid; None for its usual place.

    Returns:
        The part of the record that is measured: status, reason, metrics, times.

    Raises:
        StorageError: the folder cannot be written; that says nothing about the cell.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    tell = notify or (lambda stage, step, steps, loss: None)
    try:
        with threadpoolctl.threadpool_limits(threads):
            method, task = cell.build_method(), cell.build_task()
            source, target = laws(cell, task)
            reason = method.skip(target.dim, task.noise_source)
            if reason is not None:
                return outcome_of("skipped", reason)
            place = Place(folder, torch.device(device), tell, saving, fid_weights)
            return _measure(Parts(cell, method, task, source, target), place)
    except StorageError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise StorageError(f"cannot write {folder}: {error.strerror}") from None
        write_atomically(folder / TRACEBACK, traceback.format_exc().encode())
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return outcome_of("failed", message[:MAX_REASON])
    finally:
        torch.set_num_threads(threads_before)


def _measure(parts: Parts, place: Place) -> dict[str, Any]:
    cell, method, _, source, target = parts
    device, tell = place.device, place.tell
    _reset_peak_memory(device)
    held_out = evaluation_sets(cell, source, target)
    model = build_model(cell, method, source, target).to(device)
    trained = _trained(parts, model, place)
    counts: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "architecture": architecture_of(model),
        "train_seconds": trained.seconds,
        "resumed_at": trained.resumed_at,
        "data_hash": hash_of(*held_out, *training_samples(cell, source, target)),
        "evaluated": len(held_out[0]),
        "normalisation": target.normalisation.record(),
    }
    counts["peak_memory_mb"] = _peak_memory_mb(device)
    if trained.diverged_at is not None:
        reason = f"loss not finite at step {trained.diverged_at}"
        return outcome_of("diverged", reason, **counts)

    tell("sample", 0, 1, None)
    start = method.start(held_out[0].to(device))
    transport, seconds = _transport(cell, method, trained.model, start, cell.sample, path=True)
    samples, path = transport.end.cpu(), transport.path.cpu()  # type: ignore[union-attr]
    counts |= {"nfe": transport.nfe, "sample_seconds": seconds}
    counts["landed"] = float(transport.landed.double().mean())
    counts["peak_memory_mb"] = _peak_memory_mb(device)
    lost = int((~samples.isfinite()).any(1).sum())
    if lost:
        reason = f"{lost} of {len(samples)} samples are not finite"
        return outcome_of("diverged", reason, **counts)

    tell("evaluate", 0, 1, None)
    counts["diagnostics"] = {
        **transport.diagnostics,
        **_diagnosed(parts, trained.model, device),
    }
    judged, found = _judged(parts, trained.model, held_out, samples, path, place)
    shown = {
        "source": source.normalisation.undo(held_out[0]),
        "samples": target.normalisation.undo(samples),
        "target": target.normalisation.undo(held_out[1]),
        "losses": trained.losses,
        **excerpts(target, samples, held_out[1], path),
    }
    if cell.eval.curve:
        tell("curve", 0, 1, None)

        def sample(model: nn.Module, solver: Solver) -> tuple[Tensor, int, float]:
            found, seconds = _transport(cell, method, model, start, solver)
            return found.end.cpu(), found.nfe, seconds

        counts["curve"] = measure_curve(
            *(trained, cell.train.steps, cell.sample, cell.eval.curve, sample, judged)
        )
    _store(place.folder, trained.model, shown)
    return {**outcome_of("done", None, **counts), **found}


def _trained(parts: Parts, model: nn.Module, place: Place) -> Trained:
    """The model, trained on streams of both laws; torch's general random state is kept."""
    cell, method, task, source, target = parts
    device = place.device
    rng = generator(cell, "method", device)
    draws = [
        Stream(law, generator(cell, f"train {name}"), device, f"{task.name} {name}")
        for name, law in (("source", source), ("target", target))
    ]
    random: dict[str, Source] = {"method": rng, "source": draws[0], "target": draws[1]}
    batches = method.batches(draws[0], draws[1], cell.train.batch, rng)
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(cell, "dropout"))
        return train(
            model,
            functools.partial(next, batches),
            cell.train,
            lambda step, loss: place.tell("train", step, cell.train.steps, loss),
            halvings(cell.train.steps, cell.eval.curve),
            Checkpoints(
                *(place.folder / CHECKPOINT, place.saving.every, device, random),
                place.saving.written,
            ),
        )


@torch.no_grad()
def _diagnosed(parts: Parts, model: nn.Module, device: torch.device) -> dict[str, float]:
    cell, method, task, source, target = parts
    rng = generator(cell, "diagnose")
    fresh = [Stream(law, rng, device, task.name) for law in (source, target)]
    return method.diagnose(model, fresh[0], fresh[1])


def _judged(
    parts: Parts,
    model: nn.Module,
    held_out: tuple[Tensor, Tensor, Tensor],
    samples: Tensor,
    path: Tensor,
    place: Place,
) -> tuple[Callable[[Tensor], dict[str, float]], dict[str, Any]]:
    """The distances of other samples as a function, and the metrics of these with what they need.

    Args:
        model: of which samples for ``fid_train`` are drawn.
        held_out: what :func:`evaluation_sets` gives.
        samples: the end points, (n, D).
        path: of the first lines, (T+1, k, D).
    """
    cell, method, task, source, target = parts
    found: dict[str, Any] = {}
    native = not method.noise_only
    train_set = shuffled_training_set(cell, target)
    if train_set is not None:
        found |= {
            name: float(nearest(some, train_set).mean())
            for name, some in zip(MEMORY, (samples, held_out[1]), strict=True)
        }
    data = Evaluation(
        *(held_out[0], samples, *held_out[1:], path, native),
        train=train_set,
        law=target,
        known=task.known(),
    )
    real = held_out[1] if train_set is None else train_set
    views = views_of(task, target, real, place.fid_weights, place.device)
    found |= {} if views is None else views.record
    own = None if task.noise_source or not native else same_units(held_out[0], source, target)
    data = with_features(data, views, own)
    names = MAIN if cell.eval.metrics == "main" else METRICS
    metrics = evaluate(data, cell.eval.replicates, generator(cell, "intervals"), names)
    if cell.eval.fid_n and task.noise_source and views is not None:
        fresh = _fresh_samples(parts, model, cell.eval.fid_n, place)
        try:
            metrics |= fid_to_training_set(fresh, target, views)
        except FidError as error:
            found["fid_reason"] = str(error)

    def judge(other: Tensor) -> dict[str, float]:
        return plain_values(with_samples(data, other, views), JUDGED)

    return judge, {**found, "metrics": metrics}


def _fresh_samples(parts: Parts, model: nn.Module, n: int, place: Place) -> Iterator[Tensor]:
    """The ends of ``n`` lines that start at new draws of the source, block by block, (k, D)."""
    cell, method, _, source, target = parts
    noise = generator(cell, f"{EVALUATION[cell.eval.split]} fid noise")
    lines = generator(cell, "fid transport", place.device)
    size = fid_block(target.dim)
    for done in range(0, n, size):
        place.tell("fid", done, n, None)
        start = method.start(source.sample(min(size, n - done), noise).to(place.device))
        yield transported(method, model, start, cell.sample, lines).end.cpu()


def _transport(
    cell: Cell, method: Method, model: nn.Module, start: Tensor, solver: Solver, path: bool = False
) -> tuple[Transport, float]:
    """The transport of the held-out source samples, and its seconds."""
    rng = generator(cell, "transport", start.device)
    begin = time.perf_counter()
    transport = transported(method, model, start, solver, rng, path)
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
    size = max(1, BLOCK_NUMBERS // start.shape[1])
    first = size
    if path:
        states = (solver.solver_steps + 1) * start.shape[1]
        first = min(size, max(1, PATH_NUMBERS // states))
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


def laws(cell: Cell, task: Task) -> tuple[Distribution, Distribution]:
    """Source and target: all that a cell is trained and judged on is drawn from these."""
    source, target = task.source(), task.target()
    if cell.eval.split == "validation":
        return source.for_validation(), target.for_validation()
    return source, target


EVALUATION = {"test": "evaluate", "validation": "validate"}
"""How the purposes of a split's generators begin: no seed gives both splits the same draw."""


def evaluation_sets(
    cell: Cell, source: Distribution, target: Distribution
) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out source and target samples, and a second target set for the floors; of one size.

    ``source`` and ``target`` are the cell's :func:`laws`.
    """
    n, draws, verb = cell.eval.n, cell.eval.draws, EVALUATION[cell.eval.split]
    named = {
        "source": source.held_out(n, generator(cell, f"{verb} source"), draws),
        "target": target.held_out(n, generator(cell, f"{verb} target"), draws),
        "second target": target.second_set(n, generator(cell, f"{verb} floor"), draws),
    }
    size = min(len(samples) for samples in named.values())
    starts, ends, second = (
        check_samples(samples[:size], target.dim, f"{cell.task} {name}")
        for name, samples in named.items()
    )
    return starts, ends, second


def build_model(
    cell: Cell, method: Method, source: Distribution, target: Distribution
) -> nn.Module:
    """The method's model with weights that depend on the seed alone; torch's state is kept."""
    network = cell.network.factory(*target.shape)
    samples = training_samples(cell, source, target, method.samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(cell, "weights"))
        return method.model(network, samples[0], samples[1])


def training_samples(
    cell: Cell, source: Distribution, target: Distribution, n: int = MODEL_SAMPLES
) -> list[Tensor]:
    """``n`` training samples of the source and the target each, as even as the laws can give them.

    For a trained method they set the scale of inputs and outputs; what is not trained has no
    others, where training sees millions.
    """
    rng = generator(cell, "statistics")
    return [law.low_variance(n, rng) for law in (source, target)]


def shuffled_training_set(cell: Cell, target: Distribution) -> Tensor | None:
    """All training samples of a data set in random order; None for a law."""
    if not isinstance(target, Empirical):
        return None
    order = torch.randperm(len(target.train), generator=generator(cell, "memory"))
    return target.train[order]


def seed_of(cell: Cell, purpose: str) -> int:
    """A seed for one purpose: the same for every method and setting of a task and seed."""
    text = f"{cell.task} {cell.task_version} {cell.seed} {purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def generator(
    cell: Cell, purpose: str, device: torch.device = torch.device("cpu")
) -> torch.Generator:
    """A random generator for one purpose."""
    return torch.Generator(device).manual_seed(seed_of(cell, purpose))


def hash_of(*samples: Tensor) -> str:
    """Hash of data, to see that two cells were trained and judged on the same."""
    digest = hashlib.sha256()
    for tensor in samples:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _store(folder: Path, model: nn.Module, arrays: dict[str, Tensor]) -> None:
    """Weights, and the samples in the original units of their data set."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / MODEL, safetensors.torch.save(weights))
    content = io.BytesIO()
    numpy_arrays: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    np.savez_compressed(content, **numpy_arrays)
    write_atomically(folder / SAMPLES, content.getvalue())


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # elsewhere the peak is that since the process's start
        Path("/proc/self/clear_refs").write_text("5")  # Linux


def _peak_memory_mb(device: torch.device) -> float:
    """Peak of training and sampling so far: on the GPU, or of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
