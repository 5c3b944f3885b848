"""The benchmark harness: ``python -m bench.run``, or ``from bench import run``."""

import importlib.util
from pathlib import Path

_spec = importlib.util.find_spec("datasets")
_ours = Path(__file__).parent.parent / "datasets" / "__init__.py"
if _spec is None or _spec.origin is None or Path(_spec.origin) != _ours:
    raise ImportError(
        "the package 'datasets' of this benchmark is hidden by another one"
        f" ({_spec.origin if _spec else 'none found'}): install into an environment without it,"
        " or run from the root of the checkout"
    )
