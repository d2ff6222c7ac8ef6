"""The stages with a network: their inputs, the choice of backends, the peer that says what our network says, and the
scripts themselves.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_cases import TINY, tiny_model
from sohes_benchmarks.ellipses import nested_ellipses
from sohes_benchmarks.limits import Limits
from sohes_benchmarks.stages import segment, train
from sohes_benchmarks.stages.backends import chosen_backends, variant_name, variant_obstacle
from sohes_benchmarks.stages.mask2former import build_mask2former
from sohes_benchmarks.stages.scenes import label_masks, scene_batch
from sohes_benchmarks.suite import measure_workload
from sohes_benchmarks.workload import Plan

from sohes_cli.model.public_weights import from_public
from sohes_cli.training.config import LossConfig, train_config
from sohes_cli.training.points import sample_bits

PLAN = Plan((), quick=True, device="cpu", threads=1)
LIMITS = Limits("cpu", 1, 1e9, {"float32": 1e12})
SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(8, 70), st.integers(8, 70))
def test_nested_ellipses_are_a_forest_of_proper_parts(seed, count, height, width):
    masks, parents = nested_ellipses(np.random.default_rng(seed), count, height, width)
    areas = masks.sum((1, 2))
    assert areas.min() > 0
    for k, parent in enumerate(parents.tolist()):
        assert parent < k
        if parent >= 0:
            assert not (masks[k] & ~masks[parent]).any()
            assert areas[k] <= areas[parent] / 2


def test_a_scene_has_its_labels_as_bits_and_as_pixels():
    batch = scene_batch(2, 30, 64)
    assert batch.pixels.shape == (2, 64, 64, 3)
    assert not torch.equal(batch.pixels[0], batch.pixels[1])
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centers = torch.stack([(x + 0.5) / 64, (y + 0.5) / 64], -1).view(1, -1, 2)
    for bits, masks, parents in zip(batch.masks, label_masks(batch), batch.parents, strict=True):
        assert masks.shape == (30, 64, 64)
        assert torch.equal(sample_bits(bits, 64, 64, centers), masks.flatten(1))
        assert (parents >= 0).sum() > 5
    again = scene_batch(2, 30, 64)
    assert torch.equal(again.pixels, batch.pixels)
    assert torch.equal(again.masks[1], batch.masks[1])


def test_backends_are_chosen_inside_of_the_block_only():
    case = dataclasses.replace(train.step_case("tiny", "cpu", side=64, labels=3, images=1), name="tiny, few")
    learners = train._Learners(case, "cpu")
    for operation in ("deformable_attention", "ancestor_loss", "attention"):
        with chosen_backends({operation: "no such"}), pytest.raises(ValueError, match="no such"):
            learners.step({})
    before = learners.first_step({}).numbers
    with chosen_backends({"attention": "no such"}):
        assert learners.first_step({"attention": "torch"}).numbers["loss"] == pytest.approx(
            before["loss"], rel=1e-4
        )  # the inner one counts
    assert learners.first_step({}).numbers == before


def test_variants_are_named_by_what_they_replace(monkeypatch):
    assert variant_name({}) == "sohes"
    assert variant_name({"attention": "torch"}) == "sohes, attention=torch"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "xformers" in variant_obstacle({"attention": "torch"}, "cuda")
    assert not variant_obstacle({"attention": "torch"}, "cpu")
    assert not variant_obstacle({"deformable_attention": "reference"}, "cuda")


def test_the_peer_says_what_our_network_says():
    model = tiny_model()
    peer = build_mask2former(model, LossConfig()).eval()
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(pixels), peer(pixel_values=pixels, output_auxiliary_logits=True)
    stages = [*theirs.auxiliary_logits, theirs]
    assert len(stages) == len(ours.pred_logits) == TINY.decoder_layers + 1
    for stage, other in enumerate(stages):
        torch.testing.assert_close(other["class_queries_logits"], ours.pred_logits[stage], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other["masks_queries_logits"], ours.pred_masks(stage), rtol=1e-3, atol=1e-3)


def test_the_peer_has_all_weights_of_our_decoders():
    model = tiny_model()
    taken = from_public(build_mask2former(model, LossConfig()).state_dict())
    ours = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("pixel_decoder.", "query_decoder."))
    }
    assert {name for name in taken if not name.startswith("backbone.")} == set(ours)
    assert all(torch.equal(taken[name], tensor) for name, tensor in ours.items())
    with pytest.raises(ValueError, match="4 points"):
        build_mask2former(type(model)(dataclasses.replace(TINY, pixel_points=2)), LossConfig())


def test_the_peer_learns_what_ours_learns_but_for_the_ancestors():
    learners = train._Learners(train.step_case("tiny", "cpu", side=64, labels=5, images=2), "cpu")
    truth = learners.first_step({})
    assert not train._difference(learners.first_peer_step(), truth)
    second = learners.first_peer_step()  # from other weights
    assert "loss without ancestors" in train._difference(second, truth)


@pytest.mark.parametrize("name", ["loss_mask", "gradient_norm"])
def test_numbers_of_a_step_that_are_off_are_found(name):
    truth = train.Evidence({"loss_mask": 2.0, "gradient_norm": 3.0})
    near = {number: value * 1.005 for number, value in truth.numbers.items()}
    assert not train._difference(train.Evidence(near, 0.01), truth)
    assert name in train._difference(train.Evidence({**near, name: near[name] * 1.01}, 0.01), truth)
    assert name in train._difference(train.Evidence({**near, name: float("nan")}, 0.01), truth)


def test_masks_and_scores_that_are_off_are_found():
    masks, _ = nested_ellipses(np.random.default_rng(0), 20, 40, 50)
    truth = segment.Found(masks, np.linspace(0.9, 0.1, 20))

    def difference(masks, scores):
        return segment._difference(segment.Found(masks, scores, (0.9, 0.02)), truth)

    assert not difference(masks, truth.scores)
    assert not difference(masks[:18], truth.scores[:18] + 0.01)
    assert "17 masks" in difference(masks[:17], truth.scores[:17])
    assert "IoU" in difference(np.roll(masks, 5, 2), truth.scores)
    assert "scores" in difference(masks, truth.scores + 0.05)
    assert "scores" in difference(masks, truth.scores * np.nan)


def test_about_as_many_masks_pass_as_the_case_says():
    case = segment.segment_case("tiny", "cpu", side=64)
    few = segment._Segmenters(dataclasses.replace(case, shapes={**case.shapes, "masks": (12,)}), "cpu")
    masks, scores = few.peer(few.photograph)
    assert len(few.segment({})) == len(masks) == len(scores) == 12
    assert np.array_equal(few.peer.scores(few.photograph), scores)


def test_without_transformers_ours_is_measured_and_the_reason_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    workload = segment.BENCHMARK.workload(segment.segment_case("tiny", "cpu", side=64), PLAN)
    rows = {row.provider: row for row in measure_workload(workload, PLAN, LIMITS)}
    assert rows["transformers"].status == "not run"
    assert "pip install 'sohes[test]'" in rows["transformers"].message
    assert rows["sohes"].status == "ok"
    assert rows["sohes"].ratio_to_reference is None


_VARIANTS = ["sohes", "sohes, deformable_attention=reference", "sohes, attention=plain"]


@pytest.mark.parametrize(
    ("stage", "note", "providers"),
    [
        ("train", "transformers' Mask2Former", ["transformers", *_VARIANTS]),
        ("segment", "transformers' Mask2Former", ["transformers", *_VARIANTS]),
        ("correct", "a step of phase 2 on the same images", ["instruct", "sohes", "sohes, teacher's branch alone"]),
    ],
    ids=["train", "segment", "correct"],
)
def test_a_script_measures_checked_providers_and_writes_its_files(
    stage, note, providers, monkeypatch, tmp_path, capsys
):
    out = tmp_path / f"{stage}.json"
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", "--quick", "--device", "cpu", "--out", str(out)])
    runpy.run_path(str(SCRIPTS / f"{stage}.py"), run_name="__main__")
    content = json.loads(out.read_text())
    assert content["is_complete"]
    assert note in content["conditions"]["notes"][stage]
    assert [row["provider"] for row in content["rows"]] == providers
    for row in content["rows"]:
        assert (row["status"], row["op"], row["clock"]) == ("ok", stage, "processor")
        assert row["runs"] >= 2
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["ratio_to_reference"] > 0
    assert out.with_suffix(".png").stat().st_size > 5000
    assert "images a second" in capsys.readouterr().out


def test_cases_name_their_sizes():
    case = train.step_case("small", "cuda", side=1024, labels=100)
    assert (case.name, case.dtype) == ("small, 1024 px", "bfloat16")
    assert case.shapes == {
        "images": (2, 3, 1024, 1024),
        "labels": (100,),
        "points": (train_config("small").loss.points,),
    }
    assert {segment.segment_case(preset, "cpu", side=480).shapes["masks"] for preset in ("tiny", "base")} == {(100,)}
