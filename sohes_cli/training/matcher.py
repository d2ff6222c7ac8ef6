"""Which query answers for which label: the assignment of least cost, at every stage of the query decoder.

    cost(q, n) = class_weight * -P(entity | q) + mask_weight * BCE(q, n) + dice_weight * dice(q, n)

BCE and dice compare the mask logits x of a query with the bits t of a label at K points, uniform in the image and the same for all:

    BCE  = mean of softplus(x) - x t
    dice = 1 - (2 sum of sigmoid(x) t + 1) / (sum of sigmoid(x) + sum of t + 1)

A mask is linear in the pixels' features, so its logits at the points are the embedding times the features at the points, and no mask is
made. The costs of all images and stages leave the device in one copy, which is the only time that a step waits for it.

Source: Cheng et al. 2022, Mask2Former, the matcher and its costs; Kuhn 1955; Crouse 2016 (SciPy's algorithm).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
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


@dataclass(frozen=True)
class Match:
    """The matched pairs of one image, M = min(Q, N) of them at each of L + 1 stages, on the CPU.

    Args:
        queries: ascending at each stage, int64 [L + 1, M].
        labels: the label of each, int64 [L + 1, M].
        left_out: labels that found no query, as the image has more labels than queries; other ones at other stages.
    """

    queries: Tensor
    labels: Tensor
    left_out: int = 0


@torch.no_grad()
def match_labels(
    output: Output, batch: Batch, config: LossConfig, generators: Sequence[torch.Generator]
) -> list[Match]:
    """Match queries and labels of each image, at each stage alone.

    An image with more labels than queries has every query matched, and the labels that would cost most are left out. Costs are float32
    under autocast; as many images and stages are assigned at once as PyTorch has threads, which changes no result.

    Args:
        output: of the network, on any device.
        batch: the labels, on the same device.
        config: weights and number of points.
        generators: of each image, on the device, for its points.

    Returns:
        A match an image.

    Raises:
        SohesError: if predictions for an image with labels are not finite; names the photograph.
    """
    with torch.autocast(output.mask_features.device.type, enabled=False):
        costs = [_costs(output, batch, i, config, generator) for i, generator in enumerate(generators)]
    shapes = [tuple(cost.shape) for cost in costs]
    values = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    ends = np.cumsum([prod(shape) for shape in shapes])[:-1]
    tables = [part.reshape(shape) for part, shape in zip(np.split(values, ends), shapes, strict=True)]
    for name, table in zip(batch.names, tables, strict=True):
        _check_finite(table, name)
    each = [table for image in tables for table in image]
    found = in_threads(linear_sum_assignment, each, torch.get_num_threads())  # SciPy lets other threads run
    stages = len(output.pred_logits)
    return [_match(found[i * stages : (i + 1) * stages], tables[i].shape[2]) for i in range(len(tables))]


def _costs(output: Output, batch: Batch, image: int, config: LossConfig, generator: torch.Generator) -> Tensor:
    """The costs of one image, [L + 1, Q, N]."""
    size, bits = batch.sizes[image], batch.masks[image]
    points = draw_points(1, config.points, generator)
    embeddings = widened(output.mask_embeddings[:, image])
    features = sample_maps(widened(image_cells(output.mask_features[image], size)), size, points)
    targets = sample_bits(bits, *size, points).to(features.dtype)
    entity = widened(output.pred_logits[:, image]).softmax(-1)[..., ENTITY]
    mask, dice = _mask_costs(embeddings, features, targets)
    return config.mask_weight * mask + config.dice_weight * dice - config.class_weight * entity[..., None]


def _mask_costs(embeddings: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """BCE and dice, [L + 1, Q, N] each, of embeddings [L + 1, Q, C], features [C, K] and targets [N, K]."""
    logits = embeddings @ features
    inside = embeddings @ (features @ targets.T)  # sum of x t, a product with N columns instead of K
    mask = (functional.softplus(logits).sum(-1, keepdim=True) - inside) / features.shape[1]
    probabilities = logits.sigmoid_()
    areas = probabilities.sum(-1, keepdim=True) + targets.sum(-1)
    return mask, 1 - (2 * (probabilities @ targets.T) + 1) / (areas + 1)


def _match(found: list[tuple[NDArray[np.int64], NDArray[np.int64]]], labels: int) -> Match:
    queries, matched = (torch.from_numpy(np.stack(side).astype(np.int64)) for side in zip(*found, strict=True))
    return Match(queries, matched, labels - matched.shape[1])


def _check_finite(costs: NDArray[np.floating], name: str) -> None:
    if not np.isfinite(costs).all():
        raise SohesError(
            f"The predictions for {one_line(name)} are not finite, so they cannot be matched with its labels.",
            "Start again from a checkpoint before this step with a lower optimizer.learning_rate, or with optimizer.precision=fp32.",
        )
