"""Methods and tasks that live in a file of the user's: ``--plugin path/to/file.py``."""

import hashlib
import importlib.util
import sys
from pathlib import Path

from bench.spec import SpecError

_loaded: dict[str, str] = {}


def load_plugin(path: str) -> str:
    """Runs a Python file that registers methods or tasks, once a process; the file's hash.

    Raises:
        SpecError: no such file, or it raises.
    """
    if not isinstance(path, str | Path) or not _is_file(Path(path)):
        raise SpecError(f"plugin: expected a Python file, got {path!r}")
    file = Path(path).absolute()
    if str(file) in _loaded:
        return _loaded[str(file)]
    spec = importlib.util.spec_from_file_location(f"bench_plugin_{len(_loaded)}", file)
    if file.suffix != ".py" or spec is None or spec.loader is None:
        raise SpecError(f"plugin: expected a Python file, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pickle and dataclasses look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise SpecError(f"plugin: {path!r} raises {message}") from None
    _loaded[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return _loaded[str(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False
