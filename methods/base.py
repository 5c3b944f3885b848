"""What every method is: a regression to train a network, and a transport that uses it.

A method knows nothing of data sets, training loops or files. It is handed draws of a source P
and a target Q ("give me k samples", flat vectors (k, D)) and says

* :meth:`Method.regression`: at which points, for which scalar, a network f(x, s) is fitted to
  which target, and with which weight;
* :meth:`Method.transport`: which ODE, built from the network, carries a source sample to a
  target sample.

A new method is one file: subclass :class:`Method`, give it a ``name``, decorate it with
:func:`register`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import pydantic
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from methods.networks import NetworkFactory
from methods.solvers import Solution, Solver

Draw = Callable[[int], Tensor]
"""``draw(k)``: k fresh samples, shape (k, D)."""

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``field(x (B, D), z (B,))``: the unit direction (B, D+1) and log|E| (B,) up to a constant."""

MODEL_SAMPLES = 4096
"""Samples of each law that :meth:`Method.model` is given, unless the method says otherwise."""

LOW_DIM = 8
"""Up to this dimension field lines bulge far out of the data; defaults differ above it."""


DIAGNOSTIC = "field_"
"""How the names of diagnostics begin."""


class Regression(NamedTuple):
    """One batch of the regression f(points, scalar) ~ target."""

    points: Tensor  # (B, D)
    scalar: Tensor  # (B,) time t, plate coordinate z, ...
    target: Tensor  # (B, outputs)
    weight: Tensor | None = None  # (B,); None weighs all alike


class Transport(NamedTuple):
    """Where the lines ended and what it cost."""

    end: Tensor  # (B, D)
    nfe: int  # calls of the model; where lines have steps of their own, evaluations a line
    landed: Tensor  # (B,) bool: a line of the learned field reached its end
    path: Tensor | None = None  # (T+1, B, D) with path[0] the start and path[-1] the end
    diagnostics: Mapping[str, float] = {}
    """What became of the lines: some of the method's diagnostics, by name."""
    heights: Tensor | None = None
    """The z coordinate along the path, (T+1, B), where lines move in R^{D+1}."""


class Method(BaseModel, ABC):
    """A generative method; its fields are its hyperparameters.

    The fields carry the defaults of the paper in low dimension; :meth:`defaults` says what
    differs by task, and :meth:`create` applies both. A field whose value is ``None`` does
    not apply with the other settings, and is no axis of a sweep.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
    )

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    noise_only: ClassVar[bool] = False
    """The method starts from a prior of its own, so it only maps noise to data."""
    trained: ClassVar[bool] = True
    """Whether there is anything to learn; without, the model has no parameters."""
    diagnostics: ClassVar[Mapping[str, str]] = {}
    """What the method says about its field and its lines: names, which begin with
    ``DIAGNOSTIC``, and what they mean. They are columns of the tables; nothing is ranked by
    them."""
    search: ClassVar[Mapping[str, str]] = {}
    """What tuning looks for unless told otherwise: hyperparameters and their ranges. ``low:high``,
    with ``:log`` evenly in the logarithm, with ``:int`` whole numbers; or words, ``a|b|c``."""

    @classmethod
    def defaults(cls, dim: int, noise_source: bool) -> dict[str, Any]:
        """Defaults that depend on the data dimension, or on whether the source is N(0, I)."""
        return {}

    @classmethod
    def create(cls, dim: int, noise_source: bool = True, **settings: Any) -> Self:
        """The method for data of dimension ``dim``: given settings over the defaults.

        Raises:
            pydantic.ValidationError: an unknown hyperparameter or a value out of range.
        """
        return cls(**{**cls.defaults(dim, noise_source), **settings})

    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters under their public names, in the order of declaration."""
        return self.model_dump(mode="json", by_alias=True)

    def skip(self, dim: int, noise_source: bool) -> str | None:
        """Why the method cannot do a task, or None if it can.

        Args:
            dim: the data dimension of the task.
            noise_source: whether the source is N(0, I).
        """
        if self.noise_only and not noise_source:
            return f"{self.name} generates from its own prior; it cannot start from data"
        return None

    @property
    def samples(self) -> int:
        """How many training samples of each law :meth:`model` is to be given."""
        return MODEL_SAMPLES

    @abstractmethod
    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        """The network with its embedding and scaling: f(x (B, D), s (B,)) -> (B, outputs).

        Args:
            network: ``network(scalars, outputs)`` builds a network h(x, embedding of s).
            source, target: training samples (N, D), as even as their laws can give them: for the
                scale of inputs and outputs, or as what a closed form is made of.
        """

    def regression(self, source: Draw, target: Draw, n: int, rng: torch.Generator) -> Regression:
        """One training batch of ``n`` points.

        Raises:
            TypeError: the method is not trained.
        """
        if not self.trained:
            raise TypeError(f"{self.name} has nothing to learn")
        return next(self.batches(source, target, n, rng))

    def batches(
        self, source: Draw, target: Draw, n: int, rng: torch.Generator
    ) -> Iterator[Regression]:
        """Training batches of ``n`` points, without end.

        A method overrides this where batches share something that is made once, otherwise
        :meth:`regression`.
        """
        while True:
            yield self.regression(source, target, n, rng)

    def start(self, x0: Tensor) -> Tensor:
        """Where the lines of the source samples ``x0`` (B, D) start: there, unless overridden."""
        return x0

    @abstractmethod
    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: torch.Generator | None = None,
    ) -> Transport:
        """Carries ``start`` (B, D) along the learned field to the target.

        Args:
            model: what :meth:`model` built, trained.
            start: where the lines start.
            solver: how they are integrated.
            path: whether to keep the states on the way.
            rng: for methods whose transport is random; without one, a generator of seed 0.
        """

    def field(self, model: nn.Module) -> Field | None:
        """The field in R^{D+1} whose lines samples follow, if the method has one."""
        return None

    def diagnose(self, model: nn.Module, source: Draw, target: Draw) -> dict[str, float]:
        """Diagnostics of the trained model, by name, judged by fresh samples of both laws."""
        return {}


class ExactMethod(Method):
    """A method without a network: its field is that of ``charges`` stored training samples."""

    trained: ClassVar[bool] = False

    charges: int = pydantic.Field(MODEL_SAMPLES, ge=1, le=100_000)

    @property
    def samples(self) -> int:
        return self.charges  # part of a larger set would be less even


METHODS: dict[str, type[Method]] = {}
"""Every method by its name."""

M = TypeVar("M", bound=type[Method])


def register(method: M) -> M:
    """Class decorator: makes a method known under its ``name``."""
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"a method named {method.name!r} is registered already")
    return method


def seeded(rng: torch.Generator | None, like: Tensor) -> torch.Generator:
    """``rng``, or one of seed 0 on the device of ``like``."""
    return torch.Generator(like.device).manual_seed(0) if rng is None else rng


def transported(solution: Solution, last: Tensor | None = None) -> Transport:
    """The transport along a solution, and on to ``last`` (B, D) by one more evaluation if given."""
    end, nfe, path = solution.x, solution.nfe, solution.path
    if last is not None:
        end, nfe = last, nfe + 1
        path = None if path is None else torch.cat([path, last[None]])
    return Transport(end, nfe, end.isfinite().all(1), path)


def uniform(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    """U[0, 1) draws with the device and dtype of ``like``."""
    return torch.rand(shape, generator=rng, device=like.device, dtype=like.dtype)


def normal(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    """N(0, 1) draws with the device and dtype of ``like``."""
    return torch.randn(shape, generator=rng, device=like.device, dtype=like.dtype)
