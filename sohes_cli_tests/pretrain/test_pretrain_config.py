"""Settings of pretraining: presets, files, ranges, and names that are almost right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sohes_cli.errors import ConfigError
from sohes_cli.pretrain.config import PRETRAIN_PRESETS, PretrainConfig, pretrain_config
from sohes_cli.settings import from_plain, to_plain

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("preset", PRETRAIN_PRESETS)
def test_presets_resolve_and_survive_the_way_through_plain_values(preset: str) -> None:
    config = pretrain_config(preset)
    assert from_plain(PretrainConfig, to_plain(config)) == config
    changed = {
        (group, name): value for group, values in PRETRAIN_PRESETS[preset].items() for name, value in values.items()
    }
    plain, defaults = to_plain(config), to_plain(PretrainConfig())
    assert {(g, n): v for g, values in plain.items() for n, v in values.items() if v != defaults[g][n]} == changed


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"default, cpu, not 'cpus'\. Did you mean 'cpu'\?"):
        pretrain_config("cpus")


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("views.local_views=0", 0),
        ("views.global_scale=[1, 1]", (1.0, 1.0)),
        ("views.mask_ratio=0.1,0.1", (0.1, 0.1)),
        ("views.local_size=160", 160),
        ("loss.teacher_temperature=0.01", 0.01),
        ("optimizer.teacher_momentum=1", 1.0),
        ("optimizer.warmup=0", 0.0),
        ("model.num_heads=0", 0),
        ("run.seed=2147483647", 2**31 - 1),
    ],
)
def test_the_ends_of_a_range_are_part_of_it(assignment: str, value: object) -> None:
    group, _, name = assignment.partition("=")[0].partition(".")
    assert getattr(getattr(pretrain_config(assignments=[assignment]), group), name) == value


def test_later_beats_earlier(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[optimizer]\nepochs = 5\nbatch_size = 8\n[views]\nglobal_scale = [0.2, 0.9]\n")
    config = pretrain_config("cpu", file, ["optimizer.batch_size=6"], {"optimizer.batch_size": 4})
    assert (config.optimizer.epochs, config.optimizer.batch_size, config.views.global_scale) == (5, 4, (0.2, 0.9))
    assert config.loss.image_weight == 0  # the preset's


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("optimizer.learning_rat=1", "Did you mean 'learning_rate'?"),
        ("optimiser.epochs=1", "Did you mean 'optimizer'?"),
        ("optimizer.epochs=0", "optimizer.epochs"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate"),
        ("optimizer.batch_size=1", "optimizer.batch_size"),
        ("optimizer.precision=fp8", "auto, fp32 or bf16"),
        ("views.global_scale=[0.5]", "two increasing shares"),
        ("views.local_scale=[0.5, 0.1]", "two increasing shares"),
        ("views.local_size=999", "views.local_size"),
        ("views.blur=1.5", "a probability"),
        ("views.pairs=0", "views.pairs"),
        ("loss.match_weight=-1", "loss.*_weight"),
        ("loss.image_prototypes=1", "loss.image_prototypes"),
        ("loss.match_temperature=0", "loss.match_temperature"),
        ("model.embed_dim=30", "a multiple of model.num_heads (4)"),
        ("model.drop_path=1.0", "model.drop_path"),
        ("run.keep=0", "run.keep"),
        ("run.seed=-1", "run.seed"),
        ("model.patch_size=65", "model.patch_size must be pixels from 1 to 64, or 0"),
        ("model.depth=-1", "model.depth must be above 0"),
        ("model.name=''", "model.name must be the timm name"),
        ("views.working_size=8", "views.working_size must be"),
        ("views.global_size=2048", "views.global_size must be"),
        ("views.local_views=65", "views.local_views must be"),
        ("views.mask_ratio=0,0.5", "views.mask_ratio must be"),
        ("views.global_scale=[0.5, nan]", "views.global_scale must be"),
        ("views.jitter=nan", "views.jitter must be"),
        ("views.jitter_strength=2.1", "views.jitter_strength must be"),
        ("views.pair_radius=-1", "views.pair_radius must be"),
        ("loss.image_weight=inf", "loss.*_weight must be"),
        ("loss.sinkhorn_iterations=0", "loss.sinkhorn_iterations must be"),
        ("loss.teacher_temperature_start=2", "loss.teacher_temperature_start must be"),
        ("loss.temperature_warmup=1.1", "loss.temperature_warmup must be"),
        ("optimizer.steps=-1", "optimizer.steps must be"),
        ("optimizer.warmup=-0.1", "optimizer.warmup must be"),
        ("optimizer.weight_decay_end=1", "optimizer.weight_decay_end must be"),
        ("optimizer.teacher_momentum=nan", "optimizer.teacher_momentum must be"),
        ("optimizer.gradient_clip=inf", "optimizer.gradient_clip must be"),
    ],
)
def test_a_setting_that_cannot_be_right_is_named(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pretrain_config(assignments=[assignment])
    assert words in str(caught.value)


def test_some_term_must_have_a_weight() -> None:
    with pytest.raises(ConfigError, match="one above"):
        pretrain_config(assignments=[f"loss.{name}_weight=0" for name in ("image", "masked", "match")])


def test_steps_are_counted_in_epochs_or_given() -> None:
    config = pretrain_config(assignments=["optimizer.epochs=3", "optimizer.batch_size=10"])
    assert config.steps_of(100) == config.steps_of(103) == 30
    assert config.steps_of(2) == 1
    assert pretrain_config(assignments=["optimizer.steps=7"]).steps_of(100) == 7


def test_only_numbers_that_are_given_replace_those_of_the_model() -> None:
    assert pretrain_config(assignments=["model.depth=0", "model.patch_size=16"]).model.shape == {
        "patch_size": 16,
        "embed_dim": 256,
        "num_heads": 4,
    }
