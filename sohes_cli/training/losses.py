"""Set criterion of phases 2 and 3: class, mask, dice and ancestor losses of matched queries.

    class     cross entropy of entity against no object, over all queries                   at all L + 1 stages
    mask      mean over K points of the binary cross entropy (BCE), of matched queries      at all L + 1 stages
    dice      1 - (2 sum of p t + 1) / (sum of p + sum of t + 1) over the points             at all L + 1 stages
    ancestor  BCE over ordered pairs of matched queries of an image                         after each of the L layers

Each is a sum over stages and images, divided by a total over all images of the optimizer step (`LossTotals`), so the
losses of the parts of a step add up over parts and processes. DistributedDataParallel averages gradients: multiply the
loss by the number of processes before `backward`.

Source: Cheng et al. 2022, Mask2Former, the set criterion (points of PointRend, dice with 1 added on both sides); Cao et
al. 2024, the ancestor loss.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from sohes_kernels import ancestor_loss, forest_intervals
from sohes_kernels.ancestor_loss.reference import ancestor_matrix
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sohes_cli.model.output import ENTITY, NO_OBJECT
from sohes_cli.training.points import image_cells, sample_bits, sample_maps, uncertain_points, widened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from sohes_cli.data.batch import Batch
    from sohes_cli.model.output import Output
    from sohes_cli.training.config import LossConfig
    from sohes_cli.training.matcher import Match

__all__ = ["LossTotals", "ancestor_accuracy", "count_totals", "segmentation_losses", "total_loss"]

_CHUNK = 2**26
"""Elements of the masks of a chunk, 256 MB in float32: their maps and candidate points."""


@dataclass(frozen=True)
class LossTotals:
    """Divisors of the losses of an optimizer step; additive over processes as tensors.

    Args:
        masks: matched labels of a stage.
        class_weights: sum of the queries' weights in the cross entropy of a stage.
        forests: images with an ancestor loss: at least two matched labels.
    """

    masks: float
    class_weights: float
    forests: float

    def to_tensor(self) -> Tensor:
        """Convert to float64 [3]."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> LossTotals:
        """Convert from `to_tensor`, or a sum of such tensors, on any device."""
        return cls(*values.tolist())


def count_totals(batches: Iterable[Batch], queries: int, config: LossConfig) -> LossTotals:
    """Count the totals of batches, which depend on the numbers of labels alone.

    Args:
        batches: all parts of a step in this process.
        queries: Q.
        config: gives `no_object_weight`.
    """
    matched = [min(queries, len(parents)) for batch in batches for parents in batch.parents]
    masks = sum(matched)
    class_weights = masks + config.no_object_weight * (queries * len(matched) - masks)
    return LossTotals(masks, class_weights, sum(count >= 2 for count in matched))


def segmentation_losses(
    output: Output,
    ancestor_weights: tuple[Tensor, Tensor],
    batch: Batch,
    matches: Sequence[Match],
    config: LossConfig,
    totals: LossTotals,
    generators: Sequence[torch.Generator],
) -> dict[str, Tensor]:
    """Compute the unweighted losses of a batch as shares of those of its optimizer step.

    Images without labels have a class loss only. Every loss stays connected with its inputs even in a batch without
    labels, so all parameters get gradients. Losses are float32 under autocast, and float64 for float64 outputs.

    Args:
        output: of the network, on any device.
        ancestor_weights: w1 and w2 of the ancestor head, [C, C] each.
        batch: the labels, on the same device.
        matches: of each image, from `match_labels`.
        config: numbers of points and the weight of a query without a label.
        totals: of the whole step, over all parts and processes.
        generators: of the points of each image, on the device.

    Returns:
        Scalars `class`, `mask`, `dice` and `ancestor`.
    """
    with torch.autocast(output.mask_features.device.type, enabled=False):
        mask, dice = _mask_losses(output, batch, matches, config, generators) / max(totals.masks, 1)
        return {
            "class": _class_loss(output.pred_logits, matches, config) / totals.class_weights,
            "mask": mask,
            "dice": dice,
            "ancestor": _ancestor_loss(output.queries[1:], ancestor_weights, batch, matches) / max(totals.forests, 1),
        }


def total_loss(losses: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Compute the weighted sum of `class`, `mask`, `dice` and `ancestor`."""
    weighted = [getattr(config, f"{name}_weight") * loss for name, loss in losses.items()]
    return torch.stack(weighted).sum()


@torch.no_grad()
def ancestor_accuracy(
    output: Output, ancestor_weights: tuple[Tensor, Tensor], batch: Batch, matches: Sequence[Match]
) -> dict[str, Tensor]:
    """Measure the ancestor head after the last layer, over all ordered pairs of matched queries of an image.

    The head predicts an ancestor if the probability is above 0.5. True ancestors are rare, so a head that predicts none
    has a high accuracy, but recall 0 and balanced accuracy 0.5.

    Args:
        output: of the network.
        ancestor_weights: w1 and w2 of the ancestor head, [C, C] each.
        batch: the labels.
        matches: of each image, from `match_labels`.

    Returns:
        Scalars on the output's device, NaN without such pairs: `ancestor_accuracy`, the share of correct pairs;
        `ancestor_recall`, that among true ancestors; `ancestor_balanced_accuracy`, the mean of it and of the share
        among the other pairs.
    """
    queries = output.queries[-1]
    enter, leave, is_matched = _ancestor_targets(output.queries[-1:], batch, matches)
    with torch.autocast(queries.device.type, enabled=False):
        ancestors, descendants = (widened(queries) @ widened(weight) for weight in ancestor_weights)
        predicted = ancestors @ descendants.mT > 0
    target = ancestor_matrix((enter, leave))[0]
    correct = predicted == target
    off_diagonal = ~torch.eye(queries.shape[1], dtype=torch.bool, device=queries.device)
    pairs = (is_matched[..., :, None] & is_matched[..., None, :])[0] & off_diagonal
    accuracy, recall, specificity = (
        (correct & chosen).sum() / chosen.sum() for chosen in (pairs, pairs & target, pairs & ~target)
    )
    return {
        "ancestor_accuracy": accuracy,
        "ancestor_recall": recall,
        "ancestor_balanced_accuracy": (recall + specificity) / 2,
    }


def _class_loss(logits: Tensor, matches: Sequence[Match], config: LossConfig) -> Tensor:
    """Sum the weighted cross entropy of logits [L + 1, B, Q, 2]."""
    classes = torch.full(logits.shape[:-1], NO_OBJECT)
    for image, match in enumerate(matches):
        classes[:, image].scatter_(1, match.queries, ENTITY)
    logits = widened(logits).flatten(0, 2)
    weights = logits.new_ones(2)
    weights[NO_OBJECT] = config.no_object_weight
    targets = classes.flatten().to(logits.device, non_blocking=True)
    return functional.cross_entropy(logits, targets, weights, reduction="sum")


def _mask_losses(
    output: Output, batch: Batch, matches: Sequence[Match], config: LossConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """Sum BCE and dice over all matched queries, [2]."""
    zero = widened(output.mask_embeddings[..., :0]).sum() + widened(output.mask_features[..., :0]).sum()
    sums = [zero.expand(2)]  # connected with embeddings and features
    # unbind, because the backward pass of an index allocates a gradient of the whole batch
    images = (output.mask_embeddings.unbind(1), output.mask_features.unbind(), batch.sizes, batch.masks)
    for embeddings, features, size, bits, match, generator in zip(*images, matches, generators, strict=True):
        if match.queries.numel():
            queries = match.queries.to(features.device, non_blocking=True)[..., None]
            matched = embeddings.gather(1, queries.expand(-1, -1, embeddings.shape[-1])).flatten(0, 1)
            labels = _Labels(size, bits, match.labels.flatten().to(features.device, non_blocking=True))
            sums += _image_mask_losses(matched, image_cells(features, size), labels, config, generator)
    return torch.stack(sums).sum(0)


class _Labels(NamedTuple):
    """Labels of R queries of an image.

    Args:
        size: (height, width) of the image.
        bits: its packed masks, uint8 [N, ceil(height * width / 8)].
        rows: indices of the labels into `bits`, int64 [R].
    """

    size: tuple[int, int]
    bits: Tensor
    rows: Tensor


def _image_mask_losses(
    embeddings: Tensor, features: Tensor, labels: _Labels, config: LossConfig, generator: torch.Generator
) -> list[Tensor]:
    """Sum BCE and dice of R masks per chunk, [2] each, from embeddings [R, C] and the image's own features [C, h, w].

    The backward pass recomputes the masks of a chunk, so that only their points stay in memory.
    """
    chunk = max(1, _CHUNK // (features[0].numel() + int(5 * config.oversample * config.points)))
    sums = []
    for part, rows in zip(torch.split(embeddings, chunk), torch.split(labels.rows, chunk), strict=True):
        chosen = labels._replace(rows=rows)
        with torch.no_grad():
            maps = _mask_logits(part, features)
            point_coords = uncertain_points(
                maps, labels.size, config.points, config.oversample, config.importance, generator
            )
        arguments = (part, features, point_coords, chosen)
        sums.append(checkpoint(_point_losses, *arguments, use_reentrant=False, preserve_rng_state=False))
    return sums


def _mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """Compute mask logits [N, h, w] of embeddings [N, C] and features [C, h, w]."""
    return torch.einsum("nc,chw->nhw", widened(embeddings), widened(features))


def _point_losses(embeddings: Tensor, features: Tensor, point_coords: Tensor, labels: _Labels) -> Tensor:
    """Sum BCE and dice of R masks at points [R, K, 2], [2]."""
    logits = sample_maps(_mask_logits(embeddings, features), labels.size, point_coords)
    targets = sample_bits(labels.bits, *labels.size, point_coords, labels.rows).to(logits.dtype)
    bce = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    probabilities = logits.sigmoid()
    dice = 1 - (2 * (probabilities * targets).sum(1) + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
    return torch.stack([bce.sum(), dice.sum()])


def _ancestor_loss(queries: Tensor, weights: tuple[Tensor, Tensor], batch: Batch, matches: Sequence[Match]) -> Tensor:
    """Sum the ancestor loss of queries [L, B, Q, C] over layers and images."""
    enter, leave, is_matched = _ancestor_targets(queries, batch, matches)
    w1, w2 = (widened(weight) for weight in weights)
    return ancestor_loss(widened(queries), w1, w2, (enter, leave), is_matched).sum()


def _ancestor_targets(queries: Tensor, batch: Batch, matches: Sequence[Match]) -> tuple[Tensor, Tensor, Tensor]:
    """Build enter and leave of the last L stages, pre-order intervals, int32 [L, B, Q], and is_matched, bool."""
    layers = len(queries)
    table = torch.zeros(3, *queries.shape[:3], dtype=torch.int32)
    for image, (match, parents) in enumerate(zip(matches, batch.parents, strict=True)):
        intervals = torch.stack([*forest_intervals(parents.cpu()), torch.ones(len(parents), dtype=torch.int32)])
        labels, matched = match.labels[-layers:], match.queries[-layers:]
        table[:, :, image].scatter_(2, matched.expand(3, -1, -1), intervals[:, labels])
    enter, leave, is_matched = table.to(queries.device, non_blocking=True)
    return enter, leave, is_matched.bool()
