"""Distributions, and tasks: a source, a target and what is known about the pair.

All samples are flat float32 vectors (n, D), drawn on the CPU from an explicit generator, so that
the same seed gives the same data on every device; ``shape`` says what a vector is: an image, say.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from sklearn.model_selection import train_test_split
from torch import Tensor

from datasets.exact import Components, exact_map

Draws = Literal["low_variance", "iid"]  # of evaluation samples; training samples are always iid

VALIDATION_PARTS, VALIDATION_SEED = 4, 0
FEW_ROWS = 100  # with a smaller part for validation, each seed takes another part
"""The part of a data set's training samples that tuning compares settings on, always the same."""
DATA_ROOT = "BENCH_DATA_ROOT"
"""The environment variable of the folder in which the user's data sets lie (``--data-root``)."""


class DataError(ValueError):
    """Files of a data set are missing or corrupt. One line that says what must lie where."""


def digest_of(parts: Iterable[bytes | str | Tensor]) -> str:
    """sha256 of these in their order, 64 hex digits; of tensors with shape and type."""
    digest = sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            part = part.detach().cpu().contiguous().numpy().tobytes()
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


class Normalisation(NamedTuple):
    """The affine map from the original units of a data set to those of the task.

    normalised = (original - shift) / scale, with one number or one of each coordinate (D,).
    """

    shift: float | Tensor = 0.0
    scale: float | Tensor = 1.0

    def apply(self, original: Tensor) -> Tensor:
        """From original units to those of the task."""
        return (original - self.shift) / self.scale

    def undo(self, normalised: Tensor) -> Tensor:
        """From the units of the task to the original ones."""
        return normalised * self.scale + self.shift

    def record(self) -> dict[str, float | list[float]]:
        """Shift and scale as plain numbers."""
        units = self._asdict().items()
        return {name: x.tolist() if isinstance(x, Tensor) else x for name, x in units}


class Distribution(ABC):
    """A distribution on R^D that can be drawn from."""

    shape: tuple[int, ...]
    normalisation: Normalisation = Normalisation()

    @property
    def dim(self) -> int:
        return int(torch.Size(self.shape).numel())

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` independent training samples, shape (n, D)."""

    def sample_on(self, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
        """:meth:`sample` on a device; ``rng`` is of the CPU, so every device has the same draws."""
        return self.sample(n, rng).to(device)

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` samples whose empirical measure is nearer to the distribution, where it can be."""
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

    def components(self) -> Components | None:
        """The Gaussians that it is a mixture of; None where it is none."""
        return None

    def for_validation(self, seed: int = 0) -> Self:
        """What tuning trains and evaluates on, sharing no sample with the tests' draws.

        An analytic distribution is its own: its draws never repeat, so other seeds are enough.
        ``seed`` is the cell's, for sets too small for one part to tell (:func:`validation_part`).

        Raises:
            TypeError: a distribution with its own ``held_out`` and no ``for_validation``.
        """
        if type(self).held_out is not Distribution.held_out:
            name = type(self).__name__
            raise TypeError(f"{name} has a held_out of its own, and no for_validation")
        return self

    def digest(self) -> str:
        """Hash that changes with the distribution, 16 hex digits; of 256 training samples."""
        return digest_of([self.sample(256, torch.Generator().manual_seed(0))])[:16]


class Empirical(Distribution):
    """The samples of a data set, split into a training and a test part."""

    train: Tensor  # (N, D)
    test: Tensor  # (M, D)

    def __init__(
        self,
        train: Tensor,
        test: Tensor,
        shape: tuple[int, ...],
        normalisation: Normalisation = Normalisation(),
    ) -> None:
        self.shape, self.normalisation = shape, normalisation
        self.train = normalisation.apply(check_samples(train, self.dim, "train"))
        self.test = normalisation.apply(check_samples(test, self.dim, "test"))

    @property
    def parts(self) -> tuple[Any, Any]:
        """The training and the test samples as they are kept: what :meth:`decode` takes rows of."""
        return self.train, self.test

    def decode(self, kept: Tensor) -> Tensor:
        """Rows of a part (k, D) in the units of the task."""
        return kept

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """``n`` training samples with replacement."""
        train, _ = self.parts
        return self.decode(train[torch.randint(len(train), (n,), generator=rng)])

    def low_variance(self, n: int, rng: torch.Generator) -> Tensor:
        """The training samples again and again in random orders: all as often, up to one."""
        train, _ = self.parts
        orders = [torch.randperm(len(train), generator=rng) for _ in range(0, n, len(train))]
        return self.decode(train[torch.cat(orders)[:n]])

    def held_out(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """A random part of the test samples, or all of them."""
        _, test = self.parts
        return self.decode(test[torch.randperm(len(test), generator=rng)[:n]])

    def second_set(self, n: int, rng: torch.Generator, draws: Draws) -> Tensor:
        """A random part of the training samples: real, and disjoint from the test samples."""
        train, _ = self.parts
        return self.decode(train[torch.randperm(len(train), generator=rng)[:n]])

    def training_blocks(self, size: int) -> Iterator[Tensor]:
        """All training samples in their order, ``size`` at a time, each (k, D)."""
        train, _ = self.parts
        return (self.decode(train[rows]) for rows in torch.split(torch.arange(len(train)), size))

    def for_validation(self, seed: int = 0) -> Self:
        """The training samples alone, split again by :func:`validation_part`.

        Equal samples stay on one side. Units are those of the whole training part.
        """
        unique: Any = torch.unique  # untyped in torch
        _, which = unique(self.train, dim=0, return_inverse=True)
        held = validation_part(which, seed)
        other = copy.copy(self)
        other.train, other.test = self.train[~held], self.train[held]
        return other

    def digest(self) -> str:
        """Hash of all samples as they are used, and of their units."""
        return digest_of([json.dumps(self.normalisation.record()), self.train, self.test])[:16]


def validation_part(which: Tensor, seed: int = 0) -> Tensor:
    """Which training samples are for validation, booleans (N,); a ValueError if all are equal.

    One in ``VALIDATION_PARTS`` of the different ones. Where that is fewer than ``FEW_ROWS``, the
    part is the one of number ``seed`` mod ``VALIDATION_PARTS``: as many seeds in a row are a
    cross-validation, in which every training sample is held out once.

    ``which`` (N,) numbers the different samples 0, 1, ...; equal samples have the same number.
    """
    different = int(which.max()) + 1
    if different < 2:
        raise ValueError("train holds no two different samples, so none can be for validation")
    order = torch.randperm(different, generator=torch.Generator().manual_seed(VALIDATION_SEED))
    size = max(1, round(different / VALIDATION_PARTS))
    part = seed % min(VALIDATION_PARTS, different) if size < FEW_ROWS else 0
    last = part == VALIDATION_PARTS - 1
    return torch.isin(which, order[part * size : None if last else (part + 1) * size])


class Stream:
    """Training samples one after the other: ``stream(k)`` returns the next k, (k, D).

    Samples are made in blocks of a fixed size, so the sequence depends on the generator alone:
    methods that take different numbers at a time see the same data in the same order. NaN and
    infinity raise a ValueError.
    """

    BLOCK = 8192
    MOST_NUMBERS = 2**24  # 64 MB: large samples come in blocks of fewer

    def __init__(
        self, distribution: Distribution, rng: torch.Generator, device: torch.device, name: str
    ) -> None:
        self.distribution, self.rng, self.device, self.name = distribution, rng, device, name
        self.block = max(1, min(self.BLOCK, self.MOST_NUMBERS // distribution.dim))
        self.before = rng.get_state()  # of the last block
        self.rest = torch.empty(0, distribution.dim, device=device)

    def __call__(self, k: int) -> Tensor:
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

    def get_state(self) -> tuple[Tensor, int]:
        """The position: the generator before the last block, and how much of that block is left."""
        left = len(self.rest)
        return (self.before if left else self.rng.get_state()), left

    def set_state(self, state: tuple[Tensor, int]) -> None:
        """Continues from the position of the stream whose state this is."""
        generator, left = state
        self.rng.set_state(generator)
        self.rest = self.rest[:0]
        if left:
            self.rest = self._next()[-left:]


def check_samples(samples: Tensor, dim: int, name: str) -> Tensor:
    """``samples`` as float32; a ValueError names them if they are not finite or not (n, dim)."""
    if samples.ndim != 2 or samples.shape[1] != dim or not len(samples):
        raise ValueError(f"{name} must have shape (n, {dim}), n > 0, got {tuple(samples.shape)}")
    samples = samples.float()
    if not bool(samples.isfinite().all()):
        bad = int((~samples.isfinite()).any(1).sum())
        raise ValueError(f"{name} holds NaN or infinity in {bad} of {len(samples)} samples")
    return samples


class Split(NamedTuple):
    """Samples in original units (n, ...) and labels (n,) of the training and of the test part."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Split":
        """A function of the samples of both parts, with the same labels."""
        return self._replace(train=function(self.train), test=function(self.test))


def halves(samples: Any, labels: Any) -> Split:
    """Half of the samples of each label for training, half for the test, always the same."""
    parts = train_test_split(samples, labels, test_size=0.5, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return Split(train, train_labels, test, test_labels)


class Labelled(NamedTuple):
    """Labelled samples in the units of a task, for the classifier that metrics of images use.

    The training samples are no test samples of the task, nor any that tuning evaluates on
    (:meth:`Task.labelled_for_validation`): what a classifier has learned by heart it cannot judge.
    """

    train: Tensor  # (N, D)
    train_labels: Tensor  # (N,) int64, from 0 to classes - 1
    test: Tensor  # (M, D)
    test_labels: Tensor  # (M,)
    names: tuple[str, ...]  # the classes in words, as many as there are
    wanted: tuple[int, ...]  # the classes that the target of the task consists of
    name: str | None = None  # under which weights may be shipped; other training samples, another


Map = Callable[[Tensor], Tensor]  # from x (B, D) to (B, D)


class Known(NamedTuple):
    """What is known exactly of a source P and a target Q."""

    optimal_cost: float  # min over couplings of E|x - y|^2, units of the data squared
    optimal_map: Map  # T with T#P = Q and E|x - T(x)|^2 = optimal_cost
    flow_map: Map | None = None  # T of Flow Matching with independent pairs and sigma = 0
    flow_cost: float | None = None  # E|x - T(x)|^2 of that map


class Task(BaseModel, ABC):
    """A source and a target distribution of the same dimension; its fields are parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int] = 1  # raised when the data of the task change, for old records' sake
    dim: ClassVar[int]  # D with the default parameters; with others that of source and target
    noise_source: ClassVar[bool] = False  # whether the source is N(0, I)
    data_set_source: ClassVar[bool] = False  # whether the source is finitely many samples
    user_files: ClassVar[bool] = False  # whether the defaults read files of the user's

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

    def exact_map(self) -> Map | None:
        """A map T with T#P = Q, as exact as rounding or a solver; None where none is known.

        The optimal one where it is known; between mixtures of Gaussians that of Flow Matching.
        """
        if (known := self.known()) is not None:
            return known.optimal_map
        source, target = self.source().components(), self.target().components()
        return None if source is None or target is None else exact_map(source, target)

    def labelled(self) -> Labelled | None:
        """Labelled samples like those of the target, where there are any."""
        return None

    def labelled_for_validation(self, seed: int) -> Labelled | None:
        """The same without what ``for_validation(seed)`` of source and target hold out.

        :meth:`labelled` leaves out the parts that are the same for every seed; of small sets the
        others follow here, and the rest has no shipped weights.
        """
        labelled, held = self.labelled(), set[bytes]()
        for side in (self.source(), self.target()):
            own = side.for_validation(seed)
            if isinstance(own, Empirical) and len(own.parts[1]) < FEW_ROWS:
                held |= {row.numpy().tobytes() for row in own.test}
        if labelled is None or not held:
            return labelled
        kept = torch.tensor([row.numpy().tobytes() not in held for row in labelled.train])
        if bool(kept.all()):
            return labelled
        train, train_labels = labelled.train[kept], labelled.train_labels[kept]
        return labelled._replace(train=train, train_labels=train_labels, name=None)

    def check(self) -> None:
        """Raises DataError if files that the task needs are missing; does not read them all."""

    def parameters(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Hash of all that a cell gets from the task, 16 hex digits: another one, other results.

        Of name, version, parameters, source, target and labels. A data set is read for it, so it
        may raise :class:`DataError`.
        """
        named = f"{self.name} {self.version} {json.dumps(self.parameters(), sort_keys=True)} "
        both = self.source().digest() + self.target().digest()
        return digest_of([named, both, *self._labels()])[:16]

    def _labels(self) -> list[Tensor]:
        labelled = self.labelled()
        return [] if labelled is None else [labelled.train_labels, labelled.test_labels]


TASKS: dict[str, type[Task]] = {}  # every task by its name
T = TypeVar("T", bound=type[Task])


def register(task: T) -> T:
    """Class decorator: adds a task to ``TASKS`` under its ``name``."""
    if TASKS.setdefault(task.name, task) is not task:
        raise ValueError(f"a task named {task.name!r} is registered already")
    return task
