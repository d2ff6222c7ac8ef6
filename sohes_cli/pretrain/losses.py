"""Self-distillation losses: clusters of images, clusters of masked patches, and matching of patches by location.

    image   (DINO)    H(t, s): t of the class token of one global view, s of the other one and of all local views
    masked  (iBOT)    H(t, s): t and s of one patch of one view, masked for the student
    match   (dense)   - log exp(q k+ / T) / sum_k exp(q k / T): q of a student's patch, k+ of the teacher's patch at
                      the same location in another view, k of all matched patches of the batch

    t = Sinkhorn(teacher logits / teacher temperature),  s = softmax(student logits / student temperature),
    H(t, s) = - sum_k t_k log s_k

Sinkhorn-Knopp gives every cluster the same share of a batch, which prevents a collapse into one. The match term needs
no clusters: its negatives are other locations, of the same photograph too, so it learns from the first step on.

Source: Caron et al. 2021 (DINO); Zhou et al. 2022 (iBOT); Sinkhorn in both, Caron et al. 2020, Oquab et al. 2024;
matching by location, O. Pinheiro et al. 2020 and Wang et al. 2021 (DenseCL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from torch.nn import functional

if TYPE_CHECKING:
    from sohes_cli.pretrain.config import LossConfig
    from sohes_cli.pretrain.views import ViewSample

__all__ = ["cross_entropy", "distillation_losses", "match_cosines", "sinkhorn", "teacher_targets"]

_MIN_FLOAT32_TEMPERATURE = 0.03  # below it, exp(-2 / temperature) and its inverse approach the limits of float32


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Balance a batch of soft assignments so that all clusters get the same share of it.

    The kernel exp(logits / temperature) is computed once; an iteration updates one factor per row and one per column by
    two matrix-vector products and ends with the rows, so columns are balanced up to convergence. Columns are summed
    over all processes.

    Args:
        logits: cosines in [-1, 1], float [N, K].
        temperature: of the assignment, above 0.
        iterations: at least 1.

    Returns:
        Assignments, float32 [N, K], each row of sum 1.

    Source: Cuturi 2013; Caron et al. 2020 (SwAV).
    """
    dtype = torch.float32 if temperature >= _MIN_FLOAT32_TEMPERATURE else torch.float64
    kernel = ((logits.to(dtype) - 1) / temperature).exp()
    rows = kernel.new_ones(len(kernel))
    tiny = torch.finfo(dtype).tiny
    for _ in range(iterations):
        columns = 1 / _sum_processes(kernel.T @ rows).clamp(min=tiny)
        columns = columns / columns.amax()  # their scale is free, and would grow by N / K per iteration
        rows = 1 / (kernel @ columns).clamp(min=tiny)
    return kernel.mul_(columns).mul_(rows[:, None]).float()


def teacher_targets(teacher: dict[str, Tensor], temperature: float, config: LossConfig) -> dict[str, Tensor]:
    """Balance the teacher's logits of class tokens, `image`, and masked patches, `masked`, where present."""
    iterations = config.sinkhorn_iterations
    return {name: sinkhorn(teacher[name], temperature, iterations) for name in ("image", "masked") if name in teacher}


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Compute - sum_k targets_k log softmax(logits / temperature)_k over the last dimension, [...]."""
    scaled = logits / temperature
    return scaled.logsumexp(-1) - (targets * scaled).sum(-1)  # targets sum to 1


def distillation_losses(
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    targets: dict[str, Tensor],
    sample: ViewSample,
    config: LossConfig,
) -> dict[str, Tensor]:
    """Compute the terms of non-zero weight, each a mean; the mean of a term over processes is that of the whole batch.

    Args:
        student: outputs of `Network.forward` of the student.
        teacher: those of the teacher.
        targets: assignments from `teacher_targets`.
        sample: the batch.
        config: weights and temperatures.
    """
    losses, temperature = {}, config.student_temperature
    if config.image_weight:
        losses["image"] = _image_loss(student, targets["image"], len(sample.masks), temperature)
    if config.masked_weight:
        masks = sample.masks.flatten(0, 1)
        losses["masked"] = _masked_loss(student["masked"], targets["masked"], masks, temperature)
    if config.match_weight:
        losses["match"] = _match_loss(student["match"], teacher["match"], sample.paired, config.match_temperature)
    return losses


@torch.no_grad()
def match_cosines(student: Tensor, teacher: Tensor, paired: Tensor) -> dict[str, float]:
    """Compute the mean cosines of matched patches and of patches at different locations; equal ones signal a collapse.

    Args:
        student: unit vectors of the student's patches, [B, n, D].
        teacher: those of the teacher's, [B, n, D].
        paired: photographs with matches, bool [B].

    Returns:
        `matched_cosine` and `other_cosine`, each 0 without such patches.
    """
    queries, keys = student[paired].flatten(0, 1), teacher[paired].flatten(0, 1)
    count = len(queries)
    matched = (queries * keys).sum()
    everything = queries.sum(0) @ keys.sum(0)
    return {
        "matched_cosine": float(matched / max(1, count)),
        "other_cosine": float((everything - matched) / max(1, count * (count - 1))),
    }


def _image_loss(student: dict[str, Tensor], targets: Tensor, batch: int, temperature: float) -> Tensor:
    targets = targets.view(batch, 2, -1)
    pairs = [cross_entropy(targets.flip(1), student["image"].view(batch, 2, -1), temperature)]  # [B, 2]
    if "image_small" in student:
        small = student["image_small"].view(batch, -1, targets.shape[-1])  # [B, V, K]
        pairs += [cross_entropy(targets[:, view, None], small, temperature) for view in (0, 1)]
    return torch.cat(pairs, 1).mean()


def _masked_loss(student: Tensor, targets: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Average over masked patches [N, K], with equal weight for each view [B * 2, P] that has any."""
    counts = masks.sum(1, keepdim=True)
    weights = (1 / counts.clamp(min=1)).expand_as(masks)[masks]
    views = _sum_processes((counts > 0).sum().float()) / _world_size()
    return (cross_entropy(targets, student, temperature) * weights).sum() / views.clamp(min=1e-6)


def _match_loss(student: Tensor, teacher: Tensor, paired: Tensor, temperature: float) -> Tensor:
    """Average over matched patches, [B, n, D] each; `paired` selects the photographs with matches, bool [B]."""
    queries, keys = student.flatten(0, 1), _gather_rows(teacher.flatten(0, 1))
    valid = paired[:, None].expand(student.shape[:2]).flatten()
    logits = queries @ keys.T / temperature
    logits = logits.masked_fill(~_gather_rows(valid), -torch.inf)
    true = torch.arange(len(queries), device=queries.device) + _rank() * len(queries)
    losses = functional.cross_entropy(logits[valid], true[valid], reduction="sum")
    return losses / (_sum_processes(valid.sum().float()) / _world_size()).clamp(min=1e-6)


def _sum_processes(values: Tensor) -> Tensor:
    """Sum over all processes, without gradient."""
    if _world_size() > 1:
        distributed.all_reduce(values)
    return values


def _gather_rows(values: Tensor) -> Tensor:
    """Concatenate the rows of all processes, equally many each, without gradient."""
    if _world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _rank() -> int:
    return distributed.get_rank() if _world_size() > 1 else 0
