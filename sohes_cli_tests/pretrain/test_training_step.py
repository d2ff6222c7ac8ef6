"""Steps of pretraining: learning in either precision and from given weights, checkpoints, and named failures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from pretrain_cases import tiny_config
from safetensors.torch import save_file
from tolerances import RELATIVE_RMS

from sohes_cli.errors import SohesError, WeightsError
from sohes_cli.pretrain import training
from sohes_cli.pretrain.data import batches
from sohes_cli.pretrain.networks import Network
from sohes_cli.pretrain.run_folder import pretrain_run, save_run
from sohes_cli.pretrain.sources import open_source
from sohes_cli.pretrain.training import Pretraining
from sohes_cli.vit.tensor_file import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.views import ViewSample

STEPS = 4


def samples_of(photos: Path, config: PretrainConfig, steps: int = STEPS) -> list[ViewSample]:
    """Read the batches of a run's first steps in this process."""
    with batches(open_source(photos), config, 8, 0, steps, workers=0, process=0, processes=1) as samples:
        return list(samples)


def begun(config: PretrainConfig) -> Pretraining:
    return Pretraining(config, config.optimizer.steps, "cpu")


def state_of(pretraining: Pretraining) -> dict[str, Tensor]:
    student = pretraining.accelerator.unwrap_model(pretraining.student)
    teacher = {f"teacher.{name}": tensor for name, tensor in pretraining.teacher.state_dict().items()}
    return {name: tensor.clone() for name, tensor in (student.state_dict() | teacher).items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}


def test_the_loss_falls_and_patches_find_their_place(photos: Path) -> None:
    plain = (
        "views.jitter=0",
        "views.grayscale=0",
        "views.blur=0",
        "loss.image_weight=0",
        "loss.masked_weight=0",
        "model.drop_path=0",
    )
    config = tiny_config(40, *plain, "optimizer.batch_size=8", "optimizer.teacher_momentum=0.9")
    pretraining = begun(config)
    numbers = [pretraining.step(sample, i, diagnosed=True) for i, sample in enumerate(samples_of(photos, config, 40))]

    def mean(name: str, chosen: slice) -> float:
        return sum(n[name] for n in numbers[chosen]) / 5

    first, last = slice(5), slice(-5, None)
    chance = math.log(8 * config.views.pairs)  # one patch among all of the batch
    assert mean("loss_match", last) < min(chance - 1, 0.85 * mean("loss_match", first))
    assert mean("match_agreement", last) > mean("match_agreement", first) + 0.02


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_moves_student_and_teacher_by_finite_amounts(photos: Path, precision: str) -> None:
    config = tiny_config(STEPS, f"optimizer.precision={precision}", "optimizer.freeze_prototypes=0.5")
    pretraining = begun(config)
    assert pretraining.precision == precision
    before = state_of(pretraining)
    numbers = pretraining.step(samples_of(photos, config, 1)[0], 0, diagnosed=True)
    assert all(math.isfinite(value) for value in numbers.values())
    terms = {"loss_image", "loss_masked", "loss_match"}
    assert numbers["loss"] == pytest.approx(sum(numbers[name] for name in terms), rel=1e-5)
    after = state_of(pretraining)
    assert all(bool(tensor.isfinite().all()) and tensor.dtype == torch.float32 for tensor in after.values())
    frozen = {f"{whose}{head}.prototypes" for whose in ("", "teacher.") for head in ("image_head", "masked_head")}
    assert set(after) - changed(before, after) == frozen


def test_bf16_takes_nearly_the_steps_of_fp32(photos: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        config = tiny_config(STEPS, f"optimizer.precision={precision}", "model.drop_path=0")
        pretraining = begun(config)
        losses.append([pretraining.step(sample, i)["loss"] for i, sample in enumerate(samples_of(photos, config))])
    assert losses[1] == pytest.approx(losses[0], rel=RELATIVE_RMS[torch.bfloat16])
    assert losses[1] != losses[0]


def test_every_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    pretraining = begun(tiny_config(STEPS))
    names = {id(p): name for name, p in pretraining.student.named_parameters()}
    groups = {group["decays"]: [names[id(p)] for p in group["params"]] for group in pretraining.optimizer.param_groups}
    assert sorted(groups[True] + groups[False]) == sorted(names.values())
    assert all(name.endswith(".weight") and "norm" not in name for name in groups[True])
    assert {
        "mask_token",
        "vit.cls_token",
        "vit.pos_embed",
        "image_head.prototypes",
        "vit.blocks.0.attn.qkv.bias",
    } <= set(groups[False])


def test_a_loss_that_is_not_finite_leaves_all_parameters_as_they_were(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = training.distillation_losses
    broken = lambda *arguments: {name: loss * float("inf") for name, loss in original(*arguments).items()}  # noqa: E731
    monkeypatch.setattr(training, "distillation_losses", broken)
    config = tiny_config(STEPS)
    pretraining = begun(config)
    before = state_of(pretraining)
    with pytest.raises(SohesError, match=r"not finite at step 3 \(loss inf"):
        pretraining.step(samples_of(photos, config, 1)[0], 2)
    assert changed(before, state_of(pretraining)) == set()


def test_want_of_memory_names_the_batch_size(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_arguments: Any, **_options: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Network, "forward", no_memory)
    config = tiny_config(STEPS)
    with pytest.raises(SohesError, match="does not suffice for --batch-size 4") as caught:
        begun(config).step(samples_of(photos, config, 1)[0], 0)
    assert "Lower --batch-size" in caught.value.hint


def test_a_state_that_was_saved_goes_on_as_the_one_that_saved_it(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(STEPS, "optimizer.freeze_prototypes=0.5")  # frozen ones have no moments in the checkpoint
    samples, path = samples_of(photos, config), tmp_path / "state.safetensors"
    pretraining = begun(config)
    for i in (0, 1):
        pretraining.step(samples[i], i)
    pretraining.save(path, 2, ["a.png is empty."])
    going_on = begun(replace(config, run=replace(config.run, seed=7)))
    assert changed(state_of(going_on), state_of(pretraining))
    assert going_on.load(path) == (2, ["a.png is empty."])
    going_on.config = config
    for i in (2, 3):
        assert going_on.step(samples[i], i, diagnosed=True) == pretraining.step(samples[i], i, diagnosed=True)
    assert changed(state_of(going_on), state_of(pretraining)) == set()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.embed_dim=128"], r"does not fit this model: .*vit\.\w+.*torch\.Size"),
        (["loss.masked_weight=0"], "does not fit this model: Unexpected key.*masked_head"),
        (["optimizer.steps=5"], "is after step 0 of 4, but this run has 5"),
    ],
)
def test_the_state_of_another_run_is_refused(tmp_path: Path, settings: list[str], words: str) -> None:
    path = tmp_path / "state.safetensors"
    begun(tiny_config(STEPS)).save(path, 0)
    with pytest.raises(WeightsError, match=words) as caught:
        begun(tiny_config(STEPS, *settings)).load(path)
    assert str(path) in caught.value.message


def test_a_state_without_its_step_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"x": torch.zeros(2)}, {"format": training.CHECKPOINT_FORMAT})
    with pytest.raises(WeightsError, match="is after step None"):
        begun(tiny_config(STEPS)).load(path)


def test_weights_are_an_earlier_runs_or_timms_own(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(STEPS)
    earlier = begun(replace(config, run=replace(config.run, seed=5)))
    save_run(pretrain_run(tmp_path / "run", open_source(photos), config, "fp32"), earlier, 0)
    save_file(
        timm.create_model(config.model.name, num_classes=0, **config.model.shape).state_dict(),
        tmp_path / "timm.safetensors",
    )
    wanted = earlier.teacher.vit.state_dict()
    for weights in (tmp_path / "run", tmp_path / "run" / "backbone.safetensors"):
        found = begun(tiny_config(STEPS, f"model.weights={weights}"))
        assert (
            changed(found.teacher.vit.state_dict(), wanted) == changed(found.student.vit.state_dict(), wanted) == set()
        )
    other_grid = begun(tiny_config(STEPS, f"model.weights={tmp_path / 'timm.safetensors'}"))
    assert changed(other_grid.teacher.vit.state_dict(), wanted)


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "deeper.safetensors"
    save_file(Network(tiny_config(STEPS, "model.depth=3")).vit.state_dict(), path)
    with pytest.raises(WeightsError, match=r"deeper\.safetensors do not fit .* unexpected keys: blocks\.2\."):
        begun(tiny_config(STEPS, f"model.weights={path}"))


def test_precisions_may_change_within_a_program(photos: Path) -> None:
    for precision in ("bf16", "fp32", "bf16"):
        config = tiny_config(STEPS, f"optimizer.precision={precision}")
        training = begun(config)
        assert training.precision == precision
        assert math.isfinite(training.step(samples_of(photos, config, 1)[0], 0)["loss"])
