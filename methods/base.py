"""What every method is: a regression to train a network, and a transport that uses it.

A method knows nothing of data sets, training loops or files. It is handed draws of a source P
and a target Q ("give me k samples", flat vectors (k, D)) and says

* :meth:`Method.regression`: at which points, for which scalar, a network f(x, s) is fitted to
  which target, and with which weight;
* :meth:`Method.flow`: which equation, built from the network, carries a source sample to a target
  sample; where that is more than one equation, :meth:`Method.transport`.

A new method is one file: subclass :class:`Method`, give it a ``name``, decorate it with
:func:`register`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import pydantic
import torch
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor, nn

from methods.draws import seeded
from methods.networks import LOW_DIM as LOW_DIM
from methods.networks import NetworkFactory, NetworkSettings
from methods.solvers import Flow, Solver, Velocity

Draw = Callable[[int], Tensor]  # draw(k): k fresh samples, shape (k, D)
Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``field(x (B, D), z (B,))``: the unit direction (B, D+1) and log|E| (B,) up to a constant."""
Mixture = tuple[Tensor, Tensor, Tensor]
"""sum_k w_k N(m_k, diag(s_k^2)): means (K, D), standard deviations (K, D), weights (K,)."""

MODEL_SAMPLES = 4096  # of each distribution, which Method.model is given by default
DIAGNOSTIC = "field_"  # how the names of diagnostics begin


class Regression(NamedTuple):
    """One batch of the regression f(points, scalar) ~ target."""

    points: Tensor  # (B, D)
    scalar: Tensor  # (B,) time t, plate coordinate z, ...
    target: Tensor  # (B, outputs)
    weight: Tensor | None = None  # (B,), or (B, outputs); None weighs all alike


class Transport(NamedTuple):
    """Where the lines ended and what it cost."""

    end: Tensor  # (B, D)
    nfe: int  # calls of the model; where lines have steps of their own, evaluations a line
    landed: Tensor  # (B,) bool: a line of the learned field reached its end
    path: Tensor | None = None  # (T+1, B, D) with path[0] the start and path[-1] the end
    diagnostics: Mapping[str, float] = {}  # what became of the lines, by name
    heights: Tensor | None = None  # (T+1, B): z along the path, where lines move in R^{D+1}


class FieldPicture(NamedTuple):
    """What a picture of a method's field needs to know."""

    plate_distance: float  # L
    behind: bool  # lines may go on behind the plates
    offset: float  # height over the plates where lines start and end
    exact: "Method | None"  # the untrained counterpart, to be shown beside


class Method(BaseModel, ABC):
    """A generative method; its fields are its hyperparameters.

    The fields carry the defaults of the paper in low dimension; :meth:`defaults` says what
    differs by task, and :meth:`create` applies both. A field whose value is ``None`` does
    not apply with the other settings (:meth:`idle`), and is no axis of a sweep.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    name: ClassVar[str]
    title: ClassVar[str]
    reference: ClassVar[str]
    noise_only: ClassVar[bool] = False  # it starts from a prior of its own, not from data
    trained: ClassVar[bool] = True  # otherwise the model has no parameters
    diagnostics: ClassVar[Mapping[str, str]] = {}
    """What the method says about its field and its lines: columns of the tables, whose names begin
    with ``DIAGNOSTIC``, and what they mean. Nothing is ranked by them."""
    search: ClassVar[Mapping[str, str]] = {}
    """What tuning looks for unless told otherwise: hyperparameters and their ranges. ``low:high``,
    with ``:log`` evenly in the logarithm, with ``:int`` whole numbers; or words, ``a|b|c``."""
    named_settings: ClassVar[tuple[str, ...]] = ()  # that every table names, varying or not
    picture_settings: ClassVar[tuple[str, ...]] = ()  # that tell pictures apart; none: no picture

    @classmethod
    def defaults(cls, dim: int, noise_source: bool, data_set: bool) -> dict[str, Any]:
        """Defaults that depend on the data dimension, and on whether the source is N(0, I) or a
        data set: finitely many samples to train with.
        """
        return {}

    @classmethod
    def create(
        cls, dim: int, noise_source: bool = True, data_set: bool = False, **settings: Any
    ) -> Self:
        """The method for data of dimension ``dim``: given settings override the defaults."""
        return cls(**{**cls.defaults(dim, noise_source, data_set), **settings})

    def idle(self) -> dict[str, Any]:
        """The settings that make no difference beside the others, and what they are then: None."""
        return {}

    def unused_network(self, network: NetworkSettings, dim: int) -> tuple[str, ...]:
        """The settings of the network that make no difference to :meth:`model` beside the others.

        Cells of data of dimension ``dim`` have their defaults. What the architecture does not have
        (:data:`~methods.networks.IDLE`) is known without.
        """
        return ()

    def check(self) -> None:
        """Raises a ValueError that names a setting which does not go with the others."""

    @pydantic.model_validator(mode="after")
    def _only_what_applies(self) -> Self:
        idle = self.idle()
        self.__dict__.update(idle)  # frozen from here on
        for name, field in type(self).model_fields.items():
            if name not in idle and getattr(self, name) is None and field.default is not None:
                raise ValueError(f"{name} must have a value with the other settings, got none")
        self.check()
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters under their public names, in the order of declaration."""
        return self.model_dump(mode="json", by_alias=True)

    def skip(self, dim: int, noise_source: bool) -> str | None:
        """Why the method cannot do a task of this dimension, or None if it can."""
        if self.noise_only and not noise_source:
            return f"{self.name} generates from its own prior; it cannot start from data"
        return None

    @property
    def samples(self) -> int:
        """How many training samples of each distribution :meth:`model` is to be given."""
        return MODEL_SAMPLES

    @property
    def of_mixtures(self) -> bool:
        """Whether the model is :meth:`mixture_model`, of both distributions and not of samples."""
        return False

    def mixture_model(self, source: Mixture, target: Mixture) -> nn.Module:
        """In place of :meth:`model`, where both distributions are mixtures of Gaussians."""
        raise NotImplementedError(f"{self.name} has no model of mixtures")

    @abstractmethod
    def model(self, network: NetworkFactory, source: Tensor, target: Tensor) -> nn.Module:
        """The network with its embedding and scaling: f(x (B, D), s (B,)) -> (B, outputs).

        ``network(scalars, outputs)`` builds a network h(x, embedding of s). ``source`` and
        ``target`` are training samples (N, D): for the scale, or as what a closed form is made of.
        """

    def regression(self, source: Draw, target: Draw, n: int, rng: Generator) -> Regression:
        """One training batch of ``n`` points; a TypeError if there is nothing to train."""
        if not self.trained:
            raise TypeError(f"{self.name} has nothing to learn")
        return next(self.batches(source, target, n, rng))

    def batches(self, source: Draw, target: Draw, n: int, rng: Generator) -> Iterator[Regression]:
        """Training batches of ``n`` points, without end; overridden where they share something."""
        while True:
            yield self.regression(source, target, n, rng)

    def start(self, x0: Tensor) -> Tensor:
        """Where the lines of the source samples ``x0`` (B, D) start: there, unless overridden."""
        return x0

    def flow(self, model: nn.Module) -> Flow:
        """The equation along which :meth:`transport` carries samples, unless that is overridden."""
        raise NotImplementedError(f"{self.name} must define flow, or a transport of its own")

    def transport(
        self,
        model: nn.Module,
        start: Tensor,
        solver: Solver,
        path: bool = False,
        rng: Generator | None = None,
    ) -> Transport:
        """Carries ``start`` (B, D) along the learned field to the target.

        ``path``: keep the states on the way. Without ``rng`` randomness is that of the seed 0.
        """
        flow, rng = self.flow(model), seeded(rng, start)
        x0 = start if flow.first is None else flow.first(start, rng)
        end, nfe, states, _ = solver.integrate(flow, x0, path, rng)
        if flow.last is not None:
            end, nfe = flow.last(end), nfe + 1
            states = None if states is None else torch.cat([states, end[None]])
        if flow.first is not None and states is not None:
            states = torch.cat([start[None], states])
        return Transport(end, nfe, end.isfinite().all(1), states)

    def field(self, model: nn.Module) -> Field | None:
        """The field in R^{D+1} whose lines samples follow, if the method has one."""
        return None

    def picture(self, dim: int) -> FieldPicture | None:
        """How to draw :meth:`field` for data of dimension ``dim``, if it can be drawn."""
        return None

    def diagnose(self, model: nn.Module, source: Draw, target: Draw) -> dict[str, float]:
        """Diagnostics of the trained model, by name, from fresh samples of both distributions."""
        return {}


class ExactMethod(Method):
    """A method without a network: its field is that of ``charges`` stored training samples."""

    trained: ClassVar[bool] = False

    charges: int | None = pydantic.Field(MODEL_SAMPLES, ge=1, le=100_000)

    @property
    def samples(self) -> int:
        return self.charges or MODEL_SAMPLES  # part of a larger set would be less even


METHODS: dict[str, type[Method]] = {}  # by name
M = TypeVar("M", bound=type[Method])


def register(method: M) -> M:
    """Class decorator: makes a method known under its ``name``."""
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"a method named {method.name!r} is registered already")
    return method


def at(model: nn.Module) -> Velocity:
    """``model`` as a function of one scalar for all points: s (), x (B, D) -> (B, outputs)."""
    return lambda s, x: model(x, s.expand(len(x)))
