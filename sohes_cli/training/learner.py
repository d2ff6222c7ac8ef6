"""Optimizer steps of phases 2 and 3, and the state that their checkpoints hold.

    branches: batch -> model -> matching -> losses -> gradients, over all parts and processes -> AdamW

All randomness of a step comes from the run's seed, the step and the sample numbers, so parameters, moments and the
state of the fp16 scaler are the whole state: a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import typer
from torch import nn

from sohes_cli.errors import SohesError
from sohes_cli.model.backbone import start_weights
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.model.pixels import network_input
from sohes_cli.model.segmentation_model import EntityModel
from sohes_cli.runs.devices import resolve_precision
from sohes_cli.training.checkpoints import RESTART_HINT, load_checkpoint, save_checkpoint
from sohes_cli.training.distribution import make_accelerator, out_of_memory, seed_step, together
from sohes_cli.training.initial import start_from
from sohes_cli.training.losses import LossTotals, ancestor_accuracy, count_totals, segmentation_losses, total_loss
from sohes_cli.training.matcher import match_labels
from sohes_cli.training.pictures import draw_beside_labels, predicted_labels
from sohes_cli.training.schedules import learning_rate
from sohes_cli.vit.build import use_fused_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.data.batch import Batch
    from sohes_cli.data.examples import ValidationExamples
    from sohes_cli.model.output import Output
    from sohes_cli.training.config import TrainConfig

__all__ = ["CHECKPOINT_FORMAT", "Branch", "Learner"]

CHECKPOINT_FORMAT = "sohes-train-checkpoint"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_SCALE = 1.0  # of the fp16 scaler: gradients that overflow even at this scale are not finite themselves
_MEMORY_HINT = (
    "Raise --set optimizer.accumulate, use --set optimizer.checkpointing=true or optimizer.precision=bf16, or lower "
    "--image-size, --set data.max_labels or loss.points."
)

T = TypeVar("T")


class Branch(NamedTuple):
    """One set of images and labels of a step.

    Args:
        name: suffix of its metric names; empty for the only branch.
        batch: this process's part.
        weight: of its loss in the loss of the step.
    """

    name: str
    batch: Batch
    weight: float = 1.0


class Learner:
    """Model and optimizer of a run.

    Args:
        config: the settings.
        device: `cpu`, or `auto` for the choice of Accelerate.
        init: a model file, a run's folder or a public checkpoint to start from; None for `model.weights`.

    Attributes:
        accelerator: the process group and the device.
        precision: `fp32`, `bf16` or `fp16`.
        model: the network, wrapped for several processes.
        network: the network itself.
        models: the networks to write, by file name.
        has_moved: True if the last step changed the parameters; False if its fp16 gradients overflowed.
        has_steady_loss: True: losses of different steps are comparable.

    Raises:
        SohesError: if the model cannot be built or initialized, or the processes cannot find each other.
    """

    has_steady_loss = True

    def __init__(self, config: TrainConfig, device: str = "auto", init: Path | None = None) -> None:
        self.config = config
        self.accelerator = make_accelerator(device)
        on_gpu = self.accelerator.device.type != "cpu"
        self.precision = resolve_precision(config.optimizer.precision, not on_gpu)
        torch.manual_seed(config.run.seed)
        model = EntityModel(config.model)
        if init is None:
            start_weights(model.backbone, config.model)
        elif (message := start_from(model, init)) and self.accelerator.is_main_process:
            typer.echo(message, err=True)
        use_fused_attention(model.backbone, on_gpu)
        model.backbone.checkpointing = config.optimizer.checkpointing
        if config.optimizer.compile:
            for block in model.backbone.vit.blocks:
                block.compile(dynamic=True)
        optimizer = torch.optim.AdamW(_parameter_groups(model, config), lr=config.optimizer.learning_rate, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model.train(), optimizer)
        self.network: EntityModel = self.accelerator.unwrap_model(self.model)
        self.models = {MODEL_NAME: self.network}
        self._scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=self.precision == "fp16")
        self._saved_modules: dict[str, nn.Module] = {"model": self.network}
        self.has_moved = False

    def keep(self, name: str, module: nn.Module) -> None:
        """Save and load this module too, with `name` as the prefix of its tensors."""
        self._saved_modules[name] = module

    def step(self, batch: Batch, step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step on a single batch; see `step_on`."""
        return self.step_on([Branch("", batch)], step, diagnosed)

    def step_on(self, branches: Sequence[Branch], step: int, diagnosed: bool = False) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            branches: at least one, the same ones in all processes.
            step: from 0.
            diagnosed: also measure the ancestor head.

        Returns:
            Losses of the whole step over all processes, gradient norm and learning rate.

        Raises:
            SohesError: if a prediction, loss or gradient is not finite or GPU memory does not suffice; parameters are
                unchanged.
        """
        optimizer = self.config.optimizer
        rate = optimizer.learning_rate * learning_rate(step, optimizer.steps, optimizer)
        seed_step(self.accelerator, self.config.run.seed, step)
        with self.explain_out_of_memory():
            numbers = self._accumulate(branches, diagnosed)
            numbers["gradient_norm"] = self._update_parameters(rate, numbers["loss"], branches[0].batch, step)
        return numbers | {"learning_rate": rate}

    @contextmanager
    def explain_out_of_memory(self) -> Iterator[None]:
        """Turn a lack of GPU memory in the block into a SohesError that names settings which need less."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.accelerator, self.config.optimizer.batch_size, _MEMORY_HINT) from error

    def together(self, action: Callable[[], T]) -> T:
        """Return the result of an action; a SohesError of one process stops all, with the advice to restart."""
        try:
            return together(self.accelerator, action)
        except SohesError as error:
            raise SohesError(error.message, RESTART_HINT) from error

    @torch.no_grad()
    def predict(self, pixels: Tensor, sizes: tuple[tuple[int, int], ...], network: EntityModel | None = None) -> Output:
        """Run the model in eval mode on images, in the precision of the run; see `EntityModel`.

        Args:
            pixels: RGB on the device, uint8 [B, H, W, 3].
            sizes: (height, width) of each image.
            network: replaces the model.
        """
        with _eval_mode(network or self.network) as evaluated, self._autocast():
            output: Output = evaluated(network_input(pixels, sizes), sizes)
        return output

    @torch.no_grad()
    def measure(self, batch: Batch, network: EntityModel | None = None) -> dict[str, float]:
        """Compute losses and ancestor accuracy of a batch in eval mode, in this process alone, without training.

        Args:
            batch: on any device.
            network: replaces the model.
        """
        totals = count_totals([batch], self.config.model.queries, self.config.loss)
        with _eval_mode(network or self.network) as evaluated:
            losses, accuracies = self._losses(evaluated, batch, totals, diagnosed=True)
        numbers = {"loss": total_loss(losses, self.config.loss)} | _metrics(losses, accuracies)
        return {name: float(value) for name, value in numbers.items()}

    def draw(self, shown: ValidationExamples) -> NDArray[np.uint8] | None:
        """Draw predictions beside the labels of photographs; None if none can be read."""
        return draw_beside_labels(shown, partial(predicted_labels, self.predict, self.network, self.accelerator.device))

    def notes(self, numbers: Mapping[str, float]) -> list[str]:
        """List warnings for the user about the metrics of a step."""
        if not any(value for name, value in numbers.items() if name.startswith("labels_left_out")):
            return []
        queries = self.config.model.queries
        return [f"Some crops have more labels than the model has queries ({queries}), and some labels are left out."]

    def save(self, path: Path, step: int, description: dict[str, Any], failed: Iterable[str] = ()) -> None:
        """Write the state after `step` steps, and the messages of photographs that failed; main process only."""
        steps, scaler = self.config.optimizer.steps, self._scaler.state_dict()
        state = {"format": CHECKPOINT_FORMAT, "step": step, "steps": steps, "failed": list(failed), "scaler": scaler}
        save_checkpoint(path, self._saved_modules, self.optimizer.optimizer, {**description, **state})

    def load(self, path: Path) -> dict[str, Any]:
        """Restore the state of a checkpoint.

        Returns:
            The description of the checkpoint: `step`, `failed` and the entries that the run added.

        Raises:
            WeightsError: if the file is damaged or of another run.
        """
        steps, optimizer = self.config.optimizer.steps, self.optimizer.optimizer
        description = load_checkpoint(path, self._saved_modules, optimizer, CHECKPOINT_FORMAT, steps)
        self._scaler.load_state_dict(description.get("scaler") or self._scaler.state_dict())
        return description

    def _accumulate(self, branches: Sequence[Branch], diagnosed: bool) -> dict[str, float]:
        """Accumulate the gradients of all parts of a step; return its metrics over all processes."""
        self.optimizer.zero_grad()
        collected: dict[str, list[Tensor]] = {}
        for branch in branches:
            parts = branch.batch.split(self.config.optimizer.accumulate)
            totals = self._totals(parts)
            for i, part in enumerate(parts):
                is_last = i == len(parts) - 1
                syncs = is_last and branch is branches[-1]
                with nullcontext() if syncs else self.accelerator.no_sync(self.model):
                    values = self._backward(branch._replace(batch=part), totals, diagnosed and is_last)
                for name, value in values.items():
                    collected.setdefault(name, []).append(value)
        return self._reduce(collected)

    def _backward(self, branch: Branch, totals: LossTotals, diagnosed: bool) -> dict[str, Tensor]:
        """Backpropagate the loss of one part of a branch; return its metrics by name."""
        losses, accuracies = self.together(lambda: self._losses(self.model, branch.batch, totals, diagnosed))
        loss = branch.weight * total_loss(losses, self.config.loss)
        self._scaler.scale(loss * self.accelerator.num_processes).backward()  # gradients are averaged over processes
        return {"loss": loss.detach()} | _metrics(losses, accuracies, branch.name)

    def _losses(
        self, model: nn.Module, batch: Batch, totals: LossTotals, diagnosed: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute losses as shares of the step's and, if diagnosed, ancestor accuracies and surplus labels."""
        batch = batch.to(self.accelerator.device)
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
        return torch.autocast(self.accelerator.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32")

    def _generator(self, number: int) -> torch.Generator:
        """Make the random generator of a sample, the same in any process and part of a step."""
        return torch.Generator(self.accelerator.device).manual_seed((self.config.run.seed + 1) * 1_000_000_007 + number)

    def _totals(self, parts: list[Batch]) -> LossTotals:
        own = count_totals(parts, self.config.model.queries, self.config.loss)
        summed: Tensor = self.accelerator.reduce(own.to_tensor().to(self.accelerator.device), "sum")
        return LossTotals.from_tensor(summed)

    def _reduce(self, collected: dict[str, list[Tensor]]) -> dict[str, float]:
        """Sum losses and counts over parts and processes; average accuracies over the processes with a finite one."""
        values = torch.stack([torch.stack(parts).sum().float() for parts in collected.values()])
        finite = values.isfinite()
        is_sum = torch.tensor([not name.startswith("ancestor") for name in collected], device=values.device)
        sums: Tensor = self.accelerator.reduce(torch.stack([values.where(finite | is_sum, 0), finite.float()]), "sum")
        means = torch.where(is_sum, sums[0], sums[0] / sums[1])  # NaN if no process has one
        return dict(zip(collected, means.tolist(), strict=True))

    def _update_parameters(self, rate: float, loss: float, batch: Batch, step: int) -> float:
        """Clip the gradient and apply it; return its norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        optimizer = self.optimizer.optimizer
        self._scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.gradient_clip))
        may_overflow = self.precision == "fp16" and self._scaler.get_scale() > _MIN_SCALE
        # loss and norm are equal in all processes, so all of them stop
        if not math.isfinite(loss) or not (math.isfinite(norm) or may_overflow):
            cause = f"loss {loss:g}, gradient norm {norm:g}; photographs {', '.join(batch.names[:4])}"
            raise SohesError(f"The loss or its gradient is not finite at step {step + 1} ({cause}).", RESTART_HINT)
        self._scaler.step(optimizer)
        self._scaler.update()
        self.has_moved = math.isfinite(norm)  # otherwise the scaler has skipped the update
        return norm


@contextmanager
def _eval_mode(network: EntityModel) -> Iterator[EntityModel]:
    """Put a network into eval mode inside the block."""
    was_training = network.training
    try:
        yield network.eval()
    finally:
        network.train(was_training)


def _parameter_groups(model: EntityModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Group parameters: only matrices decay, not norms, biases, embeddings and tokens; the ViT has its own rate."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        is_token = name.endswith(("level_embed", "pos_embed", "cls_token", "reg_token"))
        decays = parameter.ndim > 1 and not is_token and id(parameter) not in embeddings
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


def _metrics(losses: dict[str, Tensor], accuracies: dict[str, Tensor], branch: str = "") -> dict[str, Tensor]:
    """Name losses and accuracies of a branch as in the log."""
    numbers = {f"loss_{name}": loss for name, loss in losses.items()} | accuracies
    return {f"{name}_{branch}" if branch else name: value.detach() for name, value in numbers.items()}
