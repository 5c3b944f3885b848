"""A killed training resumes from its checkpoint and ends as if it had not been killed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from bench import run
from bench.cell.checkpoint import Checkpoints
from bench.cell.context import Saving
from bench.cell.run import run_cell
from bench.cell.train import train
from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.config.settings import TrainSettings
from bench.store.folder import CHECKPOINT, MODEL, RECORD, StorageError, cell_folder
from bench.store.records import Outcome, read_record
from datasets import Stream
from datasets.gaussians import StandardNormal
from methods import METHODS
from methods.base import Regression
from tests.execute.processes import PLUGIN, TASK, by_seed, finish, start

CPU = torch.device("cpu")


class KilledError(Exception):
    """What the tests end a training with."""


def killing(after: int) -> Callable[[], None]:
    """Raises at the checkpoint of that number."""
    written = 0

    def count() -> None:
        nonlocal written
        written += 1
        if written == after:
            raise KilledError

    return count


def one_cell(method: str, task: str = "gaussian_to_swiss_roll", **settings: Any) -> Cell:
    small = {"train.steps": 70, "train.batch": 16, "eval.n": 16, "eval.metrics": "main"}
    small |= {"network.width": 16, "eval.replicates": 0}
    given = {name: [value] for name, value in {**small, **settings}.items()}
    (cell,) = Spec(methods=[method], tasks=[task], seeds=[0], settings=given).cells()
    return cell


def interrupted(cell: Cell, folder: Path, at: list[int], every: int = 20) -> Outcome:
    """The outcome of a cell that is ended at these checkpoints of its attempts, then left alone."""
    folder.mkdir()
    for number in at:
        outcome = run_cell(cell, folder, saving=Saving(every, killing(number)))
        assert outcome.reason == "KilledError:"
    return run_cell(cell, folder, saving=Saving(every))


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    name: (name, "gaussian_to_swiss_roll", {}) for name, kind in METHODS.items() if kind.trained
}
CASES["lines"] = ("efm", "gaussian_to_swiss_roll", {"efm.lines": "two_sided", "efm.points": "log"})
CASES["curve"] = ("fm", "gaussian_to_swiss_roll", {"eval.curve": 3})
CASES["accumulate"] = ("fm", "gaussian_to_swiss_roll", {"train.accumulate": 3})
CASES["u-net"] = (
    *("efm", "digits_3_to_2"),
    {"network.architecture": "unet", "network.dropout": 0.1, "sample.solver_steps": 2},
)


@pytest.mark.parametrize("case", CASES)
def test_weights_and_samples_are_those_of_an_uninterrupted_run(case: str, tmp_path: Path) -> None:
    method, task, settings = CASES[case]
    cell = one_cell(method, task, **settings)
    (tmp_path / "whole").mkdir()
    whole = run_cell(cell, tmp_path / "whole")
    again = interrupted(cell, tmp_path / "cut", at=[2, 1])  # at step 40, then at 60
    assert whole.status == again.status == "done"
    assert (whole.resumed_at, again.resumed_at) == (0, 60)
    models = [(tmp_path / name / MODEL).read_bytes() for name in ("whole", "cut")]
    assert models[0] == models[1]
    assert whole.metrics == again.metrics
    if settings.get("eval.curve"):
        points = [
            [{key: point[key] for key in point if "seconds" not in key} for point in one.curve]
            for one in (whole, again)
        ]
        assert points[0] == points[1]


def test_the_first_steps_are_not_taken_again(tmp_path: Path) -> None:
    """What went before counts in the seconds, and the losses are all there."""
    streams = []

    def training(steps_until: int | None) -> Any:
        torch.manual_seed(0)
        model = Sum()
        stream = Stream(StandardNormal((1,)), torch.Generator().manual_seed(3), CPU, "x")
        streams.append(stream)
        saved = Checkpoints(
            tmp_path / CHECKPOINT, Saving(5, killing(steps_until or 10**9)), CPU, {"x": stream}
        )

        def batch() -> Regression:
            if steps_until:
                time.sleep(0.03)
            x = stream(4)
            return Regression(x, x[:, 0], 2 * x)

        return train(model, batch, TrainSettings(steps=17, batch=4, warmup=0), None, (), saved)

    with pytest.raises(KilledError):
        training(2)
    resumed = training(None)
    assert resumed.resumed_at == 10
    assert resumed.seconds > 10 * 0.03
    assert len(resumed.losses) == 17
    (tmp_path / CHECKPOINT).unlink()
    whole = training(None)
    assert torch.equal(whole.losses, resumed.losses)
    assert torch.equal(whole.model.w, resumed.model.w)
    assert torch.equal(streams[1](9), streams[2](9))  # the streams stand where they would


class Sum(nn.Module):
    """f(x, s) = w x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return self.w * x


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(b"\xff" * 4000),
        lambda path: _rewrite(path, {"code": "another"}),
        lambda path: _rewrite(path, {"torch": "0.1"}),
        lambda path: _rewrite(path, {"device": "cuda"}),
        lambda path: _rewrite(path, {"task": "other data"}),
        lambda path: _rewrite(path, {}, drop="0"),
    ],
)
def test_what_is_no_checkpoint_of_this_training_is_not_resumed_from(
    corrupt: Callable[[Path], None], tmp_path: Path
) -> None:
    def training() -> Any:
        rng = torch.Generator().manual_seed(1)
        saved = Checkpoints(tmp_path / CHECKPOINT, Saving(5), CPU, {"rng": rng})

        def batch() -> Regression:
            x = torch.randn(4, 1, generator=rng)
            return Regression(x, x[:, 0], 2 * x)

        return train(Sum(), batch, TrainSettings(steps=8, batch=4), None, (), saved)

    whole = training()
    assert training().resumed_at == 8  # the last step is saved too
    corrupt(tmp_path / CHECKPOINT)
    again = training()
    assert again.resumed_at == 0
    assert torch.equal(again.losses, whole.losses)


def _rewrite(path: Path, changes: dict[str, str], drop: str = "") -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        origin = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != drop}  # noqa: SIM118
    path.write_bytes(safetensors.torch.save(tensors, {**origin, **changes}))


@pytest.mark.slow
def test_a_worker_that_is_killed_on_the_way_comes_further_each_time(tmp_path: Path) -> None:
    """Killed five times by SIGKILL, though three kills without progress are the end."""
    arguments = [*TASK, "--seeds", "0", "--steps", "120", "--batch", "16"]
    arguments += ["--set", "eval.n=16", "--set", "network.width=8"]
    methods = [*PLUGIN, "--methods", "dies_on_the_way,fm", "--jobs", "2", "--checkpoint", "20"]
    status, errors = finish(start(*arguments, *methods, out=tmp_path / "cut"))
    assert status == 0, errors
    assert finish(start(*arguments, "--methods", "fm", out=tmp_path / "whole"))[0] == 0
    cut, whole = (by_seed(tmp_path / name) for name in ("cut", "whole"))
    assert cut["dies_on_the_way", 0].resumed_at == 100
    assert cut["dies_on_the_way", 0].metrics == whole["fm", 0].metrics
    for out, method in (("cut", "dies_on_the_way"), ("cut", "fm")):
        record = by_seed(tmp_path / out)[method, 0]
        folder = cell_folder(tmp_path / out, record.id)
        other = cell_folder(tmp_path / "whole", whole["fm", 0].id)
        assert (folder / MODEL).read_bytes() == (other / MODEL).read_bytes()
        assert not (folder / CHECKPOINT).exists()  # the cell is done


def test_a_timeout_keeps_the_checkpoint_and_more_time_resumes_from_it(tmp_path: Path) -> None:
    arguments = [*PLUGIN, *TASK, "--methods", "pausing", "--seeds", "0", "--steps", "500"]
    arguments += ["--set", "pausing.pause=0.02", "--set", "eval.n=16", "--batch", "16"]
    arguments += ["--checkpoint", "20", "--jobs", "1", "--threads", "1"]
    assert finish(start(*arguments, "--timeout", "6", out=tmp_path))[0] == 1
    (folder,) = (tmp_path / "cells").iterdir()
    assert read_record(folder / RECORD).status == "timeout"
    assert (folder / CHECKPOINT).exists()
    assert finish(start(*arguments, "--timeout", "300", out=tmp_path))[0] == 0
    record = read_record(folder / RECORD)
    assert record.status == "done"
    assert record.resumed_at >= 20
    assert not (folder / CHECKPOINT).exists()


def test_a_failure_after_the_training_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> None:
        raise MemoryError("too many images")

    settings = {"steps": 60, "batch": 16, "eval.n": 16, "checkpoint": 50, "network.width": 16}
    with monkeypatch.context() as patch:
        patch.setattr("bench.cell.run.evaluate", failing)
        (row,) = run(["fm"], [TASK[1]], [0], tmp_path, **settings).to_dict("records")
    assert row["status"] == "failed"
    run(["fm"], [TASK[1]], [0], tmp_path, **settings)
    (folder,) = (tmp_path / "cells").iterdir()
    record = read_record(folder / RECORD)
    assert record.status == "done"
    assert record.resumed_at == 60
    assert not (folder / CHECKPOINT).exists()


def test_a_disk_without_room_for_a_checkpoint_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise StorageError("cannot write: No space left on device")

    monkeypatch.setattr("bench.cell.checkpoint.write_atomically", full)
    outcome = run_cell(one_cell("fm"), tmp_path, saving=Saving(50))
    assert outcome.status == "done"
    assert "no checkpoint of step 50: cannot write" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "due", "due_at_the_end"),
    [(30, False, False), (100, False, True), (290, False, True), (310, True, True)],
)
def test_without_a_number_of_steps_training_is_saved_every_five_minutes(
    seconds: float, due: bool, due_at_the_end: bool, tmp_path: Path
) -> None:
    """At its end if the last checkpoint is more than a minute old."""
    before = time.monotonic() - seconds
    checkpoints = Checkpoints(tmp_path / CHECKPOINT, Saving(), CPU, {}, last=before)
    assert checkpoints.due(7, last=False) is due
    assert checkpoints.due(7, last=True) is due_at_the_end
    checkpoints.save(7, {})
    assert not checkpoints.due(8, last=True)


def test_a_stream_that_was_not_drawn_from_is_restored() -> None:
    def stream() -> Stream:
        return Stream(StandardNormal((2,)), torch.Generator().manual_seed(5), CPU, "x")

    first, second = stream(), stream()
    second(7)
    second.set_state(first.get_state())
    assert torch.equal(first(4), second(4))


def test_force_begins_anew(tmp_path: Path) -> None:
    cell = one_cell("fm")
    folder = cell_folder(tmp_path, cell.id)
    folder.mkdir(parents=True)
    run_cell(cell, folder, saving=Saving(20, killing(1)))
    assert (folder / CHECKPOINT).exists()
    settings = {"steps": 70, "batch": 16, "eval.n": 16, "eval.metrics": "main"}
    settings |= {"network.width": 16, "eval.replicates": 0}
    run(["fm"], ["gaussian_to_swiss_roll"], [0], tmp_path, force=True, **settings)
    assert read_record(folder / RECORD).resumed_at == 0


if sys.platform != "linux":
    pytestmark = pytest.mark.skip(reason="kills processes as Linux does")
