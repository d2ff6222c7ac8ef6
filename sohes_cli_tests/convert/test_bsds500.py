"""BSDS500 in its own layout, MATLAB's cells and structs: every region of every annotator once, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_cases import written
from PIL import Image
from scipy.io import savemat

from sohes_cli.convert.bsds500 import BSDS500
from sohes_cli.convert.ground_truth import BadFile
from sohes_cli.errors import DatasetError

H, W = 21, 31


def put_mat(path, partitions):
    """A cell `groundTruth` of structs, compressed as the originals are."""
    cell = np.empty((1, len(partitions)), object)
    for k, partition in enumerate(partitions):
        edges = np.zeros(partition.shape, bool)
        edges[:, 1:] = partition[:, 1:] != partition[:, :-1]
        cell[0, k] = {"Segmentation": partition.astype(np.uint16), "Boundaries": edges}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": cell}, do_compression=True)


def put_image(source, number, partitions, split="test"):
    data = source / "data"
    (data / "images" / split).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", partitions[0].shape[::-1], "gray").save(data / "images" / split / f"{number}.jpg")
    (data / "images" / split / "Thumbs.db").write_bytes(b"as in the archive")
    put_mat(data / "groundTruth" / split / f"{number}.mat", partitions)


def halves(columns):
    """Two regions: 1 left of a column, 2 from it on."""
    return np.repeat(np.where(np.arange(W) < columns, 1, 2)[None], H, axis=0)


def thirds():
    partition = halves(10)
    partition[:, 20:] = 3
    return partition


def read(source, split="test"):
    return list(BSDS500.open(source, split).images)


def converted(source, tmp_path):
    return written(BSDS500.open(source, "test"), tmp_path / "gt.json")


def test_every_region_of_every_annotator_is_a_mask_and_equal_ones_are_written_once(tmp_path):
    put_image(tmp_path, 100007, [halves(10), thirds(), halves(10), halves(15)])
    coco, names, counts = converted(tmp_path, tmp_path)
    assert names == ["100007.jpg"]
    assert coco.imgs == {100007: {"id": 100007, "file_name": "100007.jpg", "height": H, "width": W}}
    drawn = [(a["annotator"], coco.annToMask(a)) for a in coco.anns.values()]
    expected = [
        (1, halves(10) == 1),
        (1, halves(10) == 2),
        (2, thirds() == 2),
        (2, thirds() == 3),
        (4, halves(15) == 1),
        (4, halves(15) == 2),
    ]
    assert [annotator for annotator, _ in drawn] == [annotator for annotator, _ in expected]
    assert all((mask == region).all() for (_, mask), (_, region) in zip(drawn, expected, strict=True))
    assert (counts.masks, counts.parts) == (6, 0)
    assert {a["parent"] for a in coco.anns.values()} == {None}


def test_areas_boxes_and_the_category(tmp_path):
    put_image(tmp_path, 7, [halves(10)])
    coco, _, _ = converted(tmp_path, tmp_path)
    assert [(a["area"], a["bbox"]) for a in coco.anns.values()] == [(10 * H, [0, 0, 10, H]), (21 * H, [10, 0, 21, H])]
    assert coco.loadCats([a["category_id"] for a in coco.anns.values()])[0]["name"] == "region"


def test_a_region_in_two_pieces_stays_one_mask(tmp_path):
    partition = thirds()
    partition[partition == 3] = 1
    put_image(tmp_path, 7, [partition])
    [image] = read(tmp_path)
    assert [mask.area for mask in image.masks] == [(partition == 1).sum(), (partition == 2).sum()]


def test_unlabeled_pixels_are_no_region(tmp_path):
    partition = halves(10)
    partition[:3] = 0
    put_image(tmp_path, 7, [partition])
    [image] = read(tmp_path)
    assert sum(mask.area for mask in image.masks) == (H - 3) * W


@settings(max_examples=20, deadline=None)
@given(partitions=st.lists(arrays.arrays(np.uint16, (9, 11), elements=st.integers(1, 6)), min_size=1, max_size=4))
def test_the_masks_of_an_image_are_the_set_of_its_annotators_regions(tmp_path_factory, partitions):
    source = tmp_path_factory.mktemp("bsds")
    put_image(source, 1, partitions)
    coco, _, _ = converted(source, source)
    written = [coco.annToMask(a).astype(bool).tobytes() for a in coco.anns.values()]
    regions = {(partition == label).tobytes() for partition in partitions for label in np.unique(partition)}
    assert len(written) == len(regions)
    assert set(written) == regions


def test_images_come_in_the_order_of_their_numbers(tmp_path):
    for number in (100007, 3096, 15011):
        put_image(tmp_path, number, [halves(10)])
    assert [image.id for image in read(tmp_path)] == [3096, 15011, 100007]


@pytest.mark.parametrize("inside", ["", "BSDS500", "BSR/BSDS500"])
def test_the_folder_may_be_given_at_several_depths(tmp_path, inside):
    put_image(tmp_path / inside, 7, [halves(10)], split="val")
    dataset = BSDS500.open(tmp_path, "val")
    [image] = dataset.images
    assert (tmp_path / dataset.image_root / image.file_name).is_file()
    assert (dataset.name, dataset.total, dataset.expected_images) == ("bsds500", 1, 100)


def test_results_are_reported_on_the_test_images():
    assert BSDS500.splits[0] == "test"


DAMAGES = {
    "no .mat file": (lambda p: p.unlink(), "is missing"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:200]), r"cannot be read as a \.mat file"),
    "another kind of file": (lambda p: p.write_text("no MATLAB file" * 30), r"cannot be read as a \.mat file"),
    "another variable": (lambda p: savemat(p, {"segs": np.ones((H, W))}), "holds no cell groundTruth"),
    "no cell": (lambda p: savemat(p, {"groundTruth": np.ones((H, W))}), "holds no cell groundTruth"),
    "no annotator": (lambda p: savemat(p, {"groundTruth": np.empty((1, 0), object)}), "or none at all"),
    "another size": (
        lambda p: put_mat(p, [halves(10), halves(10)[:-1]]),
        rf"another size than its image's \[{H}, {W}\]",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_reported_and_the_others_go_on(tmp_path, damage, reason):
    for number in (1, 2):
        put_image(tmp_path, number, [halves(10)])
    path = tmp_path / "data" / "groundTruth" / "test" / "1.mat"
    damage(path)
    bad, good = read(tmp_path)
    assert isinstance(bad, BadFile)
    assert bad.path == path
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)
    assert (good.id, len(good.masks)) == (2, 2)


def test_a_damaged_photograph_is_reported(tmp_path):
    put_image(tmp_path, 1, [halves(10)])
    (tmp_path / "data" / "images" / "test" / "1.jpg").write_bytes(b"?")
    [bad] = read(tmp_path)
    assert bad.reason.startswith("1.jpg cannot be read as a picture")


def test_another_folder_is_an_error_that_names_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError, match=r"data/\{images,groundTruth\}/test or BSDS500/data"):
        BSDS500.open(tmp_path, "test")


def test_a_folder_without_images_is_an_error(tmp_path):
    put_image(tmp_path, 1, [halves(10)])
    (tmp_path / "data" / "images" / "test" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"holds no NUMBER\.jpg"):
        BSDS500.open(tmp_path, "test")
