"""What a command has to do: finished cells, stale cells, missing files."""

import json
import time
from pathlib import Path

import pytest

import bench.run
from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.config.options import RunOptions
from bench.execute.session import Session, plan, prepared
from bench.store.folder import (
    RECORD,
    cell_folder,
)
from bench.store.records import Record, read_records, write_record
from tests.store.records import one_cell, record_of, written_record

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ten_thousand_cells_are_found_in_two_seconds(tmp_path: Path) -> None:
    text = written_record(tmp_path / "one").read_text()
    record = json.loads(text)
    spec = Spec(methods=["fm"], tasks=["gaussian_to_swiss_roll"], seeds=list(range(10_000)))
    cells = spec.cells()
    for cell in cells[1:]:
        folder = cell_folder(tmp_path / "many", cell.id)
        folder.mkdir(parents=True)
        own = {"id": cell.id, "cell": cell.model_dump(mode="json")}
        (folder / RECORD).write_text(json.dumps(record | own, indent=1))
    options = prepared(RunOptions(out=tmp_path / "many", device="cpu"))
    begin = time.process_time()  # what other processes take of the machine does not count
    session = Session(spec, spec.cells(), options)
    assert time.process_time() - begin < 2
    assert len(session.before) == 9_999
    assert session.todo == cells[:1]


PLUGIN = '''
"""A task whose target is read from a file."""
import hashlib
import os
from pathlib import Path

import torch

from datasets.base import DataError, Empirical, Task, register
from datasets.gaussians import StandardNormal


@register
class FromFile(Task):
    name = "from_file"
    title = "points of a file"
    dim = 2
    noise_source = True

    @property
    def shape(self):
        return (2,)

    def source(self):
        return StandardNormal((2,))

    def content(self):
        path = Path(os.environ["POINTS"])
        if not path.is_file():
            raise DataError(f"from_file: no file {path}")
        return path.read_text()

    def target(self):
        points = torch.tensor([[float(v) for v in line.split()] for line in
                               self.content().splitlines()])
        return Empirical(points[::2], points[1::2], (2,))

    def digest(self):
        return hashlib.sha256(self.content().encode()).hexdigest()[:16]
'''


@pytest.fixture
def points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file behind the task ``from_file``."""
    path = tmp_path / "points.txt"
    path.write_text("".join(f"{k % 7} {k % 5}\n" for k in range(100)))
    monkeypatch.setenv("POINTS", str(path))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return path


def run_from_file(folder: Path) -> dict[str, Record]:
    """The records of two cells on the task."""
    bench.run(
        methods=["fm", "efm"],
        tasks=["from_file"],
        seeds=[0],
        out=folder / "out",
        plugins=[folder / "plugin.py"],
        device="cpu",
        steps=2,
        batch=8,
        **{"eval.n": 16},
    )
    return {record.id: record for record in read_records(folder / "out")}


def test_cells_whose_data_have_changed_run_again(
    points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run_from_file(tmp_path)
    assert [record.status for record in before.values()] == ["done"] * 2
    assert all(record.task_digest for record in before.values())
    assert run_from_file(tmp_path) == before  # nobody has edited anything
    assert "have changed" not in capsys.readouterr().err

    points.write_text(points.read_text().replace("6 ", "9 "))
    after = run_from_file(tmp_path)
    errors = capsys.readouterr().err
    assert (
        errors == "the data of from_file have changed since 2 cells were recorded: they run again\n"
    )
    assert set(after) == set(before)
    for name, record in after.items():
        assert record.started > before[name].started
        assert record.task_digest != before[name].task_digest
        assert record.data_hash != before[name].data_hash
    assert run_from_file(tmp_path) == after

    points.unlink()  # without the file the records are what there is
    assert run_from_file(tmp_path) == after


@pytest.mark.parametrize("status", ["done", "diverged"])
@pytest.mark.parametrize("digest", ["now", "before", None])
def test_whatever_its_status_a_record_of_other_data_is_stale(
    status: str, digest: str | None, tmp_path: Path
) -> None:
    """Where the record has no digest its data cannot be compared."""
    cell = one_cell()
    known = cell.build_task().digest() if digest == "now" else digest
    write_record(tmp_path, record_of(cell, status, task_digest=known))
    before, todo, changed = plan([cell], RunOptions(out=tmp_path))
    stale = digest == "before"
    assert [record.id for record in before] == ([] if stale else [cell.id])
    assert todo == ([cell] if stale else [])
    assert changed == ({cell.task: 1} if stale else {})


def test_data_are_those_of_the_parameters_of_the_task(tmp_path: Path) -> None:
    cells = [one_cell(**{"gaussian_to_swiss_roll.noise": [noise]}) for noise in (0.1, 0.9)]
    digests = [cell.build_task().digest() for cell in cells]
    assert digests[0] != digests[1]

    def todo(known: list[str]) -> list[Cell]:
        for cell, digest in zip(cells, known, strict=True):
            write_record(tmp_path, record_of(cell, task_digest=digest))
        return plan(cells, RunOptions(out=tmp_path))[1]

    assert todo(digests) == []
    assert todo(digests[:1] * 2) == cells[1:]


@pytest.mark.parametrize("name", ["timeout", "memory"])
def test_a_cell_runs_again_under_a_higher_limit_of_the_kind_that_it_exceeded(
    name: str, tmp_path: Path
) -> None:
    cell = one_cell()
    write_record(tmp_path, record_of(cell, "timeout", exceeded={name: 10.0}))
    (other,) = {"timeout", "memory"} - {name}
    for limit, again in ((5, False), (10, False), (20, True)):
        options = RunOptions(out=tmp_path, **{name: limit, other: 25 - limit})
        assert plan([cell], options)[1] == ([cell] if again else [])
