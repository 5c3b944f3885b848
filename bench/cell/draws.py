"""What a cell draws, each from a generator of its own: data, weights, held-out sets."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.cell.context import CellContext
from bench.config.cell import Cell
from datasets.base import Empirical, check_samples, digest_of
from datasets.gaussians import linear_map
from methods import Method
from methods.base import MODEL_SAMPLES
from methods.networks import matched

FEW = 256  # samples with which weights are counted
LINEAR_SAMPLES = 1024  # in as many dimensions: roots of larger covariances take long
# How the purposes of a split's generators begin: no seed gives both splits the same draw.
EVALUATION = {"test": "evaluate", "validation": "validate"}


class HeldOut(NamedTuple):
    """Samples that no training sees, all of one size."""

    source: Tensor  # (n, D)
    target: Tensor  # (n, D)
    second_target: Tensor  # (n, D), for the floors


def evaluation_sets(context: CellContext) -> HeldOut:
    """Held-out samples of source and target: as many as asked for, or as all of them have."""
    cell, source, target = context.cell, context.source, context.target
    n, draws, verb = cell.eval.n, cell.eval.draws, EVALUATION[cell.eval.split]
    named = {
        "source": source.held_out(n, generator(cell, f"{verb} source"), draws),
        "target": target.held_out(n, generator(cell, f"{verb} target"), draws),
        "second target": target.second_set(n, generator(cell, f"{verb} floor"), draws),
    }
    size = min(len(samples) for samples in named.values())
    sets = [check_samples(x[:size], target.dim, f"{cell.task} {k}") for k, x in named.items()]
    return HeldOut(*sets)


def build_model(context: CellContext, method: Method | None = None) -> nn.Module:
    """The model, of the cell's method or another one; torch's random state is kept.

    The weights depend on the seed alone. A model of a plug-in that reads them as it is built cannot
    be counted without numbers, on the device ``meta``: it keeps the width of the settings, and a
    line says so. Any other error is one of the model.
    """
    method = method or context.method
    if method.of_mixtures:
        mixtures = context.mixtures()
        assert mixtures is not None
        return method.mixture_model(*mixtures)
    samples = training_samples(context, method.samples)
    few = [some[:FEW] for some in samples]  # the number of weights does not depend on them
    network = context.cell.network.factory(*context.target.shape)
    if method.trained:
        try:
            network = matched(network, lambda factory: method.model(factory, *few))
        except (RuntimeError, TypeError) as error:
            if "meta" not in str(error).lower():  # torch has no class for it, but always the word
                raise
            print(f"the width is not matched: {error}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(context.cell, "weights"))
        return method.model(network, *samples)


def training_samples(context: CellContext, n: int = MODEL_SAMPLES) -> tuple[Tensor, Tensor]:
    """``n`` training samples each of source and target, as even as they can be drawn.

    For a trained method they set the scale of inputs and outputs; what is not trained has no
    others, where training sees millions.
    """
    rng = generator(context.cell, "statistics")
    return context.source.low_variance(n, rng), context.target.low_variance(n, rng)


def training_set(context: CellContext) -> Tensor | None:
    """The training samples of a data set; None for other distributions."""
    return context.target.train if isinstance(context.target, Empirical) else None


def reference_sets(context: CellContext, source: Tensor) -> dict[str, Tensor]:
    """Sample sets that quality is read beside, by name, each (n, D), of held-out ``source`` (n, D).

    ``perfect``: an exact map of the start points, where one is known. ``identity``: these as they
    are. ``linear``: the optimal map between the normal distributions with the moments of the
    training samples, or of N(0, I) where that is the source. ``noise``: draws of N(0, I).
    """
    task = context.task
    found, exact = {"identity": source}, task.exact_map()
    if exact is not None:
        found["perfect"] = exact(source)
    few = LINEAR_SAMPLES if task.dim > LINEAR_SAMPLES else MODEL_SAMPLES
    first, second = training_samples(context, few)
    found["linear"] = linear_map(None if task.noise_source else first, second)(source)
    found["noise"] = torch.randn(source.shape, generator=generator(context.cell, "reference noise"))
    return found


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
    """Hash of data, to see that two cells were trained and evaluated on the same."""
    return digest_of(tensor.contiguous().numpy().tobytes() for tensor in samples)[:16]
