"""What every test needs: one thread, a cache of its own, no method left from another's plug-in."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bench.run
from datasets.cache import CACHE
from methods.capacitor import diagnostics
from tests.commands import no_plugins

SLOW_TIMEOUT = 1200
"""Seconds after which a slow test has failed, in place of ``timeout`` in pyproject.toml."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A time limit for every slow test that names none of its own."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread during the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of this session, also for the processes that tests start.

    That of torch, too: with weights of FID every cell of images would see Inception.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        patched.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        yield


@pytest.fixture(autouse=True, scope="session")
def few_lines() -> Iterator[None]:
    """A cell of EFM compares its field with the exact one on few lines of few charges.

    Of as many as users get the comparison takes longer than all else that a small cell does.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(diagnostics, "LINES", 8)
        patched.setattr(diagnostics, "CHARGES", 64)
        yield


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """Forgets the plug-ins that the test has loaded."""
    with no_plugins():
        yield


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a small finished run, made once: not to be written."""
    out = tmp_path_factory.mktemp("finished") / "run"
    bench.run(
        methods=["efm", "fm", "pfgm"],
        tasks=["gaussian_to_swiss_roll"],
        seeds=[0, 1],
        out=out,
        steps=20,
        batch=32,
        threads=1,
        **{"eval.n": 64},
    )
    return out


@pytest.fixture
def finished_run(finished_folder: Path, tmp_path: Path) -> Path:
    """A copy of :func:`finished_folder` for one test: six cells that are done."""
    return shutil.copytree(finished_folder, tmp_path / "finished")
