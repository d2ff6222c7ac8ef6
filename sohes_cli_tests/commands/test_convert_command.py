"""`sohes convert`: what it writes and prints, and what it refuses with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

H, W = 6, 8


def put_coco(source, n_images=2):
    polygon = [[1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]]
    data = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": H, "width": W} for i in range(1, n_images + 1)],
        "annotations": [
            {
                "id": 4,
                "image_id": 1,
                "category_id": 1,
                "segmentation": polygon,
                "area": 12.0,
                "bbox": [1, 1, 4, 3],
                "iscrowd": 0,
            },
            {
                "id": 9,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"size": [H, W], "counts": [20, 8, 20]},
                "area": 8,
            }
            | {"bbox": [3, 0, 2, 6], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    for split in ("val2017", "train2017"):
        path = source / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
    return source


def put_sa1b(source, damaged=()):
    source.mkdir(parents=True)
    rle = coco_mask.encode(np.ones((H, W), np.uint8, order="F"))
    for i in (1, 2, 3):
        mask = {
            "id": i,
            "segmentation": {"size": [H, W], "counts": rle["counts"].decode()},
            "area": 48,
            "bbox": [0, 0, W, H],
        }
        image = {"image_id": i, "width": W, "height": H, "file_name": f"sa_{i}.jpg"}
        text = json.dumps({"image": image, "annotations": [mask]})
        (source / f"sa_{i}.json").write_text(text[:40] if i in damaged else text)
    return source


@pytest.fixture
def coco_folder(tmp_path):
    return put_coco(tmp_path / "coco")


def test_it_writes_the_file_and_the_list_and_says_how_much(tmp_path, sohes, coco_folder):
    out = tmp_path / "new" / "gt.json"
    result = sohes("convert", "coco", coco_folder, "--out", out)
    assert result.code == 0
    listed = tmp_path / "new" / "gt.images.txt"
    assert result.out == (
        f"Wrote {out}: 2 images, 2 masks (0 of them parts, 1 crowd regions); the images are listed in {listed}.\n"
    )
    assert len(COCO(str(out)).anns) == 2
    assert listed.read_text() == "000000000001.jpg\n000000000002.jpg\n"


def test_counts_that_are_not_those_of_the_complete_split_are_noted(tmp_path, sohes, coco_folder):
    result = sohes("convert", "coco", coco_folder, "--out", tmp_path / "gt.json")
    assert "Note: 2 images; the complete val2017 of coco has 5000." in result.err
    assert "Note: 2 masks; the complete val2017 of coco has 36781." in result.err


def test_json_has_every_count(tmp_path, sohes):
    out = tmp_path / "gt.json"
    result = sohes("convert", "sa1b", put_sa1b(tmp_path / "sa"), "--out", out, "--json")
    assert result.code == 0
    assert json.loads(result.out) == {
        "dataset": "sa1b",
        "split": "all",
        "images": 3,
        "masks": 3,
        "parts": 0,
        "crowds": 0,
        "bad": 0,
        "expected_images": None,
        "expected_masks": None,
        "out": str(out),
        "image_list": str(tmp_path / "gt.images.txt"),
    }
    assert "Note" not in result.err


def test_damaged_files_are_named_the_others_written_and_the_exit_code_is_1(tmp_path, sohes):
    source = put_sa1b(tmp_path / "sa", damaged=(2,))
    result = sohes("convert", "sa1b", source, "--out", tmp_path / "gt.json", "--json")
    assert result.code == 1
    assert json.loads(result.out)["bad"] == 1
    assert f"{source / 'sa_2.json'}: it is not JSON" in result.err
    assert "1 files of" in result.err
    assert list(COCO(str(tmp_path / "gt.json")).imgs) == [1, 3]


def test_nothing_is_written_when_every_file_is_damaged(tmp_path, sohes):
    source = put_sa1b(tmp_path / "sa", damaged=(1, 2, 3))
    result = sohes("convert", "sa1b", source, "--out", tmp_path / "gt.json")
    assert result.code == 1
    assert "No image of sa1b all could be converted" in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"sa"}


def test_a_file_that_exists_is_replaced_only_when_asked(tmp_path, sohes, coco_folder):
    out, listed = tmp_path / "gt.json", tmp_path / "gt.images.txt"
    for mine in (out, listed):
        mine.write_text("mine")
        refused = sohes("convert", "coco", coco_folder, "--out", out)
        assert refused.code == 1
        assert f"{mine} exists already" in refused.err
        assert "--overwrite" in refused.err
        assert mine.read_text() == "mine"
        assert sohes("convert", "coco", coco_folder, "--out", out, "--overwrite").code == 0
        assert mine.read_text() != "mine"
        mine.unlink()
        for other in (out, listed):
            other.unlink(missing_ok=True)


def test_a_file_of_the_data_set_is_never_replaced_but_an_own_one_beside_it_is(sohes, coco_folder):
    official = coco_folder / "annotations" / "instances_val2017.json"
    before = official.read_bytes()
    refused = sohes("convert", "coco", coco_folder, "--out", official, "--overwrite")
    assert refused.code == 1
    assert "is a file of the data set" in refused.err
    assert official.read_bytes() == before
    for _ in range(2):
        assert sohes("convert", "coco", coco_folder, "--out", coco_folder / "gt.json", "--overwrite").code == 0


def test_the_split_is_chosen_by_name(tmp_path, sohes, coco_folder):
    out = tmp_path / "gt.json"
    result = sohes("convert", "coco", coco_folder, "--out", out, "--split", "train2017", "--json")
    assert json.loads(result.out)["split"] == "train2017"
    assert json.loads(result.out)["expected_images"] == 118287
    assert json.loads(out.read_text())["info"]["image_root"] == "train2017"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["coco", "SRC", "--out", "gt.json", "--split", "val"], "coco has no split 'val'"),
        (["coco", "SRC", "--out", "gt.json", "--split", "val2016"], "Did you mean 'val2017'"),
        (["coco", "SRC", "--out", "gt.json", "--split", "val"], "val2017, train2017 (by default val2017)"),
        (["voc", "SRC", "--out", "gt.json"], "voc"),
        (["coco", "SRC"], "--out"),
        (["coco", "nowhere", "--out", "gt.json"], "nowhere is no folder"),
        (["coco", "SRC", "--out", "SRC"], "is a folder"),
        (["coco", "SRC", "--out", ""], "is a folder"),
    ],
)
def test_wrong_usage_has_exit_code_2_and_writes_nothing(tmp_path, sohes, monkeypatch, coco_folder, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = sohes("convert", *(coco_folder if argument == "SRC" else argument for argument in arguments))
    assert result.code == 2
    assert words in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"coco"}


def test_a_name_that_no_disk_can_hold_is_an_error_that_names_it(tmp_path, sohes, coco_folder):
    for arguments in (
        [coco_folder, "--out", tmp_path / f"{'x' * 300}.json"],
        [tmp_path / ("y" * 300), "--out", tmp_path / "gt.json"],
    ):
        result = sohes("convert", "coco", *arguments)
        assert result.code == 1
        assert "cannot be reached: File name too long" in result.err


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(tmp_path, sohes, monkeypatch):
    source = put_sa1b(tmp_path / "sa")
    put_sa1b(source / "locked")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # a superuser may list any folder
    result = sohes("convert", "sa1b", source, "--out", tmp_path / "gt.json")
    assert result.code == 1
    assert f"{source / 'locked'} cannot be listed: Permission denied" in result.err


def test_another_folder_is_refused_with_the_path_that_was_looked_for(tmp_path, sohes):
    (tmp_path / "other").mkdir()
    result = sohes("convert", "coco", tmp_path / "other", "--out", tmp_path / "gt.json")
    assert result.code == 1
    assert "holds no annotations/instances_val2017.json" in result.err
    assert not (tmp_path / "gt.json").exists()


def test_help_names_every_data_set(sohes):
    text = " ".join(sohes("convert", "--help").out.split())
    for name in ("coco", "lvis", "ade20k", "entityseg", "sa1b", "partimagenet", "paco", "bsds500"):
        assert name in text


def test_the_command_line_does_not_load_what_only_a_conversion_needs():
    heavy = ("torch", "timm", "numba", "skimage", "scipy", "cv2", "pycocotools", "numpy", "tqdm")
    code = f"import sys, sohes_cli.commands.convert; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
