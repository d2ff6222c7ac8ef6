"""One step of self-distillation, and all that a checkpoint must hold of it.

    views -> student (masked, all views), teacher (global views) -> losses -> AdamW on the student -> moving average into the teacher

Whatever is random in a step comes from the run's seed and the step's number, so parameters and moments are the whole state, and a resumed
run is the run that was not interrupted.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from sohes_cli.data.photometric import change_colors
from sohes_cli.errors import SohesError, WeightsError
from sohes_cli.pretrain.diagnostics import diagnose
from sohes_cli.pretrain.losses import distillation_losses, match_cosines, teacher_targets
from sohes_cli.pretrain.networks import Network
from sohes_cli.pretrain.schedules import StepValues, step_values
from sohes_cli.runs.devices import resolve_precision
from sohes_cli.training.checkpoints import load_optimizer, optimizer_tensors
from sohes_cli.training.distribution import make_accelerator, out_of_memory, seed_step
from sohes_cli.training.moving_average import update_teacher
from sohes_cli.vit.build import normalized, use_fused_attention
from sohes_cli.vit.pretrained import BACKBONE_NAME
from sohes_cli.vit.tensor_file import load_module, read_tensors, with_prefix, write_tensors
from sohes_cli.vit.weights import load_into, load_state_dict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.views import Sample, Views

__all__ = ["CHECKPOINT_FORMAT", "Pretraining"]

CHECKPOINT_FORMAT = "sohes-pretrain-checkpoint"


class Pretraining:
    """Student, teacher and optimizer of a run.

    Args:
        config: the settings.
        steps: of the whole run.
        device: `cpu`, or `auto` for what Accelerate finds.

    Attributes:
        accelerator: the process group and the device.
        precision: `fp32` or `bf16`.
        student: the trained network, wrapped for several processes.
        teacher: its moving average, in fp32 and eval mode.

    Raises:
        SohesError: if there is no such model, it cannot start from the weights, or the processes cannot find each other.
    """

    def __init__(self, config: PretrainConfig, steps: int, device: str = "auto") -> None:
        self.config, self.steps = config, steps
        self.accelerator = make_accelerator(device)
        on_cpu = self.accelerator.device.type == "cpu"
        self.precision = resolve_precision(config.optimizer.precision, on_cpu)
        torch.manual_seed(config.run.seed)
        student = Network(config, config.model.drop_path)
        if config.model.weights:
            _start_from(student, Path(config.model.weights))
        self.teacher = Network(config)
        self.teacher.load_state_dict(student.state_dict())
        self.teacher.requires_grad_(False).eval().to(self.accelerator.device)
        for network in (student, self.teacher):
            use_fused_attention(network, not on_cpu)
        optimizer = torch.optim.AdamW(
            _parameter_groups(student), lr=config.optimizer.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.teacher.vit.patch_embed.patch_size[0])

    def step(self, sample: Sample, step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            sample: this process's part of the batch.
            step: its number, from 0.
            diagnosed: also measure signs of collapse.

        Returns:
            Losses, the numbers of the schedules and, if asked for, the diagnostics: means over all processes.

        Raises:
            SohesError: if the loss or its gradient is not finite, or a GPU's memory does not suffice; parameters are then as they were.
        """
        values = step_values(step, self.steps, self.config)
        seed_step(self.accelerator, self.config.run.seed, step)
        try:
            sample = sample.to(self.accelerator.device)
            found, taught = self._look(sample)
            targets = teacher_targets(taught, values.teacher_temperature, self.config.loss)
            losses = distillation_losses(found, taught, targets, sample, self.config.loss)
            total = sum(getattr(self.config.loss, f"{name}_weight") * loss for name, loss in losses.items())
            numbers = self._means({"loss": total} | {f"loss_{name}": loss for name, loss in losses.items()})
            numbers["gradient_norm"] = self._descend(total, numbers["loss"], values, step)
        except torch.OutOfMemoryError as error:
            hint = "Lower --batch-size, --set views.global_size or --set views.local_views, or use --set optimizer.precision=bf16."
            raise out_of_memory(self.accelerator, self.config.optimizer.batch_size, hint) from error
        numbers |= {"learning_rate": values.learning_rate, "teacher_momentum": values.teacher_momentum}
        if diagnosed:
            measured = diagnose(taught, targets, sample.globals.boxes, values.teacher_temperature)
            if "match" in found:
                measured |= match_cosines(found["match"], taught["match"], sample.paired)
            numbers |= self._means_of_found(measured)
        return numbers

    def save(self, path: Path, step: int, failed: Iterable[str] = ()) -> None:
        """Write the state after `step` steps, and the messages of photographs that failed; only the main process may call it."""
        student = self.accelerator.unwrap_model(self.student)
        tensors = with_prefix("student", student.state_dict()) | with_prefix("teacher", self.teacher.state_dict())
        tensors |= with_prefix("optimizer", optimizer_tensors(self.optimizer.optimizer))
        write_tensors(
            path, tensors, {"format": CHECKPOINT_FORMAT, "step": step, "steps": self.steps, "failed": list(failed)}
        )

    def load(self, path: Path) -> tuple[int, list[str]]:
        """Read a state back.

        Returns:
            The steps that were done, and the messages of photographs that failed.

        Raises:
            WeightsError: if the file is damaged or of another run.
        """
        hint = "Delete it to continue from an older checkpoint, if there is one."
        tensors, description = read_tensors(path, CHECKPOINT_FORMAT, hint)
        step = description.get("step")
        if not isinstance(step, int) or description.get("steps") != self.steps:
            raise WeightsError(
                f"{path} is after step {step} of {description.get('steps')}, but this run has {self.steps}.", hint
            )
        load_module(self.accelerator.unwrap_model(self.student), tensors, "student", path)
        load_module(self.teacher, tensors, "teacher", path)
        load_optimizer(self.optimizer.optimizer, tensors, "optimizer", path)
        return step, [str(message) for message in description.get("failed", [])]

    def _look(self, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What student and teacher find in the views; the student's in float32."""
        large, small, masks = _pixels(sample.globals), _pixels(sample.locals), sample.masks.flatten(0, 1)
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                taught = self.teacher(large, masks, sample.pairs[..., 1])
            found = self.student(large, masks, sample.pairs[..., 0], small, hides=True)
        return {name: tensor.float() for name, tensor in found.items()}, taught

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Means of scalars over all processes, the same in each of them."""
        stacked = torch.stack(list(values.values())).detach()
        return dict(zip(values, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    def _means_of_found(self, numbers: dict[str, float]) -> dict[str, float]:
        """Means over the processes that have a number: one may have no hidden patch to measure."""
        every = gather_object([numbers])
        names = dict.fromkeys(name for found in every for name in found)
        return {name: fmean(found[name] for found in every if name in found) for name in names}

    def _descend(self, total: Tensor, loss: float, values: StepValues, step: int) -> float:
        """Move the student along the gradient and the teacher after it; the norm of the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = values.learning_rate
            group["weight_decay"] = values.weight_decay if group["decays"] else 0.0
        self.optimizer.zero_grad()
        self.accelerator.backward(total)
        student = self.accelerator.unwrap_model(self.student)
        if values.prototypes_frozen:
            student.freeze_prototypes()
        norm = float(self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.optimizer.gradient_clip))
        if not (math.isfinite(norm) and math.isfinite(loss)):  # both are those of all processes, so all of them stop
            raise SohesError(
                f"The loss or its gradient is not finite at step {step + 1} (loss {loss:g}, gradient norm {norm:g}).",
                "Begin anew with a lower --learning-rate or optimizer.gradient_clip, or optimizer.precision=fp32; checkpoints are kept.",
            )
        self.optimizer.step()
        update_teacher(self.teacher, student, values.teacher_momentum)
        return norm


def _pixels(views: Views) -> Tensor:
    """Uploaded views [B, V, S, S, 3] as the networks take them, [B * V, 3, S, S]."""
    pixels = views.pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    return normalized(change_colors(pixels, views.colors.flatten(0, 1)) if len(pixels) else pixels)


def _parameter_groups(network: Network) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms, embeddings, single tokens and prototypes do not."""
    still = ("pos_embed", "cls_token", "reg_token", "mask_token", "prototypes")
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        groups[parameter.ndim > 1 and not name.endswith(still)].append(parameter)
    return [{"params": parameters, "decays": decays} for decays, parameters in groups.items()]


def _start_from(network: Network, weights: Path) -> None:
    """Fill the ViT from a weights file, or from that of a run's folder."""
    file = weights / BACKBONE_NAME if weights.is_dir() else weights
    load_into(network.vit, load_state_dict(file), str(file))
