"""What every test needs: one thread, a cache of its own, no method left from another's plugin."""

from collections.abc import Iterator

import pytest
import torch

from bench import plugins
from datasets import TASKS
from datasets.cache import CACHE
from methods import METHODS


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


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """Forgets the plugins that the test has loaded."""
    tables = METHODS, TASKS, plugins._loaded
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
