"""Which device a cell runs on."""

import re

import torch

from bench.config.errors import SpecError


def resolve_device(name: str) -> str:
    """Checks a device; ``auto`` is the GPU if there is one.

    Raises:
        SpecError: an unknown device, or one that this machine lacks.
    """
    device = assign_device(name)
    return device if name == device else device.partition(":")[0]


def check_device(name: str) -> None:
    """Raises :class:`SpecError` for a name that is no device on any machine."""
    if not isinstance(name, str) or not re.fullmatch("auto|cpu|cuda(:[0-9]{1,4})?", name):
        raise SpecError(f"device: unknown device {name!r}, choose from auto, cpu, cuda, cuda:N")


def assign_device(device: str, index: int = 0) -> str:
    """The device of worker ``index``: workers go round the CUDA devices that the process sees.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` (any) or ``cuda:N`` (that one).
        index: the number of the worker.

    Raises:
        SpecError: an unknown device, or a CUDA device that is not here.
    """
    check_device(device)
    visible = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if visible else "cpu"
    if device == "cpu":
        return device
    number = device.partition(":")[2]
    if int(number or 0) >= visible:
        raise SpecError(f"device: {device!r} is not here, this machine has {visible} CUDA devices")
    return device if number else f"cuda:{index % visible}"
