"""An untrained model as a segmenter: what goes in and comes out, alone and in batches, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from segment_cases import IMAGE_SIZE, TINY, save_tiny, ship_no_model, tiny_model

from sohes_cli.errors import ConfigError, SohesError, UsageError, WeightsError
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.forest import geometric_forest, head_forest
from sohes_cli.inference.segmenter import Segmenter
from sohes_cli.model.files import save_model
from sohes_cli.model.location import MODEL_NAME, default_checkpoint
from sohes_cli.settings import to_plain
from sohes_cli.training.config import TrainConfig


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(tiny_model(), IMAGE_SIZE, device="cpu", precision="fp32")


def photograph(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def test_a_prediction_has_the_size_of_the_photograph_and_ordered_masks(segmenter):
    prediction = segmenter(photograph(70, 130))
    assert 0 < len(prediction) <= TINY.queries
    assert prediction.masks.shape == (len(prediction), 70, 130)
    assert prediction.masks.any((1, 2)).all()
    assert (np.diff(prediction.scores) <= 0).all()
    assert prediction.ancestor_probabilities.shape == (len(prediction), len(prediction))
    assert prediction.ancestor_probabilities.dtype == np.float32
    assert prediction.forest == head_forest(prediction.ancestor_probabilities, prediction.packed)


def test_the_same_photograph_gives_the_same_prediction_in_any_form(segmenter, tmp_path):
    pixels = photograph(60, 80)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        predictions = [segmenter(form) for form in (pixels, tmp_path / "a.png", str(tmp_path / "a.png"), image)]
    for prediction in predictions[1:]:
        np.testing.assert_array_equal(prediction.masks, predictions[0].masks)
        np.testing.assert_array_equal(prediction.scores, predictions[0].scores)
        assert prediction.parents == predictions[0].parents
    assert [p.name for p in predictions] == ["image", "a.png", "a.png", "a.png"]


def test_predictions_do_not_depend_on_the_batch(segmenter):
    photos = [photograph(60, 80, 1), photograph(140, 30, 2), photograph(20, 200, 3), photograph(96, 96, 4)]
    together = segmenter.segment_batch(photos)
    for photo, batched in zip(photos, together, strict=True):
        alone = segmenter(photo)
        assert len(alone) == len(batched)
        np.testing.assert_allclose(batched.scores, alone.scores, rtol=1e-4)
        np.testing.assert_allclose(batched.ancestor_probabilities, alone.ancestor_probabilities, atol=1e-3)
        assert (batched.masks != alone.masks).mean() < 1e-3
    assert segmenter.segment_batch([]) == []


def test_the_forest_is_of_the_head_or_of_geometry_and_all_else_is_the_same():
    by_head, by_geometry = (
        Segmenter(tiny_model(), IMAGE_SIZE, SegmentConfig(forest=forest), device="cpu", precision="fp32")(
            photograph(60, 80)
        )
        for forest in ("head", "geometry")
    )
    np.testing.assert_array_equal(by_head.masks, by_geometry.masks)
    np.testing.assert_array_equal(by_head.ancestor_probabilities, by_geometry.ancestor_probabilities)
    assert by_geometry.forest == geometric_forest(by_geometry.packed)
    assert by_head.forest != by_geometry.forest


def test_masks_are_limited_by_number_and_score(segmenter):
    everything = segmenter(photograph(60, 80))
    few = Segmenter(tiny_model(), IMAGE_SIZE, SegmentConfig(max_masks=3), device="cpu", precision="fp32")(
        photograph(60, 80)
    )
    assert few.scores.tolist() == everything.scores[:3].tolist()
    least = float(everything.scores[2])
    sure = Segmenter(tiny_model(), IMAGE_SIZE, SegmentConfig(min_score=least), device="cpu", precision="fp32")(
        photograph(60, 80)
    )
    assert sure.scores.tolist() == everything.scores[:3].tolist()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 400), (300, 2), (33, 31)])
def test_photographs_of_any_shape_have_predictions(segmenter, height, width):
    prediction = segmenter(photograph(height, width))
    assert prediction.masks.shape[1:] == (height, width)
    assert len(prediction.to_record().annotations) == len(prediction)


def test_a_huge_photograph_is_worked_on_small_and_written_large(segmenter):
    prediction = segmenter(photograph(1500, 6000))
    assert prediction.packed.height * prediction.packed.width <= 2000**2
    assert all(a.segmentation["size"] == [1500, 6000] for a in prediction.to_record().annotations)


def test_the_image_size_decides_what_the_model_sees(tmp_path):
    path = save_tiny(tmp_path / "run")
    trained, other = Segmenter.load(path, device="cpu"), Segmenter.load(tmp_path / "run", device="cpu", image_size=64)
    assert (trained.image_size, other.image_size) == (IMAGE_SIZE, 64)
    assert trained(photograph(60, 80)).scores.tolist() != other(photograph(60, 80)).scores.tolist()


def test_bf16_gives_nearly_the_same_scores():
    half = Segmenter(tiny_model(), IMAGE_SIZE, SegmentConfig(nms_iou=1.0), device="cpu", precision="bf16")(
        photograph(60, 80)
    )
    full = Segmenter(tiny_model(), IMAGE_SIZE, SegmentConfig(nms_iou=1.0), device="cpu", precision="fp32")(
        photograph(60, 80)
    )
    assert half.scores.dtype == np.float64
    assert half.scores[0] == pytest.approx(full.scores[0], rel=0.05)


@pytest.mark.gpu
def test_a_gpu_gives_the_predictions_of_the_cpu(segmenter):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    on_gpu = Segmenter(tiny_model(), IMAGE_SIZE, device="cuda", precision="fp32")
    for photo in (photograph(60, 80), photograph(140, 30)):
        one, other = segmenter(photo), on_gpu(photo)
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-2)


def test_the_newest_phase_is_the_default(tmp_path, monkeypatch):
    ship_no_model(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert default_checkpoint() is None
    with pytest.raises(SohesError, match=r"sohes train --phase instruct.*--checkpoint.*--method explore"):
        Segmenter.load()
    instruct = save_tiny(tmp_path / "runs/instruct").parent
    assert default_checkpoint().resolve() == instruct
    first = Segmenter.load(device="cpu")(photograph(60, 80))
    correct = save_tiny(tmp_path / "runs/correct", seed=1).parent
    assert default_checkpoint().resolve() == correct
    assert Segmenter.load(device="cpu")(photograph(60, 80)).scores.tolist() != first.scores.tolist()
    (correct / MODEL_NAME).unlink()
    assert default_checkpoint().resolve() == instruct


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        Segmenter.load(tmp_path / "nowhere")
    (tmp_path / "cut.safetensors").write_bytes(save_tiny(tmp_path / "run").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        Segmenter.load(tmp_path / "cut.safetensors")
    save_model(tmp_path / "sizeless.safetensors", tiny_model(), {"config": to_plain(TrainConfig(model=TINY))})
    with pytest.raises(WeightsError, match=r"sizeless.*--size"):
        Segmenter.load(tmp_path / "sizeless.safetensors")
    assert Segmenter.load(tmp_path / "sizeless.safetensors", image_size=64, device="cpu").image_size == 64


def model_with_own(folder, own):
    description = {"config": to_plain(TrainConfig(model=TINY)), "image_size": IMAGE_SIZE, "segment": own}
    save_model(folder / "own.safetensors", tiny_model(), description)
    return folder / "own.safetensors"


def test_a_model_works_with_the_settings_that_its_file_names_unless_others_are_given(tmp_path):
    file = model_with_own(tmp_path, {"image_size": 128, "views": 4, "refine": "superpixels"})
    own = Segmenter.load(file, device="cpu")
    assert (own.image_size, own.config) == (128, SegmentConfig(views=4, refine="superpixels"))
    given = Segmenter.load(file, device="cpu", image_size=64, views=1, forest="geometry")
    assert (given.image_size, given.config) == (64, SegmentConfig(views=1, refine="superpixels", forest="geometry"))
    whole = Segmenter.load(file, device="cpu", config=SegmentConfig(max_masks=7), min_score=0.5)
    assert (whole.image_size, whole.config) == (128, SegmentConfig(max_masks=7, min_score=0.5))
    assert Segmenter.load(save_tiny(tmp_path / "run"), device="cpu").config == SegmentConfig()


@pytest.mark.parametrize(
    "own", [{"views": 99}, {"views": True}, {"image_size": "96"}, {"image_size": 5}, {"forest": "head"}, [], None]
)
def test_wrong_settings_of_a_file_are_told_apart_from_wrong_ones_that_are_given(tmp_path, own):
    with pytest.raises(
        WeightsError, match=r"own\.safetensors names settings of its own that are wrong: .*\. It is of another version"
    ):
        Segmenter.load(model_with_own(tmp_path, own), device="cpu")
    with pytest.raises(ConfigError, match=r"segment\.views"):
        Segmenter.load(model_with_own(tmp_path, {}), device="cpu", views=99)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"image_size": 16}, "--size"), ({"precision": "fp8"}, "fp8"), ({"device": "abacus"}, "abacus")],
)
def test_arguments_out_of_range_are_refused(arguments, word):
    with pytest.raises(UsageError, match=word):
        Segmenter(tiny_model(), **{"image_size": 64, "device": "cpu", **arguments})


@pytest.mark.parametrize(
    "setting",
    [{"forest": "tree"}, {"min_score": 1.5}, {"max_masks": 0}, {"nms_iou": 0.0}, {"refine": "crf"}, {"views": 0}],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SegmentConfig(**setting)
