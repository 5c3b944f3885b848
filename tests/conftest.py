"""What every test needs: one thread, and no method left over from another test's plugin."""

from collections.abc import Iterator

import pytest
import torch

from bench import plugins
from datasets import TASKS
from methods import METHODS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread during the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """Forgets the plugins that the test has loaded."""
    tables = METHODS, TASKS, plugins._loaded
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
