"""Which device a cell runs on."""

import pytest

from bench.config.errors import SpecError
from bench.execute.devices import assign_device, resolve_device


@pytest.mark.parametrize(
    ("device", "index", "visible", "expected"),
    [
        ("cpu", 3, 8, "cpu"),
        ("auto", 0, 0, "cpu"),
        ("auto", 5, 4, "cuda:1"),
        ("cuda:2", 0, 4, "cuda:2"),
        ("cuda:2", 7, 4, "cuda:2"),
        ("cuda", 0, 1, "cuda:0"),
    ],
)
def test_assigned_devices(
    device: str, index: int, visible: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    assert assign_device(device, index) == expected


@pytest.mark.parametrize(("jobs", "visible"), [(8, 8), (16, 8), (3, 2), (1, 4)])
def test_workers_go_round_the_devices(
    jobs: int, visible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    assigned = [assign_device("cuda", index) for index in range(jobs)]
    counts = [assigned.count(f"cuda:{number}") for number in range(visible)]
    assert sum(counts) == jobs
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("device", "visible"), [("cuda", 0), ("cuda:2", 2), ("cuda:0", 0)])
def test_a_device_that_is_not_here_is_refused(
    device: str, visible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    with pytest.raises(SpecError, match=f"'{device}' is not here, this machine has {visible}"):
        assign_device(device)


@pytest.mark.parametrize(
    ("name", "visible", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cuda", 2, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_the_device_of_a_run(
    name: str, visible: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    assert resolve_device(name) == expected


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:²"])
def test_what_is_no_device(name: str) -> None:
    with pytest.raises(SpecError, match="device: unknown device"):
        resolve_device(name)
