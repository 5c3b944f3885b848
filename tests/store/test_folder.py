"""Files on a bad day: full disks, dead lock holders."""

import errno
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cell.run import run_cell
from bench.store.folder import (
    StorageError,
    hold,
    is_held,
    kills,
    set_kills,
    write_atomically,
    write_json,
)
from tests.store.records import one_cell

ROOT = Path(__file__).parents[2]


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
from bench.store.folder import hold
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


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
