"""Plug-ins: which cells they concern, that an edit makes those run again, and what is refused."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import bench.run
import bench.sweep
from bench.config import plugins
from bench.config.cell import Cell
from bench.config.errors import SpecError
from bench.config.grid import Spec
from bench.config.plugins import load_plugin, loaded, why_not_here
from bench.store.records import read_records
from methods import METHODS, networks
from tests.commands import no_plugins

TASK = "gaussian_to_swiss_roll"
QUICK: dict[str, Any] = {
    "seeds": [0],
    "steps": 2,
    "batch": 8,
    "eval.n": 16,
    "eval.metrics": "main",
    "eval.replicates": 0,
}

METHOD = """
from methods import register
from methods.fm import FlowMatching

@register
class Mine(FlowMatching):
    name = "mine"
    title = "Mine"
"""
TWO = METHOD.replace("Mine", "Second").replace('"mine"', '"second"')
TASKS_FILE = """
from datasets import register
from datasets.toy import GaussianToSwissRoll

@register
class Rolled(GaussianToSwissRoll):
    name = "rolled"
"""
METRIC = """
from bench.metrics import metric

@metric("mine_too", "mine", "distance")
def mine_too(samples, target):
    "The first value of the samples."
    return float(samples[0, 0])
"""
PATCHES = {
    "replaced": "networks.MLP = type('Net', (networks.MLP,), {})",
    "wrapped": "before = networks.MLP.forward\n"
    "networks.MLP.forward = lambda self, *given: before(self, *given)",
    "added": "networks.MLP.__call__ = networks.nn.Module.__call__",
    "constant": "networks.GAIN = 5.0",
    "table": "import methods\nmethods.METHODS['fm'] = methods.METHODS['ifm']",
}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def cells(*methods: str, task: str = TASK) -> dict[str, Cell]:
    """The cell of each method."""
    spec = Spec(methods=list(methods), tasks=[task], seeds=[0])
    return {cell.method: cell for cell in spec.cells()}


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Puts back what the plug-ins of :data:`PATCHES` replace; so does the end of the test."""
    mlp, forward, gain = networks.MLP, networks.MLP.forward, networks.GAIN

    def restore() -> None:
        networks.MLP, networks.GAIN = mlp, gain  # type: ignore[misc]
        networks.MLP.forward = forward  # type: ignore[method-assign]
        if "__call__" in vars(mlp):
            del mlp.__call__

    monkeypatch.setattr(networks, "MLP", mlp)
    monkeypatch.setattr(networks, "GAIN", gain)
    monkeypatch.setattr(networks.MLP, "forward", forward)
    return restore


# --------------------------------------------------------------------------- whose cells they are


def test_a_plugin_is_in_the_ids_of_the_cells_that_use_it(tmp_path: Path) -> None:
    before = cells("fm", "efm")
    digest = load_plugin(write(tmp_path / "own.py", METHOD))
    found = cells("fm", "efm", "mine")
    assert {name: cell.plugins for name, cell in found.items()} == {
        "fm": {},
        "efm": {},
        "mine": {"own": digest},
    }
    assert [found[name].id for name in before] == [cell.id for cell in before.values()]
    assert Cell.model_validate(found["mine"].model_dump()).id == found["mine"].id
    other = found["mine"].model_copy(update={"plugins": {"own": "0" * 16}})
    assert other.id != found["mine"].id
    assert loaded() == {str(tmp_path / "own.py"): digest}


def test_the_same_source_elsewhere_is_the_same_cell_and_another_is_not(tmp_path: Path) -> None:
    ids = []
    for folder, text in (("a", METHOD), ("b", METHOD), ("c", METHOD + "# edited\n")):
        (tmp_path / folder).mkdir()
        with no_plugins():
            load_plugin(write(tmp_path / folder / "own.py", text))
            ids.append(cells("mine")["mine"].id)
    assert ids[0] == ids[1] != ids[2]


def test_a_task_of_a_plugin_concerns_all_methods_on_it(tmp_path: Path) -> None:
    digest = load_plugin(write(tmp_path / "own.py", TASKS_FILE))
    assert cells("fm", task="rolled")["fm"].plugins == {"own": digest}
    assert cells("fm")["fm"].plugins == {}


def test_a_method_that_is_derived_from_a_class_of_a_plugin_uses_both(tmp_path: Path) -> None:
    base = METHOD.replace("class Mine(FlowMatching)", "class Mine(Base)")
    base = base.replace("@register", "class Base(FlowMatching):\n    pass\n\n@register")
    first = load_plugin(write(tmp_path / "first.py", base))
    derived = "from methods import METHODS, register\nBase = METHODS['mine'].__base__\n"
    derived += "@register\nclass Derived(Base):\n    name = 'derived'\n    title = 'Derived'\n"
    second = load_plugin(write(tmp_path / "second.py", derived))
    assert cells("derived")["derived"].plugins == {"first": first, "second": second}
    assert cells("mine")["mine"].plugins == {"first": first}


def test_a_class_that_python_does_not_place_in_the_plugin_counts_too(tmp_path: Path) -> None:
    made = "from methods import register\nfrom methods.fm import FlowMatching\n"
    made += "register(type('Made', (FlowMatching,), {'name': 'made'}))\n"
    digest = load_plugin(write(tmp_path / "own.py", made))
    assert cells("made")["made"].plugins == {"own": digest}


def test_a_metric_of_a_plugin_changes_no_id(tmp_path: Path) -> None:
    before = cells("fm")["fm"].id
    load_plugin(write(tmp_path / "own.py", METRIC))
    assert cells("fm")["fm"].id == before


@pytest.mark.parametrize("registers", ["", METHOD])
@pytest.mark.parametrize("patch", [*PATCHES, "by name"])
def test_a_plugin_that_replaces_something_of_ours_concerns_every_cell(
    patch: str, registers: str, tmp_path: Path, restored: Callable[[], None]
) -> None:
    """Whether or not it registers something too."""
    line = PATCHES.get(patch, "setattr(networks, 'GAIN', 5.0)")
    text = f"{registers}\nfrom methods import networks\n{line}"
    digest = load_plugin(write(tmp_path / "own.py", text))
    try:
        assert cells("efm")["efm"].plugins == {"own": digest}
    finally:
        restored()


def test_modules_beside_the_plugin_are_part_of_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "parts_of_mine").mkdir()
    write(tmp_path / "parts_of_mine" / "__init__.py", "from .deep import X\n")
    write(tmp_path / "parts_of_mine" / "deep.py", "X = 1\n")
    write(tmp_path / "unused.py", "X = 1\n")
    path = write(tmp_path / "own.py", f"from parts_of_mine import X\n{METHOD}")
    digests = []
    for name, text in (
        ("unused.py", "X = 2\n"),
        ("parts_of_mine/deep.py", "X = 2\n"),
        ("parts_of_mine/__init__.py", "from parts_of_mine.deep import X\n"),
    ):
        with no_plugins():
            digests.append(load_plugin(path))
        write(tmp_path / name, text)
    with no_plugins():
        digests.append(load_plugin(path))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# ------------------------------------------------------------------------------------- an edit


def runs(out: Path, **arguments: Any) -> list[str]:
    """Runs a command as a new process would; method and task of every cell that it has run."""
    before = {record.id: record.started for record in read_records(out)}
    with no_plugins():
        bench.run(**{"tasks": [TASK], "out": out, **QUICK, **arguments})
    after = [record for record in read_records(out) if before.get(record.id) != record.started]
    return sorted(f"{record.cell.method} {record.cell.task}" for record in after)


def test_an_edited_method_runs_again_and_an_unedited_one_does_not(tmp_path: Path) -> None:
    given: Any = {"plugins": [write(tmp_path / "own.py", METHOD)], "methods": ["fm", "mine"]}
    out = tmp_path / "out"
    assert runs(out, methods=["fm"]) == [f"fm {TASK}"]
    assert runs(out, **given) == [f"mine {TASK}"]
    assert runs(out, **given) == []
    write(tmp_path / "own.py", METHOD.replace('"Mine"', '"Mine, edited"'))
    assert runs(out, **given) == [f"mine {TASK}"]
    assert runs(out, **given) == []


def test_an_edited_task_runs_again(tmp_path: Path) -> None:
    given: Any = {"plugins": [write(tmp_path / "own.py", TASKS_FILE)], "tasks": [TASK, "rolled"]}
    out = tmp_path / "out"
    assert runs(out, methods=["fm"], **given) == [f"fm {TASK}", "fm rolled"]
    assert runs(out, methods=["fm"], **given) == []
    write(tmp_path / "own.py", TASKS_FILE + "# edited\n")
    assert runs(out, methods=["fm"], **given) == ["fm rolled"]


def test_an_edited_patch_of_a_network_runs_again(
    tmp_path: Path, restored: Callable[[], None]
) -> None:
    text = f"from methods import networks\n{PATCHES['wrapped']}"
    path, out = write(tmp_path / "own.py", text), tmp_path / "out"
    seen = [len(runs(out, methods=["fm"]))]
    for edit in ("", "", "\n# edited\n"):
        restored()
        write(tmp_path / "own.py", text + edit)
        seen.append(len(runs(out, methods=["fm"], plugins=[path])))
    restored()
    seen.append(len(runs(out, methods=["fm"])))
    assert seen == [1, 1, 0, 1, 0]


def test_an_edit_is_noticed_in_the_process_that_has_loaded_it(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", METHOD)
    digest = load_plugin(path)
    assert load_plugin(path) == digest
    write(tmp_path / "own.py", METHOD + "# edited\n")
    arguments = {"methods": ["mine"], "tasks": [TASK], "out": tmp_path / "out"}
    with pytest.raises(SpecError) as caught:
        bench.run(plugins=[path], **arguments)
    assert str(caught.value) == (
        f"plugin: {path!r} has changed since it was loaded; start a new process"
    )


def test_a_worker_refuses_a_plugin_that_is_not_the_planned_one(tmp_path: Path) -> None:
    path = write(tmp_path / "own.py", METHOD)
    wanted = {"own": load_plugin(path)}
    write(tmp_path / "own.py", METHOD + "# edited\n")
    assert why_not_here(wanted, [path]) is None  # what is loaded is what was planned with
    plugins._loaded.clear()
    METHODS.pop("mine")
    assert why_not_here(wanted, [path]) == "plugin: own.py changed during the run"
    assert why_not_here({}, [path]) is None
    reason = why_not_here({}, [write(tmp_path / "raising.py", "1 / 0")])
    assert reason is not None
    assert "raises ZeroDivisionError" in reason


def test_a_cell_whose_plugin_is_edited_before_its_worker_starts_fails_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "own.py", METHOD)
    load = bench.sweep.load

    def then_edited(plugins: Iterable[str], data_root: str | None) -> None:
        load(plugins, data_root)
        write(tmp_path / "own.py", METHOD + "# edited\n")

    monkeypatch.setattr(bench.sweep, "load", then_edited)
    given: Any = {"tasks": [TASK], "methods": ["mine", "fm"], "plugins": [path], **QUICK}
    rows = bench.run(out=tmp_path / "out", jobs=2, **given).set_index("method")
    assert rows["status"].to_dict() == {"mine": "failed", "fm": "done"}
    assert rows.loc["mine", "reason"] == "plugin: own.py changed during the run"


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "from methods import Method, register\n@register\nclass Mine(Method):\n"
            "    name = 'mine'\n    title = 'Mine'\n",
            r"^plugin 'own.py': method 'mine' lacks model",
        ),
        (
            "from datasets import Task, register\n@register\nclass Mine(Task):\n"
            "    name = 'mine'\n    title = 'Mine'\n    dim = 2\n",
            r"^plugin 'own.py': task 'mine' lacks source, target$",
        ),
        ("1 / 0", r"^plugin: '.*own.py' raises ZeroDivisionError: division by zero$"),
        ("import sys; sys.exit(3)", r"^plugin: '.*own.py' raises SystemExit: 3$"),
        ("def", r"^plugin: '.*own.py' raises SyntaxError: "),
        (METHOD.replace('"mine"', '"fm"'), r"raises ValueError: a method named 'fm' is regist"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    before = dict(METHODS)
    for _ in range(2):  # and leaves nothing behind
        with pytest.raises(SpecError, match=said):
            load_plugin(write(tmp_path / "own.py", text))
    assert before == METHODS
    assert loaded() == {}
    assert load_plugin(write(tmp_path / "own.py", METHOD))  # mended


@pytest.mark.parametrize("path", ["missing.py", ".", "", "a\0b.py", "x" * 5000 + ".py", 5, None])
def test_what_is_no_python_file_is_refused(path: str) -> None:
    with pytest.raises(SpecError, match=r"^plugin: expected a Python file, got "):
        load_plugin(path)


def test_two_plugins_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    load_plugin(write(tmp_path / "own.py", METHOD))
    with pytest.raises(SpecError, match="has the name of another one"):
        load_plugin(write(tmp_path / "other" / "own.py", TWO))
