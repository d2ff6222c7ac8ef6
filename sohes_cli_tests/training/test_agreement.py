"""Agreement of labels against loops over pixels, forests joined, and similarity of predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from criterion_cases import SCENES, make_output, pack
from segment_cases import disc_logits, output_of

from sohes_cli.model.output import Output
from sohes_cli.training.agreement import Agreement, compare_labels, join_forests, likeness, unfound_labels


def random_masks(n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw non-empty rectangles, bool [n, H, W]."""
    masks = np.zeros((n, height, width), np.bool_)
    for mask in masks:
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
    return masks


def packed(masks: np.ndarray) -> torch.Tensor:
    return pack(torch.from_numpy(masks))


def iou_of(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def compared(teacher: np.ndarray, initial: np.ndarray) -> Agreement:
    """Compute the agreement by its definition, mask by mask."""
    new, rejected, iou = 0, 0, 0.0
    for mask in teacher:
        best = max((iou_of(mask, other) for other in initial), default=0.0)
        new, iou = new + (best < 0.5), iou + best
    for mask in initial:
        rejected += max((iou_of(mask, other) for other in teacher), default=0.0) < 0.5
    return Agreement(len(teacher), new, len(initial), rejected, iou)


# Labels


# also with partly filled bytes and words
@pytest.mark.parametrize("size", [(16, 16), (7, 9), (1, 1), (3, 43), (30, 41)])
@pytest.mark.parametrize("seed", range(8))
def test_counts_are_those_of_the_definition(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    teacher, initial = (
        random_masks(int(rng.integers(1, 9)), *size, rng),
        random_masks(int(rng.integers(1, 9)), *size, rng),
    )
    initial[: len(teacher) // 2] = teacher[: len(teacher) // 2][: len(initial)]  # matches
    found, expected = compare_labels(packed(teacher), packed(initial)), compared(teacher, initial)
    assert found[:4] == expected[:4]
    assert found.iou == pytest.approx(expected.iou)
    assert [type(count) for count in found] == [int, int, int, int, float]


@pytest.mark.parametrize("size", [(16, 16), (7, 9), (30, 41)])
@pytest.mark.parametrize("seed", range(4))
def test_unfound_labels_are_the_rejected_ones(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    teacher, initial = (
        random_masks(int(rng.integers(0, 5)), *size, rng),
        random_masks(int(rng.integers(1, 9)), *size, rng),
    )
    initial[: len(teacher) // 2] = teacher[: len(teacher) // 2][: len(initial)]
    expected = [i for i, mask in enumerate(initial) if all(iou_of(mask, other) < 0.5 for other in teacher)]
    assert unfound_labels(packed(teacher), packed(initial)).tolist() == expected


def joined(
    teacher: list[np.ndarray], parents: list[int], initial: list[np.ndarray], initial_parents: list[int]
) -> list[int]:
    sets = (
        (packed(np.stack(masks)), torch.tensor(above))
        for masks, above in ((teacher, parents), (initial, initial_parents))
    )
    return join_forests(*sets).tolist()


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((20, 30), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def test_roots_of_one_forest_join_the_smallest_mask_of_the_other_that_covers_them() -> None:
    whole, half, part, far = (
        rectangle(0, 0, 20, 20),
        rectangle(0, 0, 20, 10),
        rectangle(2, 2, 8, 8),
        rectangle(5, 22, 15, 30),
    )
    inside, leaning = rectangle(3, 3, 6, 6), rectangle(0, 8, 4, 12)  # the latter is half inside `half`
    assert joined([whole, half], [-1, 0], [part, far, inside, leaning], [-1, -1, 0, -1]) == [-1, 0, 1, -1, 2, 0]
    assert joined([part, inside], [-1, 0], [whole, half], [-1, 0]) == [3, 0, -1, 2]


def test_what_either_forest_says_stays_though_the_view_no_longer_shows_it() -> None:
    seen = rectangle(0, 0, 20, 10)  # a person and the shirt, which fills the view
    speck = rectangle(1, 1, 3, 3)
    assert joined([seen, seen], [-1, 0], [speck], [-1]) == [-1, 0, 0]
    assert joined([speck], [-1], [seen, seen], [1, -1]) == [1, 2, -1]


def test_two_forests_that_cover_each_other_make_no_circle() -> None:
    large, small, medium = rectangle(0, 0, 20, 30), rectangle(0, 0, 4, 4), rectangle(0, 0, 10, 10)
    found = joined([small, large], [-1, 0], [medium], [-1])  # a part larger than its whole, as a crop can show it
    assert found == [2, 0, -1]
    assert joined([large], [-1], [medium], [-1]) == [-1, 0]


def test_forests_without_masks_can_be_joined() -> None:
    one = packed(rectangle(0, 0, 3, 3)[None])
    nothing = (one[:0], torch.empty(0, dtype=torch.int64))
    assert join_forests((one, torch.tensor([-1])), nothing).tolist() == [-1]
    assert join_forests(nothing, nothing).tolist() == []


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (4, 0)])
def test_one_side_or_both_may_be_empty(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    teacher, initial = random_masks(n, 9, 11, rng), random_masks(m, 9, 11, rng)
    assert compare_labels(packed(teacher), packed(initial)) == Agreement(n, n, m, m, 0.0) == compared(teacher, initial)


def test_the_same_labels_in_another_order_agree_fully() -> None:
    masks = random_masks(6, 20, 20, np.random.default_rng(1))
    assert compare_labels(packed(masks), packed(masks[::-1].copy())) == Agreement(6, 0, 6, 0, 6.0)


def test_half_of_the_union_is_enough_and_less_is_not() -> None:
    row = np.zeros((3, 1, 12), np.bool_)
    row[0, 0, :8], row[1, 0, :4], row[2, 0, :3] = True, True, True
    assert compare_labels(packed(row[:1]), packed(row[1:2])) == Agreement(1, 0, 1, 0, 0.5)
    assert compare_labels(packed(row[:1]), packed(row[2:])) == Agreement(1, 1, 1, 1, 0.375)


# Predictions


def alike(logits: np.ndarray, entity: list[float], labels: int = 60) -> tuple[float, float]:
    """Measure the mean IoU, 0 without a pair, and the deviation of the log-odds of one photograph."""
    height, width = logits.shape[1:]
    found = likeness(output_of(logits, entity), ((4 * height, 4 * width),), (labels,))
    assert found.photographs == 1
    assert found.masks == int((logits > 0).any((1, 2)).sum())
    return (found.iou / found.pairs if found.pairs else 0.0), found.deviation


def odds(probabilities: list[float]) -> np.ndarray:
    return np.log(probabilities) - np.log1p(-np.array(probabilities))


def test_equal_masks_are_alike_and_separate_ones_are_not() -> None:
    disc, other = (8.0, 8.0, 5.0), (8.0, 24.0, 5.0)
    assert alike(disc_logits([disc] * 4, 16, 32), [0.9, 0.5, 0.3, 0.1])[0] == pytest.approx(1)
    assert alike(disc_logits([disc, other], 16, 32), [0.9, 0.5])[0] == 0
    iou, _ = alike(disc_logits([disc, disc, other], 16, 32), [0.9, 0.5, 0.2])
    assert iou == pytest.approx(1 / 3)  # one pair of three


def test_the_iou_is_the_mean_over_pairs() -> None:
    discs = disc_logits([(8, 8, 5), (8, 10, 5), (9, 8, 3), (8, 24, 4), (8, 16, 7)], 16, 32)
    masks = discs > 0
    expected = np.mean([iou_of(masks[i], masks[j]) for i in range(5) for j in range(i)])
    assert alike(discs, [0.5] * 5)[0] == pytest.approx(expected, rel=1e-5)  # float32


def test_queries_without_a_mask_do_not_count() -> None:
    disc, empty = (8.0, 8.0, 5.0), (8.0, 8.0, -5.0)
    assert alike(disc_logits([disc, empty, disc, empty], 16, 32), [0.9] * 4)[0] == pytest.approx(1)
    assert alike(disc_logits([disc, empty, empty], 16, 32), [0.9] * 3)[0] == 0
    assert alike(disc_logits([empty, empty], 16, 32), [0.9] * 2)[0] == 0
    assert alike(disc_logits([disc], 16, 32), [0.9])[0] == 0


def test_the_twenty_surest_queries_count() -> None:
    disc, other = (8.0, 8.0, 5.0), (8.0, 24.0, 5.0)
    logits = disc_logits([other] * 5 + [disc] * 20, 16, 32)
    assert alike(logits, [0.1] * 5 + [0.9] * 20)[0] == pytest.approx(1)
    assert alike(logits, [0.9] * 5 + [0.1] * 20)[0] < 0.9


def test_as_many_queries_count_as_there_are_labels() -> None:
    """Many queries may find the same entity where there are few."""
    discs = disc_logits([(8, 8, 5), (8, 24, 5), (8, 16, 2)] + [(8, 8, 5)] * 5, 16, 32)
    scores = [0.9, 0.8, 0.7, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert alike(discs, scores, labels=3)[0] == 0
    assert alike(discs, scores, labels=8)[0] > 0.4
    assert alike(disc_logits([(8, 8, 5)] * 4, 16, 32), [0.9, 0.5, 0.3, 0.1], labels=2)[0] == 0  # no pair


def test_scores_deviate_as_numpy_says() -> None:
    logits = disc_logits([(8, 8, 5)] * 4, 16, 32)
    assert alike(logits, [0.4] * 4)[1] == 0
    assert alike(logits, [1e-6, 2e-6, 3e-6, 4e-6])[1] > 0.1  # where probabilities are all alike
    scores = [0.9, 0.2, 0.35, 0.6]
    assert alike(logits, scores)[1] == pytest.approx(np.std(odds(scores)), rel=1e-5)  # float32
    assert alike(logits[:1], [0.7])[1] == 0


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    """The padding of a batch holds NaN."""
    canvas = (64, 96)
    together = make_output(SCENES, canvas)
    found = likeness(together, tuple(scene.size for scene in SCENES), (9,) * len(SCENES))
    alone = [likeness(make_output([scene], canvas), (scene.size,), (9,)) for scene in SCENES]
    assert found == pytest.approx(tuple(sum(values) for values in zip(*alone, strict=True)))
    assert found.photographs == len(SCENES)
    for i, (scene, one) in enumerate(zip(SCENES, alone, strict=True)):
        rows, columns = (-(-side // 4) for side in scene.size)
        masks = (together.pred_masks()[i, :, :rows, :columns] > 0).numpy()
        masks = masks[masks.any((1, 2))]
        assert one.pairs == (rows * columns >= 64)
        if one.pairs:
            expected = np.mean([iou_of(masks[a], masks[b]) for a in range(len(masks)) for b in range(a)])
            assert one.iou == pytest.approx(expected, rel=1e-4)  # a logit next to 0 may fall on either side in float32


def test_a_small_photograph_has_no_pairs() -> None:
    """Few masks fit into few cells."""
    found = likeness(output_of(disc_logits([(4, 4, 3)] * 3, 7, 9), [0.9, 0.5, 0.2]), ((28, 36),), (9,))
    assert (found.pairs, found.iou, found.masks) == (0, 0, 3)


def test_the_last_stage_counts() -> None:
    output = output_of(disc_logits([(8, 8, 5), (8, 24, 5)], 16, 32), [0.9, 0.1])
    first = Output(
        output.pred_logits.flip(0), output.mask_embeddings.flip(0), output.queries.flip(0), output.mask_features
    )
    assert likeness(output, ((64, 128),), (9,)).iou == 0
    assert likeness(first, ((64, 128),), (9,)).iou > 0.5  # all but the discs
