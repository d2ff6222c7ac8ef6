"""`sohes pipeline` as its users meet it: all stages in one call or in many, with the same end, and what it says about
wrong input.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from train_cases import TINY, after_steps, steps_kept, write_scene

from sohes_cli.errors import PartialFailure
from sohes_cli.explore.runner import _Labeler
from sohes_cli.inference.methods import ModelMethod
from sohes_cli.labels.manifest import read_manifest
from sohes_cli.labels.store import LabelStore
from sohes_cli.pipeline.config import pipeline_config
from sohes_cli.pipeline.folder import PipelineFolder
from sohes_cli.pipeline.stages import PipelineInputs, PipelineJob, StageWork, join_processes, label_folder
from sohes_cli.training.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS, CORRECTIONS = 30, 4
SETTINGS = (
    "explore.pooling.max_masks=4",
    *(f"instruct.{assignment}" for assignment in TINY),
    f"instruct.optimizer.steps={STEPS}",
    "instruct.optimizer.batch_size=6",
    "instruct.optimizer.learning_rate=3e-3",
    "instruct.optimizer.schedule=constant",
    "instruct.data.scale=[1.0,1.0]",
    f"correct.optimizer.steps={CORRECTIONS}",
)
FLAGS = (*(part for setting in SETTINGS for part in ("--set", setting)), "--workers", "0", "--device", "cpu")
FEW = ("--set", "instruct.optimizer.steps=2", "--set", "correct.optimizer.steps=1")
ANNOTATED = ["a.png", "b.png", "sub/c.png", "d.png"]
STAGES = ["explore", "instruct", "correct", "evaluate"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six photographs, `images`, and the annotations of four of them, `gt.json`; not to be changed."""
    folder = tmp_path_factory.mktemp("scene")
    labels = write_scene(folder)
    for name in ("e.png", "f.png"):
        LabelStore(labels).record_path(name).unlink()
    command = [sys.executable, "-m", "sohes_cli", "export", str(labels), "--out", str(folder / "gt.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return folder


@pytest.fixture(scope="module")
def whole(scene: Path) -> subprocess.CompletedProcess[str]:
    """A pipeline that nothing disturbed, in `scene / "whole"`; not to be changed."""
    command = [sys.executable, "-m", "sohes_cli", "pipeline", str(scene / "images"), "--out", str(scene / "whole")]
    return subprocess.run(
        [*command, "--gt", str(scene / "gt.json"), *FLAGS],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def copied(scene: Path, whole: subprocess.CompletedProcess[str], tmp_path: Path) -> Path:
    """The same folder with the finished pipeline, elsewhere, for a test that changes it."""
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(scene, tmp_path / "scene", ignore=shutil.ignore_patterns("stopped", "shared"))
    return tmp_path / "scene"


@pytest.fixture
def pipeline(sohes: Callable) -> Callable[..., Any]:
    """Run the tiny pipeline on a folder like `scene`: `pipeline(folder, "whole", "--json")`."""
    return lambda folder, out, *flags: sohes("pipeline", folder / "images", "--out", folder / out, *FLAGS, *flags)


def recorded(out: Path) -> dict[str, Any]:
    """What `pipeline.json` says of each stage."""
    return dict(json.loads((out / "pipeline.json").read_text())["stages"])


def models(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.glob("runs/*/model.safetensors")}


def cells(printed: str, row: str) -> list[str]:
    """The cells of a row of a table after its first one."""
    line = next(line for line in printed.splitlines() if line.startswith(f"│ {row} "))
    return [cell.strip() for cell in line.strip("│").split("│")[1:]]


def test_a_run_makes_everything_and_ends_with_its_table(scene: Path, whole: subprocess.CompletedProcess[str]) -> None:
    out = scene / "whole"
    assert whole.returncode == 0, whole.stderr
    assert [line.split(":")[0] for line in whole.stderr.splitlines() if line.startswith("Stage ")] == [
        f"Stage {i} of 4, {stage}" for i, stage in enumerate(STAGES, 1)
    ]
    assert cells(whole.stdout, "explore")[:2] == ["6 photographs", "3.7 masks an image"]
    assert cells(whole.stdout, "instruct")[0] == "6 photographs, 30 steps"
    assert cells(whole.stdout, "correct")[0] == "6 photographs, 4 steps"
    assert "teacher labels an image" in cells(whole.stdout, "correct")[1]
    assert cells(whole.stdout, "evaluate")[:2] == ["4 photographs", "scores of 3 of 3 phases"]
    assert all(cells(whole.stdout, stage)[2].endswith(" s") for stage in STAGES)
    for row in ("AR@1", "AR@10", "AR@100", "AR@1000", "part-of recall", "link precision"):
        assert len(cells(whole.stdout, row)) == 3
    assert all(float(score) > 0 for score in cells(whole.stdout, "AR@1000"))
    assert whole.stdout.splitlines()[-2:] == [
        f"The model is {out}/runs/correct/model.safetensors.",
        f"Next: sohes segment IMAGE --tree --checkpoint {out}/runs/correct",
    ]
    assert whole.stdout.count("Next: ") == 1
    assert {path.name for path in out.iterdir()} == {"labels", "runs", "evaluation", "pipeline.json"}
    assert len(LabelStore(out / "labels").names()) == 6
    assert (steps_kept(out / "runs/instruct"), steps_kept(out / "runs/correct")) == ([STEPS], [CORRECTIONS])
    for phase in ("instruct", "correct"):
        assert LabelStore(out / "evaluation" / phase).names() == sorted(ANNOTATED)
        assert read_manifest(out / "evaluation" / phase).images == "../../../images"
    assert not (out / "evaluation" / "explore").exists()
    assert str(scene) not in (out / "pipeline.json").read_text()  # else the folder could not move


def test_scores_and_labels_are_those_of_the_single_commands(
    sohes: Callable, scene: Path, whole: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    run = sohes(
        "segment",
        scene / "images",
        "--checkpoint",
        scene / "whole/runs/correct",
        "--out",
        tmp_path / "labels",
        "--device",
        "cpu",
    )
    assert run.code == 0
    for name in ANNOTATED:
        ours = LabelStore(scene / "whole/evaluation/correct").record_path(name)
        assert ours.read_bytes() == LabelStore(tmp_path / "labels").record_path(name).read_bytes()
    evaluated = json.loads(
        sohes("evaluate", tmp_path / "labels", scene / "whole/labels", "--gt", scene / "gt.json", "--json").out
    )
    scores = [f"{100 * found['all_images']['ar_1000']:.1f}" for found in evaluated["predictions"]]
    shown = cells(whole.stdout, "AR@1000")
    assert [shown[2], shown[0]] == scores


def test_a_second_call_does_nothing_again_and_says_the_same(
    pipeline: Callable, scene: Path, whole: subprocess.CompletedProcess[str], labels_of: Callable
) -> None:
    before = labels_of(scene / "whole")
    result = pipeline(scene, "whole", "--gt", scene / "gt.json")
    assert (result.code, result.out) == (0, whole.stdout)
    after = labels_of(scene / "whole")
    assert {name: content for name, content in after.items() if before[name] != content} == {}

    result = pipeline(scene, "whole", "--gt", scene / "gt.json", "--json")
    assert (result.code, result.out.count("\n")) == (0, 1)
    summary = json.loads(result.out)
    assert (summary["finished"], summary["model"]) == (True, str(scene / "whole/runs/correct/model.safetensors"))
    assert list(summary["stages"]) == STAGES
    for stage in STAGES:
        kept = recorded(scene / "whole")[stage]
        assert summary["stages"][stage]["numbers"] == kept["numbers"]
        assert summary["stages"][stage]["seconds"] == pytest.approx(kept["seconds"], abs=1e-3)
        assert summary["stages"][stage]["failed"] == []
    assert {phase: f"{100 * found['all_images']['ar_1000']:.1f}" for phase, found in summary["scores"].items()} == dict(
        zip(STAGES, cells(whole.stdout, "AR@1000"), strict=False)
    )


def test_a_pipeline_that_was_stopped_in_each_stage_is_the_one_that_was_not(
    pipeline: Callable,
    scene: Path,
    whole: subprocess.CompletedProcess[str],
    monkeypatch: pytest.MonkeyPatch,
    labels_of: Callable,
) -> None:
    out, interrupt = scene / "stopped", lambda: signal.raise_signal(signal.SIGINT)

    def stopped_by(change: Callable[[pytest.MonkeyPatch], None], where: str) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            change(patch)
            result = pipeline(scene, "stopped", "--gt", scene / "gt.json", "--json")
        assert result.code == 130, result.err
        assert not json.loads(result.out)["finished"]
        assert f"The pipeline stopped {where}. Run the same command again to continue." in result.err
        return recorded(out)

    stages = stopped_by(lambda patch: before_each(patch, _Labeler, "__call__", interrupt), "in stage 1 of 4, explore")
    assert (stages["explore"]["finished"], LabelStore(out / "labels").names()) == (False, ["a.png"])
    stages = stopped_by(lambda patch: before_each(patch, Sources, "open", interrupt), "in stage 2 of 4, instruct")
    assert (stages["explore"]["finished"], stages["instruct"]["finished"]) == (True, False)
    assert steps_kept(out / "runs/instruct") == [1]  # the signal came before the first
    stages = stopped_by(lambda patch: after_steps(patch, {3: interrupt}), "in stage 2 of 4, instruct")
    assert steps_kept(out / "runs/instruct") == [1, 3]
    seconds = stages["instruct"]["seconds"]
    stages = stopped_by(lambda patch: after_steps(patch, {STEPS: interrupt}), "after stage 2 of 4, instruct")
    assert stages["instruct"]["finished"]
    assert stages["instruct"]["seconds"] > seconds > 0  # of both calls
    assert not (out / "runs/correct").exists()
    stages = stopped_by(lambda patch: after_steps(patch, {1: interrupt}), "in stage 3 of 4, correct")
    assert steps_kept(out / "runs/correct") == [1]
    stages = stopped_by(lambda patch: before_each(patch, ModelMethod, "label", interrupt), "in stage 4 of 4, evaluate")
    assert len(LabelStore(out / "evaluation/instruct").names()) == 1
    assert not (out / "evaluation/correct").exists() or LabelStore(out / "evaluation/correct").names() == []

    result = pipeline(scene, "stopped", "--gt", scene / "gt.json")
    assert result.code == 0, result.err
    assert models(out) == models(scene / "whole")
    for labels in ("labels", "evaluation"):
        assert labels_of(out / labels) == labels_of(scene / "whole" / labels)
    assert {stage: found["numbers"] for stage, found in recorded(out).items()} == {
        stage: found["numbers"] for stage, found in recorded(scene / "whole").items()
    }
    for row in ("AR@1", "AR@1000", "link precision"):
        assert cells(result.out, row) == cells(whole.stdout, row)


def before_each(patch: pytest.MonkeyPatch, owner: type, name: str, action: Callable[[], object]) -> None:
    """Do something before each call of a method."""
    method = getattr(owner, name)

    def changed(*arguments: Any) -> Any:
        action()
        return method(*arguments)

    patch.setattr(owner, name, changed)


def test_a_moved_pipeline_goes_on_and_is_evaluated_on_other_photographs(pipeline: Callable, copied: Path) -> None:
    other = copied / "other"
    (other / "sub").mkdir(parents=True)
    for name in ANNOTATED[:3]:
        (copied / "images" / name).rename(other / name)
        shutil.copy(other / name, copied / "images" / name)
    before = recorded(copied / "whole")
    result = pipeline(copied, "whole", "--gt", copied / "gt.json", "--gt-images", other, "--json")
    assert result.code == 1, result.err
    summary = json.loads(result.out)
    (missing,) = summary["stages"]["evaluate"]["failed"]
    assert missing.startswith("d.png: ")
    assert "Error: Some photographs or labels failed: 1 in evaluate." in result.err
    for stage in STAGES[:3]:
        assert recorded(copied / "whole")[stage] == before[stage]
    for phase in STAGES[:3]:
        assert LabelStore(copied / "whole/evaluation" / phase).names() == sorted(ANNOTATED[:3])
        assert read_manifest(copied / "whole/evaluation" / phase).images == "../../../other"
        assert summary["scores"][phase]["images_without_predictions"] == 1
    assert before["evaluate"]["settings"]["labels"]["images"] == "../images"
    assert recorded(copied / "whole")["evaluate"]["settings"]["labels"]["images"] == "../other"


def test_damaged_photographs_stop_nothing_and_are_listed_at_the_end(
    pipeline: Callable, scene: Path, tmp_path: Path
) -> None:
    shutil.copytree(scene / "images", tmp_path / "images")
    (tmp_path / "images" / "a-text.png").write_text("no photograph")
    annotations = json.loads((scene / "gt.json").read_text())
    annotations["images"].append({"id": 99, "file_name": "a-text.png", "height": 50, "width": 50})
    (tmp_path / "gt.json").write_text(json.dumps(annotations))
    result = pipeline(tmp_path, "work", "--gt", tmp_path / "gt.json", *FEW)
    stages = recorded(tmp_path / "work")
    failed = stages["evaluate"]["failed"]  # a model of two steps may score nothing, which is told, too
    assert result.code == 1
    assert f"Error: Some photographs or labels failed: 1 in explore, {len(failed)} in evaluate." in result.err
    assert "Failed in explore: a-text.png " in result.out
    assert all(f"Failed in evaluate: {message}" in result.out for message in failed)
    assert failed[0].startswith("a-text.png ")
    assert all("Every score of" in message or "holds no masks" in message for message in failed[1:])
    assert cells(result.out, "explore")[:2] == ["6 photographs", "3.7 masks an image, 1 failed"]
    scored = 3 - len(failed[1:])
    assert cells(result.out, "evaluate")[:2] == [
        "5 photographs",
        f"scores of {scored} of 3 phases, {len(failed)} failed",
    ]
    assert cells(result.out, "AR@1000").count("-") == 3 - scored
    assert all(stage["finished"] for stage in stages.values())
    assert f"The model is {tmp_path}/work/runs/correct/model.safetensors." in result.out
    assert models(tmp_path / "work").keys() == {"runs/instruct/model.safetensors", "runs/correct/model.safetensors"}


def test_phase_1_leaves_training_its_threads(scene: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(scene / "images" / "a.png", images)
    (images / "b.png").write_text("no photograph")
    config = pipeline_config(assignments=SETTINGS)
    job, work = (
        PipelineJob(
            PipelineInputs(images), PipelineFolder(tmp_path / "work"), config, join_processes("cpu"), "cpu", workers=0
        ),
        StageWork(),
    )
    torch.set_num_threads(2)
    with pytest.raises(PartialFailure):
        label_folder(job, images, job.folder.labels, work)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert (threads, work.worked, len(work.failed)) == (2, True, 1)


def test_two_processes_share_the_stages_and_one_of_them_speaks(
    launch: Callable, scene: Path, whole: subprocess.CompletedProcess[str], labels_of: Callable
) -> None:
    out = scene / "shared"
    result = launch("pipeline", scene / "images", "--out", out, "--gt", scene / "gt.json", *FLAGS, *FEW)
    stages = recorded(out)
    assert (result.code == 0) == (stages["evaluate"]["failed"] == []), result.err
    assert [result.err.count(f"Stage {i} of 4, {stage}: ") for i, stage in enumerate(STAGES, 1)] == [1, 1, 1, 1]
    assert "2 processes on cpu" in result.err
    assert result.out.count("Next: ") == 1
    assert cells(result.out, "AR@1000")[0] == cells(whole.stdout, "AR@1000")[0]
    assert labels_of(out / "labels") == labels_of(scene / "whole" / "labels")
    assert [LabelStore(out / "evaluation" / phase).names() for phase in ("instruct", "correct")] == [
        sorted(ANNOTATED)
    ] * 2
    assert all(stage["finished"] for stage in stages.values())


def test_overwrite_removes_what_a_pipeline_left_and_nothing_else(
    pipeline: Callable, copied: Path, labels_of: Callable
) -> None:
    out = copied / "whole"
    notes = [
        out / "notes.txt",
        out / "runs" / "correct" / "notes.txt",
        out / "evaluation" / "notes.txt",
        out / "labels" / "notes.txt",
    ]
    for path in notes:
        path.write_text("mine")
    before = labels_of(out)
    for code, flags in (
        (2, ("--set", "segment.min_score=2")),
        (1, ()),
    ):  # a typo; a file that would be in the way of new labels
        assert pipeline(copied, "whole", "--overwrite", *flags).code == code
        assert labels_of(out) == before
    notes.pop().unlink()
    flags = (*FEW, "--set", "explore.pooling.max_masks=3", "--set", "correct.teacher.score_small=0.3")
    result = pipeline(copied, "whole", "--overwrite", *flags)
    assert result.code == 0, result.err
    assert all(path.read_text() == "mine" for path in notes)
    assert read_manifest(out / "labels").config["pooling"]["max_masks"] == 3
    assert (steps_kept(out / "runs/instruct"), steps_kept(out / "runs/correct")) == ([2], [1])
    assert [path.name for path in (out / "evaluation").iterdir()] == ["notes.txt"]
    assert "AR@1" not in result.out
    assert recorded(out)["evaluate"]["settings"] == {}
    assert recorded(out)["correct"]["settings"]["teacher"]["score_small"] == 0.3

    (out / "pipeline.json").unlink()
    refused = pipeline(copied, "whole", "--overwrite", *FEW)
    assert refused.code == 2
    assert "holds labels, but no pipeline.json, so no pipeline made it" in refused.err
    assert len(models(out)) == 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("explore.pooling.max_masks=5", ["explore.pooling.max_masks (4 there, 5 now)"]),
        ("instruct.optimizer.steps=31", ["instruct.optimizer.steps (30 there, 31 now)"]),
        ("correct.views.blur=0.1", ["correct.views.blur (0.5 there, 0.1 now)"]),
    ],
)
def test_a_pipeline_with_other_settings_is_refused_at_once(
    pipeline: Callable,
    scene: Path,
    whole: subprocess.CompletedProcess[str],
    labels_of: Callable,
    setting: str,
    words: list[str],
) -> None:
    assert whole.returncode == 0
    before = labels_of(scene / "whole")
    result = pipeline(scene, "whole", "--set", setting)
    assert (result.code, result.out) == (2, "")
    for word in [
        f"--out {scene / 'whole'} holds a pipeline with other settings",
        "another --out, or --overwrite",
        *words,
    ]:
        assert word in result.err
    assert "Stage 1" not in result.err
    assert labels_of(scene / "whole") == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "instrukt.optimizer.steps=3"], ["instrukt is not a stage. Did you mean 'instruct'?"]),
        (["--set", "optimizer.steps=3"], ["optimizer is not a stage", "explore, instruct, correct, segment"]),
        (["--set", "correct=3"], ["correct is a stage, not a setting", "correct.GROUP.NAME"]),
        (
            ["--set", "explore.pooling.max_mask=5"],
            ["Stage explore: pooling.max_mask is not a setting. Did you mean 'max_masks'?"],
        ),
        (
            ["--set", "explore.pooling.max_area=2"],
            ["Stage explore: pooling.max_area", "--set explore.pooling.max_area"],
        ),
        (["--set", "explore.features.backbone=color-textur"], ["Stage explore: ", "Did you mean 'color-texture'?"]),
        (
            ["--set", "instruct.optimizr.steps=3"],
            ["Stage instruct: optimizr is not a setting. Did you mean 'optimizer'?"],
        ),
        (["--set", "instruct.optimizer.steps=0"], ["Stage instruct: optimizer.steps must be at least 1"]),
        (["--set", "instruct.model.interactions=3"], ["Stage instruct: model.interactions must divide the 2 blocks"]),
        (["--set", "instruct.model.weights=nowhere.safetensors"], ["Stage instruct: ", "nowhere.safetensors"]),
        (["--set", "instruct.data.validation=6"], ["Stage instruct: data.validation", "6 of 6"]),
        (
            ["--set", "correct.teacher.score_smal=0.3"],
            ["Stage correct: teacher.score_smal is not", "Did you mean 'score_small'?"],
        ),
        (["--set", "correct.teacher.nms_iou=2"], ["Stage correct: teacher.nms_iou", "--set correct.teacher.nms_iou"]),
        (
            ["--set", "correct.model.queries=10"],
            ["Stage correct: model.queries cannot be 10", "instruct.model.queries"],
        ),
        (["--set", "segment.min_scor=0.1"], ["Stage segment: min_scor is not a setting. Did you mean 'min_score'?"]),
        (
            ["--set", "segment.min_score=2"],
            ["segment.min_score must be a score in [0, 1]", "--set segment.min_score=..."],
        ),
        (["--preset", "huge"], ["--preset must be one of tiny, small, base"]),
        (["--config", "nowhere.toml"], ["--config nowhere.toml"]),
        (["--device", "cuda:7"], ["--device must be auto or cpu"]),
        (["--gt", "nowhere.json"], ["--gt: nowhere.json"]),
        (["--gt", "SCENE/labels"], ["--gt SCENE/labels is a label folder", "Give a COCO annotation file"]),
        (
            ["--gt", "SCENE/gt.json", "--gt-images", "SCENE/labels"],
            ["none of the photographs that --gt", "a.png", "--gt-images"],
        ),
        (["--gt-images", "SCENE/images"], ["--gt-images", "which is missing"]),
    ],
)
def test_what_cannot_be_right_is_wrong_usage_before_anything_is_written(
    pipeline: Callable, scene: Path, flags: list[str], words: list[str]
) -> None:
    result = pipeline(scene, "wrong", *(flag.replace("SCENE", str(scene)) for flag in flags))
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    for word in words:
        assert word.replace("SCENE", str(scene)) in result.err
    assert not (scene / "wrong").exists()


def test_folders_that_cannot_be_right_are_wrong_usage(sohes: Callable, scene: Path) -> None:
    result = sohes("pipeline", scene / "nowhere", "--out", scene / "wrong")
    assert (result.code, result.out) == (2, "")
    assert f"The image folder {scene / 'nowhere'} does not exist." in result.err
    result = sohes("pipeline", scene, "--out", scene / "wrong")
    assert result.code == 2
    assert "is inside the image folder" in result.err
    assert not (scene / "wrong").exists()


def test_settings_come_from_a_file_and_each_stage_gets_its_own(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "[explore.pooling]\nmax_masks = 7\n[instruct.optimizer]\nsteps = 800\nbatch_size = 2\n"
        "[correct.teacher]\nnms_iou = 0.8\n[segment]\nmin_score = 0.2\n"
    )
    config = pipeline_config("tiny", file, ["instruct.optimizer.steps=1600", "instruct.data.image_size=64"])
    assert config.explore.pooling.max_masks == 7
    assert (config.instruct.optimizer.steps, config.instruct.optimizer.batch_size) == (1600, 2)
    assert (config.correct.optimizer.steps, config.correct.optimizer.batch_size) == (200, 2)  # follows from phase 2
    assert (config.correct.teacher.nms_iou, config.correct.data.image_size) == (0.8, 64)
    assert config.segment.min_score == 0.2
    assert pipeline_config("small").instruct.model == pipeline_config("small").correct.model
