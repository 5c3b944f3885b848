"""The list that is read from the source says what is registered."""

from pathlib import Path

import pytest

from bench.config.catalogue import (
    SECTIONS,
    lines_of,
    read_catalogue,
    registered_catalogue,
    suites,
)
from bench.config.plugins import load_plugin
from bench.config.settings import SECTIONS as REAL_SECTIONS
from bench.metrics import METRICS
from datasets import TASKS
from methods import METHODS
from tests.commands import run_main


def test_what_is_read_is_what_is_registered() -> None:
    found, expected = read_catalogue(), registered_catalogue(METRICS)
    assert list(found) == list(expected)
    for heading, entries in found.items():
        assert entries == expected[heading], heading
    methods, tasks, _, metrics, sections = found.values()
    assert {entry.name for entry in methods} == set(METHODS)
    assert {entry.name for entry in tasks} == set(TASKS)
    assert {entry.name for entry in metrics} == set(METRICS)
    assert {name: kind.__name__ for name, kind in REAL_SECTIONS.items()} == SECTIONS
    assert {entry.name for entry in sections} == set(SECTIONS)
    (efm,) = [entry for entry in methods if entry.name == "efm"]
    assert {"L", "sigma", "points"} <= set(efm.settings)
    assert "plate_distance" not in efm.settings


@pytest.mark.parametrize("width", [20, 60, 100, 400])
def test_the_list_is_plain_text_of_the_width_of_the_terminal(width: int) -> None:
    lines = list(lines_of(read_catalogue(), width))
    text = "\n".join(lines)
    for mark in ("``", ":func:", ":math:", ":class:", "`"):
        assert mark not in text
    assert max(map(len, lines)) <= max(width, 70)
    for name in [*METHODS, *TASKS, *METRICS, *SECTIONS, *suites()]:
        assert any(f"{line} ".startswith(f"  {name} ") for line in lines), name


def test_a_plugin_is_in_the_list(tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "from methods import register\nfrom methods.fm import FlowMatching\n@register\n"
        "class Mine(FlowMatching):\n  name = 'mine'\n  title = 'My method'\n  extra: int = 3\n"
        "from bench.metrics import metric\n@metric('my_metric', 'my metric', 'distance')\n"
        "def my_metric(samples, target):\n    return 0.0\n"
    )
    ended = run_main(["--list", "--plugin", str(plugin)])
    assert ended.status == 0
    for words in ("My method", "sigma, extra", "my_metric"):
        assert words in ended.out
    assert "my_metric" not in run_main(["--list"]).out
    assert load_plugin(str(plugin))
