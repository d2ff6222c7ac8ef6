"""The benchmarks' own inputs and checks: what they claim of the least work, and that a wrong result of each operation
is found.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from sohes_benchmarks import differentiable
from sohes_benchmarks.ellipses import coco_rles, ellipse_masks, intersections_of_ious, run_masks
from sohes_benchmarks.kernels import ancestor_loss, deformable_attention, mask_intersection, region_merging
from sohes_benchmarks.limits import Limits
from sohes_benchmarks.rows import Case
from sohes_benchmarks.stages import evaluate, explore
from sohes_benchmarks.suite import BENCHMARKS, measure_workload
from sohes_benchmarks.workload import Plan, Provider
from sohes_kernels import mask_areas, merge_regions, pack_masks

from sohes_cli.structures import Annotation, LabelRecord

LIMITS = Limits("cpu", 1, 1e9, {"float32": 1e12})
PLAN = Plan((), quick=True, device="cpu", threads=1)
SMALL = {  # of each operation
    "region_merging": Case(
        "region_merging",
        "smooth 6 x 6 x 5",
        "forward",
        "float32",
        {"features": (1, 5, 6, 6), "distinct_images": (1,), "thresholds": (6,)},
    ),
    "ancestor_loss": Case(
        "ancestor_loss", "few", "forward+backward", "float32", {"queries": (2, 1, 9, 16), "matched": (7,)}
    ),
    "deformable_attention": deformable_attention.BENCHMARK.cases(PLAN)[1],
    "mask_intersection": Case("mask_intersection", "few", "forward", "uint64", {"masks": (5, 20, 30)}),
    "run_intersection": Case("run_intersection", "few", "forward", "int64", {"a": (5, 20, 30), "b": (3, 20, 30)}),
}


def spoiled(result):
    """A result that is a little wrong in one place, however it is made."""
    if isinstance(result, dict):
        key = list(result)[-1] if "mergings" not in result else "maps"
        return {**result, key: spoiled(result[key])}
    copy = result.clone() if isinstance(result, torch.Tensor) else result.copy()
    copy[(0,) * copy.ndim] += 1
    return copy


@pytest.mark.parametrize("op", SMALL)
def test_the_providers_of_an_operation_agree_and_a_spoiled_one_is_found(op):
    workload = BENCHMARKS[op].workload(SMALL[op], PLAN)
    reference = workload.providers[0]
    evidence = reference.evidence or reference.prepare()
    wrong = Provider("spoiled", lambda: lambda: None, evidence=lambda: spoiled(evidence()))
    judged = dataclasses.replace(workload, providers=(*workload.providers, wrong))
    rows = {row.provider: row for row in measure_workload(judged, PLAN, LIMITS)}
    assert rows.pop("spoiled").status == "wrong"
    assert {name: row.status for name, row in rows.items() if row.status != "not run"} == dict.fromkeys(
        [p.name for p in workload.providers if not p.obstacle], "ok"
    )
    assert all(row.compulsory_bytes > 0 for row in rows.values() if row.status == "ok")


def test_a_gradient_that_is_missing_or_of_another_shape_is_no_match():
    workload = BENCHMARKS["ancestor_loss"].workload(SMALL["ancestor_loss"], PLAN)
    truth = workload.truth()
    assert set(truth) == {"output", "gradient of queries", "gradient of w1", "gradient of w2"}
    assert truth["output"].dtype == torch.float64
    assert not workload.difference(truth, truth)
    assert "returns" in workload.difference({"output": truth["output"]}, truth)
    assert "shape" in workload.difference({**truth, "gradient of w1": truth["gradient of w1"][:1]}, truth)
    assert "gradient of w2 by nan" in workload.difference(
        {**truth, "gradient of w2": truth["gradient of w2"] * np.nan}, truth
    )
    near = {name: tensor * (1 + 1e-6) for name, tensor in truth.items()}
    assert not workload.difference(near, truth)


def test_forward_runs_without_autograd_and_backward_is_the_same_for_every_call():
    inputs = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([3.0, 4.0])}
    case = Case("ancestor_loss", "product", differentiable.FORWARD, "float32", {})

    def results(mode):
        made = differentiable.differentiable_workload(
            dataclasses.replace(case, mode=mode), PLAN, torch.mul, inputs, {}, compulsory_bytes=1, compulsory_flops=1
        )
        call = made.providers[0].prepare()
        return call(), call()

    forward, _ = results(differentiable.FORWARD)
    assert list(forward) == ["output"]
    assert not forward["output"].requires_grad
    first, second = results(differentiable.BACKWARD)
    assert first.keys() == {"output", "gradient of x", "gradient of y"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(
        first["gradient of x"] * inputs["x"], first["gradient of y"] * inputs["y"]
    )  # both are upstream x y
    assert not inputs["x"].requires_grad


def test_the_heap_is_exact():
    for kind in ("smooth", "noisy", "background"):
        features = region_merging._features(kind, np.random.default_rng(3), 7, 9)
        ours = region_merging.lazy_heap(features)
        for theirs, mine in zip(
            merge_regions(features, region_merging.THRESHOLDS, backend="reference"), ours, strict=True
        ):
            assert np.array_equal(theirs, mine), kind


def test_least_work_of_the_ancestor_loss():
    forward = ancestor_loss.compulsory_work(1, 1, 100, 256, 4, backward=False)
    backward = ancestor_loss.compulsory_work(1, 1, 100, 256, 4, backward=True)
    assert forward == (4 * (100 * 256 + 2 * 256 * 256) + 804, 2 * 100 * 256 * 512 + 2 * 100 * 100 * 256)
    assert backward[1] == 3 * forward[1]
    assert forward[0] < backward[0] < 2 * forward[0]


def test_least_work_of_deformable_attention_grows_with_its_samples():
    value = torch.zeros(1, 8, 2, 4)
    small, large = (
        {
            "value": value,
            "sampling_locations": torch.zeros(1, q, 2, 1, 3, 2),
            "attention_weights": torch.zeros(1, q, 2, 1, 3),
        }
        for q in (5, 10)
    )
    assert deformable_attention.compulsory_work(small, backward=False)[1] == 5 * 2 * 3 * 4 * 10
    both = [deformable_attention.compulsory_work(inputs, backward=True)[1] for inputs in (small, large)]
    assert both[1] == 2 * both[0]


def test_points_keep_away_from_the_middles_of_pixels_where_gradients_jump():
    levels = [(32, 32), (16, 16), (8, 8)]
    shape = (1, 1344, 2, 3, 4, 2)
    points = deformable_attention._locations(shape, levels, torch.Generator().manual_seed(0))
    pixels = points.double() * torch.tensor(levels, dtype=torch.float64)[:, None] - 0.5
    assert 0.04 < (pixels - pixels.floor()).min() < (pixels - pixels.floor()).max() < 0.96
    assert ((points > 0) & (points < 1)).double().mean() > 0.7


def test_ellipses_are_the_same_in_every_form():
    masks = ellipse_masks(np.random.default_rng(0), 40, 50, 70)
    areas = masks.sum((1, 2))
    assert areas.min() > 0
    assert areas.max() > 5 * areas.min()
    runs, rles = run_masks(masks), coco_rles(masks)
    assert np.array_equal(runs.areas(), areas)
    assert np.array_equal(coco_mask.area(rles), areas)
    assert np.array_equal(mask_areas(pack_masks(masks.reshape(40, -1))), areas)
    flat = masks.reshape(40, -1).astype(np.int64)
    ious = coco_mask.iou(rles, rles[:9], [0] * 9)
    assert np.array_equal(intersections_of_ious(ious, areas, areas[:9]), flat @ flat[:9].T)


def test_the_product_of_unpacked_words_counts_shared_pixels():
    masks = np.random.default_rng(1).random((6, 200)) < 0.5
    words = torch.from_numpy(pack_masks(masks).view(np.int64))
    assert np.array_equal(mask_intersection.shared_pixels(words).numpy(), masks.astype(int) @ masks.T.astype(int))


def test_scores_must_agree_with_pycocotools():
    case = dataclasses.replace(
        evaluate.BENCHMARK.cases(PLAN)[0], shapes={"annotated": (2, 5, 60, 80), "predicted": (2, 12, 60, 80)}
    )
    workload = evaluate.BENCHMARK.workload(case, PLAN)
    rows = list(measure_workload(workload, PLAN, LIMITS))
    assert [row.status for row in rows] == ["ok", "ok"]
    scores = workload.providers[0].prepare()()
    assert 0.05 < scores["ar_1000"] < 1
    assert workload.difference({**scores, "ap": scores["ap"] + 1e-9}, scores).startswith("ap is")
    assert workload.difference({**scores, "ar_large": 0.5 if scores["ar_large"] is None else None}, scores)
    workload.close()


def record(*annotations):
    rle = {"size": [4, 4], "counts": "0"}
    return LabelRecord(
        "a.jpg", 4, 4, tuple(Annotation(i, rle, area, (0, 0, 1, 1), 0.5, 0, parent) for i, area, parent in annotations)
    )


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([[record((1, 9, None), (2, 4, 1))]] * 2, ""),
        ([], ""),
        ([[record((1, 9, None))], [record((1, 8, None))]], "second run"),
        ([[record()]] * 2, "no masks"),
        ([[record((1, 0, None))]] * 2, "without pixels"),
        ([[record((1, 4, None), (2, 9, 1))]] * 2, "larger than its whole"),
    ],
)
def test_labels_that_cannot_be_right_are_found(runs, reason):
    found = explore._difference(runs)
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_clock_of_a_stage_leaves_out_first_runs():
    clock = explore.StageClock()
    for name, seconds in [("a", 9.0), ("a", 0.1), ("a", 0.3), ("b", 9.0), ("b", 0.4)]:
        clock.add(name, {"merging": seconds})
    assert clock.medians_ms() == {"merging": pytest.approx(300)}
