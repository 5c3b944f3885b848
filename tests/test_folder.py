"""Files on a bad day: full disks, dead lock holders, records that are none."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.cell import run_cell
from bench.folder import (
    RECORD,
    StorageError,
    cell_folder,
    hold,
    is_held,
    kills,
    set_kills,
    write_atomically,
    write_json,
)
from bench.manifest import add_run, end_run, read_runs
from bench.records import FORMAT, RecordError, is_settled, read_record, read_records
from bench.session import Session, make_plan
from bench.spec import Cell, Spec
from bench.worker import Attempt, Job

ROOT = Path(__file__).parent.parent


def one_cell(**settings: list[Any]) -> Cell:
    """A small cell."""
    (cell,) = Spec(
        methods=["fm"],
        tasks=["gaussian_to_swiss_roll"],
        seeds=[0],
        settings={"train.steps": [2], "eval.n": [8], **settings},
    ).cells()
    return cell


def written_record(out: Path) -> Path:
    """A true record."""
    cell = one_cell()
    folder = cell_folder(out, cell.id)
    folder.mkdir(parents=True)
    job = Job(cell.id, cell.model_dump_json(), str(out))
    Attempt(job, folder, "cpu", 0).record(run_cell(cell, folder))
    return folder / RECORD


def test_a_full_disk_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        StorageError, match=r"cannot write .*file: No space left on device"
    ) as error:
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # workers send it home


def test_a_full_disk_is_no_fault_of_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    with pytest.raises(StorageError, match="No space left"):
        run_cell(one_cell(), tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from bench.folder import hold
with hold(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with hold(tmp_path) as mine:
        assert mine
        assert is_held(tmp_path)  # by us: a second hold in one process is refused too
    assert not is_held(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with hold(tmp_path) as mine:
        assert not mine
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold(tmp_path) as mine:
        assert mine


def test_kills_are_counted_in_the_folder(tmp_path: Path) -> None:
    assert kills(tmp_path) == 0
    set_kills(tmp_path, 2)
    assert kills(tmp_path) == 2
    set_kills(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


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
    record = {"status": status, "exceeded": exceeded}
    assert is_settled(record, timeout, memory) is expected


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
        (change(format=1), "an older version"),
        (change(format=FORMAT + 1), "a newer version"),
        (change(format="2"), "not a record"),
        (change(id="0123456789abcdef"), "belongs to the cell '0123456789abcdef'"),
        (change(metrics=None), "'metrics' is missing or is not a dict"),
        (change(status=3), "'status' is missing"),
        (change(cell={"task": "x"}), "its cell lacks"),
        (change_cell(task="../../escape"), "'../../escape' is not a plain name"),
        (change_cell(method="/etc/passwd"), "'/etc/passwd' is not a plain name"),
        (change_cell(task=".."), "'..' is not a plain name"),
        (change_cell(hyperparameters={"a/b": 1}), "'a/b' is not a plain name"),
        (change_cell(train={"<script>": 1}), "'<script>' is not a plain name"),
        (change_cell(sample=7), "not a table"),
        (change_cell(sample={"solver": ["heun"]}), "'solver' is neither a number nor a word"),
        (change_cell(hyperparameters={"w2": 1}), "'w2' has the name of a column"),
        (change(metrics={"w2": "good"}), "'w2' is not a number"),
    ],
)
def test_what_is_no_record_is_one_line_and_stays(
    damage: Callable[[str], str], words: str, tmp_path: Path
) -> None:
    path = written_record(tmp_path)
    assert read_record(path)["status"] == "done"
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
    cell = Cell.model_validate(record["cell"])
    assert cell == one_cell()
    assert cell.id == record["id"]
    assert record["packages"]["torch"]
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["processor"]
    assert len(record["data_hash"]) == 16
    assert record["threads"] >= 1
    assert isinstance(record["dirty"], bool)
    assert 0 < record["train_seconds"] < record["seconds"] + 1
    for key in ("commit", "command", "plugins", "started", "python", "normalisation"):
        assert key in record


def test_the_data_hash_sees_the_training_data_and_the_seed(tmp_path: Path) -> None:
    cells = [
        one_cell(),
        one_cell().model_copy(update={"seed": 1}),
        one_cell(**{"gaussian_to_swiss_roll.noise": [0.9]}),
        one_cell(**{"train.lr": [1e-4], "network.width": [16]}),
    ]
    hashes = [run_cell(cell, tmp_path)["data_hash"] for cell in cells]
    assert len(set(hashes)) == 3
    assert hashes[3] == hashes[0]  # the same data for every setting of the training


def test_the_manifest_keeps_every_run(tmp_path: Path) -> None:
    first = add_run(tmp_path, command="one", cells=3)
    second = add_run(tmp_path, command="two", cells=4)
    end_run(tmp_path, first, {"done": 3})
    runs = read_runs(tmp_path)
    assert [run["command"] for run in runs] == ["one", "two"]
    assert runs[first]["statuses"] == {"done": 3}
    assert "finished" not in runs[second]
    (tmp_path / "manifest.json").write_text('{"runs"')
    with pytest.raises(RecordError, match="not a manifest"):
        add_run(tmp_path, command="three")
    assert (tmp_path / "manifest.json").read_text() == '{"runs"'


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


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
    plan = make_plan(tmp_path / "many", device="cpu")
    begin = time.process_time()  # what other processes take of the machine does not count
    session = Session(spec, spec.cells(), plan, force=False)
    assert time.process_time() - begin < 2
    assert len(session.before) == 9_999
    assert session.todo == cells[:1]
