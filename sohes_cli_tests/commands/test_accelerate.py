"""`accelerate launch -m sohes_cli explore` with two processes on the CPU: together they write what one process
writes.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def test_two_processes_write_the_labels_of_one(
    launch: Callable, photos: Path, out: Path, reference: dict, labels_of: Callable
) -> None:
    result = launch(
        "explore", photos, "--out", out, "--workers", 1
    )  # both find an empty folder and publish the manifest
    assert result.code == 0, result.err
    assert labels_of(out) == reference
    for i in (1, 2):
        assert f"4 photographs for process {i} of 2." in result.err
        assert f"Process {i} of 2: 4 photographs, " in result.out
        assert f"Process {i} of 2: 4 of 4 photographs have labels in {out}." in result.out


def test_a_process_that_fails_lets_the_other_finish(
    launch: Callable, photos: Path, out: Path, reference: dict, labels_of: Callable, tmp_path: Path
) -> None:
    mixed = tmp_path / "photos"
    shutil.copytree(photos, mixed)
    for path in list(mixed.rglob("*.*")):
        path.with_suffix(".bmp").write_text(
            "no photograph"
        )  # before its neighbor in the list, so that all fall to the first process
    result = launch("explore", mixed, "--out", out, "--workers", 1, "--json")
    assert result.code != 0
    first, second = sorted(
        (json.loads(line) for line in result.out.splitlines()), key=lambda summary: summary["process"]
    )
    assert (first["images"], len(first["failed"])) == (0, 8)
    assert (second["images"], len(second["failed"])) == (8, 0)
    assert result.err.count("Failed: ") == 8
    assert "Error: 8 of 8 could not be labeled" in result.err
    labels = labels_of(out)
    assert {**labels, "manifest.json": reference["manifest.json"]} == reference


def test_a_launch_of_one_process_in_place_of_several_says_so(
    sohes: Callable, photos: Path, out: Path, reference: dict, labels_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in reference.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run = ("explore", photos, "--out", out, "--workers", 1)
    assert "--multi_gpu" not in sohes(*run).err
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}.items():
        monkeypatch.setenv(name, value)  # what `accelerate launch --cpu --num_processes 2` sets
    result = sohes(*run)
    assert result.code == 0
    assert "started this one process, which does all the work; --multi_gpu starts more" in result.err
    assert labels_of(out) == reference


def test_a_broken_launch_is_wrong_usage(
    sohes: Callable, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = sohes("explore", photos, "--out", out)
    assert (result.code, result.out) == (2, "")
    assert "RANK=2, WORLD_SIZE=2" in result.err
    assert not out.exists()
