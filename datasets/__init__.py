"""Distributions and tasks.

Every module of this package is imported, so that a new task is one new file.
"""

import importlib
import pkgutil

from datasets.base import TASKS as TASKS
from datasets.base import Distribution as Distribution
from datasets.base import Draws as Draws
from datasets.base import Empirical as Empirical
from datasets.base import Known as Known
from datasets.base import Normalisation as Normalisation
from datasets.base import Stream as Stream
from datasets.base import Task as Task
from datasets.base import register as register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
