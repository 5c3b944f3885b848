"""Random command lines, configuration files and calls: a plan, or one line and status 2."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import bench.run
from bench.config.errors import MAX_MESSAGE, SpecError
from bench.config.settings import SECTIONS, public_fields
from datasets import TASKS
from methods import METHODS
from tests.commands import run_main

FUZZ = settings(
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

EVERY_KEY = sorted(
    {
        key
        for owner in (*SECTIONS.values(), *METHODS.values(), *TASKS.values())
        for key in public_fields(owner)
    }
)
EVERY_SETTING = [
    f"{name}.{key}"
    for name, owner in {**SECTIONS, **METHODS, **TASKS}.items()
    for key in public_fields(owner)
]


@pytest.fixture(scope="module", autouse=True)
def small_grids_and_no_training() -> Iterator[None]:
    """Plans of a moderate size, so that 500 are fast; an error if anything is about to run."""
    no_run = mock.Mock(side_effect=AssertionError("the fuzz must not train"))
    with (
        mock.patch("bench.config.values.MAX_CELLS", 2000),
        mock.patch("bench.execute.cost.MAX_SETTINGS", 1),
        mock.patch("bench.execute.session.open_executor", no_run),
    ):
        yield


# ---------------------------------------------------------------------------- what is in an input


def any_of(words: str, *others: str) -> st.SearchStrategy[str]:
    """One of the words, or of the others."""
    return st.sampled_from([*words.split(), *others])


# Surrogates too: that is how bytes that are not UTF-8 reach Python from a command line.
CHARACTERS = st.one_of(
    st.characters(codec=None),
    st.sampled_from("\0\n\r\t\x1b\x7f\x85\u2028\ud800\udcff=,.-'\"\\ ٣³½é"),
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=12),
    st.text(CHARACTERS, min_size=1, max_size=3).map(lambda text: text * 1500),
)
NUMBERS = any_of(
    """0 1 2 6 30 0.5 1e3 -1 -0 -0.0 1e-300 1e308 -1e308 1e309 nan inf -inf Infinity 1_000 1__0 _1
    0x10 0b1 1e 1.2.3 +5 ３ ٣ 1٣ ½ 1j 007 1,5 2147483648 9223372036854775808 none None true , 6,
    6,6""",
    *("", " ", " 6 ", "1" + "0" * 30, "9" * 400, "9" * 5000, "-" + "9" * 5000),
)
WORDS = any_of(
    """all log heun dopri5 FM fm, fm,fm efm,fmm .. ../.. / /dev/null default toy cuda:99""",
    *(*METHODS, *TASKS, *SECTIONS, *EVERY_KEY, *EVERY_SETTING),
)
RANGES = any_of(
    """0-4 0-0 4-0 0- -4 - -- 0-1-2 0-999999999 0-99999 5-7,1,6 999999999 9999999999 ٣-٤ 0-1e3""",
    *("0 - 3", ",".join(str(k) for k in range(3000))),
)
VALUES = st.one_of(NUMBERS, WORDS, RANGES, TEXTS, st.lists(NUMBERS, max_size=5).map(",".join))
GRIDS = st.integers(2, 400).map(lambda n: ",".join(str(k) for k in range(1, n)))


def listed(names: Sequence[str]) -> st.SearchStrategy[str]:
    """``all``, or some of the names, with commas."""
    return st.just("all") | st.lists(st.sampled_from(names), min_size=1, max_size=4).map(",".join)


VALID_SETTINGS = any_of(
    """efm.points=log,mix efm.points=capacitor efm.charges=8 efm.L=6,7 steps=5 batch=16 L=1_0
    pfgm.z_max=20,40 pfgm.gamma=0.5 fm.sigma=0.1 sigma=0.1 train.lr=1e-3,5e-3 train.ema=0
    train.clip=0.5 train.warmup=0 network.width=16 network.depth=1,2 network.skip=on eval.n=64
    eval.draws=iid sample.solver=euler,dopri5 sample.solver_steps=5 gaussian_to_8gaussians.std=0.1
    gaussian_to_swiss_roll.noise=0,0.5""",
    " L = 6 ",
)
VALID = st.one_of(
    st.tuples(st.just("--methods"), listed([*METHODS])),
    st.tuples(st.just("--tasks"), listed([*TASKS])),
    st.tuples(
        st.just("--seeds"), st.sampled_from(["0", "0-2", "3,1", "5-6, 9", "0,0", "999999999"])
    ),
    st.tuples(st.just("--L"), st.sampled_from(["6", "6,30", "6.0,6", "1e1", "0.5"])),
    st.tuples(st.just("--sigma"), st.sampled_from(["0.1", "0.1,1", "1e-3"])),
    st.tuples(st.just("--steps"), st.sampled_from(["1", "100,200", "1e3"])),
    st.tuples(st.just("--batch"), st.sampled_from(["2", "512"])),
    st.tuples(st.just("--set"), VALID_SETTINGS),
    st.tuples(st.just("--jobs"), st.sampled_from(["1", "2"])),
    st.tuples(st.just("--device"), st.sampled_from(["cpu", "auto"])),
    st.tuples(st.just("--suite"), st.sampled_from(["default", "toy"])),
    st.just(("--force",)),
)
OPTIONS = any_of(
    """--methods --tasks --suite --seeds --L --sigma --steps --batch --set --device --jobs --out
    --config --force --threads --timeout --memory --tensorboard --scheduler --plugin --method --meth
    --see --L= -L -s -j2 --no-force --dry-run --list --help -h -- - --METHODS --set= --="""
)
SETTING_NAMES = st.one_of(
    st.sampled_from(EVERY_SETTING + EVERY_KEY), st.tuples(WORDS, WORDS).map(".".join), TEXTS
)
ASSIGNMENTS = st.tuples(SETTING_NAMES, VALUES | GRIDS).map("=".join)
NOISE = st.one_of(
    st.tuples(OPTIONS),
    st.tuples(VALUES),
    st.tuples(OPTIONS, VALUES),
    st.tuples(OPTIONS, VALUES).map(lambda pair: ("=".join(pair),)),
    st.tuples(st.just("--set"), ASSIGNMENTS),
    st.tuples(st.sampled_from(["--L", "--sigma", "--steps", "--seeds"]), GRIDS | NUMBERS),
)


def command_lines() -> st.SearchStrategy[list[str]]:
    """Arguments that are valid by themselves, and in half of the cases others among them."""
    valid = st.lists(VALID, max_size=5)
    mixed = st.lists(st.one_of(VALID, NOISE), min_size=1, max_size=5)
    return (valid | mixed).map(lambda parts: [word for part in parts for word in part])


# ------------------------------------------------------------------------------- what comes of it


def check(argv: Sequence[str]) -> str:
    """The command prints a plan, or one line and nothing else; says which."""
    with tempfile.TemporaryDirectory() as folder:
        status, out, err = run_main(["--dry-run", "--out", f"{folder}/out", *argv])
        assert os.listdir(folder) in ([], ["mine.toml"])  # a plan writes nothing
    if status == 2:
        assert out == ""
        assert err.startswith("bench.run: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        assert len(err) <= MAX_MESSAGE + len("bench.run: \n")
        return "refused"
    assert status == 0
    remark = "bench.run: (left out: .*|.*, it is ignored)"
    assert all(re.fullmatch(remark, line) for line in err.splitlines())
    if out.startswith(("usage: ", "methods (--methods")):
        return "list or help"
    *lines, last = out.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in [*lines, last])
    cells = [line for line in lines if re.match("[0-9a-f]{16} (to do|finished) ", line)]
    found = re.fullmatch(r"(\d+) cells, \d+ to do, in .+", last)
    assert found
    assert int(found[1]) == len(cells) > 0
    return "a plan"


@settings(FUZZ, max_examples=60)
@given(command_lines())
def test_random_command_lines(argv: list[str]) -> None:
    event(check(argv))


@pytest.mark.slow
@settings(FUZZ, max_examples=350)
@given(command_lines())
def test_many_random_command_lines(argv: list[str]) -> None:
    event(check(argv))


LITERALS = st.one_of(
    any_of(
        """1 6.5 '6' [6,30] ['log','mix'] true false [] {} {a=1} inf nan -nan 1979-05-27 07:32:00
        1979-05-27T07:32:00Z [[1],[2]] [{a=1}] 0xff 0o7 1_000 -0.0 1e400 'none' '' [1,'a',true]
        "\\u0000\\n" 'all' ['fm'] '0-2' [0,1] [0.5] 'gaussian_to_digits'""",
        *("9" * 5000, "[" * 60 + "]" * 60, "[" * 9000),
    ),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
)
KEYS = any_of(
    """methods tasks seeds settings L sigma steps batch out "a\\nb" ''
    '.L' 'efm.' a.b.c 'train.lr'""",
    *EVERY_KEY,
    *EVERY_SETTING,
)
HEADERS = st.sampled_from(
    [
        f"[{name}]"
        for name in (*SECTIONS, *METHODS, *TASKS, "methods", "seeds", "L", "train.lr", "''")
    ]
    + ["[[train]]", "[['']]", "[", "[a.'b\\n'.c]"]
)
VALID_LINES = [
    ("methods", ["['fm']", "['efm', 'fm']", "'pfgm'"]),
    ("tasks", ["['gaussian_to_digits']", "'gaussian_to_swiss_roll'"]),
    ("seeds", ["'0-2'", "[0, 5]", "3"]),
    ("L", ["6", "[6, 30.0]", "'7'"]),
    ("sigma", ["0.5", "[0.1, 1]"]),
    ("train.lr", ["1e-3"]),
    ("network.width", ["[8, 16]"]),
    ("efm.points", ["'log'", "['mix', 'uniform']"]),
]


@st.composite
def valid_files(draw: st.DrawFn) -> bytes:
    """A configuration in which each key is given at most once."""
    lines = [
        f"{key} = {draw(st.sampled_from(values))}"
        for key, values in VALID_LINES
        if draw(st.booleans())
    ]
    return "\n".join(lines).encode()


@st.composite
def doubtful_files(draw: st.DrawFn) -> bytes:
    """TOML, or nearly so, with any value anywhere."""
    lines = draw(
        st.lists(
            HEADERS | st.tuples(KEYS, LITERALS).map(" = ".join), min_size=1, max_size=5, unique=True
        )
    )
    return draw(valid_files()) + b"\n" + "\n".join(lines).encode()


FILES = st.one_of(valid_files(), valid_files(), doubtful_files(), st.binary(max_size=40))


@settings(FUZZ, max_examples=40)
@given(FILES, st.lists(VALID, max_size=2))
def test_random_configuration_files(content: bytes, options: list[tuple[str, ...]]) -> None:
    check_file(content, options)


@pytest.mark.slow
@settings(FUZZ, max_examples=150)
@given(FILES, st.lists(VALID, max_size=2))
def test_many_random_configuration_files(content: bytes, options: list[tuple[str, ...]]) -> None:
    check_file(content, options)


def check_file(content: bytes, options: list[tuple[str, ...]]) -> None:
    """:func:`check` with a configuration file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_bytes(content)
        event(check([*(word for option in options for word in option), "--config", str(path)]))


@pytest.mark.parametrize("path", ["missing.toml", "/", ".", "..", "", "a\0b", "\udcff"])
def test_a_configuration_that_is_no_file(path: str) -> None:
    assert check(["--config", path]) == "refused"


@pytest.mark.parametrize("out", ["", "a\nb", "a\0b", "\udcff", "x" * 5000])
def test_an_odd_output_folder(out: str) -> None:
    assert check(["--out", out]) == "refused"


@pytest.mark.parametrize("name", ["...toml", ".toml", "a\nb.toml", "\udcff.toml"])
def test_no_folder_is_named_after_an_odd_configuration(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("methods = ['fm']\n")
    status, out, err = run_main(["--dry-run", "--config", str(tmp_path / name)])
    assert (status, out) == (2, "")
    assert err.startswith("bench.run: config: no folder can be named after ")
    assert err[:-1].isprintable()


# ------------------------------------------------------------------------------------ from Python

NO_SETTING = st.one_of(
    st.sampled_from([float("nan"), float("inf"), -float("inf"), True, np.bool_(False), 1j, b"6"]),
    st.sampled_from(
        [10**400, -(10**400), object(), {}, {"a": 1}, [], (), [[]], [{6: 1}], "x", "٣"]
    ),
    st.sampled_from(
        [None, "nan", "\0", "\ud800", np.array([[6.0]]), np.array(float("nan")), range(0)]
    ),
)
NO_NAMES = st.one_of(
    TEXTS.filter(lambda text: text not in {*METHODS, *TASKS, *SECTIONS}),
    st.sampled_from([1, 1.5, [], [None], [[]], [1], {}, ["fm\n"], object(), ["fm", "x"], range(3)]),
)
NO_SEEDS = st.sampled_from(
    [
        *(-1, [-1], [1.5], ["a"], "a", "4-0", [], [None], [[0]], {}, object(), 10**9, [10**400]),
        *([-(10**400)], range(10**12), float("nan"), [float("inf")], np.array([[0]])),
    ]
)
NO_CALLS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"L": NO_SETTING}),
    st.fixed_dictionaries({"steps": NO_SETTING | st.sampled_from([0, -1, 2.5, "1.5", 1e300])}),
    st.tuples(TEXTS.filter(lambda text: text not in {*EVERY_KEY, "steps"}), NO_SETTING).map(
        lambda pair: dict([pair])
    ),
    st.fixed_dictionaries({"methods": NO_NAMES}),
    st.fixed_dictionaries({"tasks": NO_NAMES}),
    st.fixed_dictionaries({"suite": NO_NAMES | st.sampled_from(["..", "/", "../default", None])}),
    st.fixed_dictionaries({"seeds": NO_SEEDS}),
    st.fixed_dictionaries({"jobs": st.sampled_from([0, -1, 1.5, "2.5", float("nan"), [], 10**9])}),
    st.fixed_dictionaries(
        {
            "device": st.sampled_from(
                ["", "gpu", "cuda:99", "cuda:x", "\0", "\ud800", "meta", 0, [], b"gpu"]
            )
        }
    ),
    st.fixed_dictionaries(
        {"out": st.sampled_from(["", 5, b"x", [], "a\0b", "/dev/null/x", "/proc/x"])}
    ),
)


@settings(FUZZ, max_examples=150)
@given(NO_CALLS)
def test_random_calls_that_are_mistakes(arguments: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        called = {"methods": ["efm"], "seeds": [0], "out": f"{folder}/out", **arguments}
        with pytest.raises(SpecError) as caught:
            bench.run(**called)
        assert os.listdir(folder) == []
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= MAX_MESSAGE
