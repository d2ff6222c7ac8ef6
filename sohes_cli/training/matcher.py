"""Matching of queries and labels: the assignment of least cost, at each stage of the query decoder.

    cost(q, n) = class_weight * -P(entity | q) + mask_weight * BCE(q, n) + dice_weight * dice(q, n)

BCE and dice compare the mask logits x of a query with the bits t of a label at K points, uniform in the image and
shared by all:

    BCE  = mean of softplus(x) - x t
    dice = 1 - (2 sum of sigmoid(x) t + 1) / (sum of sigmoid(x) + sum of t + 1)

Mask logits are linear in the mask features, so those at the points are embeddings times features at the points, and no
mask is made. The costs of all images and stages leave the device in one copy, so matching waits for the device once.

Source: Cheng et al. 2022, Mask2Former, the matcher and its costs; Kuhn 1955; Crouse 2016 (SciPy's algorithm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from sohes_cli.errors import SohesError, one_line
from sohes_cli.model.output import ENTITY
from sohes_cli.runs.processes import in_threads
from sohes_cli.training.points import draw_points, image_cells, sample_bits, sample_maps, widened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.data.batch import Batch
    from sohes_cli.model.output import Output
    from sohes_cli.training.config import LossConfig

__all__ = ["Match", "match_labels"]

_HINT = (
    "Start again from a checkpoint before this step with a lower optimizer.learning_rate, or with "
    "optimizer.precision=fp32."
)


@dataclass(frozen=True)
class Match:
    """Matched pairs of one image: M = min(Q, N) at each of L + 1 stages, on the CPU.

    Args:
        queries: ascending at each stage, int64 [L + 1, M].
        labels: label of each, int64 [L + 1, M].
        left_out: number of labels without a query, N - M; their identity differs by stage.
    """

    queries: Tensor
    labels: Tensor
    left_out: int = 0


@torch.no_grad()
def match_labels(
    output: Output, batch: Batch, config: LossConfig, generators: Sequence[torch.Generator]
) -> list[Match]:
    """Match queries and labels of each image, at each stage separately.

    In an image with more labels than queries every query is matched. Costs are float32 under autocast. Assignments run
    in as many threads as PyTorch has, without effect on the result.

    Args:
        output: of the network, on any device.
        batch: the labels, on the same device.
        config: cost weights and number of points.
        generators: of the points of each image, on the device.

    Raises:
        SohesError: if the predictions for an image with labels are not finite.
    """
    with torch.autocast(output.mask_features.device.type, enabled=False):
        costs = [_costs(output, batch, i, config, generator) for i, generator in enumerate(generators)]
    shapes = [tuple(cost.shape) for cost in costs]
    values = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    ends = np.cumsum([cost.numel() for cost in costs])[:-1]
    tables = [part.reshape(shape) for part, shape in zip(np.split(values, ends), shapes, strict=True)]
    for name, table in zip(batch.names, tables, strict=True):
        if not np.isfinite(table).all():
            message = f"The predictions for {one_line(name)} are not finite, so they cannot be matched with its labels."
            raise SohesError(message, _HINT)
    stage_tables = [stage_table for table in tables for stage_table in table]
    assignments = in_threads(linear_sum_assignment, stage_tables, torch.get_num_threads())  # SciPy releases the GIL
    stages = len(output.pred_logits)
    return [_match(assignments[i * stages : (i + 1) * stages], shape[2]) for i, shape in enumerate(shapes)]


def _costs(output: Output, batch: Batch, image: int, config: LossConfig, generator: torch.Generator) -> Tensor:
    """Compute the costs of one image, [L + 1, Q, N]."""
    size, bits = batch.sizes[image], batch.masks[image]
    point_coords = draw_points(1, config.points, generator)
    embeddings = widened(output.mask_embeddings[:, image])
    features = sample_maps(widened(image_cells(output.mask_features[image], size)), size, point_coords)
    targets = sample_bits(bits, *size, point_coords).to(features.dtype)
    entity = widened(output.pred_logits[:, image]).softmax(-1)[..., ENTITY]
    bce, dice = _mask_costs(embeddings, features, targets)
    return config.mask_weight * bce + config.dice_weight * dice - config.class_weight * entity[..., None]


def _mask_costs(embeddings: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute BCE and dice, [L + 1, Q, N] each, of embeddings [L + 1, Q, C], features [C, K] and targets [N, K]."""
    logits = embeddings @ features
    products = embeddings @ (features @ targets.T)  # sum of x t, by a product with N columns instead of K
    bce = (functional.softplus(logits).sum(-1, keepdim=True) - products) / features.shape[1]
    probabilities = logits.sigmoid_()
    areas = probabilities.sum(-1, keepdim=True) + targets.sum(-1)
    return bce, 1 - (2 * (probabilities @ targets.T) + 1) / (areas + 1)


def _match(assignments: list[tuple[NDArray[np.int64], NDArray[np.int64]]], labels: int) -> Match:
    queries, matched = (torch.from_numpy(np.stack(side).astype(np.int64)) for side in zip(*assignments, strict=True))
    return Match(queries, matched, labels - matched.shape[1])
