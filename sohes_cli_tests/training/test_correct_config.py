"""The settings of phase 3: what they take from the run they go on from, the age of the teacher, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sohes_cli.data.config import ViewsConfig
from sohes_cli.errors import ConfigError
from sohes_cli.settings import from_plain, to_plain
from sohes_cli.training.config import TrainConfig, train_config
from sohes_cli.training.correct_config import BranchesConfig, CorrectConfig, TeacherConfig, correct_config

if TYPE_CHECKING:
    from pathlib import Path


def phase_2(*assignments: str) -> dict[str, Any]:
    """The settings of a run of phase 2, as its model file holds them."""
    return json.loads(json.dumps(to_plain(train_config("base", assignments=assignments))))


def phase_3(*assignments: str) -> dict[str, Any]:
    return json.loads(json.dumps(to_plain(correct_config(phase_2(), assignments=assignments))))


# What it goes on from


def test_defaults_after_the_40000_steps_of_phase_2() -> None:
    config = correct_config(phase_2())
    assert config.optimizer.steps == 5000
    assert config.ema_decay == 0.9995
    assert (config.teacher.threshold, config.teacher.hierarchy, config.teacher.nms_iou) == ("area", "geometry", 0.9)
    assert (config.teacher.score_small, config.teacher.score_large) == (0.4, 0.7)
    assert (config.teacher.area_small, config.teacher.area_large) == (32**2 / 1024**2, 96**2 / 1024**2)
    assert (config.branches.initial, config.branches.teacher) == ((1.0, 0.0), (2.0, 3.0))
    assert config.views == ViewsConfig()


def test_everything_but_the_steps_comes_from_phase_2() -> None:
    changes = (
        "data.image_size=512",
        "optimizer.learning_rate=3e-4",
        "optimizer.steps=8000",
        "loss.points=100",
        "run.seed=7",
    )
    before, after = train_config("base", assignments=changes), correct_config(phase_2(*changes))
    assert after.optimizer.steps == 1000
    for group in ("model", "data", "loss", "run"):
        assert getattr(after, group) == getattr(before, group)
    assert after.optimizer.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("before", "after"), [(40000, 5000), (4000, 500), (407, 50), (400, 50), (399, 50), (150, 50), (1, 50)]
)
def test_an_eighth_of_the_steps_of_phase_2_and_at_least_50(before: int, after: int) -> None:
    assert correct_config(phase_2(f"optimizer.steps={before}")).optimizer.steps == after


def test_a_run_of_phase_3_goes_on_with_its_own_steps() -> None:
    start = phase_3("optimizer.steps=700", "branches.initial=[1, 0.5]", "views.weak=crop", "teacher.score_large=0.6")
    config = correct_config(start)
    assert config == from_plain(CorrectConfig, start)
    assert config.optimizer.steps == 700
    assert (config.branches.initial, config.views.weak, config.teacher.score_large) == ((1.0, 0.5), "crop", 0.6)


def test_a_run_of_phase_3_of_another_length_has_a_teacher_of_its_own_age() -> None:
    start = phase_3("optimizer.steps=700")
    assert correct_config(start, assignments=["optimizer.steps=5000"]).ema_decay == 0.9995


def test_no_settings_at_all_are_those_of_phase_2() -> None:
    assert correct_config({}) == correct_config(to_plain(TrainConfig()))
    assert correct_config({}).optimizer.steps == 5000


def test_what_was_given_stays_as_it_was() -> None:
    for start in (phase_2(), phase_3()):
        before = json.dumps(start)
        correct_config(start, assignments=["teacher.ema_decay=0.5", "optimizer.steps=3", "views.weak=crop"])
        assert json.dumps(start) == before


def test_settings_survive_the_way_through_plain_values() -> None:
    config = correct_config(phase_2(), assignments=["branches.teacher=[1, 4]", "teacher.threshold=fixed"])
    assert from_plain(CorrectConfig, json.loads(json.dumps(to_plain(config)))) == config


# The age of the teacher


@pytest.mark.parametrize("steps", [1, 50, 300, 5000, 40000])
def test_a_run_of_any_length_forgets_as_much(steps: int) -> None:
    config = correct_config(phase_2(), assignments=[f"optimizer.steps={steps}"])
    assert 0 < config.ema_decay < 1
    assert config.ema_decay**steps == pytest.approx(0.9995**5000)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99999])
@pytest.mark.parametrize("steps", [10, 5000])
def test_a_decay_that_is_given_is_kept(decay: float, steps: int) -> None:
    config = correct_config(phase_2(), assignments=[f"optimizer.steps={steps}", f"teacher.ema_decay={decay}"])
    assert config.ema_decay == decay
    again = correct_config(to_plain(config), assignments=["optimizer.steps=77"])
    assert again.ema_decay == decay


def test_the_decay_can_be_asked_for() -> None:
    assert correct_config(phase_2(), assignments=["teacher.ema_decay=-1"]).ema_decay == 0.9995


# Which source wins


def test_later_beats_earlier(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "[optimizer]\nsteps = 100\nbatch_size = 3\nlearning_rate = 0.01\n"
        "[teacher]\nscore_small = 0.1\nema_decay = 0.5\n"
        "[views]\nerase = 0\n"
    )
    start = phase_2("optimizer.batch_size=2", "optimizer.warmup=0.25")
    config = correct_config(
        start, file, ["optimizer.batch_size=4", "optimizer.learning_rate=0.02"], {"optimizer.learning_rate": 0.03}
    )
    found = config.optimizer
    assert (found.steps, found.batch_size, found.learning_rate, found.warmup) == (100, 4, 0.03, 0.25)
    assert (config.teacher.score_small, config.ema_decay, config.views.erase) == (0.1, 0.5, 0.0)
    last = correct_config(start, file, ["optimizer.steps=200", "teacher.ema_decay=-1"], {"optimizer.steps": 250})
    assert last.optimizer.steps == 250
    assert last.ema_decay == pytest.approx(0.9995**20)  # for the steps that are taken


def test_lists_may_be_given_as_text() -> None:
    config = correct_config({}, assignments=["branches.teacher=1,2"], flags={"branches.initial": "0.5,0"})
    assert config.branches == BranchesConfig((0.5, 0.0), (1.0, 2.0))


# What is refused


@pytest.mark.parametrize(
    "assignment",
    [
        *(f"teacher.ema_decay={value}" for value in ("1", "1.5", "-0.5", "-2", "nan", "inf")),
        *(f"teacher.threshold={value}" for value in ("size", "Area", "''")),
        *(
            f"teacher.{name}={value}"
            for name in ("score_small", "score_large", "score_fixed")
            for value in ("-0.1", "1.1", "nan")
        ),
        *(f"teacher.area_small={value}" for value in ("0", "1", "-0.1", "nan")),
        *(f"teacher.area_large={value}" for value in ("1.1", "0.0001", f"{32**2 / 1024**2!r}", "nan")),
        *(f"teacher.nms_iou={value}" for value in ("0", "1.1", "nan")),
        *(f"teacher.hierarchy={value}" for value in ("forest", "''")),
        *(
            f"branches.{name}={value}"
            for name in ("initial", "teacher")
            for value in ("1", "[1, 2, 3]", "[]", "[-1, 1]", "[1, nan]", "[inf, 1]")
        ),
        *(f"branches.teacher={value}" for value in ("[0, 0]", "[2, 0]")),  # nothing at the end
        *(f"views.weak={value}" for value in ("photograph", "''")),
        *(
            f"views.{name}={value}"
            for name in ("weak_flip", "jitter", "grayscale", "blur", "erase")
            for value in ("-0.1", "1.1", "nan")
        ),
        *(f"views.jitter_strength={value}" for value in ("-0.1", "2.1", "nan")),
        *("optimizer.steps=0", "data.min_visible=2"),
    ],
)
def test_a_value_out_of_range_is_named(assignment: str) -> None:
    name = assignment.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        correct_config(phase_2(), assignments=[assignment])
    assert str(caught.value).startswith(f"{name} must be ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "assignment",
    [
        "teacher.ema_decay=0",
        "teacher.score_small=0",
        "teacher.score_large=1",
        "teacher.area_large=1",
        "teacher.nms_iou=1",
        "branches.initial=[0, 0]",
        "branches.teacher=[0, 1]",
        "views.erase=0",
        "views.weak_flip=1",
        "views.jitter_strength=2",
    ],
)
def test_the_ends_of_a_range_are_part_of_it(assignment: str) -> None:
    name, _, text = assignment.partition("=")
    group, _, field = name.partition(".")
    value = tuple(json.loads(text)) if text.startswith("[") else float(text)
    assert getattr(getattr(correct_config({}, assignments=[assignment]), group), field) == value


def test_no_teacher_branch_needs_initial_labels_to_the_end() -> None:
    config = correct_config({}, assignments=["branches.teacher=[0, 0]", "branches.initial=[1, 1]"])
    assert config.branches == BranchesConfig((1.0, 1.0), (0.0, 0.0))
    with pytest.raises(
        ConfigError, match=r"branches\.teacher must be above 0 where branches\.initial \(\(0\.0, 1\.0\)\) is 0"
    ):
        BranchesConfig((0.0, 1.0), (0.0, 1.0))


def test_thresholds_may_fall_with_the_area() -> None:
    assert TeacherConfig(score_small=0.7, score_large=0.4).score_small == 0.7


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("teacher.ema_decy=0.9", "teacher.ema_decy is not a setting. Did you mean 'ema_decay'?"),
        ("techer.ema_decay=0.9", "techer is not a setting. Did you mean 'teacher'?"),
        ("branch.initial=[1, 1]", "branch is not a setting."),
        ("views.week=crop", "views.week is not a setting. Did you mean 'weak'?"),
        ("teacher=0.9", "teacher is a group of settings, not a value."),
        ("views.blur=much", "views.blur must be a number, not 'much'"),
        ("teacher.threshold=3", "teacher.threshold must be a word, not 3"),
    ],
)
def test_an_unknown_name_or_type_is_named(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        correct_config(phase_2(), assignments=[assignment])
    assert words in str(caught.value)


def test_unknown_names_are_refused_in_files_and_flags_too(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[teacher]\nscore = 0.4\n")
    with pytest.raises(ConfigError, match=r"teacher\.score is not a setting"):
        correct_config({}, file)
    with pytest.raises(ConfigError, match=r"views\.strong is not a setting"):
        correct_config({}, flags={"views.strong": 1})
    with pytest.raises(ConfigError, match=r"optimizer\.step is not a setting"):
        correct_config({"optimizer": {"step": 3}})


def test_phase_2_does_not_know_the_settings_of_phase_3() -> None:
    with pytest.raises(ConfigError, match="teacher is not a setting"):
        train_config(assignments=["teacher.ema_decay=0.9"])
