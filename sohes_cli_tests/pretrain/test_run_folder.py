"""The folder of a run: what continues it, what is refused with a reason, and what `--overwrite` removes and leaves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pretrain_cases import steps_saved, tiny_config

from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.explore.distilled import BACKBONE_NAME, load_vit
from sohes_cli.pretrain.run_folder import RunFolder, describe_run
from sohes_cli.pretrain.sources import ImageSource, open_source
from sohes_cli.pretrain.training import Pretraining
from sohes_cli.training.metrics import MetricsLog

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 4


@pytest.fixture(scope="module")
def source(photos: Path) -> ImageSource:
    return open_source(photos)


@pytest.fixture(scope="module")
def pretraining() -> Pretraining:
    return Pretraining(tiny_config(STEPS, "run.keep=2"), STEPS, "cpu")


def folder_of(path: Path, source: ImageSource, *settings: str, precision: str = "fp32") -> RunFolder:
    return RunFolder(path, describe_run(source, tiny_config(STEPS, *settings), precision))


@pytest.fixture
def run(tmp_path: Path, source: ImageSource, pretraining: Pretraining) -> RunFolder:
    """A run with a checkpoint after step 2."""
    run = folder_of(tmp_path / "run", source)
    run.begin()
    run.save(pretraining, 2)
    return run


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_description_holds_settings_photographs_and_versions(run: RunFolder, source: ImageSource) -> None:
    told = json.loads((run.path / "run.json").read_text())
    assert told == run.description
    assert (told["photographs"], told["photographs_sha256"]) == (8, source.sha256)
    assert told["config"]["model"]["embed_dim"] == 64
    assert told["config"]["optimizer"]["precision"] == "fp32"
    assert all(told["versions"].values())


def test_the_newest_checkpoints_are_kept_beside_the_backbone(run: RunFolder, pretraining: Pretraining) -> None:
    for step in (3, 4):
        run.save(pretraining, step)
    assert steps_saved(run.path) == [3, 4]
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
        run.save(pretraining, STEPS)
    assert steps_saved(run.path) == [2]  # the last steps come again, and with them the backbone
    assert load_vit(run.path / BACKBONE_NAME)[1]["step"] == STEPS


def test_a_disk_that_takes_no_checkpoint_is_named(tmp_path: Path, source: ImageSource, pretraining: Pretraining) -> None:
    run = folder_of(tmp_path / "run", source)
    run.begin()
    (run.path / "checkpoints").write_text("a file in its place")
    with pytest.raises(StoreError, match=r"step-00000002\.safetensors cannot be written"):
        run.save(pretraining, 2)


@pytest.mark.parametrize("setting", ["run.log_every=7", "run.checkpoint_every=9", "run.keep=1"])
def test_what_decides_nothing_may_change(run: RunFolder, source: ImageSource, setting: str) -> None:
    before = (run.path / "run.json").read_bytes()
    folder_of(run.path, source, setting).begin()
    assert (run.path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("run.seed=1", r"run\.seed \(0 there, 1 now\)"),
        ("optimizer.learning_rate=0.1", r"optimizer\.learning_rate \(0\.002 there, 0\.1 now\)"),
        ("views.global_scale=[0.5,1]", r"views\.global_scale \(\[0\.3, 1\.0\] there, \[0\.5, 1\.0\] now\)"),
    ],
)
def test_other_settings_are_refused_by_name(run: RunFolder, source: ImageSource, setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        folder_of(run.path, source, setting).begin()
    assert "--overwrite" in caught.value.hint
    assert steps_saved(run.path) == [2]


def test_another_precision_is_another_setting(run: RunFolder, source: ImageSource) -> None:
    with pytest.raises(UsageError, match=r"optimizer\.precision \(fp32 there, bf16 now\)"):
        folder_of(run.path, source, precision="bf16").begin()


def test_other_photographs_are_refused(run: RunFolder, photos: Path) -> None:
    with pytest.raises(UsageError, match=r"other photographs \(8 there, 3 now\)"):
        folder_of(run.path, open_source(photos / "sub")).begin()


def test_a_run_without_a_checkpoint_may_begin_with_other_settings(tmp_path: Path, source: ImageSource) -> None:
    folder_of(tmp_path, source, "optimizer.batch_size=4096").begin()  # which did not fit into memory
    folder_of(tmp_path, source).begin()
    assert json.loads((tmp_path / "run.json").read_text())["config"]["optimizer"]["batch_size"] == 4


def test_a_folder_of_other_files_is_refused(tmp_path: Path, source: ImageSource) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds other files, but no run"):
            folder_of(tmp_path, source).begin(overwrite)
    assert names(tmp_path) == {"thesis.txt"}


def test_an_empty_folder_will_do_and_a_file_will_not(tmp_path: Path, source: ImageSource) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").touch()  # such as a file browser leaves
    folder_of(tmp_path / "empty", source).begin()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*file is a file"):
        folder_of(tmp_path / "file", source).begin()


@pytest.mark.parametrize("damage", ["", "{", '{"format": "sohes-pretrain"', "\x00" * 30])
def test_a_damaged_description_is_refused_unless_overwritten(run: RunFolder, damage: str) -> None:
    (run.path / "run.json").write_text(damage)
    with pytest.raises(StoreError, match=r"run\.json is damaged: .* --overwrite"):
        run.begin()
    assert steps_saved(run.path) == [2]
    run.begin(overwrite=True)
    assert names(run.path) == {"run.json"}


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"format": "another"}', '{"format": "sohes-pretrain", "format_version": 2, "config": {}}']
)
def test_the_description_of_another_program_stays(tmp_path: Path, source: ImageSource, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    for overwrite in (False, True):
        with pytest.raises(SohesError, match=r"run\.json is not that of a run of sohes pretrain"):
            folder_of(tmp_path, source).begin(overwrite)
    assert (tmp_path / "run.json").read_text() == content


def test_overwrite_removes_what_a_run_writes_and_nothing_else(run: RunFolder, source: ImageSource) -> None:
    with MetricsLog(run.path, 0) as log:
        log.write(1, {"loss": 1.0})
    (run.path / "checkpoints" / ".sohes-0123456789abcdef.tmp").touch()  # of a run that was killed while it wrote
    mine = {"notes.txt", "checkpoints/best.safetensors", "tensorboard/figure.png"}
    for name in mine:
        (run.path / name).write_text("mine")
    folder_of(run.path, source, "run.seed=3").begin(overwrite=True)
    assert names(run.path) == {*mine, "run.json"}
    assert json.loads((run.path / "run.json").read_text())["config"]["run"]["seed"] == 3

    for name in mine:
        (run.path / name).unlink()
    folder_of(run.path, source).begin(overwrite=True)
    assert [path.name for path in run.path.iterdir()] == ["run.json"]
