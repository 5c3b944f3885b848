"""Metrics: pure functions of samples, each of which says what it means and what its floor is.

Every module of this package is imported, so that a new metric is one new file.
"""

import importlib
import pkgutil

from bench.metrics.base import METRICS, Metric, metric

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
for _name in sorted(METRICS, key=lambda name: -METRICS[name].main):  # what ranks comes first
    METRICS[_name] = METRICS.pop(_name)

__all__ = ["METRICS", "Metric", "metric"]
