"""Plug-ins: methods, tasks, metrics and networks in a file of the user's (``--plugin FILE.py``).

The result of a cell depends on the source of the plug-ins that it uses, so their hashes are part
of the cell and of its id: after an edit the cell is another one, and runs again.
"""

import ast
import importlib.util
import modulefinder
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.config.errors import SpecError
from datasets import Task
from datasets.base import digest_of
from methods import Method

OURS = ("bench", "methods", "datasets")
# Metrics are not imported here: whoever registers one has imported them.
TABLES = {"methods": "METHODS", "datasets": "TASKS", "bench.metrics": "METRICS"}


class Plugin(NamedTuple):
    """A plug-in that this process has loaded."""

    file: Path
    files: frozenset[Path]  # the file and the modules beside it that it imports
    digest: str
    registered: frozenset[Any]  # the methods, tasks and metrics that it has added
    patches: bool  # it may have replaced something of ours, which concerns every cell


_loaded: dict[str, Plugin] = {}


def load_plugin(path: str) -> str:
    """Runs a Python file that registers methods, tasks or metrics, once a process; its hash.

    Raises:
        SpecError: no such file, one that raises, that registers an incomplete class, or that has
            changed since this process has loaded it.
    """
    file = _file_of(path)
    plugin = _loaded.get(str(file))
    if plugin is None:
        for other in _loaded.values():
            if other.file.stem == file.stem:
                known = str(other.file)
                raise SpecError(f"plugin: {path!r} has the name of another one, {known!r}")
        _loaded[str(file)] = plugin = _load(file)
    elif _source(file)[1] != plugin.digest:
        raise SpecError(f"plugin: {path!r} has changed since it was loaded; start a new process")
    return plugin.digest


def loaded() -> dict[str, str]:
    """The plug-ins of this process: their files and hashes."""
    return {path: plugin.digest for path, plugin in _loaded.items()}


def used_by(*kinds: Any) -> dict[str, str]:
    """The names and hashes of the plug-ins that decide what these classes or functions do.

    Those that define or register one of them or of their base classes, and those that may concern
    every cell: they assign to attributes or entries, or register nothing, like a network.
    """
    if not _loaded:
        return {}
    bases = {base for kind in kinds for base in getattr(kind, "__mro__", [kind])}
    modules = [sys.modules.get(base.__module__) for base in bases]
    files = {Path(file).resolve() for m in modules if (file := getattr(m, "__file__", None))}
    return {
        plugin.file.stem: plugin.digest
        for plugin in sorted(_loaded.values(), key=lambda plugin: plugin.file.stem)
        if plugin.patches or bases & plugin.registered or files & plugin.files
    }


def why_not_here(cell_plugins: Mapping[str, str], paths: Iterable[str]) -> str | None:
    """Why a cell must not run in this worker: its plug-ins are not those it was planned with.

    Those of the run, at ``paths``, are loaded first unless they are already.
    """
    try:
        for path in paths:
            if path not in _loaded:
                load_plugin(path)
    except SpecError as error:
        return str(error)
    here = {plugin.file.stem: plugin.digest for plugin in _loaded.values()}
    changed = [f"{name}.py" for name, digest in cell_plugins.items() if here.get(name) != digest]
    return f"plugin: {', '.join(changed)} changed during the run" if changed else None


def _file_of(path: str) -> Path:
    try:
        if isinstance(path, str | Path) and Path(path).suffix == ".py" and Path(path).is_file():
            return Path(path).absolute()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        pass
    raise SpecError(f"plugin: expected a Python file, got {path!r}")


def _load(file: Path) -> Plugin:
    name = f"bench_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    modules = [sys.modules[module] for module in TABLES if module in sys.modules]
    tables: list[dict[str, Any]] = [getattr(m, TABLES[m.__name__]) for m in modules]
    held = [dict(table) for table in tables]
    try:
        files, digest = _source(file)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)  # for dataclasses
        spec.loader.exec_module(module)
        pairs = zip(tables, held, strict=True)
        added = [table[name] for table, before in pairs for name in table.keys() - before.keys()]
        for kind in added:
            _check_complete(file, kind)
    except (Exception, SystemExit) as error:
        for table, content in zip(tables, held, strict=True):
            table.clear()
            table.update(content)
        if isinstance(error, SpecError):
            raise
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise SpecError(f"plugin: {str(file)!r} raises {message}") from None
    patches = not added or any(_assigns_elsewhere(path) for path in files)
    return Plugin(file, files, digest, frozenset(added), patches)


def _assigns_elsewhere(path: Path) -> bool:
    """Whether a file, as it is imported, assigns to an attribute or an entry of something."""
    skipped = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    lines = [line for line in ast.parse(path.read_bytes()).body if not isinstance(line, skipped)]
    nodes = [node for line in lines for node in ast.walk(line)]
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets) or any(
        isinstance(node, ast.Name) and node.id == "setattr" for node in nodes
    )


def _check_complete(file: Path, kind: Any) -> None:
    """Raises :class:`SpecError` for a registered class of which no object can be made."""
    if not isinstance(kind, type) or not issubclass(kind, Method | Task):
        return  # a metric
    named = [name for name in ("title", "dim") if name in kind.__class_vars__]
    lacks = [*sorted(kind.__abstractmethods__), *(n for n in named if not hasattr(kind, n))]
    if lacks:
        what = "method" if issubclass(kind, Method) else "task"
        raise SpecError(f"plugin {file.name!r}: {what} {kind.name!r} lacks {', '.join(lacks)}")


def _source(file: Path) -> tuple[frozenset[Path], str]:
    """A file with the modules in its own folder that it imports, directly or not, and their hash.

    Found by reading, without running anything: a worker finds the same, wherever the folder lies.
    """
    finder = modulefinder.ModuleFinder([str(folder) for folder in file.parents], excludes=OURS)
    finder.run_script(str(file))
    modules: list[Any] = list(finder.modules.values())
    found = {Path(module.__file__) for module in modules if module.__file__}
    files = sorted(path for path in found if path.is_relative_to(file.parent))
    contents = {str(path.relative_to(file.parent)): path.read_bytes() for path in files}
    parts = (f"{name} {len(text)} ".encode() + text for name, text in contents.items())
    return frozenset(path.resolve() for path in files), digest_of(parts)[:16]
