"""Settings that methods have in common: of training, network, solver and evaluation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from datasets.base import Draws
from methods.networks import NetworkSettings
from methods.solvers import Solver


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


class EvalSettings(BaseModel):
    """What a cell is evaluated on: ``n`` held-out samples, of low variance or independent ones.

    Data sets with fewer held-out samples are evaluated on what they have. Optimal transport holds
    40 bytes a pair in memory, 160 MB for 2,000 samples and 16 GB at the largest ``n``. ``metrics =
    main`` keeps W2, its sliced form, the energy distance, the Fréchet distance and the costs alone,
    for sweeps of thousands of cells. Intervals are made of ``replicates`` parts of the samples; 0
    for no intervals. With ``curve`` = k the trained model is also evaluated with 1/2, 1/4, ...
    1/2^k of the solver's steps, and as it was after 1/2, 1/4, ... 1/2^k of the training: quality
    against cost, from one run. With ``fid_n`` images of a task that starts at noise have
    ``fid_train`` too: that many fresh samples beside the whole training set, as in the papers with
    50,000.

    ``split = validation`` is for tuning: other samples, that the test never sees. Of a data set
    they are a part of the training samples, on which the cell is then not trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(2000, ge=5, le=20_000)
    draws: Draws = "low_variance"
    metrics: Literal["all", "main"] = "all"
    replicates: int = Field(10, ge=0, le=1000)
    curve: int = Field(0, ge=0, le=12)
    fid_n: int = Field(0, ge=0, le=1_000_000)
    split: Literal["test", "validation"] = "test"

    @field_validator("fid_n")
    @classmethod
    def _has_a_covariance(cls, fid_n: int) -> int:
        if fid_n == 1:
            raise ValueError("one sample has no covariance; 0 for none, or 2 and more")
        return fid_n


# Settings that may be named without their section.
SHORTHANDS = {"steps": "train.steps", "batch": "train.batch"}

SECTIONS: dict[str, type[BaseModel]] = {
    "train": TrainSettings,
    "network": NetworkSettings,
    "sample": Solver,
    "eval": EvalSettings,
}
# Sections that a method with nothing to learn does not depend on: it has their defaults.
TRAINING = ["train", "network"]


def public_fields(model: type[BaseModel]) -> list[str]:
    """The names by which the fields of a model are set."""
    return [field.alias or name for name, field in model.model_fields.items()]
