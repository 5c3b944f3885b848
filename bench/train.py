"""The one training loop: the same for every method, so that budgets are equal."""

import copy
import math
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from methods.base import Regression

Report = Callable[[int, float], None]
"""``report(step, loss)``: called now and then while training runs."""

CHECK_EVERY = 50
"""Steps between two looks at the loss: the only times the loop waits for the device."""


class TrainSettings(BaseModel):
    """Budget and optimiser: Adam, linear warm-up, cosine to zero, clipping, EMA of the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(2000, ge=1, le=10_000_000)
    batch: int = Field(512, ge=2, le=1_000_000)
    lr: float = Field(5e-3, gt=0)
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


def train(
    model: nn.Module,
    batches: Callable[[], Regression],
    settings: TrainSettings,
    report: Report | None = None,
    checkpoints: Collection[int] = (),
) -> Trained:
    """Fits ``model`` to the batches by mean weighted squared error.

    The loss of a batch is mean_b weight_b mean_k (f_k - target_k)^2. Losses stay on the device
    and are looked at every ``CHECK_EVERY`` steps; training stops at a loss that is not finite.

    Args:
        model: the network f(points (B, D), scalar (B,)), trained in place.
        batches: draws the next training batch; not called for a model without parameters.
        settings: budget and optimiser.
        report: called at every look with the steps taken and the mean loss since the last one.
        checkpoints: after how many steps a copy of the averaged model is kept.
    """
    parameters = list(model.parameters())
    if not parameters:  # a closed form
        return Trained(model, torch.empty(0), None, 0.0)
    fused = parameters[0].device.type in ("cpu", "cuda")
    optimiser = torch.optim.Adam(parameters, lr=settings.lr, fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, settings)
    )
    average = Ema(model, settings.ema)
    losses: list[Tensor] = []
    snapshots: list[Snapshot] = []
    looked_at, diverged_at = 0, None
    begin = time.perf_counter()
    for step in range(settings.steps):
        loss = regression_loss(model, batches())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        schedule.step()
        average.update(step)
        losses.append(loss.detach())
        if step + 1 in checkpoints:
            losses[-1].item()  # waits for a GPU
            so_far = time.perf_counter() - begin
            snapshots.append(Snapshot(step + 1, so_far, copy.deepcopy(average.model)))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == settings.steps:
            recent = torch.stack(losses[looked_at:]).cpu()
            losses[looked_at:] = recent.unbind()
            if not bool(recent.isfinite().all()):
                diverged_at = looked_at + int((~recent.isfinite()).nonzero()[0])
                break
            if report is not None:
                report(step + 1, recent.mean().item())
            looked_at = step + 1
    seconds = time.perf_counter() - begin
    return Trained(average.model, torch.stack(losses), diverged_at, seconds, tuple(snapshots))


def regression_loss(model: nn.Module, batch: Regression) -> Tensor:
    """mean_b weight_b mean_k (f_k - target_k)^2."""
    errors: Tensor = (model(batch.points, batch.scalar) - batch.target).square().mean(1)
    return (errors if batch.weight is None else errors * batch.weight).mean()


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """Linear warm-up times a cosine from 1 to 0 over the whole budget."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
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
