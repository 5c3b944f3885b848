"""The one training loop: the same for every method, so that budgets are equal."""

import copy
import math
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from bench.cell.checkpoint import Checkpoints, State
from bench.config.settings import TrainSettings
from methods.base import Regression

Tensors = tuple[Tensor, ...] | list[Tensor]
CHECK_EVERY = 50  # steps between two looks at the loss: only then the loop waits for the device


class Snapshot(NamedTuple):
    """The averaged model on the way."""

    step: int
    seconds: float  # of training until then
    model: nn.Module


class Trained(NamedTuple):
    """The averaged model and how training went."""

    model: nn.Module
    losses: Tensor  # (steps taken,), CPU
    diverged_at: int | None  # the first step whose loss was not finite
    seconds: float
    snapshots: tuple[Snapshot, ...] = ()
    resumed_at: int = 0  # the step of the checkpoint that training resumed from


def train(
    model: nn.Module,
    batches: Callable[[], Regression],
    settings: TrainSettings,
    report: Callable[[int, float], None] | None = None,
    snapshots: Collection[int] = (),
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Fits ``model`` to the batches by mean weighted squared error.

    The loss of a batch is mean_b mean_k weight_bk (f_k - target_k)^2; that of a step the mean over
    the ``accumulate`` batches that it draws. Losses stay on the device and are looked at every
    ``CHECK_EVERY`` steps; training stops at a loss that is not finite. It resumes from its
    checkpoint if there is one.

    Args:
        model: the network f(points (B, D), scalar (B,)), trained in place.
        batches: draws the next training batch; not called for a model without parameters.
        settings: budget and optimiser.
        report: gets the step and the mean loss since the last look, at every look.
        snapshots: after how many steps a copy of the averaged model is kept.
        checkpoints: where training is saved.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):  # a closed form
        return Trained(model, torch.empty(0), None, 0.0)
    training = _Training(model, settings)
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        training.load(saved["training"])
        batches()  # what a method makes with its first batch and keeps
        checkpoints.restore(saved)
    while training.step < settings.steps:
        training.take_step(batches)
        step, last = training.step, training.step == settings.steps
        if step in snapshots:
            training.keep()
        save = checkpoints is not None and checkpoints.due(step, last)
        if step % CHECK_EVERY == 0 or last or save:
            loss = training.look()
            if training.diverged_at is not None:
                break
            if report is not None:
                report(step, loss)
        if save and checkpoints is not None:
            checkpoints.save(step, training.state())
    return training.result()


class _Training:
    """Model, average, optimiser, scheduler, losses and snapshots after ``step`` steps."""

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.model, self.settings = model, settings
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        fused = self.parameters[0].device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(self.parameters, lr=settings.lr, fused=fused)
        self.scheduler = LambdaLR(self.optimiser, lambda step: learning_rate_factor(step, settings))
        self.average = averaged(model, settings.ema)
        self.parts: dict[str, Any] = {"model": model, "average": self.average}
        self.parts |= {"optimiser": self.optimiser, "scheduler": self.scheduler}
        self.losses: list[Tensor] = []
        self.snapshots: list[Snapshot] = []
        self.step = self.looked_at = self.resumed_at = 0
        self.diverged_at: int | None = None
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def take_step(self, batches: Callable[[], Regression]) -> None:
        self.optimiser.zero_grad()
        parts = []
        for _ in range(self.settings.accumulate):
            loss = regression_loss(self.model, batches()) / self.settings.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            parts.append(loss.detach())
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimiser.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.losses.append(torch.stack(parts).sum())
        self.step += 1

    def look(self) -> float:
        """The mean loss since the last look; one that is not finite sets ``diverged_at``."""
        recent = torch.stack(self.losses[self.looked_at :]).cpu()
        self.losses[self.looked_at :] = recent.unbind()
        if not bool(recent.isfinite().all()):
            self.diverged_at = self.looked_at + int((~recent.isfinite()).nonzero()[0])
        self.looked_at = self.step
        return recent.mean().item()

    def keep(self) -> None:
        self.losses[-1].item()  # waits for a GPU
        model = copy.deepcopy(self.average.module).eval()
        self.snapshots.append(Snapshot(self.step, self.seconds, model))

    def result(self) -> Trained:
        model, losses, kept = self.average.module.eval(), self.losses, tuple(self.snapshots)
        seconds, resumed_at = self.seconds, self.resumed_at
        return Trained(model, torch.stack(losses), self.diverged_at, seconds, kept, resumed_at)

    def state(self) -> State:
        """All of it, for a checkpoint."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "losses": torch.stack(self.losses),
            "snapshots": [(s.step, s.seconds, s.model.state_dict()) for s in self.snapshots],
        }

    def load(self, state: State) -> None:
        """Resumes from what :meth:`state` gave."""
        moments = state["parts"]["optimiser"]
        moments["state"] = {int(place): found for place, found in moments["state"].items()}
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for parameter, found in self.optimiser.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                # In the memory format of the parameter, which the fused kernel assumes.
                found[name] = torch.empty_like(parameter).copy_(found[name])
        for step, seconds, weights in state["snapshots"]:
            model = copy.deepcopy(self.average.module).eval()
            model.load_state_dict(weights)
            self.snapshots.append(Snapshot(step, seconds, model))
        self.losses = list(state["losses"].unbind())
        self.step = self.looked_at = self.resumed_at = state["step"]
        self.began = time.perf_counter() - state["seconds"]


def regression_loss(model: nn.Module, batch: Regression) -> Tensor:
    """mean_b mean_k weight_bk (f_k - target_k)^2; one weight of a point is that of all k."""
    errors: Tensor = (model(batch.points, batch.scalar) - batch.target).square()
    if batch.weight is not None and batch.weight.ndim == 2:
        return (errors * batch.weight).mean()
    errors = errors.mean(1)
    return (errors if batch.weight is None else errors * batch.weight).mean()


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, times a cosine from 1 to 0 over the whole budget unless it stays constant."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "constant":
        return warm
    return warm * (1 + math.cos(math.pi * step / settings.steps)) / 2


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model with the exponential moving average of its weights.

    average <- d average + (1 - d) weights, at the k-th update with d = (1 + k) / (10 + k) up to
    ``decay``, k = 0, 1, ...: so the random initial weights are forgotten in short runs too.
    """

    def update(averages: Tensors, weights: Tensors, count: Tensor | int) -> None:
        k = int(average.n_averaged) - 1  # on the CPU: ``count`` may be on a GPU, to be waited for
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + k) / (10 + k)))

    average = AveragedModel(model, multi_avg_fn=update)
    average.requires_grad_(False)
    average.update_parameters(model)  # the first time weights are copied
    return average
