"""Records: what they hold, what is none, which cells a second run repeats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.cell.run import run_cell
from bench.config.cell import Cell
from bench.store.folder import (
    CHECKPOINT,
    DRAFT,
    MODEL,
    RECORD,
    SAMPLES,
    StorageError,
    cell_folder,
)
from bench.store.records import (
    FORMAT,
    Outcome,
    RecordError,
    is_settled,
    read_record,
    read_records,
    write_record,
)
from datasets.toy import SwissRoll
from tests.store.records import one_cell, record_of, written_record

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("status", "exceeded", "timeout", "memory", "expected"),
    [
        ("done", {}, None, None, True),
        ("skipped", {}, None, None, True),
        ("diverged", {}, None, None, True),
        ("failed", {}, None, None, False),
        ("killed", {}, None, None, True),
        ("timeout", {"timeout": 10.0}, 10.0, None, True),
        ("timeout", {"timeout": 10.0}, 5.0, None, True),
        ("timeout", {"timeout": 10.0}, 20.0, None, False),
        ("timeout", {"timeout": 10.0}, None, None, False),
        ("timeout", {"timeout": 10.0}, 10.0, 500.0, True),
        ("killed", {"memory": 500.0}, None, 500.0, True),
        ("killed", {"memory": 500.0}, None, 900.0, False),
        ("killed", {"memory": 500.0}, 5.0, None, False),
    ],
)
def test_what_a_second_run_repeats(
    status: str,
    exceeded: dict[str, float],
    timeout: float | None,
    memory: float | None,
    expected: bool,
) -> None:
    outcome = Outcome.model_validate({"status": status, "exceeded": exceeded})
    assert is_settled(outcome, timeout, memory) is expected


def change(**values: Any) -> Callable[[str], str]:
    """Replaces entries of the record."""
    return lambda text: json.dumps({**json.loads(text), **values})


def change_cell(**values: Any) -> Callable[[str], str]:
    """Replaces entries of the cell of the record."""

    def changed(text: str) -> str:
        record = json.loads(text)
        return json.dumps({**record, "cell": {**record["cell"], **values}})

    return changed


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "truncated, or not a record"),
        (lambda text: "", "truncated, or not a record"),
        (lambda text: "\x00" * 100, "truncated, or not a record"),
        (lambda text: "[" * 100_000, "truncated, or not a record"),
        (lambda text: "[1, 2]", "not a record"),
        (lambda text: '{"something": "else"}', "not a record"),
        (change(format=1), f"written by another version (format 1, here {FORMAT})"),
        (change(format=FORMAT + 1), f"written by another version (format {FORMAT + 1}, here"),
        (change(format="2"), "written by another version (format '2'"),
        (change(id="0123456789abcdef"), "belongs to the cell '0123456789abcdef'"),
        (change(metrics=None), "'metrics': input should be a valid dictionary"),
        (change(status=3), "'status': input should be 'done'"),
        (change(cell={"task": "x"}), "'cell.method': field required"),
        (change_cell(task="../../escape"), "'cell.task': string should match pattern"),
        (change_cell(method="/etc/passwd"), "'cell.method': string should match pattern"),
        (change_cell(task=".."), "'cell.task': string should match pattern"),
        (
            change_cell(hyperparameters={"a/b": 1}),
            "'cell.hyperparameters.a/b.[key]'",
        ),
        (
            change_cell(train={"<script>": 1}),
            "'cell.train.<script>.[key]'",
        ),
        (change_cell(sample=7), "'cell.sample': input should be a valid dictionary"),
        (
            change_cell(sample={"solver": ["heun"]}),
            "'cell.sample.solver.str'",
        ),
        (change(metrics={"w2": "good"}), "'metrics.w2': input should be a valid number"),
    ],
)
def test_what_is_no_record_is_one_line_and_stays(
    damage: Callable[[str], str], words: str, tmp_path: Path
) -> None:
    path = written_record(tmp_path)
    assert read_record(path).status == "done"
    damaged = damage(path.read_text())
    path.write_text(damaged)
    with pytest.raises(RecordError) as error:
        list(read_records(tmp_path))
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert path.read_text() == damaged


def test_a_record_says_where_it_comes_from(tmp_path: Path) -> None:
    record = read_record(written_record(tmp_path))
    cell = Cell.model_validate(record.cell.model_dump())
    assert cell == one_cell()
    assert cell.id == record.id
    assert record.packages["torch"]
    assert record.hardware["cores"] >= 1
    assert record.hardware["processor"]
    assert len(record.data_hash) == 16
    assert record.threads >= 1
    assert isinstance(record.dirty, bool)
    assert 0 < record.train_seconds < record.seconds + 1
    for key in ("commit", "command", "plugins", "started", "python", "normalisation"):
        assert hasattr(record, key)


def test_the_data_hash_sees_the_training_data_and_the_seed(tmp_path: Path) -> None:
    cells = [
        one_cell(),
        one_cell().model_copy(update={"seed": 1}),
        one_cell(**{"gaussian_to_swiss_roll.noise": [0.9]}),
        one_cell(**{"train.lr": [1e-4], "network.width": [16]}),
    ]
    hashes = [run_cell(cell, tmp_path).data_hash for cell in cells]
    assert len(set(hashes)) == 3
    assert hashes[3] == hashes[0]  # the same data for every setting of the training


@pytest.mark.parametrize("name", ["held_out", "second_set", "low_variance"])
def test_the_data_hash_sees_every_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_cell(one_cell(), tmp_path).data_hash
    plain = getattr(SwissRoll, name)
    monkeypatch.setattr(SwissRoll, name, lambda self, *given: plain(self, *given) + 1)
    assert run_cell(one_cell(), tmp_path).data_hash != before


def test_a_record_that_cannot_be_written_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise StorageError("cannot write: No space left on device")

    record = record_of(one_cell())
    path = cell_folder(tmp_path, record.id) / CHECKPOINT
    path.parent.mkdir(parents=True)
    path.touch()
    with monkeypatch.context() as patched:
        patched.setattr("bench.store.records.write_json", full)
        with pytest.raises(StorageError):
            write_record(tmp_path, record)
    assert path.exists()
    write_record(tmp_path, record)
    assert not path.exists()
    assert list(read_records(tmp_path)) == [record]


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        ("done", [MODEL, SAMPLES]),
        *((status, [CHECKPOINT]) for status in ("timeout", "killed", "failed")),
        *((status, []) for status in ("skipped", "diverged")),
    ],
)
def test_beside_a_record_stays_what_is_of_use(status: str, kept: list[str], tmp_path: Path) -> None:
    record = record_of(one_cell(), status)
    folder = cell_folder(tmp_path, record.id)
    folder.mkdir(parents=True)
    for name in (CHECKPOINT, DRAFT, MODEL, SAMPLES):
        (folder / name).touch()
    write_record(tmp_path, record)
    assert {path.name for path in folder.iterdir()} == {RECORD, *kept}
