"""Optimizer steps of self-distillation, and the state that a checkpoint holds.

    views -> student (masked, all views), teacher (global views) -> losses -> AdamW on the student -> EMA of the teacher

All randomness of a step comes from the run's seed and the step, so parameters and moments are the whole state: a
resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from sohes_cli.data.photometric import change_colors
from sohes_cli.errors import SohesError
from sohes_cli.pretrain.diagnostics import diagnose
from sohes_cli.pretrain.losses import distillation_losses, match_cosines, teacher_targets
from sohes_cli.pretrain.networks import Network
from sohes_cli.pretrain.schedules import StepValues, step_values
from sohes_cli.runs.devices import resolve_precision
from sohes_cli.training.checkpoints import RESTART_HINT, load_checkpoint, save_checkpoint
from sohes_cli.training.distribution import make_accelerator, out_of_memory, seed_step
from sohes_cli.training.moving_average import update_teacher
from sohes_cli.vit.build import normalized, use_fused_attention
from sohes_cli.vit.pretrained import BACKBONE_NAME
from sohes_cli.vit.weights import load_into, load_state_dict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from sohes_cli.pretrain.config import PretrainConfig
    from sohes_cli.pretrain.views import Views, ViewSample

__all__ = ["CHECKPOINT_FORMAT", "Pretraining"]

CHECKPOINT_FORMAT = "sohes-pretrain-checkpoint"
_MEMORY_HINT = (
    "Lower --batch-size, --set views.global_size or --set views.local_views, or use --set optimizer.precision=bf16."
)


class Pretraining:
    """Student, teacher and optimizer of a run.

    Args:
        config: the settings.
        steps: of the whole run.
        device: `cpu`, or `auto` for the choice of Accelerate.

    Attributes:
        accelerator: the process group and the device.
        precision: `fp32` or `bf16`.
        student: the trained network, wrapped for several processes.
        teacher: its moving average, in fp32 and eval mode.

    Raises:
        SohesError: if the model cannot be built or initialized, or the processes cannot find each other.
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
        rate = config.optimizer.learning_rate
        optimizer = torch.optim.AdamW(_parameter_groups(student), lr=rate, betas=(0.9, 0.95), fused=True)
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.teacher.vit.patch_embed.patch_size[0])

    def step(self, sample: ViewSample, step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            sample: this process's part of the batch.
            step: from 0.
            diagnosed: also measure signs of collapse.

        Returns:
            Losses, scheduled values and, if diagnosed, signs of collapse: means over all processes.

        Raises:
            SohesError: if the loss or gradient is not finite or GPU memory does not suffice; parameters are unchanged.
        """
        values = step_values(step, self.steps, self.config)
        seed_step(self.accelerator, self.config.run.seed, step)
        loss_config = self.config.loss
        try:
            sample = sample.to(self.accelerator.device)
            student, teacher = self._forward(sample)
            targets = teacher_targets(teacher, values.teacher_temperature, loss_config)
            losses = distillation_losses(student, teacher, targets, sample, loss_config)
            total = sum(getattr(loss_config, f"{name}_weight") * loss for name, loss in losses.items())
            numbers = self._means({"loss": total} | {f"loss_{name}": loss for name, loss in losses.items()})
            numbers["gradient_norm"] = self._update_parameters(total, numbers["loss"], values, step)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.accelerator, self.config.optimizer.batch_size, _MEMORY_HINT) from error
        numbers |= {"learning_rate": values.learning_rate, "teacher_momentum": values.teacher_momentum}
        if diagnosed:
            measured = diagnose(teacher, targets, sample.globals.boxes, values.teacher_temperature)
            if "match" in student:
                measured |= match_cosines(student["match"], teacher["match"], sample.paired)
            numbers |= self._means_of_present(measured)
        return numbers

    def save(self, path: Path, step: int, failed: Iterable[str] = ()) -> None:
        """Write the state after `step` steps, and the messages of photographs that failed; main process only."""
        description = {"format": CHECKPOINT_FORMAT, "step": step, "steps": self.steps, "failed": list(failed)}
        save_checkpoint(path, self._modules(), self.optimizer.optimizer, description)

    def load(self, path: Path) -> tuple[int, list[str]]:
        """Restore the state of a checkpoint.

        Returns:
            The number of steps taken, and the messages of photographs that failed.

        Raises:
            WeightsError: if the file is damaged or of another run.
        """
        description = load_checkpoint(path, self._modules(), self.optimizer.optimizer, CHECKPOINT_FORMAT, self.steps)
        return description["step"], [str(message) for message in description.get("failed", [])]

    def _modules(self) -> dict[str, Network]:
        return {"student": self.accelerator.unwrap_model(self.student), "teacher": self.teacher}

    def _forward(self, sample: ViewSample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run student and teacher on the views; outputs of the student in float32."""
        large, small, masks = _pixels(sample.globals), _pixels(sample.locals), sample.masks.flatten(0, 1)
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                teacher = self.teacher(large, masks, sample.pairs[..., 1])
            student = self.student(large, masks, sample.pairs[..., 0], small, hides=True)
        return {name: tensor.float() for name, tensor in student.items()}, teacher

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Average scalars over all processes."""
        stacked = torch.stack(list(values.values())).detach()
        return dict(zip(values, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    def _means_of_present(self, numbers: dict[str, float]) -> dict[str, float]:
        """Average each number over the processes that have it: one may have no masked patch to measure."""
        gathered = gather_object([numbers])
        names = dict.fromkeys(name for own in gathered for name in own)
        return {name: fmean(own[name] for own in gathered if name in own) for name in names}

    def _update_parameters(self, total: Tensor, loss: float, values: StepValues, step: int) -> float:
        """Clip the gradient, update student and teacher, and return the norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = values.learning_rate
            group["weight_decay"] = values.weight_decay if group["decays"] else 0.0
        self.optimizer.zero_grad()
        self.accelerator.backward(total)
        student = self.accelerator.unwrap_model(self.student)
        if values.prototypes_frozen:
            student.freeze_prototypes()
        norm = float(self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.optimizer.gradient_clip))
        if not (math.isfinite(norm) and math.isfinite(loss)):  # both are equal in all processes, so all of them stop
            numbers = f"loss {loss:g}, gradient norm {norm:g}"
            raise SohesError(f"The loss or its gradient is not finite at step {step + 1} ({numbers}).", RESTART_HINT)
        self.optimizer.step()
        update_teacher(self.teacher, student, values.teacher_momentum)
        return norm


def _pixels(views: Views) -> Tensor:
    """Convert views on the device, uint8 [B, V, S, S, 3], to network input, float [B * V, 3, S, S]."""
    pixels = views.pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    return normalized(change_colors(pixels, views.colors.flatten(0, 1)) if len(pixels) else pixels)


def _parameter_groups(network: Network) -> list[dict[str, Any]]:
    """Group parameters: only matrices decay, not biases, norms, embeddings, tokens and prototypes."""
    undecayed = ("pos_embed", "cls_token", "reg_token", "mask_token", "prototypes")
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        groups[parameter.ndim > 1 and not name.endswith(undecayed)].append(parameter)
    return [{"params": parameters, "decays": decays} for decays, parameters in groups.items()]


def _start_from(network: Network, weights: Path) -> None:
    """Fill the ViT from a weights file or a run's folder."""
    file = weights / BACKBONE_NAME if weights.is_dir() else weights
    load_into(network.vit, load_state_dict(file), str(file))
