"""Signs of collapse, from the teacher's features and assignments of one batch.

    target entropy   mean entropy of an assignment / log K: 1 is uniform, near 0 is certain
    cluster entropy  entropy of the mean softmax (before Sinkhorn) / log K: 0 if all patches share one cluster
    feature rank     exp of the entropy of the normalized singular values of centered patch features
    match agreement  share of patches whose nearest neighbor (cosine) in the other view is within one patch of the match

Source: effective rank, Roy and Vetterli 2007; as a sign of collapse, Garrido et al. 2023 (RankMe).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sohes_cli.pretrain.views import patch_matches

__all__ = ["MIN_FEATURE_RANK", "diagnose", "effective_rank", "match_agreement", "normalized_entropy"]

MIN_FEATURE_RANK = 2.0
"""Effective rank of patch features below which a run has collapsed: random weights alone give more than 10."""

# norm of centered features over that of features: bf16 rounding has full rank up to here; one gray image has 0.03
_MIN_SPREAD = 0.01
_MAX_PATCHES = 4096
_MAX_IMAGES = 16


@torch.no_grad()
def diagnose(
    teacher: dict[str, Tensor], targets: dict[str, Tensor], boxes: Tensor, temperature: float
) -> dict[str, float]:
    """Measure one batch.

    Args:
        teacher: outputs of `Network.forward` of the teacher for B photographs.
        targets: its balanced assignments by term.
        boxes: of the global views, [B, 2, 4]; see `Views`.
        temperature: of the assignments.
    """
    features = teacher["features"]
    patches = features.flatten(0, 1).float()
    views = features.view(-1, 2, *features.shape[1:])
    numbers = {
        "feature_rank": effective_rank(patches[:: max(1, len(patches) // _MAX_PATCHES)]),
        "match_agreement": match_agreement(views[:_MAX_IMAGES], boxes[:_MAX_IMAGES]),
    }
    for name, assignments in targets.items():
        if len(assignments):
            clusters = torch.softmax(teacher[name].float() / temperature, -1).mean(0)
            numbers[f"{name}_target_entropy"] = float(normalized_entropy(assignments).mean())
            numbers[f"{name}_cluster_entropy"] = float(normalized_entropy(clusters))
    return numbers


def normalized_entropy(probabilities: Tensor) -> Tensor:
    """Compute the entropy over the last dimension, relative to its maximum, in [0, 1]."""
    entropy: Tensor = torch.special.entr(probabilities).sum(-1) / math.log(probabilities.shape[-1])
    return entropy


def effective_rank(features: Tensor) -> float:
    """Compute exp(entropy of normalized singular values) of centered features [N, C]; 0 if equal up to rounding."""
    centered = features - features.mean(0)
    if not bool(centered.norm() > _MIN_SPREAD * features.norm()):
        return 0.0
    values = torch.linalg.svdvals(centered)
    return float(torch.special.entr(values / values.sum()).sum().exp())


def match_agreement(features: Tensor, boxes: Tensor) -> float:
    """Compute the match agreement of patch tokens [B, 2, P, C] of two views with boxes [B, 2, 4].

    Returns:
        The share, in [0, 1]; NaN if no two views overlap.
    """
    side = round(features.shape[2] ** 0.5)
    unit = functional.normalize(features.float(), dim=-1)
    true, inside = patch_matches(boxes[:, 0], boxes[:, 1], side, side)
    nearest = (unit[:, 0] @ unit[:, 1].mT).argmax(-1)  # [B, P]
    rows, columns = (nearest // side - true // side).abs(), (nearest % side - true % side).abs()
    return float((torch.maximum(rows, columns) <= 1)[inside].float().mean())
