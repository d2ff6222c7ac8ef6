"""The folder of a run: what continues it, what is refused with a reason, and what `--overwrite` removes and leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.training.checkpoints import checkpoint_path
from sohes_cli.training.metrics import MetricsLog
from sohes_cli.training.run_folder import RunFolder, RunKind, read_run
from sohes_cli.vit.tensor_file import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

KIND = RunKind(
    "sohes practice",
    "sohes-practice",
    {"photographs": "photographs_sha256", "labels": "labels_sha256"},
    free=("run.log_every", "run.keep"),
    outputs=("model.safetensors", "best.json"),
    folders={"pictures": r"step-.*\.jpg"},
)
INPUTS = {"photographs": 8, "photographs_sha256": "a" * 64, "labels_sha256": "b" * 64}
CONFIG = {"model": {"depth": 2, "scale": [0.5, 1.0]}, "run": {"seed": 0, "log_every": 20, "keep": 3}}


def folder_of(path: Path, settings: dict[str, Any] | None = None, **inputs: Any) -> RunFolder:
    """A run with some settings (GROUP.NAME) and inputs changed."""
    config = {group: dict(values) for group, values in CONFIG.items()}
    for name, value in (settings or {}).items():
        group, _, setting = name.partition(".")
        config[group][setting] = value
    return RunFolder(path, KIND, KIND.describe(config, INPUTS | inputs))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a checkpoint after step 2."""
    run = folder_of(tmp_path / "run")
    run.begin()
    write_tensors(checkpoint_path(run.checkpoints, 2), {"x": torch.zeros(1)}, {"step": 2})
    return run


def test_a_run_of_an_older_version_did_what_the_defaults_say(run: RunFolder) -> None:
    newer = replace(KIND, defaults={"model": {"width": 8}})
    for width, fits in ((8, True), (16, False)):
        description = newer.describe({**CONFIG, "model": {**CONFIG["model"], "width": width}}, INPUTS)
        there = RunFolder(run.path, newer, description)
        if fits:
            there.begin()
        else:
            with pytest.raises(UsageError, match=r"model\.width \(8 there, 16 now\)"):
                there.begin()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_description_is_read_as_it_was_written(run: RunFolder) -> None:
    told = read_run(run.path, KIND)
    assert (
        told
        == run.description
        == {"format": "sohes-practice", "format_version": 1, **INPUTS, "config": CONFIG}
        | {"versions": run.description["versions"]}
    )
    assert {"sohes", "torch", "timm"} <= told["versions"].keys()
    assert all(told["versions"].values())
    assert KIND.describe({}, {}, "scipy")["versions"].keys() == {*told["versions"], "scipy"}


def test_equal_runs_have_equal_descriptions(run: RunFolder, tmp_path: Path) -> None:
    folder_of(tmp_path / "other").begin()
    assert (tmp_path / "other" / "run.json").read_bytes() == (run.path / "run.json").read_bytes()


def test_the_newest_checkpoint_is_where_a_run_goes_on(run: RunFolder, tmp_path: Path) -> None:
    assert folder_of(tmp_path / "missing").latest() is None
    checkpoint_path(run.checkpoints, 10).touch()
    assert run.latest() == checkpoint_path(run.checkpoints, 10)


@pytest.mark.parametrize("setting", KIND.free)
def test_what_decides_nothing_may_change(run: RunFolder, setting: str) -> None:
    before = (run.path / "run.json").read_bytes()
    folder_of(run.path, {setting: 7}).begin()
    assert (run.path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"run.seed": 1}, r"run\.seed \(0 there, 1 now\)\."),
        ({"model.scale": [0.1, 1.0]}, r"model\.scale \(\[0\.5, 1\.0\] there, \[0\.1, 1\.0\] now\)\."),
        (
            {"run.seed": 1, "model.depth": 3, "run.keep": 1},
            r"model\.depth \(2 there, 3 now\), run\.seed \(0 there, 1 now\)\.",
        ),
        ({"model.new": 5}, r"model\.new \(not set there, 5 now\)"),
    ],
)
def test_other_settings_are_refused_by_name(run: RunFolder, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"holds a run with other settings: {words}") as caught:
        folder_of(run.path, settings).begin()
    assert caught.value.hint.startswith("Give the same settings and photographs and labels to continue it")
    assert "--overwrite" in caught.value.hint
    assert names(run.path) == {"run.json", "checkpoints/step-00000002.safetensors"}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"photographs": 3, "photographs_sha256": "c" * 64}, r"other photographs \(8 there, 3 now\)\."),
        ({"photographs_sha256": "c" * 64}, r"other photographs \(aaaaaaaaaaaa there, cccccccccccc now\)\."),
        ({"labels_sha256": ""}, r"other labels \(bbbbbbbbbbbb there, none now\)\."),
        (
            {"photographs": 3, "photographs_sha256": "c" * 64, "labels_sha256": "d" * 64},
            r"other photographs \(8 there, 3 now\) and other labels \(bbbbbbbbbbbb there, dddddddddddd now\)\.",
        ),
    ],
)
def test_other_inputs_are_refused_by_name(run: RunFolder, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"holds a run on {words}") as caught:
        folder_of(run.path, **inputs).begin()
    assert "--overwrite" in caught.value.hint


def test_a_run_without_a_checkpoint_may_begin_with_other_settings(tmp_path: Path) -> None:
    folder_of(tmp_path, {"model.depth": 4096}).begin()  # which did not fit into memory
    folder_of(tmp_path).begin()
    assert json.loads((tmp_path / "run.json").read_text())["config"] == CONFIG


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds other files, but no run of sohes practice"):
            folder_of(tmp_path).begin(overwrite)
    assert names(tmp_path) == {"thesis.txt"}
    assert read_run(tmp_path, KIND) is None


def test_an_empty_folder_will_do_and_a_file_will_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").touch()  # such as a file browser leaves
    folder_of(tmp_path / "empty").begin()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file is a file, not a folder"):
        folder_of(tmp_path / "file").begin()


@pytest.mark.parametrize("damage", ["", "{", '{"format": "sohes-practice"', "\x00" * 30])
def test_a_damaged_description_is_refused_unless_overwritten(run: RunFolder, damage: str) -> None:
    (run.path / "run.json").write_text(damage)
    with pytest.raises(StoreError, match=r"run\.json is damaged: .* --overwrite"):
        run.begin()
    assert run.latest() is not None
    run.begin(overwrite=True)
    assert names(run.path) == {"run.json"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "does not belong to a run of sohes practice"),
        ("{}", "does not belong to a run of sohes practice"),
        ('{"format": "another"}', "does not belong to a run of sohes practice"),
        ('{"format": "sohes-practice", "format_version": 2, "config": {}}', "format_version: 2 there, 1 now"),
        ('{"format": "sohes-practice", "format_version": 1}', "it has no settings"),
    ],
)
def test_the_description_of_another_program_or_version_stays(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "run.json").write_text(content)
    for overwrite in (False, True):
        with pytest.raises(SohesError, match=rf"run\.json .*{words}") as caught:
            folder_of(tmp_path).begin(overwrite)
        assert caught.value.hint == "Choose another --out, or the --phase that made it."
    assert (tmp_path / "run.json").read_text() == content


def test_overwrite_removes_what_a_run_writes_and_nothing_else(run: RunFolder) -> None:
    with MetricsLog(run.path, 0) as log:
        log.write(1, {"loss": 1.0})
    (run.path / "pictures").mkdir()
    for name in ("model.safetensors", "best.json", "pictures/step-00000002.jpg"):
        (run.path / name).touch()
    (run.path / "checkpoints" / ".sohes-0123456789abcdef.tmp").touch()  # of a run that was killed while it wrote
    mine = {
        "notes.txt",
        "backbone.safetensors",
        "checkpoints/best.safetensors",
        "tensorboard/figure.png",
        "pictures/cat.jpg",
    }
    for name in mine:
        (run.path / name).write_text("mine")
    folder_of(run.path, {"run.seed": 3}).begin(overwrite=True)
    assert names(run.path) == {*mine, "run.json"}
    assert json.loads((run.path / "run.json").read_text())["config"]["run"]["seed"] == 3

    for name in mine:
        (run.path / name).unlink()
    folder_of(run.path).begin(overwrite=True)
    assert [path.name for path in run.path.iterdir()] == ["run.json"]
