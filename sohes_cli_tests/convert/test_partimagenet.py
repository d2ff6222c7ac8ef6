"""PartImageNet in the layouts of its two archives: parts, wholes from maps or unions, parents, known damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_cases import written
from PIL import Image

from sohes_cli.convert.ground_truth import BadFile
from sohes_cli.convert.partimagenet import PARTIMAGENET
from sohes_cli.errors import DatasetError

H, W = 30, 40
SYNSET, BACKGROUND = "n02009229", 158
HEAD, BODY, CAR_BODY = 13, 14, 24
CATEGORIES = [
    {"id": 0, "name": "Quadruped Head", "supercategory": "Quadruped"},
    {"id": HEAD, "name": "Bird Head", "supercategory": "Bird"},
    {"id": BODY, "name": "Bird Body", "supercategory": "Bird"},
    {"id": CAR_BODY, "name": "Car Body", "supercategory": "Car"},
]
KINDS = {"Quadruped": 25, "Bird": 26, "Car": 27}  # numbered after the parts


def box(x, y, w, h):
    return [float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]


def part(annotation_id, category_id, *boxes, image_id=0, **changes):
    x0, y0 = (min(b[i] for b in boxes) for i in (0, 1))
    x1, y1 = (max(b[i] + b[i + 2] for b in boxes) for i in (0, 1))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [box(*b) for b in boxes],
        "area": sum(b[2] * b[3] for b in boxes),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
    } | changes


def image_object(image_id, file_name):
    return {"id": image_id, "file_name": file_name, "height": H, "width": W}


def photograph(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H), "gray").save(path, format="JPEG")


def put_json(path, annotations, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [image_object(i, name) for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))


def put_ood(source, annotations, names=(f"{SYNSET}_1.JPEG",), split="val"):
    put_json(source / f"{split}.json", annotations, names)
    for name in names:
        photograph(source / split / name.split("_")[0] / name)
    return source / f"{split}.json"


def put_seg(source, annotations, maps, split="val"):
    """The second archive, whose file names come from Windows; `maps` gives the whole-object map of each image."""
    names = [f"{SYNSET}_{i}.JPEG" for i in range(len(maps))]
    put_json(
        source / "annotations" / split / f"{split}.json",
        annotations,
        [f"E:\\PartImageNet\\{split}\\{name}" for name in names],
    )
    for name, values in zip(names, maps, strict=True):
        photograph(source / "images" / split / name)
        path = source / "annotations" / f"{split}_whole" / name.replace(".JPEG", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
        Image.fromarray(values).save(source / "annotations" / split / path.name)
    return source / "annotations" / f"{split}_whole"


def whole_map(**objects):
    """A map of whole objects: `c7=(x, y, w, h)` is a box of class 7."""
    values = np.full((H, W), BACKGROUND, np.uint8)
    for name, (x, y, w, h) in objects.items():
        values[y : y + h, x : x + w] = int(name[1:])
    return values


def filled(*boxes):
    pixels = np.zeros((H, W), bool)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = True
    return pixels


def read(source, split="val"):
    return list(PARTIMAGENET.open(source, split).images)


def converted(source, tmp_path):
    return written(PARTIMAGENET.open(source, "val"), tmp_path / "gt.json")


BIRD = (part(40, HEAD, (2, 3, 5, 4)), part(41, BODY, (2, 7, 9, 8), (20, 7, 3, 3)))


def test_the_whole_is_the_union_of_the_parts_where_no_map_is_distributed(tmp_path):
    put_ood(tmp_path, BIRD)
    coco, names, counts = converted(tmp_path, tmp_path)
    assert names == [f"{SYNSET}/{SYNSET}_1.JPEG"]
    whole, head, body = (coco.anns[i] for i in sorted(coco.anns))
    assert (coco.annToMask(whole) == filled((2, 3, 5, 4), (2, 7, 9, 8), (20, 7, 3, 3))).all()
    assert (coco.annToMask(head) == filled((2, 3, 5, 4))).all()
    assert (coco.annToMask(body) == filled((2, 7, 9, 8), (20, 7, 3, 3))).all()
    assert [whole["parent"], head["parent"], body["parent"]] == [None, whole["id"], whole["id"]]
    assert (whole["area"], whole["bbox"]) == (101, [2, 3, 21, 12])
    assert (counts.masks, counts.parts, counts.bad) == (3, 2, [])


def test_parts_keep_their_polygons_ids_and_categories(tmp_path):
    put_ood(tmp_path, BIRD)
    coco, _, _ = converted(tmp_path, tmp_path)
    whole, head, body = (coco.anns[i] for i in sorted(coco.anns))
    assert body["segmentation"] == [box(2, 7, 9, 8), box(20, 7, 3, 3)]
    assert [head["annotation_id"], body["annotation_id"]] == [40, 41]
    assert [a["category_id"] for a in (whole, head, body)] == [KINDS["Bird"], HEAD, BODY]
    added = [{"id": i, "name": kind, "supercategory": kind} for kind, i in KINDS.items()]
    assert coco.dataset["categories"] == [*CATEGORIES, *added]


def test_objects_of_two_kinds_in_an_image_have_a_whole_each(tmp_path):
    put_ood(tmp_path, [*BIRD, part(42, CAR_BODY, (25, 20, 8, 8))])
    [image] = read(tmp_path)
    assert [mask.category_id for mask in image.masks] == [KINDS["Bird"], KINDS["Car"], HEAD, BODY, CAR_BODY]
    assert [mask.parent for mask in image.masks] == [None, None, 0, 0, 1]


@settings(max_examples=20, deadline=None)
@given(boxes=st.lists(st.tuples(*[st.integers(0, 15)] * 2, *[st.integers(1, 12)] * 2), min_size=1, max_size=6))
def test_a_whole_is_exactly_what_its_parts_cover(tmp_path_factory, boxes):
    source = tmp_path_factory.mktemp("ood")
    put_ood(source, [part(i, HEAD if i % 2 else BODY, b) for i, b in enumerate(boxes)])
    coco, _, _ = converted(source, source)
    roots = [a for a in coco.anns.values() if a["parent"] is None]
    covered = np.any([coco.annToMask(a) for a in coco.anns.values() if a["parent"] is not None], axis=0)
    assert len(roots) == 1
    assert (coco.annToMask(roots[0]) == covered).all()


def test_maps_of_whole_objects_are_preferred_to_unions(tmp_path):
    put_seg(tmp_path, BIRD, [whole_map(c7=(1, 2, 24, 14))])
    coco, names, counts = converted(tmp_path, tmp_path)
    assert names == [f"{SYNSET}_0.JPEG"]
    whole, head, body = (coco.anns[i] for i in sorted(coco.anns))
    assert (coco.annToMask(whole) == filled((1, 2, 24, 14))).all()
    assert (whole["area"], whole["bbox"], whole["category_id"]) == (24 * 14, [1, 2, 24, 14], KINDS["Bird"])
    assert [head["parent"], body["parent"]] == [whole["id"]] * 2
    assert (counts.images, counts.parts) == (1, 2)


def test_a_part_belongs_to_the_whole_that_covers_most_of_it(tmp_path):
    annotations = [part(1, HEAD, (4, 4, 8, 4)), part(2, CAR_BODY, (8, 10, 8, 4)), part(3, BODY, (30, 25, 4, 4))]
    put_seg(tmp_path, annotations, [whole_map(c7=(0, 0, 10, 20), c90=(10, 0, 10, 20))])
    [image] = read(tmp_path)
    assert [mask.parent for mask in image.masks] == [None, None, 0, 1, None]
    assert [mask.category_id for mask in image.masks[:2]] == [KINDS["Bird"], KINDS["Car"]]


@pytest.mark.parametrize("arrange", ["ood", "annotations", "seg", "seg inside"])
def test_file_names_lead_to_the_images(tmp_path, arrange):
    if arrange == "ood":
        put_ood(tmp_path, BIRD)
    elif arrange == "annotations":
        put_json(tmp_path / "annotations" / "val.json", BIRD, [f"{SYNSET}_1.JPEG"])
        photograph(tmp_path / "images" / "val" / SYNSET / f"{SYNSET}_1.JPEG")
    else:
        put_seg(tmp_path / ("PartImageNet" if arrange == "seg inside" else ""), BIRD, [whole_map(c7=(1, 2, 24, 14))])
    dataset = PARTIMAGENET.open(tmp_path, "val")
    [image] = dataset.images
    assert (tmp_path / dataset.image_root / image.file_name).is_file()
    assert dataset.expected_images == (None if "seg" in arrange else 2957)


def test_without_images_the_paths_are_those_of_the_archive(tmp_path):
    put_json(tmp_path / "val.json", BIRD, [f"{SYNSET}_1.JPEG"])
    dataset = PARTIMAGENET.open(tmp_path, "val")
    assert (dataset.name, dataset.total, dataset.image_root, PARTIMAGENET.splits[0]) == (
        "partimagenet",
        1,
        "val",
        "val",
    )
    assert next(dataset.images).file_name == f"{SYNSET}/{SYNSET}_1.JPEG"


def test_polygons_that_enclose_nothing_are_dropped(tmp_path):
    line = {"segmentation": [[5.0, 5.0, 9.0, 9.0]], "area": 0}
    mixed = {"segmentation": [[5.0, 5.0, 9.0, 9.0], box(2, 3, 5, 4), [1.0, 2.0]], "area": 0}
    put_ood(tmp_path, [part(1, BODY, (2, 2, 3, 3), **line), part(2, HEAD, (2, 3, 5, 4), **mixed)])
    coco, _, _ = converted(tmp_path, tmp_path)
    whole, head = (coco.anns[i] for i in sorted(coco.anns))
    assert head["annotation_id"] == 2
    assert head["area"] == 20  # counted, as the file says 0
    assert (coco.annToMask(head) == filled((2, 3, 5, 4))).all()
    assert (coco.annToMask(whole) == coco.annToMask(head)).all()


def test_an_image_without_annotations_has_no_masks(tmp_path):
    put_ood(tmp_path, BIRD, names=(f"{SYNSET}_1.JPEG", f"{SYNSET}_2.JPEG"))
    assert [len(image.masks) for image in read(tmp_path)] == [3, 0]


BAD_PARTS = {
    "odd coordinates": ({"segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]]}, r"annotation 9: a polygon must"),
    "coordinates far outside": (
        {"segmentation": [[1e9, 2.0, 2e9, 4.0, 5.0, 1e9]]},
        r"annotation 9: a polygon has a coordinate",
    ),
    "no polygons": ({"segmentation": "?"}, r"annotation 9: .*polygons"),
    "no segmentation": ({"segmentation": None}, r"annotation 9: .*polygons"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_a_damaged_annotation_spoils_its_own_image_only(tmp_path, changes, reason):
    bad_part = part(9, HEAD, (2, 3, 5, 4), image_id=1, **changes)
    path = put_ood(tmp_path, [bad_part, *BIRD], names=(f"{SYNSET}_1.JPEG", f"{SYNSET}_2.JPEG"))
    good, bad = read(tmp_path)
    assert len(good.masks) == 3
    assert isinstance(bad, BadFile)
    assert bad.path == path
    with pytest.raises(ValueError, match=rf"image 1: {reason}"):
        raise ValueError(bad.reason)


@pytest.mark.parametrize("height", [0, -H, str(H), True])
def test_an_image_of_no_size_is_reported(tmp_path, height):
    path = put_ood(tmp_path, BIRD)
    data = json.loads(path.read_text())
    data["images"][0]["height"] = height
    path.write_text(json.dumps(data))
    [bad] = read(tmp_path)
    assert isinstance(bad, BadFile)
    assert "image 0: its height and width must be whole positive numbers" in bad.reason


DAMAGED_MAPS = {
    "missing": (lambda p: p.unlink(), rf"{SYNSET}_0\.png is missing"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:40]), rf"{SYNSET}_0\.png cannot be read as a picture"),
    "another size": (lambda p: Image.new("L", (W, H + 2)).save(p), rf"{SYNSET}_0\.png has size \[{H + 2}, {W}\]"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGED_MAPS.values(), ids=DAMAGED_MAPS)
def test_a_damaged_map_is_reported_and_the_others_go_on(tmp_path, damage, reason):
    annotations = [*BIRD, part(50, HEAD, (2, 3, 5, 4), image_id=1)]
    maps = put_seg(tmp_path, annotations, [whole_map(c7=(1, 2, 24, 14))] * 2)
    damage(maps / f"{SYNSET}_0.png")
    bad, good = read(tmp_path)
    assert isinstance(bad, BadFile)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)
    assert (good.id, len(good.masks)) == (1, 2)


def test_a_map_of_an_object_whose_parts_are_missing_is_reported(tmp_path):
    put_seg(tmp_path, [], [whole_map(c7=(1, 2, 24, 14))])
    [bad] = read(tmp_path)
    assert bad.reason.endswith("no part is annotated")


def test_an_annotation_file_that_is_no_json_is_an_error(tmp_path):
    put_ood(tmp_path, BIRD).write_text("{")
    with pytest.raises(DatasetError, match=r"val\.json"):
        PARTIMAGENET.open(tmp_path, "val")


def test_another_folder_is_an_error_that_names_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError, match=r"val\.json or .*annotations/val/val\.json"):
        PARTIMAGENET.open(tmp_path, "val")
