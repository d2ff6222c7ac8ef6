"""Votes of several views: against their formula in plain loops, and what follows from it for photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_cases import IMAGE_SIZE, disc_logits, tiny_model
from test_segmenter import photograph

from sohes_cli.errors import SohesError
from sohes_cli.inference.config import MOST_VIEWS, SegmentConfig
from sohes_cli.inference.forest import geometric_forest, head_forest
from sohes_cli.inference.postprocess import upsample_masks
from sohes_cli.inference.segmenter import Segmenter
from sohes_cli.inference.voting import View, ViewMasks, elect, on_grid, views_of


def view_masks(logits, scores, seed=0):
    ancestors = np.random.default_rng(seed).random((len(scores),) * 2, np.float32)
    return ViewMasks(
        torch.from_numpy(np.ascontiguousarray(logits, np.float32)), np.array(scores, np.float64), ancestors
    )


def random_view(seed, count=9, height=20, width=28):
    """Discs around four places, so that views agree on some and not on others."""
    rng = np.random.default_rng(seed)
    centers = np.array([(6, 6), (6, 20), (14, 9), (13, 21)])[rng.integers(4, size=count)]
    discs = [(*(center + rng.normal(0, 0.7, 2)), rng.choice([3.0, 4.5, 6.0])) for center in centers]
    return view_masks(disc_logits(discs, height, width), rng.uniform(0.1, 1, count), seed)


def plain_iou(a, b):
    return (a & b).sum() / (a | b).sum()


def plain_elect(views):
    """The module's formula as it stands: votes, then masks and ancestors one by one."""
    masks = [(view.logits > 0).numpy() for view in views]
    votes = {}
    for k, own in enumerate(masks):
        for i, mask in enumerate(own):
            seen = zip(masks, views, strict=True)
            best = [
                max(s * plain_iou(mask, m) ** 4 for m, s in zip(other, view.scores, strict=True))
                for other, view in seen
            ]
            votes[k, i] = sum(best) / len(views)
    kept = []
    for k, i in sorted(votes, key=votes.get, reverse=True):
        if all(plain_iou(masks[k][i], masks[a][b]) < 0.7 for a, b in kept):
            kept.append((k, i))
    logits, members = [], []
    for k, i in kept:
        total, weights, own = 0, 0, []
        for other, view in zip(masks, views, strict=True):
            ious = [plain_iou(masks[k][i], m) for m in other]
            alike = [s * iou**4 if iou >= 0.7 else 0 for iou, s in zip(ious, view.scores, strict=True)]
            j = int(np.argmax(alike))
            total, weights = total + alike[j] * view.logits[j].clamp(-8, 8).numpy(), weights + alike[j]
            own.append(j if alike[j] else None)
        logits.append(total / weights)
        members.append(own)
    ancestors = np.zeros((len(kept),) * 2)
    for x, one in enumerate(members):
        for y, other in enumerate(members):
            pairs = zip(views, one, other, strict=True)
            seen = [view.ancestors[i, j] for view, i, j in pairs if i is not None and j is not None and i != j]
            ancestors[x, y] = np.mean(seen) if seen else 0
    return np.array(logits), np.array([votes[key] for key in kept]), ancestors


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 5])
def test_votes_are_those_of_the_formula(seed, count):
    views = [random_view(100 * seed + k) for k in range(count)]
    elected = elect(views)
    logits, scores, ancestors = plain_elect(views)
    np.testing.assert_allclose(elected.scores, scores, rtol=1e-9)
    np.testing.assert_allclose(elected.logits, logits, atol=1e-5)
    np.testing.assert_allclose(elected.ancestors, ancestors, atol=1e-6)
    assert elected.logits.dtype == elected.ancestors.dtype == np.float32


def test_what_all_views_show_beats_what_one_is_sure_of():
    both, alone = (6.0, 6.0, 4.0), (13.0, 20.0, 4.0)
    one, other = (
        view_masks(disc_logits([both, alone], 20, 28), [0.6, 0.9]),
        view_masks(disc_logits([both], 20, 28), [0.6]),
    )
    elected = elect([one, other])
    assert elected.scores == pytest.approx([0.6, 0.45])
    np.testing.assert_array_equal(elected.logits[0] > 0, one.logits[0].numpy() > 0)


def test_a_mask_is_no_ancestor_of_itself_where_one_view_shows_two_masks_as_one() -> None:
    """The diagonal of a head's matrix is not learned, so it says nothing."""
    logits = np.full((3, 1, 12), -1.0)
    logits[0, :, :10] = logits[1, :, 2:] = logits[2] = 1.0  # the third is as like the one as the other
    two, one = view_masks(logits[:2], [0.9, 0.8]), view_masks(logits[2:], [0.1])
    one.ancestors[:] = 0.97
    elected = elect([two, one])
    assert len(elected.scores) == 2
    np.testing.assert_array_equal(elected.ancestors[~np.eye(2, dtype=bool)], two.ancestors[~np.eye(2, dtype=bool)])


def test_a_view_that_shows_nothing_votes_against_all():
    view, nothing = random_view(1), view_masks(np.zeros((0, 20, 28)), [])
    alone, halved = elect([view]), elect([nothing, view])
    np.testing.assert_allclose(halved.scores, alone.scores / 2)
    np.testing.assert_array_equal(halved.logits, alone.logits)
    np.testing.assert_array_equal(halved.ancestors, alone.ancestors)


def test_views_that_show_nothing_elect_nothing():
    elected = elect([view_masks(np.zeros((0, 5, 7)), [])] * 3)
    assert elected.logits.shape == (0, 5, 7)
    assert elected.scores.shape == (0,)
    assert elected.ancestors.shape == (0, 0)


def test_a_view_on_its_own_grid_is_itself_and_mirrored_its_mirror_image():
    logits = torch.from_numpy(disc_logits([(5.0, 9.0, 4.0), (11.0, 3.0, 2.0)], 16, 24))
    size, grid = (64, 96), (16, 24)
    torch.testing.assert_close(on_grid(logits, size, grid, mirrored=False), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(on_grid(logits.flip(2), size, grid, mirrored=True), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_grid_shows_what_the_masks_of_the_view_show(mirrored):
    """Interpolated at the centers of cells: the same points as `upsample_masks` takes for the pixels of a photograph of
    that size.
    """
    height, width = 50, 75  # no multiples of four: the last cells lie partly outside
    logits = disc_logits([(5.0, 9.0, 4.0), (11.5, 17.0, 2.5)], 13, 19)
    expected = np.stack(list(upsample_masks(logits, (height, width), 20, 30)))
    found = on_grid(torch.from_numpy(logits), (height, width), (20, 30), mirrored=mirrored).numpy() > 0
    np.testing.assert_array_equal(found, expected[:, :, ::-1] if mirrored else expected)


def test_the_first_views_are_the_photograph_and_its_mirror_image_at_the_size_of_the_model():
    assert views_of(1) == (View(1.0, False),)
    assert views_of(2) == (View(1.0, False), View(1.0, True))
    everything = views_of(MOST_VIEWS)
    assert len(set(everything)) == len(everything) == MOST_VIEWS


def segmenter_of(min_score=0.0, **settings):
    return Segmenter(
        tiny_model(), IMAGE_SIZE, SegmentConfig(min_score=min_score, **settings), device="cpu", precision="fp32"
    )


def test_a_mirrored_photograph_has_the_mirrored_prediction():
    """One view alone does not: an untrained network tells left from right."""
    photo = photograph(96, 64, seed=3)  # of the model's own size, so that no rounding of sizes tells the views apart
    for views, limit in ((2, 0.01), (8, 0.05)):
        upright, mirrored = (
            segmenter_of(views=views)(np.ascontiguousarray(pixels)) for pixels in (photo, photo[:, ::-1])
        )
        assert len(upright) == len(mirrored) > 0
        np.testing.assert_allclose(upright.scores, mirrored.scores, rtol=0.02)
        assert (upright.masks != mirrored.masks[:, :, ::-1]).mean() < limit
    alone = segmenter_of()(photo), segmenter_of()(np.ascontiguousarray(photo[:, ::-1]))
    assert len(alone[0]) != len(alone[1]) or (alone[0].masks != alone[1].masks[:, :, ::-1]).mean() > 0.05


def test_votes_do_not_depend_on_the_batch():
    photos = [photograph(60, 80, 1), photograph(140, 30, 2), photograph(20, 200, 3)]
    segmenter = segmenter_of(views=4)
    for photo, batched in zip(photos, segmenter.segment_batch(photos), strict=True):
        alone = segmenter(photo)
        assert len(alone) == len(batched)
        np.testing.assert_allclose(batched.scores, alone.scores, rtol=1e-3)
        assert (batched.masks != alone.masks).mean() < 0.01


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 400), (300, 2), (33, 31)])
@pytest.mark.parametrize("refine", ["none", "superpixels"])
def test_photographs_of_any_shape_have_votes(height, width, refine):
    prediction = segmenter_of(views=MOST_VIEWS, refine=refine)(photograph(height, width))
    assert prediction.masks.shape[1:] == (height, width)
    assert prediction.ancestor_probabilities.shape == (len(prediction),) * 2
    assert (np.diff(prediction.scores) <= 0).all()
    assert all(0 <= score <= 1 for score in prediction.scores)


def test_limits_of_score_and_number_take_the_best_of_all_and_change_no_vote():
    photo = photograph(60, 80)
    everything = segmenter_of(0.01, views=4)(photo)
    assert len(everything) > 4
    least = float(everything.scores[3])
    for few in (segmenter_of(least, views=4)(photo), segmenter_of(0.01, views=4, max_masks=4)(photo)):
        assert few.scores.tolist() == everything.scores[: len(few)].tolist()
        np.testing.assert_array_equal(few.masks, everything.masks[: len(few)])
        assert len(few) >= 4
    assert len(segmenter_of(1.0, views=4)(photo)) == 0


def test_the_forest_of_votes_is_of_the_head_or_of_geometry():
    photo = photograph(60, 80)
    by_head, by_geometry = (segmenter_of(views=2, forest=forest)(photo) for forest in ("head", "geometry"))
    np.testing.assert_array_equal(by_head.masks, by_geometry.masks)
    assert by_head.forest == head_forest(by_head.ancestor_probabilities, by_head.packed)
    assert by_geometry.forest == geometric_forest(by_geometry.packed)


@pytest.mark.parametrize(
    ("views", "words"), [(1, "Lower --batch-size or --size"), (8, "Lower --batch-size, --views or --size")]
)
def test_a_device_without_memory_for_the_views_is_told_of(monkeypatch, views, words):
    def out_of_memory(*_arguments):
        raise torch.OutOfMemoryError

    segmenter = segmenter_of(views=views)
    monkeypatch.setattr(segmenter.model, "forward", out_of_memory)
    with pytest.raises(SohesError, match=words) as caught:
        segmenter(photograph(60, 80))
    largest = IMAGE_SIZE if views == 1 else IMAGE_SIZE * 3 // 2
    assert f"up to {largest} x {largest} pixels" in caught.value.message


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_votes_of_the_cpu(precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    photos = [photograph(60, 80), photograph(140, 30)]
    on_gpu = Segmenter(
        tiny_model(), IMAGE_SIZE, SegmentConfig(views=4, min_score=0.0), device="cuda", precision=precision
    )
    for one, other in zip(segmenter_of(views=4).segment_batch(photos), on_gpu.segment_batch(photos), strict=True):
        assert abs(len(one) - len(other)) <= 2
        if precision == "fp32":
            assert other.scores[:3] == pytest.approx(one.scores[:3], rel=1e-2)
