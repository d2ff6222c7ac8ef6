"""What the student learns of the teacher: the cluster of an image, the cluster of a hidden patch, and which patches are the same place.

    image   (DINO)    H(t, s): t of the class token of one global view, s of the other and of all local views
    masked  (iBOT)    H(t, s): t and s of one patch of one view, which the student does not see
    match   (dense)   - log exp(q k+ / T) / sum_k exp(q k / T): q of a student's patch, k+ of the teacher's patch at the same place in
                      another view, k of all matched patches of the batch

    t = Sinkhorn(teacher logits / teacher temperature),  s = softmax(student logits / student temperature),  H(t, s) = - sum_k t_k log s_k

Sinkhorn-Knopp gives every cluster the same share of a batch, which rules out that all tokens fall into one. The match term needs no
clusters: its negatives are other places, of the same photograph too, so it learns from the first step on.

Source: Caron et al. 2021 (DINO); Zhou et al. 2022 (iBOT); Sinkhorn in both, Caron et al. 2020, Oquab et al. 2024; matching by place,
O. Pinheiro et al. 2020 and Wang et al. 2021 (DenseCL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from torch.nn import functional

if TYPE_CHECKING:
    from sohes_cli.pretrain.config import LossConfig
    from sohes_cli.pretrain.views import Sample

__all__ = ["cross_entropy", "distillation_losses", "match_cosines", "sinkhorn", "teacher_targets"]

_MIN_FLOAT32_TEMPERATURE = 0.03  # below it, exp(-2 / temperature) and its inverse come near the limits of float32


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Balance a batch of soft assignments so that all clusters get the same share of it.

    The kernel exp(logits / temperature) is computed once; the iterations only change one factor a row and one a column, so each costs two
    matrix-vector products. Each ends with the rows: the columns are equal as far as the iterations have converged. With several processes
    the columns are summed over all of them.

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
        columns = 1 / _summed(kernel.T @ rows).clamp(min=tiny)
        columns = columns / columns.amax()  # their scale is free, and would grow by N / K an iteration
        rows = 1 / (kernel @ columns).clamp(min=tiny)
    return kernel.mul_(columns).mul_(rows[:, None]).float()


def teacher_targets(taught: dict[str, Tensor], temperature: float, config: LossConfig) -> dict[str, Tensor]:
    """The teacher's balanced assignments of the class tokens, `image`, and of the hidden patches, `masked`, as far as it has logits."""
    return {
        name: sinkhorn(taught[name], temperature, config.sinkhorn_iterations)
        for name in ("image", "masked")
        if name in taught
    }


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """- sum_k targets_k log softmax(logits / temperature)_k over the last dimension, [...]."""
    scaled = logits / temperature
    return scaled.logsumexp(-1) - (targets * scaled).sum(-1)  # targets sum to 1


def distillation_losses(
    student: dict[str, Tensor],
    taught: dict[str, Tensor],
    targets: dict[str, Tensor],
    sample: Sample,
    config: LossConfig,
) -> dict[str, Tensor]:
    """The terms whose weight is not 0, each a mean over what it compares.

    With several processes the mean of a term over them is that of one process with the whole batch.

    Args:
        student: what `Network.forward` found for the student.
        taught: what it found for the teacher.
        targets: the teacher's assignments.
        sample: the batch.
        config: weights and temperatures.
    """
    losses = {}
    if config.image_weight:
        losses["image"] = _image_loss(student, targets["image"], len(sample.masks), config.student_temperature)
    if config.masked_weight:
        losses["masked"] = _masked_loss(
            student["masked"], targets["masked"], sample.masks.flatten(0, 1), config.student_temperature
        )
    if config.match_weight:
        losses["match"] = _match_loss(student["match"], taught["match"], sample.paired, config.match_temperature)
    return losses


@torch.no_grad()
def match_cosines(student: Tensor, taught: Tensor, paired: Tensor) -> dict[str, float]:
    """Mean cosine of matched patches and of patches of different places; equal ones say that nothing is told apart.

    Args:
        student: unit vectors of the student's patches, [B, n, D].
        taught: those of the teacher's, [B, n, D].
        paired: whether there is a match, bool [B].

    Returns:
        `matched_cosine` and `other_cosine`, each 0 where there is nothing to compare.
    """
    queries, keys = student[paired].flatten(0, 1), taught[paired].flatten(0, 1)
    count = len(queries)
    same = (queries * keys).sum()
    everything = queries.sum(0) @ keys.sum(0)
    return {
        "matched_cosine": float(same / max(1, count)),
        "other_cosine": float((everything - same) / max(1, count * (count - 1))),
    }


def _image_loss(student: dict[str, Tensor], targets: Tensor, batch: int, temperature: float) -> Tensor:
    wanted = targets.view(batch, 2, -1)
    pairs = [cross_entropy(wanted.flip(1), student["image"].view(batch, 2, -1), temperature)]  # [B, 2]
    if "image_small" in student:
        small = student["image_small"].view(batch, -1, wanted.shape[-1])  # [B, V, K]
        pairs += [cross_entropy(wanted[:, view, None], small, temperature) for view in (0, 1)]
    return torch.cat(pairs, 1).mean()


def _masked_loss(student: Tensor, targets: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Mean over hidden patches, each view with any counting the same; student and targets are those of the hidden patches, in order."""
    hidden = masks.sum(1, keepdim=True)
    weights = (1 / hidden.clamp(min=1)).expand_as(masks)[masks]
    views = _summed((hidden > 0).sum().float()) / _processes()
    return (cross_entropy(targets, student, temperature) * weights).sum() / views.clamp(min=1e-6)


def _match_loss(student: Tensor, taught: Tensor, paired: Tensor, temperature: float) -> Tensor:
    """Mean over matched patches; [B, n, D], [B, n, D], and whether a photograph has matches, [B]."""
    queries, keys = student.flatten(0, 1), _gathered(taught.flatten(0, 1))
    valid = paired[:, None].expand(student.shape[:2]).flatten()
    logits = queries @ keys.T / temperature
    logits = logits.masked_fill(~_gathered(valid), -torch.inf)
    true = torch.arange(len(queries), device=queries.device) + _process() * len(queries)
    losses = functional.cross_entropy(logits[valid], true[valid], reduction="sum")
    return losses / (_summed(valid.sum().float()) / _processes()).clamp(min=1e-6)


def _summed(values: Tensor) -> Tensor:
    """The sum over all processes, without gradient."""
    if _processes() > 1:
        distributed.all_reduce(values)
    return values


def _gathered(values: Tensor) -> Tensor:
    """The rows of all processes, equally many each, without gradient."""
    if _processes() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(_processes())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _process() -> int:
    return distributed.get_rank() if _processes() > 1 else 0
