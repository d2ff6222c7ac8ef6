"""Labeled photographs: label folders and COCO files alike, hashes of the labels, and every kind of error."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from label_sets import NAMES, two_boxes, write_coco, write_set
from PIL import Image

from sohes_cli.data.sources import open_labeled
from sohes_cli.errors import DatasetError, ImageError, SohesError, StoreError, UsageError
from sohes_cli.labels.coco import export_coco
from sohes_cli.labels.store import LabelStore

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_set(tmp_path)


@pytest.fixture
def coco(labels: Path) -> Path:
    export_coco(LabelStore(labels), labels.parent / "labels.json")
    return labels.parent / "labels.json"


def channels(pixels: np.ndarray) -> np.ndarray:
    """Return the two masks in a photograph's channels, bool [2, H, W]."""
    return pixels[..., :2].transpose(2, 0, 1) > 127


# Reading


def test_a_label_folder_names_its_image_folder(labels: Path) -> None:
    source = open_labeled(labels)
    assert source.names == NAMES
    assert len(source) == 5
    assert source.images == labels.parent / "images"
    for index, name in enumerate(NAMES):
        pixels, record = source.read(index)
        assert record == LabelStore(labels).read(name) == source.record(index)
        assert np.array_equal(pixels, np.asarray(Image.open(labels.parent / "images" / name)))
        assert channels(pixels).sum((1, 2)).tolist() == [a.area for a in record.annotations]


def test_a_coco_file_gives_the_same(labels: Path, coco: Path) -> None:
    source, folder = open_labeled(coco, labels.parent / "images"), open_labeled(labels)
    assert source.names == folder.names
    for index in range(len(folder)):
        (pixels, record), (expected, stored) = source.read(index), folder.read(index)
        assert np.array_equal(pixels, expected)
        assert record.forest == stored.forest
        assert [a.segmentation for a in record.annotations] == [a.segmentation for a in stored.annotations]


def test_another_image_folder_may_be_given(labels: Path) -> None:
    (labels.parent / "images").rename(labels.parent / "moved")
    with pytest.raises(UsageError, match=r"images of the labels .* does not exist\. .*--images"):
        open_labeled(labels)
    assert len(open_labeled(labels, labels.parent / "moved").read(4)[1].annotations) == 2


def test_a_copy_in_another_process_reads_the_same(labels: Path, coco: Path) -> None:
    for source in (open_labeled(labels), open_labeled(coco, labels.parent / "images")):
        sha256 = source.sha256
        copy = pickle.loads(pickle.dumps(source))
        assert copy.sha256 == sha256
        for index in range(len(source)):
            assert np.array_equal(copy.read(index)[0], source.read(index)[0])
            assert copy.record(index) == source.record(index)


def test_a_working_size_bounds_the_pixels(labels: Path) -> None:
    source = open_labeled(labels)
    record = source.record(0)
    pixels = source.pixels(record, 20)
    assert pixels.shape[0] * pixels.shape[1] <= 400
    assert abs(pixels.shape[0] / pixels.shape[1] - record.height / record.width) < 0.1


def test_photographs_are_upright(tmp_path: Path) -> None:
    masks = two_boxes(40, 60, np.random.default_rng(0))
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., :2] = 255 * masks.transpose(1, 2, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "turned.png", exif=exif)
    file = write_coco(tmp_path / "a.json", [("turned.png", 40, 60)], [])
    found, record = open_labeled(file, tmp_path).read(0)
    assert np.array_equal(found, pixels)
    assert record.annotations == ()


def test_images_without_annotations_count(tmp_path: Path, coco: Path) -> None:
    content = json.loads(coco.read_text())
    kept = [a for a in content["annotations"] if a["image_id"] == 3]
    coco.write_text(json.dumps(content | {"annotations": kept}))
    source = open_labeled(coco, tmp_path / "images")
    assert source.names == NAMES
    assert [len(source.read(i)[1].annotations) for i in range(5)] == [0, 0, 2, 0, 0]


# Identity


def test_the_hash_is_that_of_the_labels_at_any_path(tmp_path: Path, labels: Path, coco: Path) -> None:
    for path in (labels, coco):
        sha256 = open_labeled(path, tmp_path / "images").sha256
        (tmp_path / "copy").mkdir(exist_ok=True)
        copy = tmp_path / "copy" / path.name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
        assert len(sha256) == 64
        assert open_labeled(copy, tmp_path / "images").sha256 == sha256


def test_the_hash_changes_with_every_change_of_a_folder(labels: Path) -> None:
    images, seen = labels.parent / "images", set()

    def seen_anew() -> bool:
        sha256 = open_labeled(labels, images).sha256
        is_new = sha256 not in seen
        seen.add(sha256)
        return is_new

    assert seen_anew()
    assert not seen_anew()
    store = LabelStore(labels)
    record = store.read("sub/c.png")
    store.write(replace(record, annotations=(record.annotations[0], replace(record.annotations[1], score=0.7))))
    assert seen_anew()
    (labels / "b.png.json").unlink()
    assert seen_anew()
    store.write(replace(store.read("a.png"), file_name="aa.png"))
    assert seen_anew()
    (labels / "z.png.json").rename(labels / "zz.png.json")
    assert seen_anew()
    (labels / "manifest.json").write_text((labels / "manifest.json").read_text().replace("explore", "correct"))
    assert seen_anew()
    store.write(record)
    assert seen_anew()


def test_the_hash_changes_with_every_change_of_a_file(tmp_path: Path, coco: Path) -> None:
    before = open_labeled(coco, tmp_path / "images").sha256
    coco.write_text(coco.read_text().replace("0.75", "0.76"))
    assert open_labeled(coco, tmp_path / "images").sha256 != before


def test_hidden_and_other_files_are_no_labels(labels: Path) -> None:
    before = open_labeled(labels).sha256
    (labels / ".sohes-0.tmp").write_text("{")
    (labels / "notes.txt").write_text("")
    assert open_labeled(labels).sha256 == before


# Errors


def test_labels_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--labels .*nowhere does not exist.*sohes explore IMAGES --out"):
        open_labeled(tmp_path / "nowhere")


def test_a_folder_that_is_no_label_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no label folder"):
        open_labeled(tmp_path)


def test_a_coco_file_needs_images(coco: Path) -> None:
    with pytest.raises(UsageError, match=r"does not name its image folder.*--images"):
        open_labeled(coco)


def test_a_result_file_is_refused(tmp_path: Path, labels: Path) -> None:
    results = [{"image_id": 1, "segmentation": {"size": [4, 4], "counts": [0, 16]}, "score": 1, "category_id": 1}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match="is a COCO result file, which does not name its images"):
        open_labeled(tmp_path / "results.json", labels.parent / "images")


def test_an_image_folder_that_is_missing_or_a_file(tmp_path: Path, labels: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_labeled(labels, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a folder"):
        open_labeled(labels, labels / "manifest.json")


def test_no_labels_at_all(tmp_path: Path, labels: Path) -> None:
    for record in labels.rglob("*.png.json"):
        record.unlink()
    with pytest.raises(SohesError, match="holds no labels of any image"):
        open_labeled(labels)
    with pytest.raises(SohesError, match="holds no labels of any image"):
        open_labeled(write_coco(tmp_path / "a.json", [], []), tmp_path)


def test_labels_of_another_image_set(tmp_path: Path, labels: Path) -> None:
    other = write_set(tmp_path / "other", ("x.png", "y.png")).parent / "images"
    with pytest.raises(SohesError, match=r"other/images holds none .*\(a.png, b.png, sub/c.png and others\).*--images"):
        open_labeled(labels, other)
    with pytest.raises(SohesError, match=r"holds none of .* the labels .*other/labels \(x.png, y.png\)"):
        open_labeled(tmp_path / "other" / "labels", labels.parent / "images")


def test_one_image_that_is_missing_is_named_when_it_is_read(labels: Path) -> None:
    (labels.parent / "images" / "b.png").unlink()
    source = open_labeled(labels)
    assert len(source) == 5
    with pytest.raises(ImageError, match=r"b\.png does not exist"):
        source.read(1)
    assert source.read(2)[0].ndim == 3


def test_an_image_of_another_size(labels: Path) -> None:
    source = open_labeled(labels)
    record = source.record(0)
    Image.new("RGB", (record.width, record.height + 1)).save(labels.parent / "images" / "a.png")
    found, labeled = f"{record.height + 1} x {record.width}", f"{record.height} x {record.width}"
    with pytest.raises(ImageError, match=rf"a\.png has {found} pixels .*labels are for {labeled}"):
        source.read(0)
    with pytest.raises(ImageError, match=found):
        source.pixels(record, 10)


def test_a_damaged_record(labels: Path) -> None:
    source = open_labeled(labels)
    (labels / "a.png.json").write_text("{")
    with pytest.raises(StoreError, match=r"a\.png\.json is corrupt"):
        source.read(0)
    (labels / "b.png.json").write_text('{"image": {"file_name": "b.png", "height": 0, "width": -3}, "annotations": []}')
    with pytest.raises(StoreError, match=r"b\.png are damaged: they are for 0 x -3 pixels"):
        source.record(1)
    (labels / "z.png.json").unlink()
    with pytest.raises(StoreError, match=r"z\.png\.json cannot be read"):
        source.read(4)
    with pytest.raises(StoreError, match=r"z\.png\.json cannot be read"):
        _ = source.sha256


def test_a_damaged_annotation_of_a_coco_file(tmp_path: Path, coco: Path) -> None:
    content = json.loads(coco.read_text())
    content["annotations"][2]["segmentation"]["counts"] = "?"
    coco.write_text(json.dumps(content))
    source = open_labeled(coco, tmp_path / "images")
    with pytest.raises(DatasetError, match=r"b\.png is damaged"):
        source.read(1)
    assert len(source.read(2)[1].annotations) == 2
