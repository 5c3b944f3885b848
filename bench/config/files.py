"""Configurations in TOML files: suites, and files of the user."""

import re
import tomllib
from pathlib import Path
from typing import Any

from bench.config.catalogue import suites
from bench.config.errors import SpecError, check_names, validated
from bench.config.grid import Spec
from bench.config.settings import SHORTHANDS
from bench.config.values import as_list, parse_seeds


def read_config(path: Path) -> dict[str, Any]:
    """A TOML file as arguments of :class:`Spec`: tables are sections, lists are axes.

    Tables ``[[vary]]`` are variations, each with methods, tasks, seeds and settings.

    Raises:
        SpecError: a file that cannot be read, or a key that does not exist.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"config: cannot read {path}: {error}") from None
    variations = tables.pop("vary", [])
    if not isinstance(variations, list) or not all(isinstance(one, dict) for one in variations):
        raise SpecError(f"vary: expected tables [[vary]], got {variations!r}")
    return {**_config(tables), "vary": [_config(one) for one in variations]}


def _config(tables: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"settings": {}}
    for key, value in tables.items():
        if key == "seeds" and isinstance(value, str):
            config[key] = parse_seeds(value)
        elif key in ("methods", "tasks", "seeds"):
            kind = int if key == "seeds" else str
            config[key] = as_list(key, value)
            if not all(type(item) is kind for item in config[key]):
                raise SpecError(f"{key}: expected a list of {kind.__name__}, got {value!r}")
        elif isinstance(value, dict):
            for name, setting in value.items():
                config["settings"][f"{key}.{name}"] = as_list(f"{key}.{name}", setting)
        else:
            config["settings"][SHORTHANDS.get(key, key)] = as_list(key, value)
    return config


def merge(base: dict[str, Any], over: dict[str, Any]) -> Spec:
    """Two configurations as one: ``over`` overrides ``base``, in the variations of ``base`` too.

    Methods are chosen, not overridden: those of ``over`` run in the grids of ``base`` that have
    them. One that only some variations have is in these alone, with their settings and seeds, and
    one that ``base`` does not have takes the place of the methods of its first grid.
    """
    given = over.get("settings", {})
    merged = {**base, **over, "settings": {**base["settings"], **given}}
    merged["vary"] = over.get("vary") or [
        {
            **{k: v for k, v in variation.items() if k == "methods" or k not in over},
            "settings": {k: v for k, v in variation["settings"].items() if k not in given},
        }
        for variation in base["vary"]
    ]
    spec = validated("", lambda: Spec(**merged))
    chooses = "methods" in over and not over.get("vary")
    return _chosen(spec, base["methods"]) if chooses else spec


def _chosen(spec: Spec, first: list[str]) -> Spec:
    """A run of the methods of ``spec`` alone, where ``first`` are those that its own grid had."""
    elsewhere = {name for one in spec.vary for name in one.methods or ()} - set(first)
    own, kept = [name for name in spec.methods if name not in elsewhere], []
    for one in spec.vary:
        if one.methods is None:  # those of the first grid
            kept += [one] if own else []
        elif chosen := [name for name in spec.methods if name in one.methods]:
            kept.append(one.model_copy(update={"methods": chosen}))
    return spec.model_copy(update={"methods": own, "vary": kept})


def folder_name(config: Path) -> str:
    """The name of a configuration file without its ending, as that of a folder.

    Raises:
        SpecError: a name that leads elsewhere, such as that of ``...toml``, or that is hidden.
    """
    if not re.fullmatch(r"\w[\w .+-]*", config.stem):
        raise SpecError(f"config: no folder can be named after {str(config)!r}, give one with out")
    return config.stem


def suite_path(name: str) -> Path:
    """The file of a suite by its name; raises :class:`SpecError` for an unknown one."""
    known = suites()
    check_names("suite", [name], known)
    return known[name]
