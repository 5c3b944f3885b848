"""The one training loop: the same for every method, so that budgets are equal."""

import copy
import math
import time
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from bench.checkpoint import Checkpoints, Saved
from methods.base import Regression

Report = Callable[[int, float], None]
"""``report(step, loss)``: called now and then while training runs."""

CHECK_EVERY = 50
"""Steps between two looks at the loss: the only times the loop waits for the device."""


class TrainSettings(BaseModel):
    """Budget and optimiser: Adam, linear warm-up, cosine to zero, clipping, EMA of the weights.

    ``schedule = constant`` keeps the learning rate after the warm-up. With ``accumulate`` = k a
    step draws k batches of ``batch`` points one after the other: for batches that do not fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(2000, ge=1, le=10_000_000)
    batch: int = Field(512, ge=2, le=1_000_000)
    lr: float = Field(5e-3, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    accumulate: int = Field(1, ge=1, le=10_000)
    warmup: int = Field(100, ge=0, le=10_000_000)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)


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
    resumed_at: int = 0
    """The step of the checkpoint that training went on from."""


def train(
    model: nn.Module,
    batches: Callable[[], Regression],
    settings: TrainSettings,
    report: Report | None = None,
    snapshots: Collection[int] = (),
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Fits ``model`` to the batches by mean weighted squared error.

    The loss of a batch is mean_b weight_b mean_k (f_k - target_k)^2; that of a step the mean over
    the ``accumulate`` batches that it draws. Losses stay on the device and are looked at every
    ``CHECK_EVERY`` steps; training stops at a loss that is not finite.

    Args:
        model: the network f(points (B, D), scalar (B,)), trained in place.
        batches: draws the next training batch; not called for a model without parameters.
        settings: budget and optimiser.
        report: called at every look with the steps taken and the mean loss since the last one.
        snapshots: after how many steps a copy of the averaged model is kept.
        checkpoints: where training is saved; if one is there it goes on from it.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):  # a closed form
        return Trained(model, torch.empty(0), None, 0.0)
    training = _Training(model, settings)
    saved = None if checkpoints is None else checkpoints.load()
    if checkpoints is not None and saved is not None and training.load(saved):
        batches()  # what a method makes with its first batch and keeps
        checkpoints.restore(saved.tensors)
    resumed_at, looked_at, diverged_at = training.step, training.step, None
    begin = time.perf_counter() - training.seconds
    while training.step < settings.steps:
        training.take_step(batches)
        step = training.step
        if step in snapshots:
            training.losses[-1].item()  # waits for a GPU
            training.keep(time.perf_counter() - begin)
        save = checkpoints is not None and checkpoints.due(step, last=step == settings.steps)
        if step % CHECK_EVERY == 0 or step == settings.steps or save:
            recent = torch.stack(training.losses[looked_at:]).cpu()
            training.losses[looked_at:] = recent.unbind()
            if not bool(recent.isfinite().all()):
                diverged_at = looked_at + int((~recent.isfinite()).nonzero()[0])
                break
            if report is not None:
                report(step, recent.mean().item())
            looked_at = step
        if save and checkpoints is not None:
            checkpoints.save(step, time.perf_counter() - begin, training.tensors())
    seconds = time.perf_counter() - begin
    return Trained(
        *(training.average.model.eval(), torch.stack(training.losses), diverged_at, seconds),
        tuple(training.snapshots),
        resumed_at,
    )


class _Training:
    """Model, average, optimiser, losses and snapshots after ``step`` steps."""

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.model, self.settings = model, settings
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        fused = self.parameters[0].device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(self.parameters, lr=settings.lr, fused=fused)
        self.average = Ema(model, settings.ema)
        self.losses: list[Tensor] = []
        self.snapshots: list[Snapshot] = []
        self.step = 0
        self.seconds = 0.0

    def take_step(self, batches: Callable[[], Regression]) -> None:
        """One step of the optimiser."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * learning_rate_factor(self.step, self.settings)
        self.optimiser.zero_grad()
        parts = []
        for _ in range(self.settings.accumulate):
            loss = regression_loss(self.model, batches()) / self.settings.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            parts.append(loss.detach())
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimiser.step()
        self.average.update(self.step)
        self.losses.append(torch.stack(parts).sum())
        self.step += 1

    def keep(self, seconds: float) -> None:
        """Keeps a snapshot of the averaged model."""
        model = copy.deepcopy(self.average.model).eval()
        self.snapshots.append(Snapshot(self.step, seconds, model))

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        found = self._state()
        for one in self.snapshots:
            found |= _named(f"snapshot.{one.step}", one.model)
        times = [(one.step, one.seconds) for one in self.snapshots]
        found["snapshots"] = torch.tensor(times, dtype=torch.float64).reshape(-1, 2)
        return {**found, "losses": torch.stack(self.losses)}

    def load(self, saved: Saved) -> bool:
        """Takes up a checkpoint of this training; whether it is one."""
        tensors = saved.tensors
        for parameter in self.parameters:
            # Copied into, not replaced: the memory format decides how sums are rounded.
            self.optimiser.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        own = self._state()
        if any(name not in tensors or tensors[name].shape != own[name].shape for name in own):
            self.optimiser.state.clear()
            return False
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])
        for step, seconds in tensors["snapshots"].tolist():
            model = copy.deepcopy(self.average.model).eval()
            for name, value in _named(f"snapshot.{step:.0f}", model).items():
                value.copy_(tensors[name])
            self.snapshots.append(Snapshot(int(step), seconds, model))
        self.losses = list(tensors["losses"].unbind())
        self.step, self.seconds = saved.step, saved.seconds
        return True

    def _state(self) -> dict[str, Tensor]:
        found = {**_named("model", self.model), **_named("average", self.average.model)}
        for place, parameter in enumerate(self.parameters):
            state = self.optimiser.state[parameter]
            found |= {f"adam.{place}.{name}": value for name, value in state.items()}
        return found


def _named(owner: str, model: nn.Module) -> dict[str, Tensor]:
    return {f"{owner}.{name}": value for name, value in model.state_dict().items()}


def regression_loss(model: nn.Module, batch: Regression) -> Tensor:
    """mean_b weight_b mean_k (f_k - target_k)^2."""
    errors: Tensor = (model(batch.points, batch.scalar) - batch.target).square().mean(1)
    return (errors if batch.weight is None else errors * batch.weight).mean()


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, times a cosine from 1 to 0 over the whole budget unless it stays constant."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "constant":
        return warm
    return warm * (1 + math.cos(math.pi * step / settings.steps)) / 2


class Ema:
    """Exponential moving average of the weights.

    The decay grows as (1 + k) / (10 + k) up to ``decay``, so that the random initial weights are
    forgotten in short runs too.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """average <- decay average + (1 - decay) weights."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for averaged, current in self.pairs:
            averaged.lerp_(current, weight)
