"""ADE20K in the layout of the 2021 release: visible pixels, parts at all levels, damaged files reported."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_cases import written
from PIL import Image

from sohes_cli.convert.ade20k import ADE20K
from sohes_cli.convert.ground_truth import BadFile
from sohes_cli.errors import DatasetError

H, W = 24, 36
SEEN, HIDDEN = 255, 128
SCENE = "urban/street"
WALL, CAR, WHEEL, SPOKE = "wall", "car, auto, automobile, machine, motorcar", "wheel", "spoke"
NAMES = {WALL: 3001, CAR: 401, WHEEL: 2978, SPOKE: 2508}


def picture(**boxes):
    """An instance mask: `seen=(top, bottom, left, right)` and likewise `hidden`."""
    values = np.zeros((H, W), np.uint8)
    for kind, (top, bottom, left, right) in boxes.items():
        values[top:bottom, left:right] = {"seen": SEEN, "hidden": HIDDEN}[kind]
    return values


def annotated(stem, object_id, name, part_of=(), has=(), level=0):
    """An object as MATLAB wrote it: an empty list for no number, a number for a list of one."""
    return {
        "id": object_id,
        "name": name,
        "name_ndx": NAMES[name],
        "hypernym": [] if level else [name, "artifact, artefact", "entity"],
        "raw_name": name.split(",")[0],
        "attributes": [],
        "depth_ordering_rank": object_id + 1,
        "occluded": [] if level else "no",
        "crop": "0",
        "parts": {"hasparts": has[0] if len(has) == 1 else has, "ispartof": part_of, "part_level": level},
        "instance_mask": f"{stem}/instance_{object_id:03d}_{stem}.png",
        "polygon": {"x": [1, 5, 5], "y": [1, 1, 5]},
        "saved_date": "25-Sep-2005 20:19:10",
    }


def put_image(source, stem, objects, masks, split="validation", encoding="utf-8", scene=SCENE):
    folder = source / "images" / "ADE" / split / scene
    (folder / stem).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H), "gray").save(folder / f"{stem}.jpg")
    Image.new("RGB", (W, H)).save(folder / f"{stem}_seg.png")
    Image.new("RGB", (W, H)).save(folder / f"{stem}_parts_1.png")
    for item in [objects] if isinstance(objects, dict) else objects:
        Image.fromarray(masks[item["id"]]).save(folder / item["instance_mask"])
    annotation = {
        "filename": f"{stem}.jpg",
        "folder": f"ADE20K_2021_17_01/images/ADE/{split}/{scene}",
        "imsize": [H, W, 3],
        "source": {"folder": "static_sun_database/s/street", "filename": "labelme_abc.jpg", "origin": "Café"},
        "scene": ["outdoor", *scene.split("/")],
        "object": objects,
    }
    (folder / f"{stem}.json").write_bytes(json.dumps({"annotation": annotation}, ensure_ascii=False).encode(encoding))
    return folder


CAR_MASKS = {
    0: picture(seen=(0, 10, 0, W)),
    2: picture(hidden=(10, 14, 4, 30), seen=(14, 22, 4, 30)),
    5: picture(seen=(18, 22, 6, 10)),
    6: picture(seen=(19, 21, 7, 9)),
    9: picture(hidden=(11, 13, 5, 9)),
}
VISIBLE = {i: mask == SEEN for i, mask in CAR_MASKS.items()}


def car_objects(stem):
    return [
        annotated(stem, 0, WALL),
        annotated(stem, 2, CAR, has=(5, 9)),
        annotated(stem, 5, WHEEL, part_of=2, has=(6,), level=1),
        annotated(stem, 6, SPOKE, part_of=5, level=2),
        annotated(stem, 9, WHEEL, part_of=2, level=1),
    ]


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "ADE20K_2021_17_01"
    put_image(source, "ADE_val_00000012", car_objects("ADE_val_00000012"), CAR_MASKS)
    return source


def read(source, split="validation"):
    return list(ADE20K.open(source, split).images)


def converted(source, tmp_path):
    return written(ADE20K.open(source, "validation"), tmp_path / "gt.json")


def test_masks_are_the_visible_pixels_of_each_object(source, tmp_path):
    coco, names, counts = converted(source, tmp_path)
    assert names == [f"{SCENE}/ADE_val_00000012.jpg"]
    assert coco.imgs == {12: {"id": 12, "file_name": names[0], "height": H, "width": W}}
    by_object = {a["object_id"]: a for a in coco.anns.values()}
    assert set(by_object) == {0, 2, 5, 6}  # nothing of 9 is seen
    for i, annotation in by_object.items():
        assert (coco.annToMask(annotation) == VISIBLE[i]).all()
        assert annotation["area"] == VISIBLE[i].sum()
    assert by_object[2]["bbox"] == [4, 14, 26, 8]
    assert (counts.masks, counts.parts, counts.bad) == (4, 2, [])


def test_parts_and_parts_of_parts_name_what_they_belong_to(source, tmp_path):
    coco, _, _ = converted(source, tmp_path)
    ids = {a["object_id"]: a["id"] for a in coco.anns.values()}
    parents = {a["object_id"]: a["parent"] for a in coco.anns.values()}
    assert parents == {0: None, 2: None, 5: ids[2], 6: ids[5]}
    assert {a["object_id"]: a["part_level"] for a in coco.anns.values()} == {0: 0, 2: 0, 5: 1, 6: 2}


def test_a_visible_parent_contains_its_part(source, tmp_path):
    coco, _, _ = converted(source, tmp_path)
    for annotation in coco.anns.values():
        if annotation["parent"] is not None:
            assert (coco.annToMask(annotation) <= coco.annToMask(coco.anns[annotation["parent"]])).all()


def test_categories_are_those_of_the_index(source, tmp_path):
    coco, _, _ = converted(source, tmp_path)
    assert {c["id"]: c["name"] for c in coco.cats.values()} == {NAMES[n]: n for n in (WALL, CAR, WHEEL, SPOKE)}
    assert {a["object_id"]: a["category_id"] for a in coco.anns.values()} == {0: 3001, 2: 401, 5: 2978, 6: 2508}


def test_the_data_set_says_where_its_images_are_and_how_many_its_authors_count(source):
    dataset = ADE20K.open(source, "validation")
    assert (dataset.name, dataset.total, dataset.image_root) == ("ade20k", 1, "images/ADE/validation")
    assert (ADE20K.splits[0], dataset.expected_images) == ("validation", 2000)
    [image] = dataset.images
    assert (source / dataset.image_root / image.file_name).is_file()


@pytest.mark.parametrize("depth", ["..", ".", "images/ADE"])
def test_the_folder_may_be_given_at_several_depths(source, depth):
    given_folder = (source / depth).resolve()
    dataset = ADE20K.open(given_folder, "validation")
    [image] = dataset.images
    assert (given_folder / dataset.image_root / image.file_name).is_file()


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_instance_masks_may_have_channels_or_a_palette(tmp_path, mode):
    folder = put_image(tmp_path, "ADE_val_00000001", [annotated("ADE_val_00000001", 0, WALL)], CAR_MASKS)
    stored = Image.fromarray(CAR_MASKS[2])
    if mode == "P":
        stored.putpalette(
            [255 - gray for gray in range(256) for _ in range(3)]
        )  # colors in the reverse order of the values
    (stored if mode == "P" else stored.convert(mode)).save(
        folder / "ADE_val_00000001/instance_000_ADE_val_00000001.png"
    )
    [image] = read(tmp_path)
    assert image.masks[0].area == VISIBLE[2].sum()


def test_files_in_latin_1_with_control_characters_are_read(tmp_path):
    item = annotated("ADE_val_00000001", 0, WALL) | {"name": "wall, café wall"}
    folder = put_image(tmp_path, "ADE_val_00000001", [item], CAR_MASKS, encoding="latin-1")
    path = folder / "ADE_val_00000001.json"
    path.write_bytes(path.read_bytes().replace(b'"raw_name": "wall"', b'"raw_name": "wall\tof a\ncaf\xe9"'))
    dataset = ADE20K.open(tmp_path, "validation")
    [image] = dataset.images
    assert image.masks[0].area == VISIBLE[0].sum()
    assert [category.name for category in dataset.categories()] == ["wall, café wall"]


def test_matlab_writes_a_list_of_one_without_brackets(tmp_path):
    put_image(tmp_path, "ADE_val_00000001", annotated("ADE_val_00000001", 0, WALL), CAR_MASKS)
    [image] = read(tmp_path)
    assert len(image.masks) == 1


def test_an_image_without_objects_has_no_masks(tmp_path):
    put_image(tmp_path, "ADE_val_00000001", [], {})
    [image] = read(tmp_path)
    assert image.masks == ()


def test_a_part_of_a_hidden_whole_goes_to_the_whole_of_that(tmp_path):
    stem = "ADE_val_00000001"
    objects = car_objects(stem)
    put_image(tmp_path, stem, objects, {**CAR_MASKS, 5: picture(hidden=(18, 22, 6, 10))})
    [image] = read(tmp_path)
    position = {mask.extra["object_id"]: p for p, mask in enumerate(image.masks)}
    assert set(position) == {0, 2, 6}
    assert image.masks[position[6]].parent == position[2]


def test_a_part_of_a_deleted_object_is_a_root(tmp_path):
    stem = "ADE_val_00000001"
    put_image(tmp_path, stem, [annotated(stem, 5, WHEEL, part_of=4, level=1)], CAR_MASKS)
    [image] = read(tmp_path)
    assert image.masks[0].parent is None


def test_images_come_in_the_order_of_their_numbers_from_all_scenes(tmp_path):
    for number, scene in ((3, "home/attic"), (1, "work/office"), (2, SCENE)):
        stem = f"ADE_val_{number:08d}"
        put_image(tmp_path, stem, [annotated(stem, 0, WALL)], CAR_MASKS, scene=scene)
    images = read(tmp_path)
    assert [(image.id, image.file_name.rpartition("/")[0]) for image in images] == [
        (1, "work/office"),
        (2, SCENE),
        (3, "home/attic"),
    ]


def test_numbers_that_occur_twice_give_way_to_positions(tmp_path):
    for stem in ("ADE_train_00000001", "ADE_frame_00000001"):
        put_image(tmp_path, stem, [annotated(stem, 0, WALL)], CAR_MASKS, split="training")
    assert [(image.id, image.file_name) for image in read(tmp_path, "training")] == [
        (1, f"{SCENE}/ADE_frame_00000001.jpg"),
        (2, f"{SCENE}/ADE_train_00000001.jpg"),
    ]


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def edited(change):
    def edit(path):
        data = json.loads(path.read_text())
        change(data["annotation"])
        path.write_text(json.dumps(data))

    return edit


STEM = "ADE_val_00000012"
DAMAGES = {
    "JSON cut short": (".json", cut, "is not JSON"),
    "no JSON": (".json", lambda p: p.unlink(), "No such file"),
    "no objects": (".json", edited(lambda a: a.pop("object")), "has no object"),
    "an object without parts": (".json", edited(lambda a: a["object"][1].pop("parts")), "has no parts"),
    "not in this layout": (".json", edited(lambda a: a.update(object=3)), "not in the data set's layout"),
    "two objects of an id": (".json", edited(lambda a: a["object"][1].update(id=0)), "two objects of the same id"),
    "a part of itself": (".json", edited(lambda a: a["object"][1]["parts"].update(ispartof=6)), "a part of itself"),
    "a part of two": (".json", edited(lambda a: a["object"][2]["parts"].update(ispartof=[0, 2])), r"\[0, 2\]"),
    "an endless number": (".json", edited(lambda a: a["object"][0].update(name_ndx=float("inf"))), "infinity"),
    "another image size": (
        ".json",
        edited(lambda a: a.update(imsize=[H, W + 1, 3])),
        rf"\[{H}, {W + 1}\].*\[{H}, {W}\]",
    ),
    "no photograph": (".jpg", lambda p: p.write_bytes(b"?"), r"ADE_val_00000012\.jpg cannot be read"),
    "no instance mask": (f"/instance_002_{STEM}.png", lambda p: p.unlink(), rf"instance_002_{STEM}\.png is missing"),
    "an instance mask cut short": (f"/instance_002_{STEM}.png", cut, rf"instance_002_{STEM}\.png cannot be read"),
    "an instance mask of another size": (
        f"/instance_002_{STEM}.png",
        lambda p: Image.new("L", (W, H + 1)).save(p),
        rf"instance_002_{STEM}\.png has size \[{H + 1}, {W}\]",
    ),
}


@pytest.mark.parametrize(("suffix", "damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_image_is_reported_and_the_others_go_on(source, suffix, damage, reason):
    good = "ADE_val_00000013"
    folder = put_image(source, good, [annotated(good, 0, WALL)], CAR_MASKS)
    damage(folder / f"{STEM}{suffix}")
    bad, after = read(source)
    assert isinstance(bad, BadFile)
    assert bad.path == folder / f"{STEM}.json"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)
    assert (after.id, len(after.masks)) == (13, 1)


def test_masks_of_another_convention_are_not_taken_for_empty_ones(tmp_path):
    put_image(
        tmp_path, "ADE_val_00000001", [annotated("ADE_val_00000001", 0, WALL)], {0: picture(seen=(0, 9, 0, 9)) // 255}
    )
    [bad] = read(tmp_path)
    assert isinstance(bad, BadFile)
    assert "no instance mask has a pixel of 255" in bad.reason


def test_another_folder_is_an_error_that_names_what_was_looked_for(tmp_path):
    with pytest.raises(
        DatasetError, match=r"images/ADE/validation or ADE20K_2021_17_01/images/ADE/validation or validation"
    ):
        ADE20K.open(tmp_path, "validation")


def test_a_folder_without_images_is_an_error(source):
    shutil.rmtree(source / "images/ADE/validation/urban")
    with pytest.raises(DatasetError, match=r"validation and its sub-folders hold no \.jpg"):
        ADE20K.open(source, "validation")


@settings(max_examples=20, deadline=None)
@given(mask=arrays.arrays(np.uint8, (H, W), elements=st.sampled_from([0, HIDDEN, SEEN])))
def test_any_mask_keeps_exactly_its_visible_pixels(tmp_path_factory, mask):
    mask[0, 0] = SEEN
    source = tmp_path_factory.mktemp("ade")
    put_image(source, "ADE_val_00000001", [annotated("ADE_val_00000001", 0, WALL)], {0: mask})
    coco, _, _ = converted(source, source)
    assert (coco.annToMask(coco.anns[1]) == (mask == SEEN)).all()
