"""Whole runs that something disturbs: the next run ends with the very files of one that nothing disturbed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from worker_processes import PATIENCE_S, wait_for_workers, workers_of

from sohes_cli.errors import UsageError
from sohes_cli.explore import session
from sohes_cli.explore.config import explore_config
from sohes_cli.labels.store import LabelStore
from sohes_cli.runs import processes
from sohes_cli.runs.shards import Shard

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_for_records(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return as soon as a run has stored that many records."""
    deadline = time.monotonic() + PATIENCE_S
    while not out.exists() or len(LabelStore(out).names()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_unfinished(now: dict[str, bytes], reference: dict[str, bytes]) -> None:
    """Some files of the whole, none half written."""
    records = {name: content for name, content in now.items() if not Path(name).name.startswith(".")}
    assert 1 < len(records) < len(reference)
    assert all(reference[name] == content for name, content in records.items())


def test_ctrl_c_with_two_workers(
    start: Callable, sohes: Callable, photos: Path, out: Path, reference: dict, labels_of: Callable
) -> None:
    process = start("explore", photos, "--out", out, "--workers", 2, "--json")
    wait_for_records(out, 1, process)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    summary = json.loads(printed)
    assert summary["interrupted"] is True
    assert summary["images"] + summary["left"] == 8
    assert 1 <= summary["images"] <= 1 + 2 + 2
    assert f"Stopped with {summary['left']} of 8 to do." in errors
    assert "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert_unfinished(labels_of(out), reference)
    assert not [name for name in labels_of(out) if name.endswith(".tmp")]

    assert sohes("explore", photos, "--out", out, "--workers", 1).code == 0
    assert labels_of(out) == reference


def test_ctrl_c_while_the_workers_start(start: Callable, photos: Path, out: Path) -> None:
    process = start("explore", photos, "--out", out, "--workers", 2)
    wait_for_workers(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # reaches workers that have not run a line of ours yet
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Run the same command again to continue." in errors


def test_sigterm_in_one_process(
    start: Callable, sohes: Callable, photos: Path, out: Path, reference: dict, labels_of: Callable
) -> None:
    process = start("explore", photos, "--out", out, "--workers", 1)
    wait_for_records(out, 2, process)
    process.terminate()
    printed, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "of 8 photographs have labels" in printed
    assert "Run the same command again to continue." in errors
    assert "Traceback" not in errors
    assert_unfinished(labels_of(out), reference)
    assert sohes("explore", photos, "--out", out, "--workers", 1).code == 0
    assert labels_of(out) == reference


def test_a_killed_worker_and_a_killed_run(
    start: Callable, sohes: Callable, photos: Path, out: Path, reference: dict, labels_of: Callable
) -> None:
    process = start("explore", photos, "--out", out, "--workers", 2)
    wait_for_records(out, 1, process)
    workers_of(process)[0].kill()
    printed, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, printed) == (1, "")
    assert "Error: A worker process was killed" in errors
    assert "Traceback" not in errors
    assert_unfinished(labels_of(out), reference)

    process = start("explore", photos, "--out", out, "--workers", 2)
    wait_for_records(out, len(LabelStore(out).names()) + 1, process)
    workers = workers_of(process)
    process.kill()
    process.wait(timeout=PATIENCE_S)
    assert not psutil.wait_procs(workers, timeout=20)[1]  # none is left behind, waiting for work
    assert_unfinished(labels_of(out), reference)

    assert sohes("explore", photos, "--out", out, "--workers", 1).code == 0
    assert labels_of(out) == reference


def test_a_progress_bar_is_drawn_on_a_terminal(photos: Path, out: Path, reference: dict) -> None:
    out.mkdir()
    for name, content in reference.items():
        if not name.startswith("sub/") and "/" not in name:
            (out / name).write_bytes(content)
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 100))
    command = [sys.executable, "-m", "sohes_cli", "explore", str(photos), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its_end, text=True)
    os.close(its_end)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # the other end was closed
        pass
    printed, _ = process.communicate(timeout=PATIENCE_S)
    os.close(terminal)
    assert process.returncode == 0
    assert b"3/3" in shown
    assert b"masks=" in shown
    assert "\r" not in printed


def test_a_gpu_is_shared_out_by_local_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    vit = explore_config(flags={"features.backbone": "vit_tiny_patch16_224"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    devices = [session._own_device("auto", vit, Shard(8 + i, 16, i, 8)) for i in range(8)]
    assert devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"] * 2
    assert session._own_device("cuda", vit, Shard(3, 4, 3, 4)) == "cuda:3"
    assert session._own_device("cuda:1", vit, Shard(3, 4, 3, 4)) == "cuda:1"
    assert session._own_device("cpu", vit, Shard(3, 4, 3, 4)) == "cpu"
    assert session._own_device("auto", vit, Shard()) == "auto"
    embedded = explore_config(flags={"features.backbone": "color-texture"})
    assert session._own_device("auto", embedded, Shard(3, 4, 3, 4)) == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert session._own_device("auto", vit, Shard(3, 4, 3, 4)) == "auto"


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)]
)
def test_workers_share_the_cores_and_heed_a_containers_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(processes, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert session._default_workers(explore_config(), "auto", Shard()) == cores
    assert session._default_workers(explore_config(), "auto", Shard(0, 4, 0, 4)) == max(1, cores // 4)
    monkeypatch.setattr(processes, "_CPU_QUOTA", tmp_path / "no such file")
    assert session._default_workers(explore_config(), "auto", Shard(0, 4, 0, 4)) == 2


def test_several_processes_may_not_overwrite(photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--overwrite"):
        session.explore_folder(photos, out, explore_config(), overwrite=True)
    assert not out.exists()


def test_the_thresholds_of_the_settings_are_those_of_the_manifest(photos: Path, out: Path) -> None:
    config = explore_config(assignments=["merging.affinities=features,boundaries", "merging.thresholds=0.9,0.5"])
    backbone: Any = session.build_backbone(config.features, "cpu")
    manifest = session._manifest(photos, out, config, backbone)
    assert manifest.backbone["thresholds"] == {"features": [0.9, 0.5], "boundaries": [0.9, 0.5]}
    assert manifest.images == "../photos"
    json.dumps(manifest.to_json())
