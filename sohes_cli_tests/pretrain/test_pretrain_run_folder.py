"""The folder of a pretraining run: what describes it, what is saved in which order, and which runs continue it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pretrain_cases import tiny_config
from train_cases import steps_kept

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.pretrain.run_folder import pretrain_run, save_run
from sohes_cli.pretrain.sources import ImageSource, open_source
from sohes_cli.pretrain.training import Pretraining
from sohes_cli.vit.pretrained import BACKBONE_NAME, load_vit

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.training.run_folder import RunFolder

STEPS = 4


@pytest.fixture(scope="module")
def source(photos: Path) -> ImageSource:
    return open_source(photos)


@pytest.fixture(scope="module")
def pretraining() -> Pretraining:
    return Pretraining(tiny_config(STEPS, "run.keep=2"), STEPS, "cpu")


def folder_of(path: Path, source: ImageSource, *settings: str, precision: str = "fp32") -> RunFolder:
    return pretrain_run(path, source, tiny_config(STEPS, *settings), precision)


@pytest.fixture
def run(tmp_path: Path, source: ImageSource, pretraining: Pretraining) -> RunFolder:
    """A run with a checkpoint after step 2."""
    run = folder_of(tmp_path / "run", source)
    run.begin()
    save_run(run, pretraining, 2)
    return run


def test_the_description_holds_settings_photographs_and_versions(run: RunFolder, source: ImageSource) -> None:
    told = json.loads((run.path / "run.json").read_text())
    assert list(told) == ["format", "format_version", "photographs", "photographs_sha256", "config", "versions"]
    assert (told["format"], told["format_version"]) == ("sohes-pretrain", 1)
    assert (told["photographs"], told["photographs_sha256"]) == (8, source.sha256)
    assert told["config"]["model"]["embed_dim"] == 64
    assert told["config"]["optimizer"]["precision"] == "fp32"


def test_the_newest_checkpoints_are_kept_beside_the_backbone(run: RunFolder, pretraining: Pretraining) -> None:
    for step in (3, 4):
        save_run(run, pretraining, step)
    assert steps_kept(run.path) == [3, 4]
    latest = run.latest()
    assert latest is not None
    assert latest.name == "step-00000004.safetensors"
    vit, description = load_vit(run.path / BACKBONE_NAME)
    assert (description["step"], description["steps"], description["photographs"]) == (4, STEPS, 8)
    assert description["shape"] == {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    wanted = pretraining.teacher.vit.state_dict()
    assert all(tensor.equal(wanted[name]) for name, tensor in vit.state_dict().items())


def test_a_backbone_is_never_older_than_the_newest_checkpoint(
    run: RunFolder, pretraining: Pretraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_run(run, pretraining, STEPS)
    assert steps_kept(run.path) == [2]  # the last steps come again, and with them the backbone
    assert load_vit(run.path / BACKBONE_NAME)[1]["step"] == STEPS


def test_a_disk_that_takes_no_checkpoint_is_named(
    tmp_path: Path, source: ImageSource, pretraining: Pretraining
) -> None:
    run = folder_of(tmp_path / "run", source)
    run.begin()
    (run.path / "checkpoints").write_text("a file in its place")
    with pytest.raises(StoreError, match=r"step-00000002\.safetensors cannot be written"):
        save_run(run, pretraining, 2)


@pytest.mark.parametrize("setting", ["run.log_every=7", "run.checkpoint_every=9", "run.keep=1"])
def test_what_decides_nothing_may_change(run: RunFolder, source: ImageSource, setting: str) -> None:
    before = (run.path / "run.json").read_bytes()
    folder_of(run.path, source, setting).begin()
    assert (run.path / "run.json").read_bytes() == before


def test_other_settings_and_another_precision_are_refused(run: RunFolder, source: ImageSource) -> None:
    with pytest.raises(UsageError, match=r"views\.global_scale \(\[0\.3, 1\.0\] there, \[0\.5, 1\.0\] now\)"):
        folder_of(run.path, source, "views.global_scale=[0.5,1]").begin()
    with pytest.raises(UsageError, match=r'optimizer\.precision \("fp32" there, "bf16" now\)'):
        folder_of(run.path, source, precision="bf16").begin()
    assert steps_kept(run.path) == [2]


def test_other_photographs_are_refused(run: RunFolder, photos: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a run on other photographs \(8 there, 3 now\)") as caught:
        folder_of(run.path, open_source(photos / "sub")).begin()
    assert caught.value.hint.startswith("Give the same settings and photographs to continue it")


def test_overwrite_removes_the_backbone(run: RunFolder, source: ImageSource) -> None:
    folder_of(run.path, source, "run.seed=3").begin(overwrite=True)
    assert [path.name for path in run.path.iterdir()] == ["run.json"]
