"""Partitions against the definition, pixel by pixel, and the files that hold them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from segment_cases import nested_boxes

from sohes_cli.errors import SohesError, StoreError
from sohes_cli.explore.hierarchy import build_forest
from sohes_cli.inference.partition import cut_level_of, partition, partition_picture, write_partition
from sohes_cli.inference.prediction import Prediction
from sohes_cli.labels.records import label_record
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.rle import decode_mask
from sohes_cli.structures import LabelRecord
from sohes_cli.view.selection import mask_colors


def make_record(seed=0, n=30):
    packed = PackedMasks.from_masks(nested_boxes(n, seed))
    return label_record("sub/a.jpg", 36, 40, packed, np.linspace(0.9, 0.1, n), build_forest(packed, 0.75))


def slow_partition(record, cut_level):
    """The definition for every pixel: the deepest of the masks that hold it, then the smaller, then the higher id."""
    owners = np.zeros((record.height, record.width), np.int32)
    masks = {a.id: decode_mask(a.segmentation).astype(bool) for a in record.annotations}
    for y, x in np.ndindex(owners.shape):
        holding = [a for a in record.annotations if a.level <= cut_level and masks[a.id][y, x]]
        owners[y, x] = max(holding, key=lambda a: (a.level, -a.area, a.id)).id if holding else 0
    return owners


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_is_the_definition_at_every_level(seed):
    record = make_record(seed)
    deepest = max(a.level for a in record.annotations)
    assert deepest >= 2
    for level in range(deepest + 1):
        np.testing.assert_array_equal(partition(record, level), slow_partition(record, level))
    np.testing.assert_array_equal(partition(record, deepest + 5), partition(record, deepest))


def test_every_level_covers_the_same_pixels_and_a_deeper_cut_only_refines():
    record = make_record(1)
    position = {a.id: i for i, a in enumerate(record.annotations)}
    coarse = partition(record, 0)
    roots = {record.annotations[i].id for i in record.forest.roots}
    assert set(np.unique(coarse)) <= {0} | roots
    for level in range(1, max(a.level for a in record.annotations) + 1):
        fine = partition(record, level)
        assert ((coarse > 0) <= (fine > 0)).all()
        for old, new in {(int(o), int(n)) for o, n in zip(coarse[coarse > 0], fine[coarse > 0], strict=True)}:
            assert old == new or record.annotations[position[new]].level == level
        coarse = fine


def test_of_overlapping_roots_the_smaller_lies_on_top():
    masks = np.zeros((2, 10, 20), bool)
    masks[0, :, :8] = True
    masks[1, :, 4:] = True
    packed = PackedMasks.from_masks(masks)
    record = label_record("a.jpg", 10, 20, packed, np.array([0.9, 0.8]), build_forest(packed, 0.9))
    assert partition(record, 0)[0].tolist() == [1] * 8 + [2] * 12


def test_a_prediction_is_cut_like_its_record():
    packed = PackedMasks.from_masks(nested_boxes(20, 2))
    forest = build_forest(packed, 0.75)
    prediction = Prediction("a.jpg", 72, 80, packed, np.linspace(1, 0, 20), forest, np.zeros((20, 20), np.float32))
    labels = partition(prediction, 1)
    assert labels.shape == (72, 80)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, partition(prediction.to_record(), 1))
    assert cut_level_of(prediction, 1.0) == max(forest.levels)


def test_granularity_runs_from_the_roots_to_the_deepest_level():
    record = make_record()
    deepest = max(a.level for a in record.annotations)
    levels = [cut_level_of(record, g) for g in np.linspace(0, 1, 101)]
    assert levels[0] == 0
    assert levels[-1] == deepest
    assert levels == sorted(levels)
    assert set(levels) == set(range(deepest + 1))
    assert cut_level_of(LabelRecord("a.jpg", 3, 4), 1.0) == 0
    with pytest.raises(ValueError, match="granularity"):
        cut_level_of(record, 1.5)
    with pytest.raises(ValueError, match="cut_level"):
        partition(record, -1)


def test_the_file_holds_the_ids_in_16_bits(tmp_path):
    record = make_record()
    large = replace(
        record,
        annotations=tuple(
            replace(a, id=a.id + 60000, parent=a.parent and a.parent + 60000) for a in record.annotations
        ),
    )
    ids, picture = write_partition(tmp_path, np.zeros((36, 40, 3), np.uint8), large, 1)
    assert (ids, picture) == (tmp_path / "sub/a.jpg.partition.png", tmp_path / "sub/a.jpg.partition.jpg")
    with Image.open(ids) as image:
        assert image.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(image), partition(large, 1))
    with Image.open(picture) as image:
        assert (image.mode, image.size) == ("RGB", (40, 36))


def test_ids_beyond_16_bits_are_refused(tmp_path):
    record = make_record()
    annotations = (*record.annotations[:-1], replace(record.annotations[-1], id=65536))
    childless = replace(record, annotations=tuple(replace(a, parent=None, level=0) for a in annotations))
    with pytest.raises(SohesError, match="65536"):
        write_partition(tmp_path, np.zeros((36, 40, 3), np.uint8), childless, 0)
    assert not list(tmp_path.iterdir())


def test_a_corrupt_mask_is_an_error_that_names_it():
    record = make_record()
    broken = replace(record.annotations[3], segmentation={"size": [36, 40], "counts": "11"})
    with pytest.raises(StoreError, match="annotation 4"):
        partition(replace(record, annotations=(*record.annotations[:3], broken, *record.annotations[4:])), 9)


def test_the_picture_tints_owners_and_leaves_the_background():
    record = make_record(n=3)
    owners = partition(record, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (36, 40, 3), np.uint8)
    picture = partition_picture(pixels, record, owners)
    background = owners == 0
    background[1:] &= owners[:-1] == 0
    background[:, 1:] &= owners[:, :-1] == 0
    assert background.any()
    np.testing.assert_array_equal(picture[background], pixels[background])
    for annotation, color in zip(record.annotations, mask_colors(record), strict=True):
        inside = owners == annotation.id
        if inside.any():
            distance = np.abs(picture[inside].astype(float) - color).mean()
            assert distance < np.abs(pixels[inside].astype(float) - color).mean()
