"""What a record says of where it comes from: commit, packages, machine."""

import importlib.util
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch
from packaging.requirements import Requirement

from bench.config import plugins
from datasets.base import digest_of

ROOT = Path(__file__).parents[2]
DISTRIBUTION = "field-matching-bench"
CODE = ("bench", "methods", "datasets", "pyproject.toml")
TRAINING = ("methods", "datasets", "bench/cell", "bench/config/settings.py")
"""What determines a training."""
EXTRAS = ("dask", "distributed", "tensorboard")


@cache
def environment() -> dict[str, Any]:
    """Commit, versions of Python and of every dependency, and the machine."""
    known = commit()
    return {
        "commit": known,
        "dirty": known is not None and known.endswith("+"),
        "python": platform.python_version(),
        "packages": package_versions(),
        "hardware": {
            "host": platform.node(),
            "platform": platform.platform(),
            "processor": processor(),
            "cores": joblib.cpu_count(),
            "memory_mb": round(psutil.virtual_memory().total / 2**20),
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        },
    }


def code_hash() -> str:
    """Hash of the code that determines a training, plug-ins included.

    A checkpoint that other code has written is not resumed from. The code was imported before this
    is called, so it is that of the process if nobody edits it in between.
    """
    return digest_of([_sources_hash(), *sorted(plugins.loaded().values())])[:16]


@cache
def _sources_hash() -> str:
    files = [f for part in TRAINING for f in sorted((ROOT / part).rglob("*.py")) or [ROOT / part]]
    return digest_of(path.name.encode() + path.read_bytes() for path in files)


def commit() -> str | None:
    """The commit of this code, with ``+`` if it has changes; None outside of a checkout."""
    if not (ROOT / ".git").exists():  # an installed copy may lie in a checkout of something else
        return None
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "--", *CODE)  # new files are changes too
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def package_versions() -> dict[str, str]:
    """The installed version of every package that this one requires."""
    try:
        needed = [Requirement(line) for line in requires(DISTRIBUTION) or []]
        names = {one.name for one in needed if one.marker is None or one.marker.evaluate()}
    except PackageNotFoundError:  # run from a checkout that is not installed
        names = {"torch", "numpy", "scipy", "pot", "torchdiffeq", "scikit-learn"}
    names |= {name for name in EXTRAS if importlib.util.find_spec(name) is not None}
    return {name: version(name) for name in sorted(names)}


def processor() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """The device as it stands in the tables."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
