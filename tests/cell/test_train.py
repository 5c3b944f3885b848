"""The training loop: problems with a known optimum, and what every setting does."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from bench.cell.train import (
    CHECK_EVERY,
    averaged,
    learning_rate_factor,
    regression_loss,
    train,
)
from bench.config.settings import TrainSettings
from methods.base import Regression


class Linear(nn.Module):
    """f(x, s) = A (x, s) + b."""

    def __init__(self, dim: int = 2, outputs: int = 2) -> None:
        super().__init__()
        self.map = nn.Linear(dim + 1, outputs)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.map(torch.cat([x, s[:, None]], dim=1))


class Constant(nn.Module):
    """f(x, s) = w, a number."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.w.expand(len(x), 1)


def settings(**given: Any) -> TrainSettings:
    return TrainSettings(**{"steps": 100, "batch": 8, "lr": 0.05, "warmup": 0, "ema": 0.9, **given})


def towards(target: float) -> Regression:
    return Regression(torch.zeros(4, 1), torch.zeros(4), torch.full((4, 1), target))


def linear_batches(seed: int = 0) -> Callable[[], Regression]:
    """Noise-free batches of (x, s) -> WEIGHT (x, s) + BIAS."""
    rng = torch.Generator().manual_seed(seed)

    def batch() -> Regression:
        x, s = torch.randn(32, 2, generator=rng), torch.rand(32, generator=rng)
        target = torch.cat([x, s[:, None]], dim=1) @ WEIGHT.T + BIAS
        return Regression(x, s, target)

    return batch


WEIGHT = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5]])
BIAS = torch.tensor([0.3, -0.7])


# The optimum


def test_a_linear_regression_is_solved() -> None:
    model = Linear()
    trained = train(model, linear_batches(), settings(steps=600))
    assert trained.diverged_at is None
    assert trained.losses.shape == (600,)
    assert trained.losses[0] > 1
    assert trained.losses[-1] < 1e-6
    for fitted in (model, trained.model):  # in place, and the average
        torch.testing.assert_close(fitted.map.weight.detach(), WEIGHT, atol=2e-3, rtol=0)
        torch.testing.assert_close(fitted.map.bias.detach(), BIAS, atol=2e-3, rtol=0)
    assert trained.seconds > 0


def test_the_loss_is_the_weighted_mean_over_the_batch_of_the_mean_over_outputs() -> None:
    target = torch.tensor([[1.0, 3.0], [0.0, 2.0]])  # squares: mean 5 and 2
    batch = Regression(torch.zeros(2, 2), torch.zeros(2), target)
    assert regression_loss(Linear(), batch).item() == pytest.approx(3.5)
    weighted = batch._replace(weight=torch.tensor([3.0, 0.5]))
    assert regression_loss(Linear(), weighted).item() == pytest.approx((15 + 1) / 2)


def test_the_optimum_is_the_weighted_mean() -> None:
    """Targets 0 and 4 with weights 3 and 1: the constant 1, not 2."""
    target, weight = torch.tensor([[0.0], [4.0]]), torch.tensor([3.0, 1.0])
    batch = Regression(torch.zeros(2, 1), torch.zeros(2), target, weight)
    trained = train(Constant(3.0), lambda: batch, settings(steps=400))
    assert trained.model.w.item() == pytest.approx(1, abs=1e-3)
    unweighted = train(Constant(3.0), lambda: batch._replace(weight=None), settings(steps=400))
    assert unweighted.model.w.item() == pytest.approx(2, abs=1e-3)


def test_the_same_batches_give_the_same_weights() -> None:
    runs = [train(Linear(), linear_batches(seed), settings(steps=30)) for seed in (0, 0, 1)]
    weights = [run.model.map.weight for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(runs[0].losses, runs[1].losses)
    assert not torch.equal(weights[0], weights[2])


# Learning rate


def test_the_learning_rate_falls_as_a_cosine_over_the_budget() -> None:
    chosen = settings(steps=1000)
    factors = [learning_rate_factor(step, chosen) for step in range(1001)]
    assert factors[0] == 1
    assert factors[250] == pytest.approx((2 + math.sqrt(2)) / 4)
    assert factors[500] == pytest.approx(0.5)
    assert factors[750] == pytest.approx((2 - math.sqrt(2)) / 4)
    assert factors[1000] == pytest.approx(0, abs=1e-12)
    assert factors == sorted(factors, reverse=True)


def test_the_learning_rate_warms_up_linearly() -> None:
    warm, cold = settings(steps=1000, warmup=10), settings(steps=1000)
    ratio = [learning_rate_factor(k, warm) / learning_rate_factor(k, cold) for k in range(1000)]
    assert ratio[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert set(ratio[10:]) == {1}


def test_the_loop_uses_the_learning_rate() -> None:
    """Under a gradient that is clipped to one value Adam steps by the learning rate alone."""
    chosen = settings(steps=60, lr=0.01, warmup=20, clip=1.0, ema=0)
    model = Constant()
    seen: list[float] = []

    def batch() -> Regression:
        seen.append(model.w.item())
        return towards(1e4)

    train(model, batch, chosen)
    moves = [b - a for a, b in zip(seen, [*seen[1:], model.w.item()], strict=True)]
    assert len(moves) == 60
    assert moves[0] == pytest.approx(0.01 / 20, rel=1e-3)
    assert moves[:20] == sorted(moves[:20])
    assert moves[30] == pytest.approx(0.01 / 2, rel=1e-3)
    assert moves[19:] == sorted(moves[19:], reverse=True)
    assert moves[-1] < 0.01 / 1000


# Average of the weights


def test_the_average_by_hand() -> None:
    """Decays 1/10, 2/11, 3/12 of the first updates, and the given one where it is smaller."""
    model = Constant(0.0)
    average = averaged(model, decay=0.2)
    for weight, expected in [(1.0, 0.9), (2.0, 1.8), (3.0, 2.76), (10.0, 0.2 * 2.76 + 8)]:
        model.w.data.fill_(weight)
        average.update_parameters(model)
        assert average.module.w.item() == pytest.approx(expected)


def test_the_average_forgets_the_start() -> None:
    model = Constant(1e6)
    average = averaged(model, decay=0.999)
    model.w.data.fill_(1.0)
    for _ in range(200):  # with .999 from the start 82 % of the million would be left
        average.update_parameters(model)
    assert average.module.w.item() == pytest.approx(1)


def test_the_average_is_what_lerp_gives_to_the_last_bit() -> None:
    model = Linear()
    average, by_hand = averaged(model, decay=0.9), [p.detach().clone() for p in model.parameters()]
    for step in range(30):
        for weights, expected in zip(model.parameters(), by_hand, strict=True):
            weights.data.normal_(generator=torch.Generator().manual_seed(step))
            expected.lerp_(weights.data, 1 - min(0.9, (1 + step) / (10 + step)))
        average.update_parameters(model)
    for found, expected in zip(average.module.parameters(), by_hand, strict=True):
        assert torch.equal(found, expected)


def test_the_average_is_another_model() -> None:
    model = Constant(0.0)
    trained = train(model, lambda: towards(5.0), settings(steps=20, ema=0.99))
    assert trained.model is not model
    assert 0 < trained.model.w.item() < model.w.item()  # it lags behind
    assert not any(p.requires_grad for p in trained.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    same = train(Constant(0.0), lambda: towards(5.0), settings(steps=20, ema=0))
    assert same.model.w.item() == pytest.approx(model.w.item())


# Clipping


@pytest.fixture
def norms() -> Iterator[list[float]]:
    """The norm of the gradient at each step of the optimiser."""
    seen: list[float] = []

    def look(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad.flatten() for group in optimiser.param_groups for p in group["params"]]
        seen.append(torch.cat(gradients).norm().item())

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def test_the_gradient_is_clipped_as_a_whole(norms: list[float]) -> None:
    batches = linear_batches()

    def batch() -> Regression:
        good = batches()
        return good._replace(target=100 * good.target) if len(norms) == 7 else good

    train(Linear(), batch, settings(steps=40, clip=0.3))
    assert len(norms) == 40
    assert max(norms) == pytest.approx(0.3, rel=1e-4)
    assert norms[7] == pytest.approx(0.3, rel=1e-4)
    norms.clear()
    train(Linear(), linear_batches(), settings(steps=40, clip=1e6))
    assert norms[0] > 1  # small gradients are left as they are
    assert norms[-1] < 0.5 * norms[0]


# Accumulation


def test_a_step_of_several_batches_is_that_of_their_points_together(norms: list[float]) -> None:
    """Adam does not see the scale of the gradient; clipping does, so norms are compared."""
    batches = linear_batches()
    parts = [batches() for _ in range(60)]
    threes = [parts[k : k + 3] for k in range(0, 60, 3)]
    together = [
        Regression(*(torch.cat([one[k] for one in three]) for k in range(3))) for three in threes
    ]
    chosen = settings(steps=20, clip=1e6)
    whole = train(Linear(), iter(together).__next__, chosen)
    expected = norms.copy()
    norms.clear()
    found = train(Linear(), iter(parts).__next__, chosen.model_copy(update={"accumulate": 3}))
    assert norms == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(found.losses, whole.losses)
    torch.testing.assert_close(found.model.map.weight, whole.model.map.weight)


# Divergence


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 1, 49, 50, 73, 129])
def test_the_first_bad_step_is_reported_and_training_stops(step: int, bad: float) -> None:
    drawn = 0

    def batch() -> Regression:
        nonlocal drawn
        drawn += 1
        return towards(bad if drawn == step + 1 else 1.0)

    looks: list[int] = []
    trained = train(Constant(), batch, settings(steps=130), lambda k, loss: looks.append(k))
    assert trained.diverged_at == step
    assert trained.losses[:step].isfinite().all()
    assert not trained.losses[step].isfinite()
    assert step < drawn == len(trained.losses) <= min(130, step + CHECK_EVERY)
    assert all(k <= step for k in looks)  # no look with a loss that is not finite


def test_without_divergence_none_is_reported() -> None:
    assert train(Constant(), lambda: towards(1.0), settings(steps=70)).diverged_at is None


# Reports


@pytest.mark.parametrize("steps", [1, 50, 130])
def test_reports_come_up_to_the_budget_with_the_mean_loss(steps: int) -> None:
    looks: list[tuple[int, float]] = []
    trained = train(
        Linear(), linear_batches(), settings(steps=steps), lambda *look: looks.append(look)
    )
    at = [k for k, _ in looks]
    assert at == sorted(set(at))
    assert at[-1] == steps == len(trained.losses)
    begin = 0
    for end, loss in looks:
        assert end - begin <= CHECK_EVERY
        assert loss == pytest.approx(trained.losses[begin:end].mean().item(), rel=1e-5)
        begin = end


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("steps", value) for value in (0, -1, 1.5, "many", None)],
        *[("batch", value) for value in (1, 0, -512)],
        *[("lr", value) for value in (0, -1e-3, math.nan, math.inf)],
        *[("warmup", value) for value in (-1, 0.5)],
        *[("clip", value) for value in (0, -1, math.inf)],
        *[("ema", value) for value in (1, -0.1, 1.1, math.nan)],
        ("learning_rate", 1e-3),
    ],
)
def test_invalid_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        TrainSettings(**{name: value})


def test_settings_are_frozen() -> None:
    chosen = TrainSettings()
    with pytest.raises(ValidationError, match="frozen"):
        chosen.steps = 3
