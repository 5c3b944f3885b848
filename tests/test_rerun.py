"""A recorded cell, run again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bench.run
from bench.rerun import differences, equal_samples, main
from bench.store.folder import cell_folder
from bench.store.records import FORMAT, read_records
from methods import METHODS

TINY = ["--steps", "4", "--batch", "16", "--set", "eval.n=16", "--set", "network.width=8"]
ARGUMENTS = ["--tasks", "gaussian_to_swiss_roll", "--seeds", "0", "--threads", "1", *TINY]
PLUGIN = str(Path(__file__).parent / "faulty.py")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished cell."""
    out = tmp_path_factory.mktemp("recorded")
    assert bench.run.main(["--methods", "efm", *ARGUMENTS, "--out", str(out)]) == 0
    (record,) = read_records(out)
    return cell_folder(out, record.id)


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(recorded, tmp_path / recorded.name))


def tamper(folder: Path, old: str, new: str) -> None:
    """Changes the text of a record."""
    text = (folder / "record.json").read_text()
    assert old in text
    (folder / "record.json").write_text(text.replace(old, new))


def test_a_cell_agrees_with_itself(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (recorded, recorded / "record.json"):
        assert main([str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2:] == ["samples: the same to the last bit", "agrees to the last bit"]
        assert any(line.split()[:1] == ["w2_floor"] for line in lines)


def test_a_changed_number_is_found(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((copied / "record.json").read_text())
    w2 = record["metrics"]["w2"]
    tamper(copied, f'"w2": {w2!r}', f'"w2": {w2 * 1.01!r}')
    assert main([str(copied)]) == 1
    assert "differs: metrics differ by up to 0.0099" in capsys.readouterr().out
    assert main([str(copied), "--tolerance", "0.02"]) == 0
    assert "agrees within 0.0099, tolerance 0.02" in capsys.readouterr().out


def test_other_data_and_another_machine_are_named(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((copied / "record.json").read_text())
    tamper(copied, record["data_hash"], "0" * 16)
    tamper(copied, f'"torch": "{record["packages"]["torch"]}"', '"torch": "1.0"')
    assert main([str(copied)]) == 1
    out = capsys.readouterr().out
    assert f"torch: recorded 1.0, now {record['packages']['torch']}" in out
    assert f"data_hash: recorded {'0' * 16}, now {record['data_hash']}" in out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"seed": 0', '"seed": 1', "recorded with other settings"),
        ('"width": 8', '"width": "wide"', "unable to parse"),
        ('"method": "efm"', '"method": "unknown"', "method: 'unknown' is not known"),
        (f'"format": {FORMAT}', f'"format": {FORMAT - 1}', "another version (format"),
    ],
)
def test_what_cannot_be_run_again_is_one_line(
    old: str, new: str, words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(copied, old, new)
    assert main([str(copied)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_plugin_is_named_and_not_loaded_by_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--plugin", PLUGIN, "--methods", "raising", *ARGUMENTS, "--out", str(tmp_path)]
    assert bench.run.main(arguments) == 1
    (record,) = read_records(tmp_path)
    path = str(cell_folder(tmp_path, record.id))
    capsys.readouterr()
    assert main([path, "--plugin", PLUGIN]) == 0  # it fails again, in the same way
    assert "agrees" in capsys.readouterr().out
    monkeypatch.delitem(METHODS, "raising")
    assert main([path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "method: 'raising' is not known; the record names the plugins: " + PLUGIN in line


def test_differences() -> None:
    table = differences({"a": 1.0, "b": 2.0, "c": 0.0}, {"a": 1.0, "b": 2.5, "c": 0.0, "d": 1.0})
    assert table["metric"].tolist() == ["a", "b", "c", "d"]
    assert table["relative difference"].tolist() == [0.0, 0.2, 0.0, float("inf")]


def test_equal_samples(tmp_path: Path) -> None:
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    assert equal_samples(one, two) is None
    np.savez(one, x=np.array([1.0, np.nan]))
    np.savez(two, x=np.array([1.0, np.nan]))
    assert equal_samples(one, two) is True
    np.savez(two, x=np.array([1.0, 2.0]))
    assert equal_samples(one, two) is False
    np.savez(two, y=np.array([1.0, np.nan]))
    assert equal_samples(one, two) is False
