"""The house: which room may import which, how large files, folders and functions may get."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS: dict[str, set[str]] = {
    "methods": set(),
    "datasets": set(),
    "bench.config": {"methods", "datasets"},
    "bench.metrics": {"datasets"},
    "bench.store": {"bench.config"},
    "bench.features": {"bench.metrics", "bench.store"},
    "bench.cell": {"bench.config", "bench.store", "bench.metrics", "bench.features"},
    "bench.execute": {"bench.cell"},
    "bench.analysis": {"bench.store", "bench.config", "bench.metrics"},
    "bench.report": {"bench.analysis", "bench.cell"},
    "bench.tuning": {"bench.analysis", "bench.config"},
}
"""What each room imports beside what that imports itself; ``bench`` alone is the commands."""


def room_of(module: str) -> str:
    """``bench.cell`` of ``bench.cell.train``; commands are the room ``bench``."""
    parts = module.split(".")
    if module.endswith(".__main__"):
        return parts[0]
    room = ".".join(parts[:2]) if parts[0] == "bench" else parts[0]
    return room if room in ROOMS else parts[0]


def below(room: str) -> set[str]:
    """The room, and all rooms that it may import."""
    return {room}.union(*(below(other) for other in ROOMS[room]))


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Every module by its name, parsed."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    """What a module imports of the project, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


OURS = ("bench", "methods", "datasets", "studies", "tests")


def test_imports_run_one_way() -> None:
    upward = [
        f"{name} imports {other}"
        for name, tree in modules("bench", "methods", "datasets")
        if (room := room_of(name)) in ROOMS
        for other in imports(tree)
        if other.split(".")[0] in OURS and room_of(other) not in below(room)
    ]
    assert not upward, "\n".join(upward)


def test_there_is_no_circle() -> None:
    trees = dict(modules("bench", "methods", "datasets"))
    # A package's __init__ gathers its modules; that is no circle.
    graph = {
        name: {other for other in imports(tree) if other in trees and "." in other}
        for name, tree in trees.items()
        if "." in name
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(("folder", "most"), [("bench", 12), ("methods", 18)])
def test_a_folder_fits_on_a_screen(folder: str, most: int) -> None:
    folders = [path for path in (ROOT / folder).rglob("*") if path.is_dir()]
    for one in [ROOT / folder, *folders]:
        files = [path for path in one.iterdir() if path.is_file() and path.suffix != ".pyc"]
        assert len(files) <= most, f"{one.relative_to(ROOT)} has {len(files)} files"


def test_a_function_fits_on_a_screen() -> None:
    long = [
        f"{name}.{node.name} has {lines} lines"
        for name, tree in modules("bench", "methods", "datasets", "studies")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > 50
    ]
    assert not long, "\n".join(long)


LINES = 16_820
"""Of bench, methods and datasets together."""


def test_the_code_stays_small() -> None:
    files = [
        path
        for folder in ("bench", "methods", "datasets")
        for pattern in ("*.py", "*.j2")
        for path in (ROOT / folder).rglob(pattern)
    ]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert lines <= LINES
