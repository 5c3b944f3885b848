"""Plans: what a cell's identity is made of, what a plan costs, and what is refused."""

import hashlib
import itertools
import json
import pickle
import re
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError, create_model

from bench.config.cell import Cell
from bench.config.errors import MAX_MESSAGE, SpecError
from bench.config.files import folder_name, merge, read_config, suite_path
from bench.config.grid import Spec, Variation
from bench.config.settings import SECTIONS, EvalSettings, TrainSettings, public_fields
from bench.config.values import MAX_CELLS, as_list, checked_settings, parse_seeds, parse_values
from datasets import TASKS
from methods import METHODS
from methods.fm import FlowMatching
from methods.networks import NetworkSettings

TASK = "gaussian_to_swiss_roll"
Settings = dict[str, list[Any]]


def plan(
    methods: str | list[str],
    tasks: str | list[str] = TASK,
    seeds: tuple[int, ...] = (0,),
    settings: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The cells of a grid."""
    given = {
        name: value if isinstance(value, list) else [value]
        for name, value in (settings or {}).items()
    }
    return Spec(
        methods=[methods] if isinstance(methods, str) else methods,
        tasks=[tasks] if isinstance(tasks, str) else tasks,
        seeds=list(seeds),
        settings=given,
    ).cells()


def only(method: str = "efm", task: str = TASK, **settings: Any) -> Cell:
    """The one cell of a plan; ``train__lr`` is ``train.lr``."""
    (cell,) = plan(method, task, settings={k.replace("__", "."): v for k, v in settings.items()})
    return cell


def plain_id(cell: Cell) -> str:
    """The definition of a cell's id."""
    text = json.dumps(cell.model_dump(mode="json"), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------- identity


def test_ids_are_the_hash_of_the_whole_cell() -> None:
    settings: Settings = {
        "L": [6, 30.0],
        "sigma": [0.1, 1e-7],
        "efm.points": ["log", "mix"],
        "train.lr": [1e-3, 5e-3],
        "sample.solver": ["heun", "dopri5"],
        f"{TASK}.noise": [0.5],
    }
    tasks = [
        TASK,
        "gaussian_to_8gaussians",
        "moons_to_8gaussians",
        "gaussian_to_digits",
        "digits_3_to_2",
    ]
    cells = plan(["efm", "efm-exact", "fm", "pfgm"], tasks, (0, 7), settings)
    assert len(cells) == 440
    for cell in cells:
        assert cell.id == plain_id(cell)
        assert cell.id == Cell(**{name: getattr(cell, name) for name in Cell.model_fields}).id
    assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_record_gives_its_id_back(method: str, task: str) -> None:
    for cell in plan(method, task, (0, 3), {"sigma": [0.3], "L": [7], "train.lr": [1 / 3]}):
        stored = json.loads(json.dumps(cell.model_dump(mode="json")))
        read = Cell.model_validate(stored)
        assert read == cell
        assert read.id == cell.id


def test_the_order_of_settings_does_not_matter() -> None:
    settings = {"L": 6, "efm.charges": 64, "train.lr": 1e-3, "eval.n": 100, "network.width": 32}
    (first,) = plan("efm", settings=settings)
    (second,) = plan("efm", settings=dict(reversed(settings.items())))
    assert first.id == second.id


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("L", [6, 6.0, "6", "6.0", " 6e0", np.float64(6), np.float32(6), np.int64(6)]),
        ("sigma", [0, 0.0, -0.0, "-0", "-0.0", "0e7"]),
        ("train__steps", [1000, 1000.0, "1000", "1e3", "1_000", np.int32(1000)]),
        ("network__width", [64, 64.0, "64"]),
    ],
)
def test_the_spelling_of_a_number_does_not_matter(name: str, spellings: list[Any]) -> None:
    ids = {only(**{name: spelling}).id for spelling in spellings}
    assert len(ids) == 1
    cells = plan("efm", settings={name.replace("__", "."): spellings})
    assert [cell.id for cell in cells] == list(ids)


def owners_of_settings() -> Iterator[tuple[str, str, str, type[BaseModel]]]:
    """Method, task, section and model of everything that has settings."""
    for section, model in SECTIONS.items():
        yield "efm", TASK, section, model
    for name, method in METHODS.items():
        yield name, TASK, name, method
    for name, task in TASKS.items():
        yield "efm", name, name, task


OF_IMAGES = ("unet", "dropout", "precondition")  # the last is none of EFM's in the plane
EVERY_SETTING = [
    (method, "gaussian_to_digits" if key in OF_IMAGES else task, f"{section}.{key}")
    for method, task, section, model in owners_of_settings()
    for key in public_fields(model)
]


def other_values(annotation: Any, value: Any) -> list[Any]:
    """Values that a setting might take instead of ``value``."""
    if annotation is str:
        return ["2+3", "other"]  # some digits, a folder
    if get_origin(annotation) is Literal or not isinstance(value, int | float):
        words = [word for part in (annotation, *get_args(annotation)) for word in get_args(part)]
        words += get_args(annotation)
        numbers = [0.01] if value is None and float in words else []
        return [w for w in dict.fromkeys(words) if isinstance(w, str) and w != value] + numbers
    return [value * 2, value / 2, value + 1, value + 0.5, value + 2]


def value_of(cell: Cell, setting: str) -> Any:
    """The value of a setting in a cell."""
    section, _, key = setting.partition(".")
    if section in SECTIONS:
        return getattr(getattr(cell, section), key)
    return (cell.hyperparameters if section in METHODS else cell.task_parameters)[key]


NEEDS = {
    "crossing": ("lines", "stop_rule"),
    "bandwidth": ("source", "samples"),
    "block": ("coupling", "ot"),
    "tolerance": ("lines", "stop_rule"),
    "unet": ("architecture", "unet"),
    "dropout": ("architecture", "unet"),
    "gamma": ("target", "per_plate"),
}
"""Settings that apply with the value of another one only."""


def with_another_value(method: str, task: str, setting: str) -> Cell | None:
    """A cell that differs in one setting; None where it has one value only."""
    section, _, key = setting.partition(".")
    model = {**SECTIONS, **METHODS, **TASKS}[section]
    names = dict(zip(public_fields(model), model.model_fields.values(), strict=True))
    other, needed = NEEDS.get(key, ("", ""))
    given: Settings = {f"{section}.{other}": [needed]} if other in names else {}
    before = value_of(only(method, task, **given), setting)
    for value in other_values(names[key].annotation, before):
        try:
            (cell,) = plan(method, task, settings={**given, setting: value})
        except SpecError:  # not a value of this setting
            continue
        if value_of(cell, setting) != before:
            return cell
    return None


@pytest.mark.parametrize(("method", "task", "setting"), EVERY_SETTING)
def test_every_setting_is_in_the_id(method: str, task: str, setting: str) -> None:
    cell = with_another_value(method, task, setting)
    assert cell is not None
    assert cell.id != only(method, task).id
    assert cell.id == plain_id(cell)


def test_method_task_seed_and_task_version_are_in_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = plan(["efm", "fm", "pfgm"], list(TASKS), (0, 1))
    assert len({cell.id for cell in cells}) == 3 * len(TASKS) * 2
    before = only().id
    monkeypatch.setattr(TASKS[TASK], "version", 2)
    assert only().id != before


@pytest.mark.parametrize("names", [("efm.L", "L"), ("L", "efm.L")])
def test_the_setting_of_a_method_overrides_a_bare_one_in_any_order(names: tuple[str, str]) -> None:
    values = {"efm.L": 5.0, "L": 20.0}
    (cell,) = plan("efm", settings={name: values[name] for name in names})
    assert cell.hyperparameters["L"] == 5.0


def with_default(model: type[BaseModel], **defaults: Any) -> type[Any]:
    """The same model with other defaults."""
    fields: dict[str, Any] = {
        name: (model.model_fields[name].annotation, value) for name, value in defaults.items()
    }
    return create_model(model.__name__, __base__=model, **fields)


def test_a_changed_default_is_a_new_id(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [only("fm").id]
    monkeypatch.setitem(SECTIONS, "train", with_default(TrainSettings, lr=1e-4))
    ids.append(only("fm").id)
    monkeypatch.setitem(METHODS, "fm", with_default(FlowMatching, sigma=0.5))
    ids.append(only("fm").id)
    monkeypatch.setitem(TASKS, TASK, with_default(TASKS[TASK], noise=0.1))
    ids.append(only("fm").id)
    monkeypatch.setattr(
        METHODS["fm"], "defaults", lambda dim, noise, data_set: {"sigma": 0.125 * dim}
    )
    ids.append(only("fm").id)
    assert len(set(ids)) == len(ids)


def test_a_changed_copy_has_an_id_of_its_own() -> None:
    cell = only()
    copy = cell.model_copy(update={"seed": 5})
    assert copy.id == plain_id(copy) != cell.id
    assert cell.model_copy(deep=True).id == cell.id


def test_cells_of_a_plan_share_no_values_that_can_change() -> None:
    first, second = plan("efm", seeds=(0, 1))
    first.hyperparameters["L"] = 99
    first.task_parameters["noise"] = 99
    assert second.id == plain_id(second) == plan("efm", seeds=(1,))[0].id


# ----------------------------------------------------------------------------------------- cost


def test_ten_thousand_cells_take_less_than_a_second() -> None:
    settings: Settings = {"L": list(range(1, 101)), "train.lr": [k * 1e-4 for k in range(1, 101)]}
    begin = time.process_time()
    cells = plan("efm", settings=settings)
    assert len({cell.id for cell in cells}) == 10_000
    assert time.process_time() - begin < 0.8


def test_a_section_is_validated_once_for_each_of_its_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[float] = []

    class Counted(TrainSettings):
        def model_post_init(self, context: Any) -> None:
            built.append(self.lr)

    monkeypatch.setitem(SECTIONS, "train", Counted)
    lrs = [1e-3, 2e-3, 3e-3]
    cells = plan("efm", seeds=(0, 1), settings={"L": [1, 2, 3, 4], "train.lr": lrs, "sigma": [0.1]})
    assert len(cells) == 24
    assert built == lrs
    assert {cell.train.lr for cell in cells} == set(lrs)


@pytest.mark.parametrize(
    "settings",
    [
        {
            f"train.{key}": list(range(1, 1001))
            for key in ("steps", "batch", "lr", "clip", "warmup")
        },
        {"L": list(range(1, MAX_CELLS // 2 + 2))},
        {"efm.L": range(1, MAX_CELLS + 2)},
    ],
)
def test_a_grid_too_large_is_refused_before_it_is_made(settings: dict[str, Any]) -> None:
    begin = time.process_time()
    with pytest.raises(SpecError, match=f"at most {MAX_CELLS}"):
        plan("efm", seeds=(0, 1), settings={name: list(v) for name, v in settings.items()})
    assert time.process_time() - begin < 2


def test_repeated_names_and_seeds_are_one_cell() -> None:
    many = MAX_CELLS + 1
    assert len(plan(["fm"] * many + ["efm"], seeds=(0,) * MAX_CELLS)) == 2
    assert len(plan("fm", [TASK] * many, seeds=(0,) * many)) == 1


@pytest.mark.parametrize("text", ["0-999999999", ",".join(f"{k}00000-{k}99999" for k in range(9))])
def test_seeds_beyond_all_use_are_refused_before_they_are_made(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(SpecError, match=f"^seeds: at most {MAX_CELLS} values"):
        parse_seeds(text)
    assert time.process_time() - begin < 2


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({".L": 6}, ["unknown section ''", "efm"]),  # was taken, and then not used
        ({"": 6}, ["unknown setting ''"]),
        ({".": 6}, ["unknown section ''"]),
        ({"efm.": 6}, ["unknown setting ''", "points"]),
        ({"efm.plate_distance": 6}, ["unknown setting 'plate_distance'"]),
        ({"efm.L.L": 6}, ["unknown section 'efm.L'"]),
        ({"L": 10**400}, ["L", "finite number"]),
        ({"L": "9" * 5000}, ["L", "finite number"]),
        ({"L": "1e400"}, ["L", "finite number", "1e400"]),
        ({"L": "nan"}, ["L", "finite number"]),
        ({"L": float("nan")}, ["L", "finite number"]),
        ({"L": np.float64("inf")}, ["L", "finite number"]),
        ({"L": True}, ["L", "finite number", "True"]),
        ({"L": np.bool_(True)}, ["L", "finite number"]),
        ({"L": [[6, 30]]}, ["L", "finite number", "[6, 30]"]),
        ({"L": {"a": 1}}, ["L", "finite number", "'a'"]),
        ({"L": b"6"}, ["L", "finite number"]),
        ({"L": 1j}, ["L", "finite number"]),
        ({"L": np.array(6.0)}, ["L", "finite number"]),
        ({"L": "٣"}, ["efm.L", "number", "٣"]),
        ({"L": "0x10"}, ["efm.L", "number", "0x10"]),
        ({"L": "\ud800"}, ["efm.L", r"\ud800"]),
        ({"L": None}, ["efm.L", "number", "None"]),
        ({"L": []}, ["L", "no value"]),
        ({"train.steps": 2.5}, ["train.steps", "integer", "2.5"]),
        ({"eval.n": 20_001}, ["eval.n", "less than or equal to 20000"]),
        ({"train.steps": 1e300}, ["train.steps", "integer"]),
        ({"efm.points": "x" * 10**6}, ["efm.points", "capacitor", " ... "]),
        ({"efm.points": "a\nb\x00\x1b\u2028"}, ["efm.points", r"\n", r"\x00", r"\x1b", r"\u2028"]),
        ({"x\n.y": 1}, [r"x\n.y"]),
    ],
)
def test_a_setting_that_is_none_is_refused_in_one_line(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        plan("efm", settings=settings)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= MAX_MESSAGE
    for word in words:
        assert word in message


def test_numbers_of_numpy_become_those_of_python() -> None:
    values = [np.int64(2**53 + 1), np.int8(-3), np.float64(0.1), np.float32(0.5), Fraction(1, 4)]
    (checked,) = checked_settings({"L": values}).values()
    assert checked == [2**53 + 1, -3, 0.1, 0.5, 0.25]
    assert [type(value) for value in checked] == [int, int, float, float, float]


@pytest.mark.parametrize("seeds", [(), (-1,), (10**9,), (10**400,)])
def test_seeds_out_of_range_are_refused(seeds: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"^seeds: "):
        plan("fm", seeds=seeds)


@pytest.mark.parametrize("text", ["٣", "1_0", "+1", "1e3", "0x1", "-", "1-", "-1", "1-2-3", "0.5"])
def test_seeds_are_plain_digits(text: str) -> None:
    with pytest.raises(SpecError, match="expected numbers such as"):
        parse_seeds(text)


def test_seeds_keep_their_order_and_come_once() -> None:
    assert parse_seeds("7, 0-2,1,7") == [7, 0, 1, 2]


def test_values_are_numbers_none_or_words() -> None:
    assert parse_values("6, 0.5,1e3,none,None,log,٣,0x10,") == [
        *(6, 0.5, 1000.0, None, None),
        *("log", "٣", "0x10"),
    ]


@pytest.mark.parametrize("names", [["FM"], ["fm "], [""], ["../fm"], ["fm\n"], ["efm.L"], []])
def test_names_are_those_that_are_known(names: list[str]) -> None:
    with pytest.raises(SpecError, match=r"^methods: "):
        plan(names)
    with pytest.raises(SpecError, match=r"^tasks: "):
        plan("fm", names)


@pytest.mark.parametrize(
    ("value", "values"),
    [
        (6, [6]),
        (None, [None]),
        ("log", ["log"]),
        (b"log", [b"log"]),
        ({"a": 1}, [{"a": 1}]),
        ([6, "log"], [6, "log"]),
        ((6, 30), [6, 30]),
        (range(3), [0, 1, 2]),
        (iter([1, 2]), [1, 2]),
        (np.arange(2), [0, 1]),
        (np.float32(0.5), [0.5]),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
    ],
)
def test_a_value_alone_is_a_list_of_one(value: Any, values: list[Any]) -> None:
    listed = as_list("L", value)
    assert listed == values
    assert [type(item) for item in listed] == [type(item) for item in values]


def test_an_endless_list_is_refused() -> None:
    with pytest.raises(SpecError, match=f"^L: at most {MAX_CELLS} values$"):
        as_list("L", itertools.count())


def test_names_are_plain_words_and_no_name_has_two_meanings() -> None:
    owners = [*SECTIONS, *METHODS, *TASKS]
    assert len(set(owners)) == len(owners)
    keys = [key for *_, model in owners_of_settings() for key in public_fields(model)]
    for name in owners:
        assert re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name)
    for name in keys:
        assert re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)


@pytest.mark.parametrize("name", ["../fm", "f m", "f.m", "", "f,m", "fm\n", "é", "train", TASK])
def test_a_name_that_cannot_stand_in_a_setting_or_path_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, name, FlowMatching)
    with pytest.raises(SpecError, match=r"^name '"):
        plan("fm")


def test_an_error_can_be_sent_between_processes() -> None:
    error = SpecError("a\n" + "x" * 10**5)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --------------------------------------------------------------------------- configuration files


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"a = ",
        b"L = " + b"9" * 5000,
        b"L = " + b"[" * 100_000,
        b"methods = 1\n",
        b"methods = [[1]]\n",
        b"seeds = [true]\n",
        b"[methods]\nfm = 1\n",
        b"seeds = '0-1-2'\n",
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_config(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["missing.toml", ".", "a\0b.toml", "x" * 5000, "\ud800"])
def test_a_path_that_is_no_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^config: cannot read ") as caught:
        read_config(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_file_says_what_a_command_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'methods = ["efm"]\ntasks = "gaussian_to_swiss_roll"\nseeds = "0-1"\nsteps = 7\n'
        'L = ["6", 30]\n[efm]\npoints = "log"\nsigma = "none"\n'
    )
    cells = Spec(**read_config(path)).cells()
    assert [cell.id for cell in cells] == [
        cell.id
        for cell in plan(
            "efm",
            seeds=(0, 1),
            settings={
                "train.steps": 7,
                "L": [6, 30.0],
                "efm.points": "log",
                "efm.sigma": None,
            },
        )
    ]


@pytest.mark.parametrize("name", ["...toml", "..", ".toml", ".hidden.toml", "a\nb.toml", "-x", "/"])
def test_no_folder_is_named_after_a_path_that_leads_elsewhere(name: str) -> None:
    with pytest.raises(SpecError, match=r"^config: no folder can be named after "):
        folder_name(Path(name))


def test_a_folder_is_named_after_the_file() -> None:
    assert folder_name(Path("/some/where/my sweep-2.1.toml")) == "my sweep-2.1"


def test_refused_by_the_plan_means_refused_by_the_cell() -> None:
    stored = only("fm").model_dump(mode="json")
    with pytest.raises(ValidationError):
        Cell.model_validate({**stored, "train": {**stored["train"], "steps": 0}})
    with pytest.raises(ValidationError):
        Cell.model_validate({**stored, "more": 1})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"methods": ["emf"]}, "methods: unknown name 'emf', did you mean efm? Choose from edm, "),
        ({"tasks": ["gaussian_to_swis_roll"]}, "tasks: unknown name 'gaussian_to_swis_roll', did "),
        ({"settings": {"efm.pionts": [1]}}, "unknown setting 'pionts', did you mean points? C"),
        ({"settings": {"sigms": [1]}}, "sigms: unknown setting 'sigms', did you mean sigma? Ch"),
        ({"settings": {"trian.lr": [1]}}, "unknown section 'trian', did you mean train? Choose"),
        ({"settings": {"xyz.lr": [1]}}, "xyz.lr: unknown section 'xyz', choose from train, "),
    ],
)
def test_a_name_that_is_nearly_right_gets_a_hint(names: dict[str, Any], said: str) -> None:
    spec = Spec(methods=["fm"], tasks=[TASK], seeds=[0]).model_copy(update=names)
    with pytest.raises(SpecError, match=re.escape(said)):
        spec.cells()


def test_an_unknown_suite_gets_a_hint_and_suites_of_subfolders_are_found() -> None:
    assert suite_path("cifar10").parent.name == "images"
    with pytest.raises(SpecError, match=r"suite: unknown name 'cifra10', did you mean cifar10\?"):
        suite_path("cifra10")


def test_settings_that_concern_no_cell_are_named() -> None:
    spec = Spec(methods=["fm", "fm-exact"], tasks=[TASK], seeds=[0])
    concerned = ["sigma", "fm.sigma", "train.lr", "network.width", "eval.n", f"{TASK}.noise"]
    assert spec.ignored(concerned) == []
    assert spec.ignored(["L", "efm.points", "gaussian_to_moons.noise"]) == [
        "L: none of the methods fm, fm-exact has it, it is ignored",
        "efm.points: efm is none of the methods, it is ignored",
        "gaussian_to_moons.noise: gaussian_to_moons is none of the tasks, it is ignored",
    ]
    exact = spec.model_copy(update={"methods": ["fm-exact"]})
    assert exact.ignored(["train.steps"]) == [
        "train.steps: none of the methods fm-exact has it, it is ignored"
    ]
    varied = exact.model_copy(update={"vary": [Variation(methods=["efm"])]})
    assert varied.ignored(["train.steps", "L", "efm.points"]) == []


def test_a_network_that_is_not_for_a_task_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(self: NetworkSettings, *shape: int) -> NetworkSettings:
        raise ValueError(f"architecture = unet is for images, and the data have shape {shape}")

    monkeypatch.setattr(NetworkSettings, "used", used)
    assert plan("fm")
    with pytest.raises(SpecError) as caught:
        plan("fm", settings={"network.architecture": "unet"})
    assert str(caught.value) == (
        f"network.architecture: {TASK}: architecture = unet is for images,"
        " and the data have shape (2,)"
    )


# ----------------------------------------------------------------------------------- variations

STUDY = """
methods = ["efm"]
tasks = ["gaussian_to_swiss_roll"]
seeds = [0, 1]
L = 6.0

[train]
steps = 10

[[vary]]
L = [3.0, 6.0, 10.0]

[[vary]]
tasks = ["gaussian_to_8gaussians"]
seeds = [5]
[vary.efm]
points = ["log", "uniform"]
"""


def test_variations_change_one_thing_each(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    cells = Spec(**read_config(path)).cells()
    found = {
        (cell.task, cell.seed, cell.hyperparameters["L"], cell.hyperparameters["points"])
        for cell in cells
    }
    assert len(cells) == len(found) == 8
    assert found == {
        *(("gaussian_to_swiss_roll", seed, L, "mix") for seed in (0, 1) for L in (3.0, 6.0, 10.0)),
        *(("gaussian_to_8gaussians", 5, 6.0, points) for points in ("log", "uniform")),
    }
    assert {cell.train.steps for cell in cells} == {10}


def test_the_command_overrides_a_variation(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    config = read_config(path)
    merged = merge(config, {"seeds": [7], "settings": {"L": [4.0], "train.steps": [3]}})
    cells = merged.cells()
    assert {cell.seed for cell in cells} == {7}
    assert {cell.train.steps for cell in cells} == {3}
    assert {cell.hyperparameters["L"] for cell in cells} == {4.0}
    assert len(cells) == 3  # the point itself, and the two schemes


def suite_cells(suite: str, *methods: str, **more: Any) -> list[Cell]:
    """The cells of a suite where these methods are asked for."""
    return merge(read_config(suite_path(suite)), {"methods": list(methods), **more}).cells()


def test_methods_that_are_asked_for_run_in_the_grids_that_have_them() -> None:
    solvers = {"fm": "dopri5", "edm": "heun", "ot-cfm": "dopri5"}  # the last in no grid: the first
    for asked in (["fm"], ["edm"], ["ot-cfm"], ["edm", "fm"], ["fm", "edm", "ot-cfm"]):
        cells = suite_cells("cifar10", *asked)
        assert {cell.method: cell.sample.solver for cell in cells} == {
            name: solvers[name] for name in asked
        }
        assert len(cells) == len(asked)
    whole = {cell.id for cell in merge(read_config(suite_path("cifar10")), {}).cells()}
    assert {cell.id for cell in suite_cells("cifar10", "fm", "edm")} < whole


def test_methods_that_are_asked_for_have_the_seeds_of_their_grid() -> None:
    seeds = {"fm": {0, 1, 2, 3, 4}, "fm-exact": {0, 1}}
    for asked in (["fm"], ["fm-exact"], ["fm", "fm-exact"]):
        cells = suite_cells("default", *asked, tasks=[TASK])
        found = {name: {cell.seed for cell in cells if cell.method == name} for name in asked}
        assert found == {name: seeds[name] for name in asked}
    assert {cell.seed for cell in suite_cells("default", "fm-exact", seeds=[7])} == {7}


def test_a_variation_without_methods_is_of_the_methods_of_the_first_grid() -> None:
    everything = merge(read_config(suite_path("efm_ablation")), {}).cells()
    (reference,) = suite_cells("efm_ablation", "fm", tasks=[TASK], seeds=[0])
    assert reference.id in {cell.id for cell in everything}
    embeddings = {cell.network.embedding for cell in suite_cells("efm_ablation", "efm", seeds=[0])}
    assert embeddings == {"auto", "ends", "plain", "cosine"}
    assert len(suite_cells("efm_ablation", "ot-cfm", tasks=[TASK], seeds=[0])) == 4


def test_what_was_asked_of_a_merged_file_is_chosen_from_it_again() -> None:
    config = merge(read_config(suite_path("cifar10")), {"methods": ["edm"]}).model_dump()
    (cell,) = merge(config, {"methods": ["edm"]}).cells()
    assert cell.sample.solver == "heun"
    with pytest.raises(SpecError, match=r"^methods: unknown name 'emd'"):
        suite_cells("cifar10", "emd")
    for wrong in ([], [[]], [3]):
        with pytest.raises(SpecError, match=r"^methods"):
            suite_cells("cifar10", *wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vary = 3", "vary: expected tables"),
        ("[vary]\nL = 3", "vary: expected tables"),
        ("[[vary]]\nM = 3", "M: unknown setting 'M'"),
        ('[[vary]]\nmethods = ["none"]', "methods: unknown name 'none'"),
        ("[[vary]]\n[[vary.vary]]\nL = 3", "vary"),
    ],
)
def test_a_mistake_in_a_variation_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.toml"
    head = 'methods = ["efm"]\ntasks = ["gaussian_to_swiss_roll"]\nseeds = [0]\n'
    path.write_text(head + text)
    with pytest.raises(SpecError, match=f"^{message}"):
        Spec(**read_config(path)).cells()


def test_settings_that_the_network_of_a_task_lacks_make_no_cells() -> None:
    """An MLP has no size of a U-Net: the same cell under three names would count as three seeds."""

    def cells(task: str, **settings: list[Any]) -> list[Cell]:
        named = {f"network.{name}": values for name, values in settings.items()}
        return Spec(methods=["fm"], tasks=[task], seeds=[0, 1], settings=named).cells()

    assert len(cells("gaussian_to_swiss_roll", unet=["tiny", "small"], dropout=[0.0, 0.1])) == 2
    assert len(cells("gaussian_to_swiss_roll", width=[8, 16])) == 4
    assert len(cells("gaussian_to_patches", width=[8, 16], depth=[1, 2])) == 2
    assert len(cells("gaussian_to_patches", unet=["tiny", "small"])) == 4
    (small, *_) = cells("gaussian_to_patches", unet=["small"], width=[8])
    assert (small.network.unet, small.network.width) == ("small", 128)
    assert small.id == Cell.model_validate(small.model_dump()).id
    forced = cells("gaussian_to_digits", unet=["tiny", "small"], architecture=["unet"])
    assert len(forced) == 4


def test_settings_of_the_network_that_a_method_does_not_use_make_no_cells() -> None:
    """Beside its other settings, and those of the network; a default cell stays what it is."""

    def cells(method: str, task: str = TASK, **settings: list[Any]) -> list[Cell]:
        return plan(method, task, settings={k.replace("__", "."): v for k, v in settings.items()})

    far: list[Any] = ["auto", "on", "off"]
    assert cells("fm", network__far_field=far) == [only("fm")]
    assert len(cells("efm", network__far_field=far)) == len(cells("pfgm", network__far_field=far))
    both: list[Any] = ["on", "off"]
    assert cells("efm", network__precondition=both) == [only("efm")]
    digits = "gaussian_to_digits"
    for field, count in (("on", 1), ("off", 2), ("auto", 2)):
        found = cells("efm", digits, network__precondition=both, network__far_field=[field])
        assert len(found) == count
    lines: list[Any] = ["forward", "two_sided"]
    embeddings: list[Any] = ["plain", "cosine", "ends"]
    found = cells("efm", efm__lines=lines, network__embedding=embeddings)
    assert [(cell.hyperparameters["lines"], cell.network.embedding) for cell in found] == [
        *(("forward", embedding) for embedding in embeddings),
        ("two_sided", "auto"),
    ]
    assert found[-1] == only("efm", efm__lines="two_sided")


def test_fid_of_one_sample_is_refused() -> None:
    with pytest.raises(ValidationError, match="no covariance"):
        EvalSettings(fid_n=1)
    assert [EvalSettings(fid_n=n).fid_n for n in (0, 2)] == [0, 2]
