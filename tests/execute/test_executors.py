"""Cells in this process, in workers and on a dask cluster: the same results, one exit status."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

import bench.run
from bench.store.records import read_records
from tests.execute.processes import (
    PLUGIN,
    TASK,
    TINY,
    assert_same_results,
    finish,
    start,
)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"], ["jobs", "cluster"]),
        (["--scheduler", "nowhere"], ["scheduler", "tcp://", "nowhere"]),
        (["--scheduler", "tcp://127.0.0.1:1"], ["scheduler", "cannot connect"]),
        (["--scheduler", "carrier://pigeon"], ["scheduler", "carrier://pigeon"]),
        (["--timeout", "0"], ["timeout", "greater than 0", "0"]),
        (["--timeout", "nan"], ["timeout", "finite"]),
        (["--timeout", "1e10"], ["timeout", "less than"]),
        (["--memory", "-5"], ["memory", "greater than 0", "-5"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--plugin", "missing.py"], ["plugin", "missing.py"]),
        (["--plugin", "README.md"], ["plugin", "README.md"]),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.execute.cluster.CONNECT_SECONDS", 1)
    assert bench.run.main([*TASK, *TINY, *arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line
    assert not list((tmp_path / "out").glob("cells/*"))


def test_a_plugin_that_raises_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("import methods\nmethods.no_such_name\n")
    assert bench.run.main(["--plugin", str(tmp_path / "mine.py"), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.py' raises AttributeError: module 'methods' has no attribute" in line


def test_workers_give_the_rows_of_the_serial_run(tmp_path: Path) -> None:
    """And what is set for workers stays out of this process."""
    before = dict(os.environ)
    for name, jobs in (("serial", 1), ("workers", 2)):
        bench.run(
            methods=["fm", "efm"],
            tasks=TASK[1:],
            seeds=[0, 1],
            out=tmp_path / name,
            jobs=jobs,
            threads=1,
            steps=4,
            batch=16,
            **{"eval.n": 16, "network.width": 8},
        )
    assert_same_results(tmp_path / "serial", tmp_path / "workers")
    assert dict(os.environ) == before


def test_the_python_interface_takes_the_same_executors(tmp_path: Path) -> None:
    rows = bench.run(
        methods=["sleeping", "fm"],
        tasks=TASK[1:],
        seeds=[0],
        out=tmp_path,
        steps=2,
        timeout=2,
        plugins=[PLUGIN[1]],
        **{"eval.n": 8},
    )
    assert dict(zip(rows["method"], rows["status"], strict=True)) == {
        "sleeping": "timeout",
        "fm": "done",
    }


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["--methods", "fm", *TASK, "--seeds", "0", *TINY, "--steps", "100"]
    assert bench.run.main([*arguments, "--tensorboard", "--out", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [50, 100]
    (record,) = read_records(tmp_path)
    (last,) = events.Scalars("metrics/w2")
    assert last.value == pytest.approx(record.metrics["w2"], rel=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA device")
def test_cells_on_the_gpu_have_one_context_a_worker(tmp_path: Path) -> None:
    arguments = ["--methods", "fm,efm", *TASK, "--seeds", "0-3", *TINY, "--device", "cuda"]
    status, _ = finish(start(*arguments, "--jobs", "2", out=tmp_path))
    assert status == 0
    rows = pd.read_csv(tmp_path / "results.csv")
    assert (rows["status"] == "done").all()
    assert (rows["device"] == torch.cuda.get_device_name(0)).all()
