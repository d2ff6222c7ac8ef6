"""What the network is to learn of a batch of labels: entity or not, the masks, and which is an ancestor of which.

    class     cross entropy of entity against no object, of all queries                   at all L + 1 stages
    mask      mean over K points of the binary cross entropy, of matched queries          at all L + 1 stages
    dice      1 - (2 sum of p t + 1) / (sum of p + sum of t + 1) over the points           at all L + 1 stages
    ancestor  binary cross entropy over ordered pairs of matched queries of an image      after each of the L layers

Each is a sum over stages and over the images at hand, divided by a total over all images of the optimizer step (`LossTotals`). So the
losses of the parts of a step, on whatever processes they are, add up to those of the step at once. DistributedDataParallel averages
gradients over processes: multiply the loss by their number before `backward`.

Source: Cheng et al. 2022, Mask2Former, the set criterion (points of PointRend, dice with 1 added on both sides); Cao et al. 2024, the
ancestor loss.
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
"""Numbers that the masks of a chunk take at once, 256 MB in float32: their maps, and the points among which they choose."""


@dataclass(frozen=True)
class LossTotals:
    """What the losses of an optimizer step are divided by; those of several processes are added as tensors.

    Args:
        masks: matched labels of a stage.
        class_weights: sum of the queries' weights in the cross entropy of a stage.
        forests: images with two matched labels or more, which have an ancestor loss.
    """

    masks: float
    class_weights: float
    forests: float

    def to_tensor(self) -> Tensor:
        """Float64 [3]."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> LossTotals:
        """From what `to_tensor` made, or from a sum of such, on any device."""
        return cls(*values.tolist())


def count_totals(batches: Iterable[Batch], queries: int, config: LossConfig) -> LossTotals:
    """The totals of some batches, which depend on their numbers of labels alone.

    Args:
        batches: all parts of a step that this process has.
        queries: Q.
        config: for the weight of a query without a label.
    """
    matched = [min(queries, len(parents)) for batch in batches for parents in batch.parents]
    masks = sum(matched)
    return LossTotals(
        masks, masks + config.no_object_weight * (queries * len(matched) - masks), sum(m >= 2 for m in matched)
    )


def segmentation_losses(
    output: Output,
    ancestor_weights: tuple[Tensor, Tensor],
    batch: Batch,
    matches: Sequence[Match],
    config: LossConfig,
    totals: LossTotals,
    generators: Sequence[torch.Generator],
) -> dict[str, Tensor]:
    """The losses of a batch as shares of those of its optimizer step, not weighted yet.

    Images without labels have a class loss only. Every loss is connected with what it is computed from even if the batch has no labels, so
    all parameters get gradients. Losses are float32 under autocast, and float64 for float64 outputs.

    Args:
        output: of the network, on any device.
        ancestor_weights: w1 and w2 of the ancestor head, [C, C] each.
        batch: the labels, on the same device.
        matches: of each image, of `match_labels`.
        config: numbers of points and the weight of a query without a label.
        totals: of the whole step, over all its parts and processes.
        generators: of each image, on the device, for its points.

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
    """The weighted sum of `class`, `mask`, `dice` and `ancestor`."""
    weighted = [getattr(config, f"{name}_weight") * loss for name, loss in losses.items()]
    return torch.stack(weighted).sum()


@torch.no_grad()
def ancestor_accuracy(
    output: Output, ancestor_weights: tuple[Tensor, Tensor], batch: Batch, matches: Sequence[Match]
) -> dict[str, Tensor]:
    """How often the ancestor head is right after the last layer, over all ordered pairs of matched queries of an image.

    Query i is said to be an ancestor of query j if its probability is above a half. True ancestors are rare, so a head that never says
    so has a high accuracy; its recall is 0 and its balanced accuracy a half.

    Args:
        output: of the network.
        ancestor_weights: w1 and w2 of the ancestor head, [C, C] each.
        batch: the labels.
        matches: of each image, of `match_labels`.

    Returns:
        Scalars on the output's device: `ancestor_accuracy`, the share of pairs of which the head says what the labels say;
        `ancestor_recall`, that of true ancestors; `ancestor_balanced_accuracy`, the mean of it and of the share of the other pairs. NaN
        where there is no such pair.
    """
    queries = output.queries[-1]
    enter, leave, is_matched = _ancestor_targets(output.queries[-1:], batch, matches)
    with torch.autocast(queries.device.type, enabled=False):
        ancestors, descendants = (widened(queries) @ widened(weight) for weight in ancestor_weights)
        said = ancestors @ descendants.mT > 0
    true = ancestor_matrix((enter, leave))[0]
    others = ~torch.eye(queries.shape[1], dtype=torch.bool, device=queries.device)
    pairs = (is_matched[..., :, None] & is_matched[..., None, :])[0] & others
    recall, specificity = (((said == true) & wanted).sum() / wanted.sum() for wanted in (pairs & true, pairs & ~true))
    return {
        "ancestor_accuracy": ((said == true) & pairs).sum() / pairs.sum(),
        "ancestor_recall": recall,
        "ancestor_balanced_accuracy": (recall + specificity) / 2,
    }


def _class_loss(logits: Tensor, matches: Sequence[Match], config: LossConfig) -> Tensor:
    """The weighted cross entropy of logits [L + 1, B, Q, 2], a sum over all of them."""
    classes = torch.full(logits.shape[:-1], NO_OBJECT)
    for image, match in enumerate(matches):
        classes[:, image].scatter_(1, match.queries, ENTITY)
    logits = widened(logits).flatten(0, 2)
    weights = logits.new_ones(2)
    weights[NO_OBJECT] = config.no_object_weight
    return functional.cross_entropy(
        logits, classes.flatten().to(logits.device, non_blocking=True), weights, reduction="sum"
    )


def _mask_losses(
    output: Output, batch: Batch, matches: Sequence[Match], config: LossConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """Sums of BCE and dice over all matched queries, [2]."""
    nothing = widened(output.mask_embeddings[..., :0]).sum() + widened(output.mask_features[..., :0]).sum()
    sums = [nothing.expand(2)]  # 0, connected with both
    images = zip(
        output.mask_embeddings.unbind(1),
        output.mask_features,
        batch.sizes,
        batch.masks,
        matches,
        generators,
        strict=True,
    )
    for embeddings, features, size, bits, match, generator in images:
        if match.queries.numel():
            queries = match.queries.to(features.device, non_blocking=True)[..., None].expand(
                -1, -1, embeddings.shape[-1]
            )
            labels = _Labels(size, bits, match.labels.flatten().to(features.device, non_blocking=True))
            sums += _image_mask_losses(
                embeddings.gather(1, queries).flatten(0, 1), image_cells(features, size), labels, config, generator
            )
    return torch.stack(sums).sum(0)


class _Labels(NamedTuple):
    """The labels of some queries of an image.

    Args:
        size: (height, width) of the image.
        bits: its packed masks, uint8 [N, ceil(height * width / 8)].
        rows: of the bits, for each of R queries, int64 [R].
    """

    size: tuple[int, int]
    bits: Tensor
    rows: Tensor


def _image_mask_losses(
    embeddings: Tensor, features: Tensor, labels: _Labels, config: LossConfig, generator: torch.Generator
) -> list[Tensor]:
    """Sums of BCE and dice over R masks of an image, [2] a chunk, of embeddings [R, C] and the image's own features [C, h, w].

    A chunk's masks are made again in the backward pass, so that only their points are kept until then.
    """
    chunk = max(1, _CHUNK // (features[0].numel() + int(5 * config.oversample * config.points)))
    sums = []
    for part, rows in zip(torch.split(embeddings, chunk), torch.split(labels.rows, chunk), strict=True):
        with torch.no_grad():
            maps = _mask_logits(part, features)
            points = uncertain_points(maps, labels.size, config.points, config.oversample, config.importance, generator)
        chosen = labels._replace(rows=rows)
        sums.append(
            checkpoint(_point_losses, part, features, points, chosen, use_reentrant=False, preserve_rng_state=False)
        )
    return sums


def _mask_logits(embeddings: Tensor, features: Tensor) -> Tensor:
    """Masks [N, h, w] of embeddings [N, C] over features [C, h, w]."""
    return torch.einsum("nc,chw->nhw", widened(embeddings), widened(features))


def _point_losses(embeddings: Tensor, features: Tensor, points: Tensor, labels: _Labels) -> Tensor:
    """Sums of BCE and dice over R masks at points [R, K, 2], [2]."""
    logits = sample_maps(_mask_logits(embeddings, features), labels.size, points)
    targets = sample_bits(labels.bits, *labels.size, points, labels.rows).to(logits.dtype)
    mask = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    probabilities = logits.sigmoid()
    dice = 1 - (2 * (probabilities * targets).sum(1) + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
    return torch.stack([mask.sum(), dice.sum()])


def _ancestor_loss(queries: Tensor, weights: tuple[Tensor, Tensor], batch: Batch, matches: Sequence[Match]) -> Tensor:
    """Sum over layers and images of the ancestor loss of queries [L, B, Q, C]."""
    enter, leave, is_matched = _ancestor_targets(queries, batch, matches)
    w1, w2 = (widened(weight) for weight in weights)
    return ancestor_loss(widened(queries), w1, w2, (enter, leave), is_matched).sum()


def _ancestor_targets(queries: Tensor, batch: Batch, matches: Sequence[Match]) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-order intervals of the labels of the last L stages' queries, int32 [L, B, Q] twice, and which have one, bool [L, B, Q]."""
    layers = len(queries)
    table = torch.zeros(3, *queries.shape[:3], dtype=torch.int32)
    for image, (match, parents) in enumerate(zip(matches, batch.parents, strict=True)):
        intervals = torch.stack([*forest_intervals(parents.cpu()), torch.ones(len(parents), dtype=torch.int32)])
        labels, matched = match.labels[-layers:], match.queries[-layers:]
        table[:, :, image].scatter_(2, matched.expand(3, -1, -1), intervals[:, labels])
    enter, leave, is_matched = table.to(queries.device, non_blocking=True)
    return enter, leave, is_matched.bool()
