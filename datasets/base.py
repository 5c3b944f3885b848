"""Distributions, and tasks: a source, a target and what is known about the pair.

All samples are flat float32 vectors (n, D), drawn on the CPU from an explicit generator, so that
the same seed gives the same data on every device; ``shape`` says what a vector is
(an image, say).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Draws = Literal["low_variance", "iid"]
"""How evaluation samples are drawn; training samples are always independent."""

VALIDATION_SHARE = 0.25
"""The part of a data set's training samples that tuning is judged on and does not train on."""
VALIDATION_SEED = 0
"""That part is the same in every run: settings are compared on it, and it is not the test part."""


class Normalisation(NamedTuple):
    """The affine map from the original units of a data set to those of the task.

    normalised = (original - shift) / scale, with one number or one of each coordinate (D,).
    """

    shift: float | Tensor = 0.0
    scale: float | Tensor = 1.0

    def apply(self, original: Tensor) -> Tensor:
        """From original units to the units of the task, any shape."""
        return (original - self.shift) / self.scale

    def undo(self, normalised: Tensor) -> Tensor:
        """From the units of the task to original units, any shape."""
        return normalised * self.scale + self.shift

    def record(self) -> dict[str, float | list[float]]:
        """Shift and scale as plain numbers."""
        return {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in self._asdict().items()
        }


class Distribution(ABC):
    """A distribution on R^D that can be drawn from."""

    shape: tuple[int, ...]
    normalisation: Normalisation = Normalisation()

    @property
    def dim(self) -> int:
        """D, the number of coordinates."""
        return int(torch.Size(self.shape).numel())

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` independent training samples, shape (n, D)."""

    def sample_on(self, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """:meth:`sample` on a device; ``rng`` is of the CPU, so every device has the same draws."""
        return self.sample(n, rng).to(device)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` samples of the same law whose empirical measure is nearer to it, shape (n, D).

        Independent samples, where a distribution knows nothing better.
        """
        return self.sample(n, rng)

    def held_out(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """At most ``n`` samples for evaluation, shared with no training, shape (k, D)."""
        return self.low_variance(n, rng) if draws == "low_variance" else self.sample(n, rng)

    def second_set(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """At most ``n`` samples disjoint from :meth:`held_out`, for the floors of metrics."""
        return self.held_out(n, rng, draws)

    def score(self, x: Tensor) -> Tensor | None:
        """grad log p at x (B, D), the same shape; None where the density is not known."""
        return None

    def for_validation(self) -> Self:
        """What tuning trains on and is judged by, sharing no sample with the tests' draws.

        A law is as it is: its draws never repeat, so other seeds are enough.

        Raises:
            TypeError: a distribution that holds out samples of its own, and does not say which
                others are for validation.
        """
        if type(self).held_out is not Distribution.held_out:
            raise TypeError(
                f"{type(self).__name__} has a held_out of its own, and no for_validation"
            )
        return self


class Empirical(Distribution):
    """The samples of a data set, split into a training and a test part.

    Raises:
        ValueError: samples that are not finite or do not have the given shape.
    """

    def __init__(
        self,
        train: Tensor,
        test: Tensor,
        shape: tuple[int, ...],
        normalisation: Normalisation = Normalisation(),
    ) -> None:
        self.shape = shape
        self.normalisation = normalisation
        self.train = normalisation.apply(check_samples(train, self.dim, "train"))
        self.test = normalisation.apply(check_samples(test, self.dim, "test"))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` training samples with replacement."""
        return self.train[torch.randint(len(self.train), (n,), generator=rng)]

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """The training samples again and again in random orders: all as often, up to one."""
        size = len(self.train)
        orders = [torch.randperm(size, generator=rng) for _ in range(0, n, size)]
        return self.train[torch.cat(orders)[:n]]

    def held_out(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """A random part of the test samples, or all of them."""
        return self.test[torch.randperm(len(self.test), generator=rng)[:n]]

    def second_set(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """A random part of the training samples: real, and disjoint from the test samples."""
        return self.train[torch.randperm(len(self.train), generator=rng)[:n]]

    def training_blocks(self, size: int) -> Iterator[Tensor]:
        """All training samples in their order, ``size`` at a time, each (k, D)."""
        yield from torch.split(self.train, size)

    def for_validation(self) -> Self:
        """The training samples alone, split again; the test samples are not in it.

        ``VALIDATION_SHARE`` of them take the place of the test samples, the others train. Equal
        samples stay on one side. Units are those of the whole training part.

        Raises:
            ValueError: training samples that are all equal.
        """
        unique: Any = torch.unique  # untyped in torch
        _, which = unique(self.train, dim=0, return_inverse=True)
        held = validation_part(which)
        other = copy.copy(self)
        other.train, other.test = self.train[~held], self.train[held]
        return other


def validation_part(which: Tensor) -> Tensor:
    """Which training samples are for validation, booleans (N,).

    Args:
        which: numbers 0, 1, ... of the different samples, (N,): equal samples have equal ones.

    Raises:
        ValueError: samples that are all equal.
    """
    different = int(which.max()) + 1
    if different < 2:
        raise ValueError("train holds no two different samples, so none can be for validation")
    order = torch.randperm(different, generator=torch.Generator().manual_seed(VALIDATION_SEED))
    return torch.isin(which, order[: max(1, round(VALIDATION_SHARE * different))])


class Stream:
    """Training samples one after the other: ``stream(k)`` hands out the next k.

    Samples are made in blocks of a fixed size, so the sequence depends on the generator alone:
    methods that take different numbers at a time see the same data in the same order.
    :meth:`get_state` says where the stream stands, :meth:`set_state` puts another there.

    Raises:
        ValueError: a distribution that yields NaN or infinity.
    """

    BLOCK = 8192
    MOST_NUMBERS = 2**24
    """Large samples come in blocks of fewer: 64 MB."""

    def __init__(
        self, distribution: Distribution, rng: torch.Generator, device: torch.device, name: str
    ) -> None:
        self.distribution, self.rng, self.device, self.name = distribution, rng, device, name
        self.block = max(1, min(self.BLOCK, self.MOST_NUMBERS // distribution.dim))
        self.before: Tensor | None = None  # the state of the generator, of the last block
        self.rest = torch.empty(0, distribution.dim, device=device)

    def __call__(self, k: int) -> Tensor:
        """The next ``k`` samples, shape (k, D)."""
        blocks, held = [self.rest], len(self.rest)
        while held < k:
            blocks.append(self._next())
            held += len(blocks[-1])
        samples = torch.cat(blocks) if len(blocks) > 1 else self.rest
        self.rest = samples[k:]
        return samples[:k]

    def _next(self) -> Tensor:
        self.before = self.rng.get_state()
        block = self.distribution.sample_on(self.block, self.rng, self.device)
        return check_samples(block, self.distribution.dim, self.name)

    def get_state(self) -> Tensor:
        """Where the stream stands: its generator before the last block, and what is left of it."""
        drawn = self.before is not None
        left = torch.tensor([len(self.rest) if drawn else -1], dtype=torch.int64)
        state = self.rng.get_state() if self.before is None else self.before
        return torch.cat([state, left.view(torch.uint8)])

    def set_state(self, state: Tensor) -> None:
        """Goes on as the stream did whose state this is."""
        left = int(state[-8:].clone().view(torch.int64))
        self.rng.set_state(state[:-8].clone())
        if left < 0:  # nothing was drawn
            self.before, self.rest = None, self.rest[:0]
            return
        block = self._next()
        self.rest = block[len(block) - left :]


def check_samples(samples: Tensor, dim: int, name: str) -> Tensor:
    """``samples`` as float32, if they are finite and of shape (n, dim).

    Raises:
        ValueError: otherwise, naming the argument.
    """
    if samples.ndim != 2 or samples.shape[1] != dim or not len(samples):
        raise ValueError(f"{name} must have shape (n, {dim}), n > 0, got {tuple(samples.shape)}")
    samples = samples.float()
    if not bool(samples.isfinite().all()):
        bad = int((~samples.isfinite()).any(1).sum())
        raise ValueError(f"{name} holds NaN or infinity in {bad} of {len(samples)} samples")
    return samples


class DataError(ValueError):
    """Files of a data set are missing or spoiled. One line that says what must lie where."""


DATA_ROOT = "BENCH_DATA_ROOT"
"""The environment variable of the folder in which the user's data sets lie (``--data-root``)."""


class Labelled(NamedTuple):
    """Labelled samples in the units of a task: a classifier of them sees what metrics ask for."""

    train: Tensor  # (N, D), of no use for the test part of the task
    train_labels: Tensor  # (N,) int64, from 0 to classes - 1
    test: Tensor  # (M, D)
    test_labels: Tensor  # (M,)
    names: tuple[str, ...]
    """The classes in words, as many as there are."""
    wanted: tuple[int, ...]
    """The classes that the target of the task consists of."""


Map = Callable[[Tensor], Tensor]
"""``map(x (B, D))``: images (B, D)."""


class Known(NamedTuple):
    """What is known exactly of a source P and a target Q."""

    optimal_cost: float
    """min over couplings of E|x - y|^2, units of the data squared."""
    optimal_map: Map
    """T with T#P = Q and E|x - T(x)|^2 = ``optimal_cost``."""
    flow_map: Map | None = None
    """The map of Flow Matching with independent pairs and sigma = 0."""
    flow_cost: float | None = None
    """E|x - T(x)|^2 of that map."""


class Task(BaseModel, ABC):
    """A source and a target distribution of the same dimension; its fields are parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised when the data of the task change, so that old records are not mixed with new."""
    dim: ClassVar[int]
    """D with the default parameters; with others it is that of the source and the target."""
    noise_source: ClassVar[bool]
    """Whether the source is N(0, I)."""
    user_files: ClassVar[bool] = False
    """Whether the task reads files that the user has to supply, also with its defaults."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample: (D,), or (channels, height, width)."""
        return self.target().shape

    @abstractmethod
    def source(self) -> Distribution:
        """P, on the plate z = 0."""

    @abstractmethod
    def target(self) -> Distribution:
        """Q, on the plate z = L."""

    def known(self) -> Known | None:
        """The optimal map and its cost, where they have a closed form."""
        return None

    def labelled(self) -> Labelled | None:
        """Labelled samples like those of the target, where there are any."""
        return None

    def check(self) -> None:
        """Looks whether the files are there that the task needs, without reading them all.

        Raises:
            DataError: they are not, or hold something else.
        """

    def parameters(self) -> dict[str, Any]:
        """The parameters by name."""
        return self.model_dump(mode="json")


TASKS: dict[str, type[Task]] = {}
"""Every task by its name."""

T = TypeVar("T", bound=type[Task])


def register(task: T) -> T:
    """Class decorator: makes a task known under its ``name``."""
    if TASKS.setdefault(task.name, task) is not task:
        raise ValueError(f"a task named {task.name!r} is registered already")
    return task
