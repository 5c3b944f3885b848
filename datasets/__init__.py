"""Distributions and tasks.

Every module of this package is imported, so that a new task is one new file.
"""

import importlib
import pkgutil

from datasets.base import (
    TASKS,
    Distribution,
    Draws,
    Empirical,
    Known,
    Normalisation,
    Stream,
    Task,
    register,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "TASKS",
    "Distribution",
    "Draws",
    "Empirical",
    "Known",
    "Normalisation",
    "Stream",
    "Task",
    "register",
]
