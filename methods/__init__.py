"""Physics-inspired generative methods under one interface.

Every module of this package is imported, so that a new method is one new file.
"""

import importlib
import pkgutil

from methods.base import METHODS, Method, Regression, Transport, register

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
for _name in sorted(METHODS):  # whatever imports what
    METHODS[_name] = METHODS.pop(_name)

__all__ = ["METHODS", "Method", "Regression", "Transport", "register"]
