"""What there is to choose from, for ``--list``.

Importing the packages would import torch, which takes seconds. So methods, tasks, metrics and
settings are read from their source, without running it; with plug-ins, from what is registered.
"""

import ast
import functools
import re
import textwrap
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SUITES = Path(__file__).parent / "suites"


class Entry(NamedTuple):
    """One line of the list, and the names of the settings that belong to it."""

    name: str
    text: str
    settings: tuple[str, ...] = ()


Catalogue = dict[str, list[Entry]]  # headings, and what stands below each

# The classes of bench.config.settings.SECTIONS, which imports torch.
SECTIONS = {
    "train": "TrainSettings",
    "network": "NetworkSettings",
    "sample": "Solver",
    "eval": "EvalSettings",
}


def suites() -> dict[str, Path]:
    """The files of all suites by name, in whichever folder of ``SUITES`` they lie."""
    return {path.stem: path for path in sorted(SUITES.rglob("*.toml"))}


def read_catalogue() -> Catalogue:
    """Everything that this project has, read from its source."""
    methods, tasks = _classes(ROOT / "methods"), _classes(ROOT / "datasets")
    classes = methods | _classes(ROOT / "bench" / "config")
    return _catalogue(
        [kind for kind in methods.values() if vars(kind)["registered"]],
        [kind for kind in tasks.values() if vars(kind)["registered"]],
        {name: classes[kind] for name, kind in SECTIONS.items()},
        _metrics(ROOT / "bench" / "metrics"),
        _fields,
    )


def registered_catalogue(metrics: Mapping[str, Any]) -> Catalogue:
    """Everything that is registered, by plug-ins too; metrics, not imported here, are given."""
    import datasets
    import methods
    from bench.config.settings import SECTIONS, public_fields

    found = [(m.name, m.label, m.function.__doc__ or "") for m in metrics.values()]
    kinds = methods.METHODS.values(), datasets.TASKS.values()
    return _catalogue(*kinds, SECTIONS, found, public_fields)


def _catalogue(
    methods: Iterable[Any],
    tasks: Iterable[Any],
    sections: Mapping[str, Any],
    metrics: Iterable[tuple[str, str, str]],
    fields: Callable[[Any], Iterable[str]],
) -> Catalogue:
    listed = {
        "methods (--methods; hyperparameters with --set method.name=value)": [
            Entry(method.name, method.title, tuple(fields(method))) for method in methods
        ],
        "tasks (--tasks; parameters with --set task.name=value)": [
            Entry(task.name, f"D = {task.dim}, {task.title}", tuple(fields(task))) for task in tasks
        ],
        "suites (--suite)": [
            Entry(name, path.read_text().splitlines()[0].lstrip("# "))
            for name, path in suites().items()
        ],
        "metrics": [Entry(name, f"{label}: {_plain(text)}") for name, label, text in metrics],
        "settings (--set section.name=value)": [
            Entry(name, "", tuple(fields(kind))) for name, kind in sections.items()
        ],
    }
    return {heading: sorted(entries) for heading, entries in listed.items()}


def lines_of(catalogue: Catalogue, width: int) -> Iterator[str]:
    """The list for a terminal of so many columns."""
    for heading, entries in catalogue.items():
        yield heading
        indent = max(len(entry.name) for entry in entries) + 4
        for entry in entries:
            first = f"  {entry.name}".ljust(indent)
            for text in filter(None, (entry.text, ", ".join(entry.settings))):
                rest = " " * indent
                yield from textwrap.wrap(
                    text, max(width, indent + 30), initial_indent=first, subsequent_indent=rest
                )
                first = rest


def _plain(docstring: str) -> str:
    """The first line of a docstring without the marks of reStructuredText."""
    line = docstring.strip().partition("\n")[0]
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", line).replace("``", "")


# ------------------------------------------------------------------------- reading without running


def _classes(package: Path) -> dict[str, Any]:
    """For every class in some files an empty one with its name, its bases and what is asked of it.

    Python itself then says what a class inherits, and in which order.
    """
    nodes = {node.name: node for node in _statements(package) if isinstance(node, ast.ClassDef)}

    @functools.cache
    def make(name: str) -> Any:
        named = [base.id for base in nodes[name].bases if isinstance(base, ast.Name)]
        return type(name, tuple(make(base) for base in named if base in nodes), _body(nodes[name]))

    return {name: make(name) for name in nodes}


def _statements(package: Path) -> Iterator[ast.stmt]:
    for path in sorted(package.rglob("*.py")):
        yield from ast.parse(path.read_text()).body


def _body(node: ast.ClassDef) -> dict[str, Any]:
    """Name, title and dimension of a class, and its own fields with their public names."""
    fields: dict[str, str] = {}
    registered = any(ast.unparse(one) == "register" for one in node.decorator_list)
    found: dict[str, Any] = {"fields": fields, "registered": registered}
    for line in node.body:
        if not isinstance(line, ast.Assign | ast.AnnAssign):
            continue
        target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
        together = target.elts if isinstance(target, ast.Tuple) else [target]  # name, title = ...
        names = [ast.unparse(one) for one in together]
        if isinstance(line, ast.AnnAssign) and not ast.unparse(line.annotation).startswith("Class"):
            keywords = line.value.keywords if isinstance(line.value, ast.Call) else []
            aliases = [_value(word.value) for word in keywords if word.arg == "alias"]
            fields[names[0]] = aliases[0] if aliases else names[0]
        elif line.value is not None and {"name", "title", "dim"}.intersection(names):
            value = _value(line.value)
            found |= zip(names, value if len(names) > 1 else [value], strict=True)
    return found


def _fields(kind: Any) -> Iterable[str]:
    """The public names of the fields of a class of :func:`_classes`, inherited ones first."""
    return ChainMap(*(vars(base).get("fields", {}) for base in kind.__mro__)).values()


def _metrics(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Name, label and docstring of every function with a decorator ``@metric(name, label)``."""
    for node in _statements(folder):
        if isinstance(node, ast.FunctionDef):
            for one in node.decorator_list:
                if isinstance(one, ast.Call) and ast.unparse(one.func) == "metric":
                    name, label = map(_value, one.args[:2])
                    yield name, label, ast.get_docstring(node) or ""


def _value(node: ast.expr) -> Any:
    """The value of an expression of constants, such as ``3 * 16 * 16``."""
    return eval(ast.unparse(node), {"__builtins__": {}})
