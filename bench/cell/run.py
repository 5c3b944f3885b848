"""One cell: draw the data, train, transport fresh source samples, evaluate."""

import contextlib
import errno
import functools
import io
import resource
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import threadpoolctl
import torch
from torch import Tensor, nn

from bench.cell import draws
from bench.cell.checkpoint import Checkpoints
from bench.cell.context import CellContext, Notify, RunContext, Saving
from bench.cell.curve import halvings, measure_curve
from bench.cell.evaluate import Evaluation, evaluate, reference_values
from bench.cell.images import excerpts, fid_block, fid_to_training_set, with_features
from bench.cell.train import Trained, train
from bench.cell.transport import timed_transport, transported
from bench.config.cell import Cell
from bench.features.inception import FidError
from bench.metrics import METRICS
from bench.metrics.neighbours import nearest
from bench.store.folder import CHECKPOINT, MODEL, SAMPLES, TRACEBACK, StorageError, write_atomically
from bench.store.provenance import code_hash, package_versions
from bench.store.records import MEMORY, Outcome
from datasets import Stream
from methods.base import Transport
from methods.networks import architecture_of

__all__ = ["Notify", "Saving", "run_cell"]

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
MAX_REASON = 500  # characters of an exception in the tables; the traceback file has it all


def run_cell(
    cell: Cell,
    folder: Path,
    device: str = "cpu",
    threads: int = 1,
    notify: Notify = lambda stage, step, steps, loss: None,
    saving: Saving = Saving(),
    fid_weights: str | None = None,
    features: str | None = None,
) -> Outcome:
    """Runs a cell, and returns what is measured; an exception of the cell becomes its status.

    Args:
        cell: what to run.
        folder: where samples, model, checkpoint and traceback are put. Training resumes from a
            checkpoint in it.
        device: a torch device.
        threads: CPU threads to use.
        notify: called with where the cell stands.
        saving: when training is saved.
        fid_weights: the weight file of pytorch-fid; None for its usual place.
        features: the TorchScript file of a network for ``fd_custom``; None for no such metric.

    Raises:
        StorageError: the folder cannot be written; that says nothing about the cell.
    """
    run = RunContext(folder, torch.device(device), notify, saving, fid_weights, features)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpoolctl.threadpool_limits(threads):
            context = CellContext.of(cell)
            reason = context.skip()
            if reason is not None:
                return Outcome(status="skipped", reason=reason)
            return _measure(context, run)
    except StorageError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise StorageError(f"cannot write {folder}: {error.strerror}") from None
        write_atomically(folder / TRACEBACK, traceback.format_exc().encode())
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(status="failed", reason=message[:MAX_REASON])
    finally:
        torch.set_num_threads(threads_before)


def _measure(context: CellContext, run: RunContext) -> Outcome:
    """Trains, transports and evaluates, as far as all numbers are finite."""
    _reset_peak_memory(run.device)
    held_out = draws.evaluation_sets(context)
    model = draws.build_model(context).to(run.device)
    trained = _train(context, model, run)
    measured: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "architecture": architecture_of(model),
        "unused_network": list(context.unused_network),
        "train_seconds": trained.seconds,
        "resumed_at": trained.resumed_at,
        "data_hash": draws.hash_of(*held_out, *draws.training_samples(context)),
        "task_digest": context.task_digest,
        "evaluated": len(held_out.source),
        "normalisation": context.target.normalisation.record(),
        "peak_memory_mb": _peak_memory_mb(run.device),
    }
    if trained.diverged_at is not None:
        reason = f"loss not finite at step {trained.diverged_at}"
        return Outcome(status="diverged", reason=reason, **measured)

    run.notify("sample", 0, 1, None)
    solver = context.cell.sample
    start = context.method.start(held_out.source.to(run.device))
    transport, seconds = timed_transport(context, trained.model, start, solver, path=True)
    samples = transport.end.cpu()
    measured |= {
        "nfe": transport.nfe,
        "sample_seconds": seconds,
        "landed": float(transport.landed.double().mean()),
        "peak_memory_mb": _peak_memory_mb(run.device),
    }
    if lost := int((~samples.isfinite()).any(1).sum()):
        reason = f"{lost} of {len(samples)} samples are not finite"
        return Outcome(status="diverged", reason=reason, **measured)

    run.notify("evaluate", 0, 1, None)
    diagnosed = _diagnose(context, trained.model, run.device)
    measured["diagnostics"] = {**transport.diagnostics, **diagnosed}
    data = _evaluation(context, held_out, transport, run)
    measured |= _evaluate(context, trained.model, data, run)
    if context.cell.eval.curve:
        run.notify("curve", 0, 1, None)
        measured["curve"] = measure_curve(context, trained, start, data)
    _store(context, trained, data, run.folder)
    return Outcome(status="done", **measured)


def _train(context: CellContext, model: nn.Module, run: RunContext) -> Trained:
    """The model, trained on streams of both sides; torch's general random state is kept."""
    cell, device = context.cell, run.device
    rng = draws.generator(cell, "method", device)
    task = context.task.name
    source, target = (
        Stream(side, draws.generator(cell, f"train {name}"), device, f"{task} {name}")
        for name, side in (("source", context.source), ("target", context.target))
    )
    sources: dict[str, torch.Generator | Stream]
    sources, path = {"method": rng, "source": source, "target": target}, run.folder / CHECKPOINT
    checkpoints = Checkpoints(path, run.saving, device, sources, context.task_digest)
    batches = context.method.batches(source, target, cell.train.batch, rng)
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(draws.seed_of(cell, "dropout"))
        return train(
            model,
            functools.partial(next, batches),
            cell.train,
            report=lambda step, loss: run.notify("train", step, cell.train.steps, loss),
            snapshots=halvings(cell.train.steps, cell.eval.curve),
            checkpoints=checkpoints,
        )


@torch.no_grad()
def _diagnose(context: CellContext, model: nn.Module, device: torch.device) -> dict[str, float]:
    rng = draws.generator(context.cell, "diagnose")
    sides = (context.source, context.target)
    source, target = (Stream(side, rng, device, context.task.name) for side in sides)
    return context.method.diagnose(model, source, target)


def _evaluation(
    context: CellContext, held_out: draws.HeldOut, transport: Transport, run: RunContext
) -> Evaluation:
    """What the ends of the lines are evaluated on, with the path of the first ones."""
    assert transport.path is not None
    data = Evaluation(
        **held_out._asdict(),
        samples=transport.end.cpu(),
        path=transport.path.cpu(),
        native=not context.method.noise_only,
        train=draws.training_set(context),
        distribution=context.target,
        known=context.task.known(),
        references=functools.partial(draws.reference_sets, context, held_out.source),
        # All that references and floors depend on, beside the sets themselves.
        key=f"{context.task_digest} {draws.seed_of(context.cell, 'references')} {code_hash()}"
        f" {package_versions()}",
    )
    return with_features(data, context, run)


def _evaluate(
    context: CellContext, model: nn.Module, data: Evaluation, run: RunContext
) -> dict[str, Any]:
    """The metrics, and what was needed for them; ``model`` draws the samples of ``fid_train``."""
    chosen, found = context.cell.eval, dict[str, Any]()
    if data.train is not None:
        both = zip(MEMORY, (data.samples, data.target), strict=True)
        found |= {name: float(nearest(some, data.train).mean()) for name, some in both}
    names = [name for name, metric in METRICS.items() if metric.quick or chosen.metrics == "all"]
    intervals = draws.generator(context.cell, "intervals")
    found["metrics"] = evaluate(data, chosen.replicates, intervals, names)
    found["references"] = reference_values(data, names)
    if data.extractors is not None:
        found |= data.extractors.record
        if chosen.fid_n and context.task.noise_source:
            fresh = _fresh_samples(context, model, chosen.fid_n, run)
            try:
                found["metrics"] |= fid_to_training_set(fresh, context.target, data.extractors)
            except FidError as error:
                found["fid_reason"] = str(error)
    return found


def _fresh_samples(
    context: CellContext, model: nn.Module, n: int, run: RunContext
) -> Iterator[Tensor]:
    """The ends of ``n`` lines that start at new draws of the source, block by block, (k, D)."""
    cell, method = context.cell, context.method
    noise = draws.generator(cell, f"{draws.EVALUATION[cell.eval.split]} fid noise")
    lines = draws.generator(cell, "fid transport", run.device)
    size = fid_block(context.target.dim)
    for done in range(0, n, size):
        run.notify("fid", done, n, None)
        start = method.start(context.source.sample(min(size, n - done), noise).to(run.device))
        yield transported(method, model, start, cell.sample, lines).end.cpu()


def _store(context: CellContext, trained: Trained, data: Evaluation, folder: Path) -> None:
    """Weights, and the samples in the original units of their data set."""
    weights = {k: weight.cpu().contiguous() for k, weight in trained.model.state_dict().items()}
    write_atomically(folder / MODEL, safetensors.torch.save(weights))
    original = context.target.normalisation.undo
    tensors = {
        "source": context.source.normalisation.undo(data.source),
        "samples": original(data.samples),
        "target": original(data.target),
        "losses": trained.losses,
        **excerpts(context.target, data.samples, data.target, data.path),
    }
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
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
    if (status := Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
