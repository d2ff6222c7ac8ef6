"""Data sets annotated in JSON, with the keys of their official files: masks, ids, parents and paths."""

from __future__ import annotations

import json

import numpy as np
import pytest
from label_cases import written
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sohes_cli.convert.datasets import DatasetName, converter
from sohes_cli.convert.ground_truth import BadFile
from sohes_cli.convert.json_datasets import COCO as COCO_2017
from sohes_cli.convert.json_datasets import ENTITYSEG, LVIS, PACO
from sohes_cli.convert.sa1b import SA1B
from sohes_cli.errors import DatasetError

H, W = 30, 40
COCO_URL = "http://images.cocodataset.org"


def box_polygon(x, y, w, h):
    return [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]]


def box_rle(x, y, w, h):
    pixels = np.zeros((H, W), np.uint8, order="F")
    pixels[y : y + h, x : x + w] = 1
    return {"size": [H, W], "counts": coco_mask.encode(pixels)["counts"].decode()}


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def converted(dataset, tmp_path):
    return written(dataset, tmp_path / "out" / "gt.json")


def areas(coco):
    return {i: int(coco.annToMask(a).sum()) for i, a in coco.anns.items()}


def coco_image(image_id, folder):
    name = f"{image_id:012d}.jpg"
    url = f"{COCO_URL}/{folder}/{name}"
    return {
        "license": 4,
        "file_name": name,
        "coco_url": url,
        "height": H,
        "width": W,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": "http://farm7.staticflickr.com/0000/0_z.jpg",
        "id": image_id,
    }


def put_coco(source):
    crowd = {"counts": [5 * H + 2, 3, H * W - 5 * H - 5], "size": [H, W]}
    common = {"iscrowd": 0, "image_id": 397133}
    put(
        source / "annotations" / "instances_val2017.json",
        {
            "info": {
                "description": "COCO 2017 Dataset",
                "url": "http://cocodataset.org",
                "version": "1.0",
                "year": 2017,
            },
            "licenses": [
                {"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}
            ],
            "images": [coco_image(397133, "val2017"), coco_image(37777, "val2017")],
            "annotations": [
                {
                    **common,
                    "segmentation": box_polygon(2, 3, 10, 5),
                    "area": 50.0,
                    "bbox": [2, 3, 10, 5],
                    "category_id": 44,
                    "id": 82445,
                },
                {
                    **common,
                    "segmentation": crowd,
                    "area": 3,
                    "bbox": [5, 2, 1, 3],
                    "category_id": 1,
                    "id": 900100397133,
                    "iscrowd": 1,
                },
            ],
            "categories": [
                {"supercategory": "person", "id": 1, "name": "person"},
                {"supercategory": "kitchen", "id": 44, "name": "bottle"},
            ],
        },
    )


def test_coco_keeps_ids_and_crowds_and_lists_images_without_annotations(tmp_path):
    put_coco(tmp_path / "coco")
    coco, images, counts = converted(COCO_2017.open(tmp_path / "coco", "val2017"), tmp_path)
    assert images == ["000000397133.jpg", "000000037777.jpg"]
    assert areas(coco) == {82445: 50, 900100397133: 3}
    assert [a["iscrowd"] for a in coco.anns.values()] == [0, 1]
    assert isinstance(coco.anns[900100397133]["segmentation"]["counts"], str)
    assert coco.anns[82445]["segmentation"] == box_polygon(2, 3, 10, 5)
    assert {c["id"]: (c["name"], c["supercategory"]) for c in coco.cats.values()} == {
        1: ("person", "person"),
        44: ("bottle", "kitchen"),
    }
    assert (counts.images, counts.masks, counts.crowds, counts.parts) == (2, 2, 1, 0)
    assert all(a["parent"] is None for a in coco.anns.values())


def test_coco_means_the_pixels_that_pycocotools_sees_in_the_official_file(tmp_path):
    put_coco(tmp_path / "coco")
    coco, _, _ = converted(COCO_2017.open(tmp_path / "coco", "val2017"), tmp_path)
    official = COCO(str(tmp_path / "coco" / "annotations" / "instances_val2017.json"))
    assert official.anns.keys() == coco.anns.keys()
    for i, a in official.anns.items():
        assert (official.annToMask(a) == coco.annToMask(coco.anns[i])).all()
        assert (a["area"], a["bbox"]) == (coco.anns[i]["area"], coco.anns[i]["bbox"])


def test_coco_knows_how_much_the_complete_split_holds(tmp_path):
    put_coco(tmp_path)
    dataset = COCO_2017.open(tmp_path, "val2017")
    assert (dataset.image_root, dataset.total, dataset.expected_images, dataset.expected_masks) == (
        "val2017",
        2,
        5000,
        36781,
    )


def test_coco_finds_images_in_either_layout(tmp_path):
    put_coco(tmp_path)
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "images" / "val2017" / "000000397133.jpg").write_bytes(b"")
    assert COCO_2017.open(tmp_path, "val2017").image_root == "images/val2017"


def put_lvis(path):
    images = [coco_image(397133, "val2017"), coco_image(391895, "train2017")]
    for image in images:
        del image["file_name"]  # LVIS v1 has none
        image |= {"neg_category_ids": [1, 2], "not_exhaustive_category_ids": [3]}
    category = {
        "name": "bottle",
        "instance_count": 9,
        "def": "a glass vessel",
        "synonyms": ["bottle"],
        "image_count": 5,
        "id": 133,
    }
    put(
        path,
        {
            "info": {"description": "LVIS v1", "version": "v1.0", "year": 2020},
            "licenses": [],
            "images": images,
            "annotations": [
                {
                    "id": 1,
                    "image_id": 397133,
                    "segmentation": box_polygon(2, 3, 10, 5),
                    "area": 50.0,
                    "bbox": [2, 3, 10, 5],
                    "category_id": 133,
                },
                {
                    "id": 2,
                    "image_id": 391895,
                    "segmentation": box_polygon(0, 0, 4, 4),
                    "area": 16.0,
                    "bbox": [0, 0, 4, 4],
                    "category_id": 133,
                },
            ],
            "categories": [{**category, "frequency": "f", "synset": "bottle.n.01"}],
        },
    )


@pytest.mark.parametrize("place", ["lvis_v1_val.json", "annotations/lvis_v1_val.json"])
def test_lvis_images_lie_in_both_folders_of_coco(tmp_path, place):
    put_lvis(tmp_path / "lvis" / place)
    dataset = LVIS.open(tmp_path / "lvis", "val")
    assert (dataset.image_root, dataset.expected_images, dataset.expected_masks) == (".", 19809, 244707)
    coco, images, counts = converted(dataset, tmp_path)
    assert images == ["val2017/000000397133.jpg", "train2017/000000391895.jpg"]
    assert areas(coco) == {1: 50, 2: 16}
    assert (counts.crowds, counts.parts) == (0, 0)


def test_an_lvis_image_without_a_usable_url_is_named(tmp_path):
    put_lvis(tmp_path / "lvis_v1_val.json")
    for url in ("397133.jpg", None):
        data = json.loads((tmp_path / "lvis_v1_val.json").read_text())
        data["images"][0]["coco_url"] = url
        put(tmp_path / "lvis_v1_val.json", data)
        with pytest.raises(DatasetError, match="image 397133: its coco_url"):
            LVIS.open(tmp_path, "val")


PACO_FLAGS = {
    "attribute_ids": [],
    "dom_color_ids": [],
    "unknown_color": 0,
    "unknown_pattern_marking": 0,
    "unknown_material": 0,
}


def put_paco(path, *annotations):
    image = {k: v for k, v in coco_image(391895, "train2017").items() if k in ("id", "height", "width", "license")}
    lists = (
        "neg_category_ids",
        "not_exhaustive_category_ids",
        "neg_category_ids_attrs",
        "not_exhaustive_category_ids_attrs",
    )
    chair = {
        "supercategory": "OBJECT",
        "id": 232,
        "name": "chair",
        "image_count": 9,
        "instance_count": 9,
        "synset": "chair.n.01",
        "frequency": "f",
    }
    put(
        path,
        {
            "images": [{**image, **{key: [] for key in lists}, "file_name": "train2017/000000391895.jpg"}],
            "annotations": [
                {**PACO_FLAGS, "unknown_transparency": 0, "image_id": 391895, "iscrowd": 0, **a} for a in annotations
            ],
            "categories": [chair, {"supercategory": "PART", "id": 1233, "name": "chair:leg"}],
            "part_categories": [{"supercategory": "PART", "id": 9, "name": "leg"}],
            "attributes": [{"supercategory": "ATTR", "id": 0, "name": "black"}],
            "attr_type_to_attr_idxs": {"color": [0]},
        },
    )


def paco_annotation(annotation_id, obj_ann_id, box):
    is_part = annotation_id != obj_ann_id
    mask = box_rle(*box) if is_part else box_polygon(*box)
    ids = {"id": annotation_id, "obj_ann_id": obj_ann_id, "category_id": 1233 if is_part else 232}
    return {**ids, "segmentation": mask, "area": box[2] * box[3], "bbox": list(box)}


def test_paco_parts_name_their_object(tmp_path):
    leg, chair, other = (
        paco_annotation(7, 3, (4, 10, 2, 6)),
        paco_annotation(3, 3, (2, 2, 10, 14)),
        paco_annotation(5, 5, (20, 2, 5, 5)),
    )
    put_paco(tmp_path / "paco" / "paco_lvis_v1_val.json", leg, chair, other)
    dataset = PACO.open(tmp_path / "paco", "val")
    assert (dataset.image_root, dataset.expected_images, dataset.expected_masks) == (".", 2410, None)
    coco, images, counts = converted(dataset, tmp_path)
    assert images == ["train2017/000000391895.jpg"]
    assert {i: a["parent"] for i, a in coco.anns.items()} == {7: 3, 3: None, 5: None}
    assert areas(coco) == {7: 12, 3: 140, 5: 25}
    assert (counts.masks, counts.parts) == (3, 1)
    assert coco.cats[1233]["supercategory"] == "PART"


def test_a_paco_object_without_a_mask_is_left_out_and_its_parts_are_roots(tmp_path):
    put_paco(
        tmp_path / "annotations" / "paco_lvis_v1_val.json",
        {**paco_annotation(3, 3, (2, 2, 10, 14)), "segmentation": []},
        paco_annotation(7, 3, (4, 10, 2, 6)),
    )
    coco, _, counts = converted(PACO.open(tmp_path, "val"), tmp_path)
    assert {i: a["parent"] for i, a in coco.anns.items()} == {7: None}
    assert counts.parts == 0


def test_a_paco_part_of_no_object_is_refused(tmp_path):
    for obj_ann_id, words in (
        (8, "annotation 7: it is a part of annotation 8"),
        (None, "annotation 7: its obj_ann_id None"),
    ):
        put_paco(tmp_path / "paco_lvis_v1_val.json", paco_annotation(7, obj_ann_id, (4, 10, 2, 6)))
        with pytest.raises(DatasetError) as error:
            PACO.open(tmp_path, "val")
        assert words in error.value.message


def put_entityseg(path):
    image = {
        "file_name": "entity_01_11580/coco_000000000009.jpg",
        "height": H,
        "width": W,
        "id": 0,
        "img_source": "coco",
    }
    common = {"image_id": 0, "iscrowd": 0}
    put(
        path,
        {
            "images": [
                {
                    **image,
                    "url_flag": "1",
                    "url_dataset": "https://cocodataset.org",
                    "url_image": "https://example.org/9.jpg",
                }
            ],
            "annotations": [
                {
                    **common,
                    "id": 0,
                    "area": 50,
                    "bbox": [2, 3, 10, 5],
                    "category_id": 3,
                    "segmentation": box_rle(2, 3, 10, 5),
                },
                {
                    **common,
                    "id": 1,
                    "area": 16,
                    "bbox": [0, 0, 4, 4],
                    "category_id": 0,
                    "segmentation": box_rle(0, 0, 4, 4),
                },
            ],
            "categories": [
                {"supercategory": "entity", "id": 0, "name": "unknown", "c_name": "?", "type": "thing"},
                {"supercategory": "inanimate_natural_objects", "id": 3, "name": "sky", "c_name": "?", "type": "stuff"},
            ],
        },
    )


@pytest.mark.parametrize(
    "place",
    [
        "entityseg_val_lr.json",
        "annotations/entityseg_val_lr.json",
        "annotations/entity_segmentation/entityv2_010203_entity_val_lr.json",
    ],
)
def test_entityseg_is_read_under_each_of_its_names(tmp_path, place):
    put_entityseg(tmp_path / "entityseg" / place)
    dataset = ENTITYSEG.open(tmp_path / "entityseg", "val_lr")
    assert dataset.image_root == "images_lr"
    coco, images, counts = converted(dataset, tmp_path)
    assert images == ["entity_01_11580/coco_000000000009.jpg"]
    assert sorted(areas(coco).values()) == [16, 50]
    assert (counts.masks, counts.parts, counts.crowds) == (2, 0, 0)
    assert min(coco.anns) == 1  # pycocotools takes a match with annotation 0 for none
    assert [coco.cats[a["category_id"]]["name"] for a in coco.anns.values()] == ["sky", "unknown"]


def test_entityseg_full_resolution_lies_in_another_folder(tmp_path):
    put_entityseg(tmp_path / "entityseg_val.json")
    assert ENTITYSEG.open(tmp_path, "val").image_root == "images"
    (tmp_path / "entity_01_11580").mkdir()
    (tmp_path / "entity_01_11580" / "coco_000000000009.jpg").write_bytes(b"")
    assert ENTITYSEG.open(tmp_path, "val").image_root == "."


def sa1b_record(image_id, *annotation_ids):
    quality = {"predicted_iou": 0.9, "stability_score": 0.95, "crop_box": [0, 0, W, H], "point_coords": [[3.5, 4.5]]}
    return {
        "image": {"image_id": image_id, "width": W, "height": H, "file_name": f"sa_{image_id}.jpg"},
        "annotations": [
            {"id": i, "segmentation": box_rle(2, 3, 10, 5), "bbox": [2, 3, 9, 4], "area": 50, **quality}
            for i in annotation_ids
        ],
    }


def test_sa1b_files_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path):
    for folder, image_id in (("sa_000020", 223750), ("sa_000020", 9001), ("deep/sa_000021", 240000), ("", 5)):
        put(tmp_path / "sa" / folder / f"sa_{image_id}.json", sa1b_record(image_id, image_id * 100, image_id * 100 + 1))
    put(tmp_path / "sa" / "sa_000020" / "other.json", {})
    put(tmp_path / "sa" / ".cache" / "sa_7.json", sa1b_record(7, 1))
    dataset = SA1B.open(tmp_path / "sa", "all")
    assert (dataset.total, dataset.image_root, dataset.expected_images) == (4, ".", None)
    coco, images, counts = converted(dataset, tmp_path)
    assert images == ["sa_5.jpg", "sa_000020/sa_9001.jpg", "sa_000020/sa_223750.jpg", "deep/sa_000021/sa_240000.jpg"]
    assert list(coco.imgs) == [5, 9001, 223750, 240000]
    assert set(coco.anns) == {i * 100 + j for i in coco.imgs for j in (0, 1)}
    assert set(areas(coco).values()) == {50}
    first = coco.anns[500]
    assert (first["predicted_iou"], first["stability_score"], first["category_id"], first["parent"]) == (
        0.9,
        0.95,
        1,
        None,
    )
    assert (counts.images, counts.masks) == (4, 8)


def test_sa1b_is_found_behind_links_to_folders_but_each_file_once(tmp_path):
    put(tmp_path / "disk" / "sa_000020" / "sa_1.json", sa1b_record(1, 10))
    put(tmp_path / "sa" / "sa_000021" / "sa_2.json", sa1b_record(2, 20))
    (tmp_path / "sa" / "linked").symlink_to(tmp_path / "disk" / "sa_000020")
    (tmp_path / "sa" / "sa_000021" / "back").symlink_to(tmp_path / "sa")
    assert [image.file_name for image in SA1B.open(tmp_path / "sa", "all").images] == [
        "linked/sa_1.jpg",
        "sa_000021/sa_2.jpg",
    ]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: "{", "it is not JSON (Expecting"),
        (lambda _: [1], "it is not in the data set's layout"),
        (lambda record: {"image": record["image"]}, "has no annotations"),
        (lambda record: {**record, "annotations": [7]}, "it is not in the data set's layout"),
        (lambda record: {**record, "image": {**record["image"], "height": "30"}}, "its height '30' is no whole number"),
        (
            lambda record: {**record, "image": {**record["image"], "file_name": "sa_2.jpg"}},
            "it is the file of another image, 'sa_2.jpg'",
        ),
        (
            lambda record: {**record, "image": {**record["image"], "height": H + 1}},
            "annotation 10: its mask has size [30, 40]",
        ),
        (
            lambda record: {**record, "annotations": [{**record["annotations"][0], "area": None}]},
            "annotation 10: its area None",
        ),
        (
            lambda record: {
                **record,
                "annotations": [{**record["annotations"][0], "segmentation": {"size": [H, W], "counts": "!"}}],
            },
            "annotation 10: the run-length string",
        ),
    ],
)
def test_a_damaged_sa1b_file_is_reported_and_the_others_are_read(tmp_path, spoil, words):
    put(tmp_path / "sa_1.json", sa1b_record(1, 10))
    put(tmp_path / "sa_3.json", sa1b_record(3, 30))
    spoiled = spoil(sa1b_record(1, 10))
    (tmp_path / "sa_1.json").write_text(spoiled if isinstance(spoiled, str) else json.dumps(spoiled))
    bad, good = SA1B.open(tmp_path, "all").images
    assert isinstance(bad, BadFile)
    assert bad.path == tmp_path / "sa_1.json"
    assert words in bad.reason
    assert good.file_name == "sa_3.jpg"


def test_the_same_photograph_twice_in_sa1b_is_refused(tmp_path):
    for folder in ("a", "b"):
        put(tmp_path / "sa" / folder / "sa_1.json", sa1b_record(1, 10))
    with pytest.raises(DatasetError, match=r"Image 1 \(b/sa_1.jpg\) occurs twice"):
        converted(SA1B.open(tmp_path / "sa", "all"), tmp_path)


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("coco", ["annotations/instances_val2017.json"]),
        ("lvis", ["lvis_v1_val.json", "annotations/lvis_v1_val.json"]),
        ("paco", ["paco_lvis_v1_val.json"]),
        ("entityseg", ["entityseg_val_lr.json", "entityv2_010203_entity_val_lr.json"]),
        ("sa1b", ["sa_*.json"]),
    ],
)
def test_a_folder_of_something_else_is_refused_with_the_paths_that_were_looked_for(tmp_path, name, looked_for):
    put(tmp_path / "something.json", {})
    found = converter(DatasetName(name))
    with pytest.raises(DatasetError) as error:
        found.open(tmp_path, found.splits[0])
    assert str(tmp_path) in error.value.message
    assert all(path in error.value.message for path in looked_for)
    assert "unpacked" in error.value.hint


@pytest.mark.parametrize("name", list(DatasetName))
def test_every_data_set_has_distinct_splits(tmp_path, name):
    found = converter(name)
    assert found.splits
    assert len(set(found.splits)) == len(found.splits)
    for split in found.splits:
        with pytest.raises(DatasetError):
            found.open(tmp_path, split)
