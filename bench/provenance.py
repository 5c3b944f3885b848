"""What a record says of where it comes from: commit, packages, machine."""

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
import torch

DISTRIBUTION = "field-matching-bench"
CODE = ("bench", "methods", "datasets", "pyproject.toml")
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
            "cores": cpu_count(),
            "memory_mb": round(psutil.virtual_memory().total / 2**20),
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        },
    }


@cache
def code_hash() -> str:
    """Hash of the code that determines a training: a checkpoint of other code is not gone on from.

    The code was imported before this is called, so it is that of the process if nobody edits it in
    between.
    """
    root = Path(__file__).parent.parent
    files = [path for folder in ("methods", "datasets") for path in (root / folder).rglob("*.py")]
    files += [root / "bench" / f"{name}.py" for name in ("train", "checkpoint", "cell")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str | None:
    """The commit of this code, with ``+`` if it has changes; None outside of a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():  # an installed copy may lie in a checkout of something else
        return None
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", *CODE)  # new files are changes too
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changes else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def package_versions() -> dict[str, str]:
    """The installed version of every package that this one requires."""
    names = {"torch", "numpy", "scipy", "pot", "torchdiffeq", "scikit-learn"}
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        lines = []
    names |= {_name(line) for line in lines if "extra ==" not in line}
    names |= {name for name in EXTRAS if importlib.util.find_spec(name) is not None}
    return {name: version(name) for name in sorted(names)}


def _name(requirement: str) -> str:
    for end, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:end]
    return requirement


def processor() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def device_name(device: str) -> str:
    """The device as it stands in the tables."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
