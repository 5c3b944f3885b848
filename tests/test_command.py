"""What all commands share: light starts, closed pipes, one line when they are interrupted."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.command import INTERRUPTED, MISUSED, UNREAD, Parser, entry
from bench.config.errors import SpecError
from methods import METHODS

ROOT = Path(__file__).parent.parent
LIGHT = [["--help"], ["--list"]]


def seconds(*arguments: str) -> float:
    """Processor time of a Python process, the best of three."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


@pytest.mark.parametrize("words", LIGHT, ids=str)
def test_help_and_list_come_at_once(words: list[str]) -> None:
    """Within .6 s on a machine on which Python itself starts in .03 s."""
    assert seconds("-m", "bench.run", *words) < max(0.6, 20 * seconds("-c", "pass"))


@pytest.mark.parametrize("words", LIGHT, ids=str)
def test_help_and_list_import_nothing_large(words: list[str]) -> None:
    code = (
        "import sys, contextlib, bench.run\n"
        f"with contextlib.suppress(SystemExit): bench.run.main({words})\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = set(done.stderr.split())
    assert "pydantic" in imported
    assert imported.isdisjoint({"torch", "pandas", "numpy", "scipy", "methods", "datasets"})
    if words == ["--list"]:
        assert all(f"  {name} " in done.stdout for name in METHODS)


@pytest.mark.parametrize("words", ["--dry-run --seeds 0-999 --methods fm", "--list", "--help"])
def test_output_that_nobody_reads_ends_a_command_quietly(words: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "bench.run", "--out", str(tmp_path), *words.split()],
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr == ""
    assert done.returncode == (0 if words == "--help" else UNREAD)  # argparse ignores it


def test_a_broken_pipe_elsewhere_is_an_error() -> None:
    def command(words: Sequence[str]) -> int:
        raise BrokenPipeError("that of a worker")

    with (
        open(os.devnull, "w") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        pytest.raises(BrokenPipeError, match="worker"),
    ):
        entry("x", command, [])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (SpecError("L: no value"), MISUSED, "bench.x: L: no value\n"),
        (KeyboardInterrupt(), INTERRUPTED, "bench.x: interrupted\n"),
    ],
)
def test_what_ends_a_command_early_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(words: Sequence[str]) -> int:
        assert words == ["a"]
        raise error

    assert entry("bench.x", command, ["a"]) == status
    assert capsys.readouterr().err == line


def test_options_that_are_nearly_right_get_a_hint() -> None:
    parser = Parser("bench.x", None)
    parser.add_options()
    with pytest.raises(
        SpecError, match=r"^unrecognized arguments: --jbos=2, did you mean --jobs\?$"
    ):
        parser.read(["--jbos=2"])
    with pytest.raises(SpecError, match=r"^unrecognized arguments: --wholly-different 2$"):
        parser.read(["--wholly-different", "2"])
