"""The manifest: every command that was run into a folder."""

from pathlib import Path

import pytest

from bench.store.manifest import add_run, end_run, read_runs
from bench.store.records import RecordError

ROOT = Path(__file__).parents[2]


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
