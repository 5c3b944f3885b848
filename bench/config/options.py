"""How the cells of a command are run: where, by how many workers, under which limits.

Nothing of it changes a result, so nothing of it is in the id of a cell.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.config.errors import validated

Count = Annotated[int, Field(ge=1, le=100_000)]
Limit = Annotated[float, Field(gt=0, le=1e9)]


def _option(default: Any, metavar: str | None, text: str) -> Any:
    """A field that is an option of the command line: its placeholder and its help."""
    return Field(default, description=text, json_schema_extra={"metavar": metavar})


class RunOptions(BaseModel):
    """The options of a command that runs cells; those with a description are on the command line.

    Workers are handed these, and unpickle them without torch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    out: Path
    device: str = _option("auto", "D", "auto, cpu, cuda or cuda:N")
    jobs: Count | None = _option(None, "N", "worker processes; with CUDA one a device")
    threads: Count | None = _option(None, "N", "CPU threads a cell")
    timeout: Limit | None = _option(None, "SECONDS", "end a cell that takes longer")
    memory: Limit | None = _option(None, "MB", "end a cell whose worker takes more")
    scheduler: str | None = _option(None, "ADDRESS", "dask cluster: tcp://..., tls://... or a file")
    tensorboard: bool = _option(False, None, "write the training loss for TensorBoard")
    plugins: tuple[str, ...] = ()
    data_root: str | None = _option(None, "DIR", "where data sets of yours lie, see README")
    fid_weights: str | None = _option(None, "FILE", "pytorch-fid's weights, else its usual cache")
    features: str | None = _option(None, "FILE", "a network of yours (TorchScript) for fd_custom")
    checkpoint: Count | None = _option(None, "K", "save training every K steps")
    force: bool = _option(False, None, "run finished cells again")
    command: str | None = None
    begun: float = 0.0  # when the command began: what was recorded after that is not repeated

    @classmethod
    def checked(cls, out: Path, **given: Any) -> "RunOptions":
        """The options that are given and not None.

        Raises:
            SpecError: an unknown option, a value out of range, or a file that is not there.
        """
        values = {name: value for name, value in given.items() if value is not None}
        return validated("", lambda: cls(out=out, **values))

    @field_validator("plugins", "data_root", "fid_weights", "features", mode="before")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        """Workers may run elsewhere."""
        if isinstance(value, str | os.PathLike):
            return str(Path(value).absolute())
        return tuple(map(cls._absolute, value)) if isinstance(value, list | tuple) else value
