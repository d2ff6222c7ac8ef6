"""Signs of health and of collapse, from the teacher's features and assignments of one batch.

    target entropy   mean entropy of an assignment / log K: 1 says nothing, near 0 is sure
    cluster entropy  entropy of the mean softmax / log K: 0 if all patches fall into one cluster (before Sinkhorn evens it out)
    feature rank     exp of the entropy of the normalized singular values of centered patch features: dimensions in use
    match agreement  share of patches whose nearest neighbor in the other view (cosine) lies within a patch of the true place

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
"""A run whose patch features use fewer dimensions has collapsed: random weights alone give more than ten."""

_MIN_SPREAD = 0.01  # of features around their mean, over their size: rounding has full rank, in bf16 up to here; one gray image has 0.03
_MAX_PATCHES = 4096
_MAX_IMAGES = 16


@torch.no_grad()
def diagnose(
    taught: dict[str, Tensor], targets: dict[str, Tensor], boxes: Tensor, temperature: float
) -> dict[str, float]:
    """Measure one batch.

    Args:
        taught: what `Network.forward` found for the teacher and B photographs.
        targets: its balanced assignments, of the terms that have some.
        boxes: the places of the global views, [B, 2, 4]; see `Views`.
        temperature: of the assignments.
    """
    features = taught["features"]
    patches = features.flatten(0, 1).float()
    numbers = {
        "feature_rank": effective_rank(patches[:: max(1, len(patches) // _MAX_PATCHES)]),
        "match_agreement": match_agreement(
            features.view(-1, 2, *features.shape[1:])[:_MAX_IMAGES], boxes[:_MAX_IMAGES]
        ),
    }
    for name, assigned in targets.items():
        if len(assigned):
            clusters = torch.softmax(taught[name].float() / temperature, -1).mean(0)
            numbers[f"{name}_target_entropy"] = float(normalized_entropy(assigned).mean())
            numbers[f"{name}_cluster_entropy"] = float(normalized_entropy(clusters))
    return numbers


def normalized_entropy(shares: Tensor) -> Tensor:
    """Entropy over the last dimension as a share of the largest possible, in [0, 1]."""
    entropy: Tensor = torch.special.entr(shares).sum(-1) / math.log(shares.shape[-1])
    return entropy


def effective_rank(features: Tensor) -> float:
    """Exp of the entropy of the normalized singular values of centered features [N, C]; 0 if all are equal but for rounding."""
    centered = features - features.mean(0)
    if not bool(centered.norm() > _MIN_SPREAD * features.norm()):
        return 0.0
    values = torch.linalg.svdvals(centered)
    return float(torch.special.entr(values / values.sum()).sum().exp())


def match_agreement(features: Tensor, boxes: Tensor) -> float:
    """Share of matched patches whose nearest neighbor in the other view of their photograph lies within a patch of its true place.

    Args:
        features: patch tokens of two views, [B, 2, P, C].
        boxes: their places, [B, 2, 4].

    Returns:
        The share, in [0, 1]; NaN if no two views overlap.
    """
    side = round(features.shape[2] ** 0.5)
    unit = functional.normalize(features.float(), dim=-1)
    true, inside = patch_matches(boxes[:, 0], boxes[:, 1], side, side)
    nearest = (unit[:, 0] @ unit[:, 1].mT).argmax(-1)  # [B, P]
    rows, columns = (nearest // side - true // side).abs(), (nearest % side - true % side).abs()
    return float((torch.maximum(rows, columns) <= 1)[inside].float().mean())
