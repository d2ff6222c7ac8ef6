"""One optimizer step of phases 2 and 3, and all that a checkpoint must hold of it.

    branches: batch -> model -> matching -> losses -> gradients, over all parts and processes -> AdamW

Whatever is random in a step comes from the run's seed, the step and the samples' numbers, so parameters, moments and the state of the
fp16 scaler are the whole state: a resumed run is the run that was not interrupted.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import typer
from torch import nn

from sohes_cli.errors import SohesError, WeightsError
from sohes_cli.model.backbone import start_weights
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.model.pixels import network_input
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.runs.devices import resolve_precision
from sohes_cli.training.checkpoints import load_optimizer, optimizer_tensors
from sohes_cli.training.distribution import make_accelerator, out_of_memory, seed_step, together
from sohes_cli.training.initial import start_from
from sohes_cli.training.losses import LossTotals, ancestor_accuracy, count_totals, segmentation_losses, total_loss
from sohes_cli.training.matcher import match_labels
from sohes_cli.training.pictures import draw_beside_labels, predicted_labels
from sohes_cli.training.schedules import learning_rate
from sohes_cli.vit.build import use_fused_attention
from sohes_cli.vit.tensor_file import load_module, read_tensors, with_prefix, write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.data.batch import Batch
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.model.output import Output
    from sohes_cli.training.config import TrainConfig

__all__ = ["CHECKPOINT_FORMAT", "RETRY", "Branch", "Learner", "advising"]

CHECKPOINT_FORMAT = "sohes-train-checkpoint"
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 1.0  # of the fp16 scaler: gradients that overflow even then are not finite themselves
_LESS_MEMORY = (
    "Raise --set optimizer.accumulate, use --set optimizer.checkpointing=true or optimizer.precision=bf16, or lower --image-size, "
    "--set data.max_labels or loss.points."
)
RETRY = "Begin anew with a lower --learning-rate or optimizer.gradient_clip, or optimizer.precision=fp32; checkpoints are kept."


@contextmanager
def advising(hint: str) -> Iterator[None]:
    """Let an error of the block say what to do about it in the middle of a run."""
    try:
        yield
    except SohesError as error:
        raise SohesError(error.message, hint) from error


class Branch(NamedTuple):
    """What a step learns from: one of several sets of images and labels.

    Args:
        name: which ends the names of its numbers; empty for the only one.
        batch: this process's part of it.
        weight: of its loss in that of the step.
    """

    name: str
    batch: Batch
    weight: float = 1.0


class Learner:
    """The model and optimizer of a run.

    Args:
        config: the settings.
        device: `cpu`, or `auto` for what Accelerate finds.
        init: a model file, a run's folder or a public checkpoint to start from; None for what `model.weights` names.

    Attributes:
        accelerator: the process group and the device.
        precision: `fp32`, `bf16` or `fp16`.
        model: the network, wrapped for several processes.
        has_moved: whether the last step changed the parameters, which one of fp16 whose gradients overflow does not.

    Raises:
        SohesError: if the model cannot be built or cannot start from the weights, or the processes cannot find each other.
    """

    def __init__(self, config: TrainConfig, device: str = "auto", init: Path | None = None) -> None:
        self.config = config
        self.accelerator = make_accelerator(device)
        on_gpu = self.accelerator.device.type != "cpu"
        self.precision = resolve_precision(config.optimizer.precision, not on_gpu)
        torch.manual_seed(config.run.seed)
        model = EntityModel(config.model)
        if init is None:
            start_weights(model.backbone, config.model)
        elif (told := start_from(model, init)) and self.accelerator.is_main_process:
            typer.echo(told, err=True)
        use_fused_attention(model.backbone, on_gpu)
        model.backbone.checkpointing = config.optimizer.checkpointing
        if config.optimizer.compile:
            for block in model.backbone.vit.blocks:
                block.compile(dynamic=True)
        optimizer = torch.optim.AdamW(_parameter_groups(model, config), lr=config.optimizer.learning_rate, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model.train(), optimizer)
        self._scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=self.precision == "fp16")
        self._kept: dict[str, nn.Module] = {"model": self.network}
        self.has_moved = False

    @property
    def network(self) -> EntityModel:
        """The model itself."""
        network: EntityModel = self.accelerator.unwrap_model(self.model)
        return network

    @property
    def models(self) -> dict[str, EntityModel]:
        """What a run is trained for, by the name of its file."""
        return {MODEL_NAME: self.network}

    @property
    def has_steady_loss(self) -> bool:
        """Whether the losses of different steps measure the same: they do."""
        return True

    def keep(self, name: str, module: nn.Module) -> None:
        """Also save and load the tensors of this module, under names that begin with `name`."""
        self._kept[name] = module

    def step(self, batch: Batch, step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step on a batch alone; see `step_on`."""
        return self.step_on([Branch("", batch)], step, diagnosed)

    def step_on(self, branches: Sequence[Branch], step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            branches: at least one, the same ones in all processes.
            step: its number, from 0.
            diagnosed: also measure the ancestors.

        Returns:
            The losses of the whole step, over all processes, and the numbers of the optimizer.

        Raises:
            SohesError: if predictions, losses or gradients are not finite, or a GPU's memory does not suffice; parameters are then as
                they were.
        """
        optimizer = self.config.optimizer
        rate = optimizer.learning_rate * learning_rate(step, optimizer.steps, optimizer)
        seed_step(self.accelerator, self.config.run.seed, step)
        with self.explaining_memory():
            numbers = self._accumulate(branches, diagnosed)
            numbers["gradient_norm"] = self._descend(rate, numbers["loss"], branches[0].batch, step)
        return numbers | {"learning_rate": rate}

    @contextmanager
    def explaining_memory(self) -> Iterator[None]:
        """Say which settings need less where a GPU's memory does not suffice for the block."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.accelerator, self.config.optimizer.batch_size, _LESS_MEMORY) from error

    @torch.no_grad()
    def predict(self, pixels: Tensor, sizes: tuple[tuple[int, int], ...], network: EntityModel | None = None) -> Output:
        """What the model, or another one, says of uploaded images in eval mode, in the precision of the run; see `EntityModel`.

        Args:
            pixels: RGB, uint8 [B, H, W, 3].
            sizes: (height, width) of each image.
            network: what is asked in place of the model.
        """
        asked = network or self.network
        was_training = asked.training
        asked.eval()
        try:
            with self._autocast():
                output: Output = asked(network_input(pixels, sizes), sizes)
        finally:
            asked.train(was_training)
        return output

    @torch.no_grad()
    def measure(self, batch: Batch, network: EntityModel | None = None) -> dict[str, float]:
        """The losses and ancestor accuracy of a batch in eval mode, of this process alone; nothing is trained.

        Args:
            batch: on any device.
            network: what is measured in place of the model.
        """
        asked = network or self.network
        was_training = asked.training
        asked.eval()
        totals = count_totals([batch], self.config.model.queries, self.config.loss)
        try:
            losses, measured = self._losses(asked, batch.to(self.accelerator.device), totals, diagnosed=True)
        finally:
            asked.train(was_training)
        numbers = {"loss": total_loss(losses, self.config.loss)} | _named(losses, measured)
        return {name: float(value) for name, value in numbers.items()}

    def draw(self, shown: ValidationExamples) -> NDArray[np.uint8] | None:
        """A picture of what the model finds in photographs beside their labels; None if none can be read."""
        return draw_beside_labels(
            shown, lambda example: predicted_labels(self.predict, self.network, self.accelerator.device, example)
        )

    def notes(self, numbers: Mapping[str, float]) -> list[str]:
        """What the user should know of the numbers of a step."""
        if not any(value for name, value in numbers.items() if name.startswith("labels_left_out")):
            return []
        queries = self.config.model.queries
        return [f"Some crops have more labels than the model has queries ({queries}), and some of them are left out."]

    def save(self, path: Path, step: int, description: dict[str, Any], failed: Iterable[str] = ()) -> None:
        """Write the state after `step` steps, and the messages of photographs that failed; only the main process may call it."""
        tensors = with_prefix("optimizer", optimizer_tensors(self.optimizer.optimizer))
        for name, module in self._kept.items():
            tensors |= with_prefix(name, module.state_dict())
        state = {
            "step": step,
            "steps": self.config.optimizer.steps,
            "failed": list(failed),
            "scaler": self._scaler.state_dict(),
        }
        write_tensors(path, tensors, {**description, **state, "format": CHECKPOINT_FORMAT})

    def load(self, path: Path) -> dict[str, Any]:
        """Read a state back.

        Returns:
            The description of the checkpoint: `step`, `failed` and what the run added.

        Raises:
            WeightsError: if the file is damaged or of another run.
        """
        hint = "Delete it to continue from an older checkpoint, if there is one."
        tensors, description = read_tensors(path, CHECKPOINT_FORMAT, hint)
        steps = self.config.optimizer.steps
        if not isinstance(description.get("step"), int) or description.get("steps") != steps:
            found = f"step {description.get('step')} of {description.get('steps')}"
            raise WeightsError(f"{path} is after {found}, but this run has {steps} steps.", hint)
        for name, module in self._kept.items():
            load_module(module, tensors, name, path)
        load_optimizer(self.optimizer.optimizer, tensors, "optimizer", path)
        self._scaler.load_state_dict(description.get("scaler") or self._scaler.state_dict())
        return description

    def _accumulate(self, branches: Sequence[Branch], diagnosed: bool) -> dict[str, float]:
        """Add up the gradients of all parts of a step; its losses, over all processes."""
        self.optimizer.zero_grad()
        added: dict[str, list[Tensor]] = {"loss": []}
        for number, branch in enumerate(branches):
            parts = branch.batch.split(self.config.optimizer.accumulate)
            totals = self._totals(parts)
            for i, part in enumerate(parts):
                is_last = i == len(parts) - 1
                with nullcontext() if is_last and number == len(branches) - 1 else self.accelerator.no_sync(self.model):
                    losses, measured = self._losses_of_all(part, totals, diagnosed and is_last)
                    total = branch.weight * total_loss(losses, self.config.loss)
                    self._scaler.scale(
                        total * self.accelerator.num_processes
                    ).backward()  # gradients are averaged over them
                added["loss"].append(total.detach())
                for name, value in _named(losses, measured, branch.name).items():
                    added.setdefault(name, []).append(value)
        return self._reduced(added)

    def _losses_of_all(
        self, part: Batch, totals: LossTotals, diagnosed: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of a part; if they cannot be had in one process, all of them stop together."""
        with advising(RETRY):
            return together(
                self.accelerator, lambda: self._losses(self.model, part.to(self.accelerator.device), totals, diagnosed)
            )

    def _losses(
        self, model: nn.Module, batch: Batch, totals: LossTotals, diagnosed: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of a batch as shares of the whole step's; and, if asked for, what the ancestor head got right and surplus labels."""
        head = self.accelerator.unwrap_model(model).ancestor_head
        with self._autocast():
            output: Output = model(network_input(batch.pixels, batch.sizes), batch.sizes)
            generators = [self._generator(number) for number in batch.numbers]
            matches = match_labels(output, batch, self.config.loss, generators)
            weights = (head.w1, head.w2)
            losses = segmentation_losses(output, weights, batch, matches, self.config.loss, totals, generators)
        if not diagnosed:
            return losses, {}
        left_out = torch.tensor(float(sum(match.left_out for match in matches)), device=self.accelerator.device)
        return losses, ancestor_accuracy(output, weights, batch, matches) | {"labels_left_out": left_out}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, _TYPES[self.precision], enabled=self.precision != "fp32")

    def _generator(self, number: int) -> torch.Generator:
        """The source of everything random about a sample, whichever process and part it is in."""
        return torch.Generator(self.accelerator.device).manual_seed((self.config.run.seed + 1) * 1_000_000_007 + number)

    def _totals(self, parts: list[Batch]) -> LossTotals:
        mine = count_totals(parts, self.config.model.queries, self.config.loss)
        summed: Tensor = self.accelerator.reduce(mine.to_tensor().to(self.accelerator.device), "sum")
        return LossTotals.from_tensor(summed)

    def _reduced(self, added: dict[str, list[Tensor]]) -> dict[str, float]:
        """Sums of losses and counts over parts and processes, and means of accuracies over the processes that have one."""
        values = torch.stack([torch.stack(parts).sum().float() for parts in added.values()])
        known = values.isfinite()
        is_sum = torch.tensor([not name.startswith("ancestor") for name in added], device=values.device)
        both: Tensor = self.accelerator.reduce(torch.stack([values.where(known | is_sum, 0), known.float()]), "sum")
        means = torch.where(is_sum, both[0], both[0] / both[1])  # NaN where no process has one
        return dict(zip(added, means.tolist(), strict=True))

    def _descend(self, rate: float, loss: float, batch: Batch, step: int) -> float:
        """Move the parameters along the gradient; its norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        optimizer = self.optimizer.optimizer
        self._scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.gradient_clip))
        overflowed = self.precision == "fp16" and self._scaler.get_scale() > _LEAST_SCALE
        if not math.isfinite(loss) or not (
            math.isfinite(norm) or overflowed
        ):  # both are those of all processes, so all of them stop
            names = ", ".join(batch.names[:4])
            raise SohesError(
                f"The loss or its gradient is not finite at step {step + 1} (loss {loss:g}, gradient norm {norm:g}; photographs {names}).",
                RETRY,
            )
        self._scaler.step(optimizer)
        self._scaler.update()
        self.has_moved = math.isfinite(norm)  # else the scaler has left the parameters as they were
        return norm


def _parameter_groups(model: EntityModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, embeddings and single tokens do not. The ViT has a learning rate of its own."""
    still = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        embeds = name.endswith(("level_embed", "pos_embed", "cls_token", "reg_token"))
        decays = parameter.ndim > 1 and not embeds and id(parameter) not in still
        groups.setdefault((name.startswith("backbone.vit."), decays), []).append(parameter)
    optimizer = config.optimizer
    return [
        {
            "params": parameters,
            "weight_decay": optimizer.weight_decay if decays else 0.0,
            "rate": optimizer.backbone_rate if in_vit else 1.0,
        }
        for (in_vit, decays), parameters in groups.items()
    ]


def _named(losses: dict[str, Tensor], measured: dict[str, Tensor], branch: str = "") -> dict[str, Tensor]:
    """Numbers of a branch by the names under which they are logged."""
    numbers = {f"loss_{name}": loss for name, loss in losses.items()} | measured
    return {f"{name}_{branch}" if branch else name: value.detach() for name, value in numbers.items()}
