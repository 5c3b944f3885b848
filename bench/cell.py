"""One cell: draw the data, train, transport fresh source samples, evaluate, record."""

import contextlib
import hashlib
import io
import platform
import resource
import subprocess
import time
import traceback
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.metrics import Evaluation, evaluate
from bench.records import FORMAT, RECORD, cell_folder, write_atomically, write_json
from bench.spec import Cell
from bench.train import train
from datasets import Distribution, Stream, Task
from datasets.base import check_samples
from methods import Method

Notify = Callable[[str, int, int, float | None], None]
"""``notify(stage, step, steps, loss)``: where a cell stands."""

STATISTICS_SAMPLES = 4096
"""Training samples from which a model takes the scale of the data."""

TRACEBACK, SAMPLES, MODEL = "traceback.txt", "samples.npz", "model.safetensors"


def run_cell(
    cell: Cell, out: Path, device: str = "cpu", threads: int = 1, notify: Notify | None = None
) -> dict[str, Any]:
    """Runs a cell and writes its record; an exception of the cell becomes its status.

    Args:
        cell: what to run.
        out: the output folder.
        device: a torch device.
        threads: CPU threads to use.
        notify: told where the cell stands.

    Returns:
        The record.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    folder = cell_folder(out, cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TRACEBACK, SAMPLES, MODEL):  # of an earlier attempt
        (folder / name).unlink(missing_ok=True)
    begin = time.time()
    tell = notify or (lambda stage, step, steps, loss: None)
    try:
        method, task = cell.build_method(), cell.build_task()
        reason = method.skip(task.dim, task.noise_source)
        if reason is not None:
            outcome = outcome_of("skipped", reason)
        else:
            outcome = _measure(cell, method, task, folder, torch.device(device), tell)
    except Exception as error:
        write_atomically(folder / TRACEBACK, traceback.format_exc().encode())
        outcome = outcome_of("failed", f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        torch.set_num_threads(threads_before)
    return write_record(cell, out, outcome, device, threads, begin)


def write_record(
    cell: Cell, out: Path, outcome: dict[str, Any], device: str, threads: int, begin: float
) -> dict[str, Any]:
    """Writes the record of a cell that began at the time ``begin``, and returns it."""
    record = {
        "format": FORMAT,
        "id": cell.id,
        "cell": cell.model_dump(mode="json"),
        **outcome,
        "steps": cell.train.steps,
        "batch": cell.train.batch,
        "device": device_name(device),
        "threads": threads,
        "started": begin,
        "seconds": time.time() - begin,
        **environment(),
    }
    folder = cell_folder(out, cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, record)
    return record


def outcome_of(status: str, reason: str | None, **values: Any) -> dict[str, Any]:
    """The part of a record that says how the cell ended."""
    return {"status": status, "reason": reason, "metrics": {}, **values}


def _measure(
    cell: Cell,
    method: Method,
    task: Task,
    folder: Path,
    device: torch.device,
    tell: Notify,
) -> dict[str, Any]:
    _reset_peak_memory(device)
    source, target = task.source(), task.target()
    held_out = evaluation_sets(cell, source, target)
    rng = generator(cell, "method", device)
    draws = [
        Stream(law, generator(cell, f"train {name}"), device, f"{task.name} {name}")
        for name, law in (("source", source), ("target", target))
    ]
    model = build_model(cell, method, source, target).to(device)
    trained = train(
        model,
        lambda: method.regression(draws[0], draws[1], cell.train.batch, rng),
        cell.train,
        lambda step, loss: tell("train", step, cell.train.steps, loss),
    )
    counts: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": trained.seconds,
        "data_hash": hash_of(*held_out),
        "evaluated": len(held_out[0]),
        "normalisation": target.normalisation._asdict(),
    }
    counts["peak_memory_mb"] = _peak_memory_mb(device)
    if trained.diverged_at is not None:
        reason = f"loss not finite at step {trained.diverged_at}"
        return outcome_of("diverged", reason, **counts)

    tell("sample", 0, 1, None)
    start = method.start(held_out[0].to(device))
    begin = time.perf_counter()
    with torch.no_grad():
        transport = method.transport(trained.model, start, cell.sample, path=True)
        samples, path = transport.end.cpu(), transport.path.cpu()  # type: ignore[union-attr]
    counts |= {"nfe": transport.nfe, "sample_seconds": time.perf_counter() - begin}
    counts["landed"] = float(transport.landed.double().mean())
    counts["peak_memory_mb"] = _peak_memory_mb(device)
    lost = int((~samples.isfinite()).any(1).sum())
    if lost:
        reason = f"{lost} of {len(samples)} samples are not finite"
        return outcome_of("diverged", reason, **counts)

    tell("evaluate", 0, 1, None)
    native = not method.noise_only
    metrics = evaluate(Evaluation(held_out[0], samples, held_out[1], held_out[2], path, native))
    shown = {
        "source": source.normalisation.undo(held_out[0]),
        "samples": target.normalisation.undo(samples),
        "target": target.normalisation.undo(held_out[1]),
        "losses": trained.losses,
    }
    _store(folder, trained.model, shown)
    return {**outcome_of("done", None, **counts), "metrics": metrics}


def evaluation_sets(
    cell: Cell, source: Distribution, target: Distribution
) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out source and target samples, and a second target set for the floors; of one size."""
    n, draws = cell.eval.n, cell.eval.draws
    named = {
        "source": source.held_out(n, generator(cell, "evaluate source"), draws),
        "target": target.held_out(n, generator(cell, "evaluate target"), draws),
        "second target": target.second_set(n, generator(cell, "evaluate floor"), draws),
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
    network = cell.network.factory(target.dim)
    rng = generator(cell, "statistics")
    samples = [law.sample(STATISTICS_SAMPLES, rng) for law in (source, target)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(cell, "weights"))
        return method.model(network, samples[0], samples[1])


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
    """Hash of the evaluation data, to see that two cells were judged on the same."""
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


def device_name(device: str) -> str:
    """The device as it stands in the tables."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


@cache
def environment() -> dict[str, Any]:
    """Commit, machine and package versions."""
    packages = ("torch", "numpy", "scipy", "pot", "torchdiffeq", "scikit-learn")
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {package: version(package) for package in packages},
    }


def commit() -> str | None:
    """The commit of this code, with ``+`` if the tree has changes; None outside of a checkout."""
    root = Path(__file__).parent.parent
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return text.strip()


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
