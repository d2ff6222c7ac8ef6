"""Whole runs of `sohes train --phase correct`, also resumed and in two processes: teacher and student by formula."""

from __future__ import annotations

import math
import shutil
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from criterion_cases import pack
from safetensors.torch import load_file
from train_cases import after_steps, assert_same_runs, lines_of, steps_kept, tensors_of, tiny_train_config

from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.model.files import load_model, save_model
from sohes_cli.training.correct_config import correct_config
from sohes_cli.training.correction import Correction
from sohes_cli.training.initial import settings_of
from sohes_cli.training.session import corrected_run, train_run
from sohes_cli.training.sources import Sources
from sohes_cli.training.teacher_labels import TeacherLabels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = 5
EASY = ("teacher.score_small=0.2", "teacher.score_large=0.2")  # a model of a few steps has low scores
FULL = "optimizer.precision=fp32"  # the default is bf16 on some processors
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def instructed(labels: Path) -> Path:
    """Folder of a run of phase 2."""
    out = labels.parent / "instruct"
    rate = ("optimizer.learning_rate=3e-3", "optimizer.schedule=constant", "model.drop_path=0.2")
    assert train_run(Sources(labels), out, tiny_train_config(20, *rate), device="cpu", workers=0)
    return out


@pytest.fixture(scope="module")
def whole(instructed: Path) -> Path:
    """Folder of an uninterrupted run."""
    out = instructed.parent / "whole"
    assert correct(instructed, out)
    return out


def correct(instructed: Path, out: Path, *assignments: str, steps: int = STEPS, **options: Any) -> bool:
    """Run phase 3 from a model, on the labels of its run."""
    given = (f"optimizer.steps={steps}", *EASY, FULL, *assignments)
    sources, config = corrected_run(Sources(init=instructed), None, given, {})
    return train_run(sources, out, config, device="cpu", **{"workers": 0} | options)


def models_of(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read teacher and student."""
    teacher, student = (load_file(out / name) for name in ("model.safetensors", "student.safetensors"))
    return teacher, student


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 2, 3, 4)], ids=str)
def test_a_run_that_was_stopped_is_the_run_that_was_not(
    instructed: Path, out: Path, whole: Path, stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    after_steps(monkeypatch, dict.fromkeys(stops, lambda: signal.raise_signal(signal.SIGINT)))
    for done in stops:
        assert not correct(instructed, out)
        assert steps_kept(out)[-1] == done
    assert correct(instructed, out)
    assert_same_runs(out, whole, STEPS)


def test_two_processes_take_the_steps_of_one(launch: Callable, instructed: Path, out: Path, tmp_path: Path) -> None:
    # no stochastic depth, which draws from a generator of each process; and short steps: the first one of AdamW divides
    # each gradient by its own size, so the rounding of tiny ones would decide over steps of full length
    same = ("model.drop_path=0.0", "optimizer.learning_rate=1e-5")
    flags = [part for assignment in (*EASY, FULL, *same) for part in ("--set", assignment)]
    options = ("--steps", 3, "--device", "cpu", "--workers", 0, "--out", out)
    result = launch("train", "--phase", "correct", "--init", instructed, *flags, *options)
    assert result.code == 0, result.err
    assert "2 processes on cpu" in result.err
    assert correct(instructed, tmp_path / "one", *same, steps=3)
    for mine, other in zip(lines_of(out), lines_of(tmp_path / "one"), strict=True):
        # a score may be next to the threshold
        assert mine["teacher_labels"] == pytest.approx(other["teacher_labels"], abs=0.51)
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)
        assert mine["ema_distance"] == pytest.approx(other["ema_distance"], rel=1e-2)
    start = load_file(instructed / "model.safetensors")
    for mine, other in zip(models_of(out), models_of(tmp_path / "one"), strict=True):
        floats = [name for name in mine if mine[name].is_floating_point()]
        difference = sum(float((mine[name] - other[name]).square().sum()) for name in floats)
        moved = sum(float((other[name] - start[name]).square().sum()) for name in floats)
        assert difference < 1e-2 * moved


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_is_the_moving_average_updated_once_a_step(instructed: Path, out: Path, accumulate: int) -> None:
    decay = ("teacher.ema_decay=0.75", f"optimizer.accumulate={accumulate}", "run.checkpoint_every=1")
    assert correct(instructed, out, *decay, steps=2)
    expected = {name.removeprefix("model."): t for name, t in load_file(instructed / "model.safetensors").items()}
    moved = 0
    for step in (1, 2):
        tensors = tensors_of(out, step)
        student, teacher = (
            {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in ("model.", "teacher.")
        )
        assert student.keys() == teacher.keys()
        for name, now in student.items():
            if now.is_floating_point():
                expected[name] = 0.75 * expected[name] + 0.25 * now
            else:
                expected[name] = now
            torch.testing.assert_close(teacher[name], expected[name], rtol=1e-5, atol=1e-7)
            moved += not teacher[name].equal(now)
    assert moved > 100
    assert any(name.endswith("running_mean") and not student[name].equal(teacher[name]) for name in student)


def test_without_its_branch_the_student_takes_the_steps_of_phase_2(labels: Path, instructed: Path, out: Path) -> None:
    # a weak view that is the crop, so that photographs are decoded as in phase 2
    given = ("branches.initial=[1,1]", "branches.teacher=[0,0]", "views.weak=crop")
    assert correct(instructed, out, *given)
    rate = ("optimizer.learning_rate=3e-3", "optimizer.schedule=constant", "model.drop_path=0.2")
    assert train_run(
        Sources(labels, init=instructed), out.with_name("two"), tiny_train_config(STEPS, *rate), device="cpu", workers=0
    )
    _, student = models_of(out)
    wanted = load_file(out.with_name("two") / "model.safetensors")
    assert [name for name in wanted if not wanted[name].equal(student[name])] == []
    for mine, other in zip(lines_of(out), lines_of(out.with_name("two")), strict=True):
        assert mine["loss_mask_initial"] == other["loss_mask"]


def test_what_happens_is_logged_and_drawn(whole: Path, instructed: Path) -> None:
    lines = lines_of(whole)
    assert [lines[0]["weight_initial"], lines[-1]["weight_initial"]] == pytest.approx([1, 0])
    assert [lines[0]["weight_teacher"], lines[2]["weight_teacher"], lines[-1]["weight_teacher"]] == pytest.approx(
        [2, 2.5, 3]
    )
    for line in lines:
        assert line["teacher_labels"] > 0
        by_size = sum(line[f"teacher_labels_{size}"] for size in ("small", "medium", "large"))
        assert by_size == pytest.approx(line["teacher_labels"])
        assert line["teacher_candidates"] >= line["teacher_labels"] / 12
        for share in ("teacher_new", "teacher_iou", "initial_rejected", "mask_likeness"):
            assert 0 <= line[share] <= 1
        branches = {
            name: sum(
                w * line[f"loss_{part}_{name}"] for part, w in (("class", 2), ("mask", 5), ("dice", 5), ("ancestor", 1))
            )
            for name in ("initial", "teacher")
            if line[f"weight_{name}"] > 0
        }
        assert line["loss"] == pytest.approx(
            sum(line[f"weight_{name}"] * loss for name, loss in branches.items()), rel=1e-4
        )
        assert line["ema_distance"] > 0
    assert lines[-1]["loss_mask_teacher"] > 0  # this branch has a mask loss too
    assert "loss_mask_initial" not in lines[-1]  # its weight is 0 at the last step
    assert (whole / "pictures" / f"step-{STEPS:08d}.jpg").stat().st_size > 1000
    names = "run.json checkpoints metrics.jsonl tensorboard model.safetensors student.safetensors pictures"
    assert {path.name for path in whole.iterdir()} == set(names.split())
    _, description = load_model(whole)
    assert lines[-1]["ema_decay"] == pytest.approx(0.9995 ** (5000 / STEPS))
    assert description["config"]["model"] == load_model(instructed)[1]["config"]["model"]


def test_a_photograph_of_which_nothing_is_accepted_keeps_its_initial_labels(instructed: Path, out: Path) -> None:
    still = ("views.jitter=0", "views.grayscale=0", "views.blur=0", "views.erase=0", "model.drop_path=0.0")
    assert correct(instructed, out, "teacher.score_small=1", "teacher.score_large=1", *still, steps=1)
    (line,) = lines_of(out)
    assert line["teacher_labels"] == 0
    assert line["initial_rejected"] == 1
    assert math.isnan(line["teacher_new"] or math.nan)
    for part in ("class", "mask", "dice", "ancestor"):
        assert line[f"loss_{part}_teacher"] == pytest.approx(line[f"loss_{part}_initial"], rel=1e-4)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (
            ("teacher.score_small=1", "teacher.score_large=1"),
            ("accepted no mask in 20 steps", "Lower --set teacher.score_small"),
        ),
        (
            ("teacher.score_small=0", "teacher.score_large=0", "teacher.nms_iou=1"),
            (
                "Nearly all of the teacher's 12 masks have had the score of a label for 20 steps",
                "raise --set teacher.score_small",
            ),
        ),
    ],
    ids=["nothing", "everything"],
)
def test_a_teacher_that_accepts_nothing_or_everything_is_reported_once(
    instructed: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    assignments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    assert correct(instructed, out, *assignments, "optimizer.batch_size=1", "run.log_every=48", steps=48)
    errors = capsys.readouterr().err
    for word in words:
        assert errors.count(word) == 1


def test_collapse_stops_the_run_and_keeps_the_last_checkpoint(
    instructed: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All queries of the student become equal in the middle of a run."""
    from sohes_cli.training.learner import Learner

    step = Learner.step_on

    def collapsing(self: Learner, branches: Any, number: int, diagnosed: bool = False) -> dict[str, float]:
        numbers = step(self, branches, number, diagnosed)
        if number >= 2:
            with torch.no_grad():
                for queries in (
                    self.network.query_decoder.query_feat.weight,
                    self.network.query_decoder.query_embed.weight,
                ):
                    queries.copy_(queries[:1].expand_as(queries))
        return numbers

    monkeypatch.setattr(Learner, "step_on", collapsing)
    with pytest.raises(SohesError, match=r"collapsed.*(masks|scores) are all alike.*learning-rate"):
        correct(instructed, out, "run.checkpoint_every=3", steps=9)
    assert steps_kept(out) == [3]
    assert [line["score_deviation"] < 1e-3 for line in lines_of(out)] == [False] * 3 + [True] * 2
    # the last step may have no masks left
    assert [line["mask_likeness"] > 0.85 for line in lines_of(out)[:4]] == [False] * 3 + [True]


def test_a_collapsed_model_is_not_gone_on_from(instructed: Path, out: Path, tmp_path: Path) -> None:
    model, description = load_model(instructed)
    with torch.no_grad():
        model.query_decoder.query_feat.weight.zero_()
        model.query_decoder.query_embed.weight.zero_()
    save_model(tmp_path / "model.safetensors", model, description)
    sources, config = corrected_run(
        Sources(instructed.parent / "labels", init=tmp_path / "model.safetensors"), None, (), {}
    )
    with pytest.raises(SohesError, match=r"collapsed: its masks are all alike .*another --out"):
        train_run(sources, out, config, device="cpu", workers=0)
    assert steps_kept(out) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_teacher_is_full_precision_whatever_that_of_a_step(instructed: Path, out: Path, precision: str) -> None:
    assert correct(instructed, out, f"optimizer.precision={precision}", steps=2)
    teacher = {name: t for name, t in tensors_of(out, 2).items() if name.startswith("teacher.")}
    assert {t.dtype for t in teacher.values() if t.is_floating_point()} == {torch.float32}
    assert all(bool(t.isfinite().all()) for t in teacher.values())


@pytest.mark.parametrize(
    "switch",
    [
        "teacher.threshold=fixed",
        "teacher.hierarchy=head",
        "teacher.keep_initial=true",
        "views.weak=crop",
        "branches.initial=[0,0]",
    ],
)
def test_every_switch_makes_another_run(instructed: Path, out: Path, whole: Path, switch: str) -> None:
    fixed = ("teacher.score_fixed=0.5",) if "fixed" in switch else ()
    assert correct(instructed, out, switch, *fixed)
    assert [line["loss"] for line in lines_of(out)] != [line["loss"] for line in lines_of(whole)]


def test_initial_labels_that_the_teacher_has_not_found_stay_as_far_as_there_is_room(instructed: Path) -> None:
    masks = torch.zeros(5, 16, 24, dtype=torch.bool)
    for mask in (masks[0, :, :12], masks[1, :, :11], masks[2, 3:9, 2:8], masks[3, :, 14:], masks[4, 4:8, 16:20]):
        mask.fill_(True)
    bits = pack(masks)
    found = TeacherLabels(bits[:1], torch.tensor([-1]), np.array([0.9]), np.array([0.5]), 1)
    for keep, most, expected, parents in [
        (True, 100, [0, 2, 3, 4], [-1, 0, -1, 2]),  # the teacher matches the whole of the second initial label
        (True, 3, [0, 2, 3], [-1, 0, -1]),
        (True, 1, [0], [-1]),
        (False, 100, [0], [-1]),
    ]:
        config = correct_config(
            settings_of(instructed),
            assignments=[f"teacher.keep_initial={str(keep).lower()}", f"data.max_labels={most}"],
        )
        joined, forest = Correction(config, "cpu", instructed)._join(found, bits[1:], torch.tensor([-1, 0, -1, 2]))
        assert torch.equal(joined, bits[expected])
        assert forest.tolist() == parents


def test_a_student_without_any_mask_has_collapsed_and_one_that_is_not_finite_is_reported(
    instructed: Path, out: Path, tmp_path: Path
) -> None:
    for value, words in ((-100.0, "collapsed: no query has a mask"), (math.nan, "not finite")):
        model, description = load_model(instructed)
        with torch.no_grad():
            last = model.query_decoder.mask_embed["layers"][-1]
            last.weight.zero_()
            last.bias.fill_(value)
            if value < 0:
                model.pixel_decoder.mask_features.weight.zero_()
                model.pixel_decoder.mask_features.bias.fill_(1.0)
        save_model(tmp_path / "model.safetensors", model, description)
        sources, config = corrected_run(
            Sources(instructed.parent / "labels", init=tmp_path / "model.safetensors"), None, (), {}
        )
        with pytest.raises(SohesError, match=words):
            train_run(sources, out, config, device="cpu", workers=0)


def test_a_model_of_one_query_has_not_collapsed(labels: Path, out: Path) -> None:
    assert train_run(Sources(labels), out, tiny_train_config(1, "model.queries=1"), device="cpu", workers=0)
    assert correct(out, out.with_name("next"), steps=2)


def test_its_own_model_is_not_removed(instructed: Path, out: Path) -> None:
    assert correct(instructed, out, steps=1)
    with pytest.raises(UsageError, match=r"--init .* is inside --out .*Name another folder"):
        correct(out, out, steps=1, overwrite=True)
    assert load_model(out)


def test_a_damaged_run_is_not_passed_over(instructed: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(instructed, start)
    (start / "run.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        corrected_run(Sources(init=start), None, (), {})
    shutil.copy(instructed / "run.json", start / "run.json")
    with pytest.raises(UsageError, match=r"The labels .*labels, from which .* learned, are not there"):
        corrected_run(Sources(init=start), None, (), {})


def test_correction_can_be_corrected(whole: Path, labels: Path, out: Path) -> None:
    sources, config = corrected_run(Sources(init=whole), None, ("optimizer.steps=2",), {})
    assert sources.labels is not None
    assert sources.labels.resolve() == labels.resolve()
    assert config.teacher.score_small == 0.2
    assert config.ema_decay == pytest.approx(0.9995**2500)
    assert train_run(sources, out, config, device="cpu", workers=0)
