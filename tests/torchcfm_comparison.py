"""Our Flow Matching and OT-CFM beside those of torchcfm and flow_matching, in one training loop.

    pip install torchcfm flow_matching
    python -m tests.torchcfm_comparison [--steps 2000] [--seeds 5] [--tasks 4]

Four tasks of Tong et al. (TMLR 2024), drawn by the samplers of the package torchcfm (its 8
Gaussians have the variance sqrt(.1), its moons uniform noise) and, as it has none of an S curve, by
scikit-learn (noise .05, not scaled). Batches, optimiser, budget and solver are the same. The rows:

* ``ours``: our method with its own model, as the benchmark trains it;
* ``torchcfm, our model`` and ``flow_matching, our model``: points and velocities of the other
  library, in our model;
* ``torchcfm, plain`` and ``flow_matching, plain``: in a plain network of x and t, as in the
  notebooks of both, of as many layers and units.

Printed are, over the seeds, mean and standard deviation of

* W2 between 2,000 end points and as many fresh target samples;
* the normalised path energy, |int E|v|^2 dt - W2^2(source, target)| / W2^2(source, target);

and the time of a training step, measured with all rows in turn.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from flow_matching.path import CondOTProbPath
from sklearn.datasets import make_s_curve
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
from torchcfm.utils import sample_8gaussians, sample_moons

from bench.cell.train import train
from bench.config.settings import TrainSettings
from bench.metrics.distances import optimal_cost, w2
from methods.base import Regression
from methods.fm import FlowMatching
from methods.networks import NetworkSettings
from methods.ot_cfm import OptimalTransportFlowMatching
from methods.solvers import Solver

BATCH = 256
POOL = 50_000
"""Training samples, drawn once: torchcfm's samplers are slower than a training step."""
EVALUATED = 2000
SOLVER = Solver(solver="heun", solver_steps=50)

Matcher = Callable[[Tensor, Tensor], Regression]


def normal(n: int) -> Tensor:
    """N(0, I)."""
    return torch.randn(n, 2)


def s_curve(n: int) -> Tensor:
    """Columns 0 and 2 of scikit-learn's S curve; its randomness follows numpy's global state."""
    return torch.from_numpy(make_s_curve(n, noise=0.05)[0][:, [0, 2]]).float()


def moons(n: int) -> Tensor:
    """torchcfm's, which are in order along the moons."""
    return sample_moons(n)[torch.randperm(n)]


TASKS = {
    "gaussian to 8 Gaussians": (normal, sample_8gaussians),
    "moons to 8 Gaussians": (moons, sample_8gaussians),
    "gaussian to moons": (normal, moons),
    "gaussian to S curve": (normal, s_curve),
}


class Plain(nn.Module):
    """A network of x and t as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.network = NetworkSettings().factory(2)(1, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = self.network(x, t[:, None])
        return velocity


Method = FlowMatching | OptimalTransportFlowMatching
METHODS: dict[str, Method] = {
    "fm": FlowMatching(),
    "ot-cfm": OptimalTransportFlowMatching(block=BATCH),
}
MATCHERS = {
    "fm": ConditionalFlowMatcher(sigma=0.0),
    "ot-cfm": ExactOptimalTransportConditionalFlowMatcher(sigma=0.0),
}


def ours(method: Method, seed: int) -> Matcher:
    """What our method trains its network on, for draws of both distributions."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x0, x1: method.regression(lambda k: x0, lambda k: x1, len(x0), generator)


def of_torchcfm(matcher: ConditionalFlowMatcher) -> Matcher:
    """Likewise of torchcfm, which couples whole batches."""

    def batch(x0: Tensor, x1: Tensor) -> Regression:
        t, x, velocity = matcher.sample_location_and_conditional_flow(x0, x1)
        return Regression(x, t, velocity)

    return batch


def of_flow_matching(x0: Tensor, x1: Tensor) -> Regression:
    """Likewise of flow_matching, which has no coupling of its own."""
    sample = CondOTProbPath().sample(x_0=x0, x_1=x1, t=torch.rand(len(x0)))
    return Regression(sample.x_t, sample.t, sample.dx_t)


def rows(seed: int) -> dict[str, tuple[Matcher, Method | None]]:
    """What each row is trained on, and the method whose model it has; None for a plain network."""
    found: dict[str, tuple[Matcher, Method | None]] = {}
    for name, method in METHODS.items():
        theirs = of_torchcfm(MATCHERS[name])
        found[f"{name}: ours"] = ours(method, seed), method
        found[f"{name}: torchcfm, our model"] = theirs, method
        found[f"{name}: torchcfm, plain"] = theirs, None
    found["fm: flow_matching, our model"] = of_flow_matching, METHODS["fm"]
    found["fm: flow_matching, plain"] = of_flow_matching, None
    return found


def trained(
    matcher: Matcher, method: Method | None, pools: list[Tensor], steps: int, seed: int
) -> tuple[nn.Module, float]:
    """The averaged model and the seconds of a step; weights and batches follow the seed."""
    torch.manual_seed(seed)
    few = [pool[:4096] for pool in pools]
    model = Plain() if method is None else method.model(NetworkSettings().factory(2), *few)
    chosen = torch.Generator().manual_seed(seed)

    def batch() -> Regression:
        x0, x1 = (pool[torch.randint(POOL, (BATCH,), generator=chosen)] for pool in pools)
        return matcher(x0, x1)

    result = train(model, batch, TrainSettings(steps=steps, batch=BATCH))
    return result.model, result.seconds / steps


@torch.no_grad()
def quality(model: nn.Module, x0: Tensor, x1: Tensor, optimal: float) -> tuple[float, float]:
    """W2 to ``x1``, and the normalised path energy by the trapezoidal rule."""
    result = FlowMatching().transport(model, x0, SOLVER, path=True)
    assert result.path is not None
    times = torch.linspace(0, 1, len(result.path))
    speeds = [
        float(model(x, t.expand(len(x))).square().sum(1).mean())
        for x, t in zip(result.path, times, strict=True)
    ]
    energy = float(np.trapezoid(speeds, times))
    return w2(result.end, x1), abs(energy - optimal) / optimal


def main() -> None:
    """Prints the table of all tasks and matchers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=len(TASKS), help="the first so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'task':24} {'row':30} {'W2':>14} {'NPE':>16} {'ms a step':>10}")
    for task, laws in list(TASKS.items())[: arguments.tasks]:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 -- torchcfm's moons and scikit-learn's curve draw from it
        pools = [law(POOL) for law in laws]
        x0, x1, other0, other1 = (law(EVALUATED) for law in (*laws, *laws))
        optimal = optimal_cost(other0, other1)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rows(0)}
        for seed in range(arguments.seeds):
            for name, row in rows(seed).items():  # in turn: the machine is as busy for all
                model, seconds = trained(*row, pools, arguments.steps, seed)
                found[name].append((*quality(model, x0, x1, optimal), seconds))
        for name, values in found.items():
            array = np.array(values)
            mean, deviation = array.mean(0), array.std(0, ddof=1)
            print(
                f"{task:24} {name:30} {mean[0]:.3f} ±{deviation[0]:.3f}   "
                f"{mean[1]:.4f} ±{deviation[1]:.4f} {1e3 * np.median(array[:, 2]):10.2f}",
                flush=True,
            )
        floor = w2(x1, other1)
        print(f"{task:24} {'(target vs target)':30} {floor:.3f}", flush=True)


if __name__ == "__main__":
    main()
