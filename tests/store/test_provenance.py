"""Where results come from: the commit, packages, the code behind a checkpoint."""

from pathlib import Path

import pytest

from bench.config.plugins import load_plugin
from bench.store import provenance


def test_the_code_of_a_checkpoint_covers_plugins(tmp_path: Path) -> None:
    plain = provenance.code_hash()
    assert provenance.code_hash() == plain
    (tmp_path / "one.py").write_text("VALUE = 1\n")
    load_plugin(str(tmp_path / "one.py"))
    with_one = provenance.code_hash()
    assert with_one != plain
    (tmp_path / "two.py").write_text("VALUE = 2\n")
    load_plugin(str(tmp_path / "two.py"))
    assert provenance.code_hash() not in (plain, with_one)


def test_the_code_of_a_checkpoint_is_that_of_methods_data_and_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in provenance.TRAINING:
        path = tmp_path / part if part.endswith(".py") else tmp_path / part / "deep" / "file.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
        assert (provenance.ROOT / part).exists()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    hashes = set()
    for path in [None, *tmp_path.rglob("*.py")]:
        if path is not None:
            path.write_text("after")
        provenance._sources_hash.cache_clear()
        hashes.add(provenance.code_hash())
    provenance._sources_hash.cache_clear()
    assert len(hashes) == 1 + len(provenance.TRAINING)


def test_packages_are_those_that_are_required() -> None:
    versions = provenance.package_versions()
    assert {"torch", "numpy", "pydantic"} <= set(versions)
    assert "pytest" not in versions
    assert all(not set(name) & set("<>=[; ") for name in versions)


def test_the_commit_is_found_in_a_checkout() -> None:
    assert (provenance.commit() is not None) == (provenance.ROOT / ".git").exists()
