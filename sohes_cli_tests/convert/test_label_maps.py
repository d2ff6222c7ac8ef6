"""Masks stored as pictures: raw values, and the regions of a map equal to pycocotools' one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask

from sohes_cli.convert.label_maps import image_size, read_label_map, regions_of_map, whole_region

MAPS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays.arrays(np.uint16, shape, elements=st.sampled_from([0, 1, 2, 7, 300]))
)


@settings(deadline=None)
@given(values=MAPS)
def test_the_regions_of_a_map_partition_it(values):
    regions = regions_of_map(values)
    assert [region.value for region in regions] == np.unique(values).tolist()
    assert sum(region.area_px for region in regions) == values.size
    for region in regions:
        assert (coco_mask.decode(region.segmentation) == (values == region.value)).all()


@settings(deadline=None)
@given(values=MAPS)
def test_one_walk_over_a_map_gives_what_one_value_at_a_time_gives(values):
    assert regions_of_map(values) == [whole_region(values, int(value)) for value in np.unique(values)]


def test_a_value_that_no_pixel_has_is_no_region():
    assert whole_region(np.zeros((3, 4), np.uint8), 255) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_are_read_as_they_are_stored(tmp_path, dtype):
    values = np.arange(6, dtype=dtype).reshape(2, 3) * 50
    Image.fromarray(values).save(tmp_path / "map.png")
    assert (read_label_map(tmp_path / "map.png") == values).all()
    assert image_size(tmp_path / "map.png") == (2, 3)


def test_a_bitmap_is_0_and_255(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "map.png")
    assert read_label_map(tmp_path / "map.png").tolist() == [[255, 0]]


@pytest.mark.parametrize("read", [read_label_map, image_size])
def test_a_missing_or_damaged_file_is_named(tmp_path, read):
    with pytest.raises(ValueError, match=r"map\.png is missing"):
        read(tmp_path / "map.png")
    (tmp_path / "map.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"map\.png cannot be read as a picture"):
        read(tmp_path / "map.png")
