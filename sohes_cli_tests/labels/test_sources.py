"""Label sources: every image with its annotations from all three formats; duplicates and damage named by file."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from label_cases import annotate, rectangle

from sohes_cli.errors import DatasetError, SohesError, StoreError
from sohes_cli.labels.coco import export_coco
from sohes_cli.labels.manifest import Manifest, open_store
from sohes_cli.labels.sources import ImageEntry, open_label_source
from sohes_cli.structures import LabelRecord

H, W = 6, 8
FULL = {"size": [H, W], "counts": [0, H * W]}
MANIFEST = Manifest(
    phase="explore", images="../images", config={}, backbone={"name": "color-texture", "sha256": "0a"}, versions={}
)


def image(image_id, **values):
    return {"id": image_id, "file_name": f"{image_id}.jpg", "height": H, "width": W, **values}


def annotation(annotation_id, image_id, **values):
    return {"id": annotation_id, "image_id": image_id, "segmentation": FULL, **values}


def write(tmp_path, data, name="some.json"):
    (tmp_path / name).write_text(data if isinstance(data, str) else json.dumps(data))
    return tmp_path / name


def coco(tmp_path, images, annotations, **values):
    return write(tmp_path, {"images": images, "annotations": annotations, **values})


def loaded(source):
    """For each image its id or name, and what its annotations have as `tag`."""
    pairs = zip(source.images, source.locations, strict=True)
    return {i.file_name if i.id is None else i.id: [a.get("tag") for a in where.load()] for i, where in pairs}


def family(file_name):
    """Parents after and before their children, and ids without order."""
    corners = [(2, 2, 5, 4), (0, 0, 8, 6), (1, 1, 6, 5), (7, 5, 8, 6)]
    masks = [rectangle(*corner, (H, W)) for corner in corners]
    rows = [(4, 0.5, 9, 2), (7, 0.25, None, 0), (9, 1.0, 7, 1), (2, 0.125, None, 0)]
    annotations = tuple(annotate(m, i, p, s, lv) for m, (i, s, p, lv) in zip(masks, rows, strict=True))
    return LabelRecord(file_name, H, W, annotations)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "labels", MANIFEST)
    for name in ("sub/b.jpg", "ärger/写真.jpg", "a.jpg"):
        store.write(family(name))
    store.write(LabelRecord("empty.jpg", H, W))
    return store


def test_a_label_folder(store):
    source = open_label_source(store.root)
    assert (source.kind, source.path, source.info, source.n_annotations) == ("label folder", store.root, {}, 0)
    assert list(source.images) == [ImageEntry(None, name) for name in store.names()]
    for index, name in enumerate(store.names()):
        assert source.record(index) == store.read(name)
        assert source.locations[index].load() == store.read(name).to_json()["annotations"]
    assert str(source.images[0]) == "a.jpg"


def test_an_exported_folder_holds_the_same_records(tmp_path, store):
    export_coco(store, tmp_path / "labels.json")
    source = open_label_source(tmp_path / "labels.json")
    assert (source.kind, source.n_annotations) == ("annotation file", 12)
    assert source.info["description"].startswith("Hierarchical")
    assert [i.file_name for i in source.images] == store.names()
    first = 0
    for index, name in enumerate(store.names()):
        record, stored = source.record(index), store.read(name)
        assert (record.file_name, record.height, record.width) == (name, H, W)
        assert record.forest == stored.forest
        for old, new in zip(stored.annotations, record.annotations, strict=True):
            first += 1
            assert new.id == first
            for field in ("segmentation", "area", "bbox_xywh", "score", "level"):
                assert getattr(new, field) == getattr(old, field)


def test_annotations_are_those_of_their_image_in_file_order(tmp_path):
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat([7, -3, 0, 10**15, 5], [9, 30, 1, 4, 0])).tolist()
    annotations = [annotation(k, owner, tag=k) for k, owner in enumerate(owners)]
    expected = {i: [k for k, owner in enumerate(owners) if owner == i] for i in (-3, 0, 5, 7, 10**15)}
    source = open_label_source(coco(tmp_path, [image(i) for i in (10**15, 7, 5, 0, -3)], annotations))
    assert loaded(source) == expected
    assert [i.id for i in source.images] == list(expected)
    assert source.images[0] == ImageEntry(-3, "-3.jpg", H, W)
    results = open_label_source(write(tmp_path, annotations))
    assert (results.kind, results.n_annotations, results.info) == ("result file", 44, {})
    assert list(loaded(results).items()) == [item for item in expected.items() if item[1]]
    assert results.images[0] == ImageEntry(-3, None)
    assert str(results.images[0]) == "image -3"


def test_image_ids_of_all_kinds(tmp_path):
    ids = ["b", 3, "a", 2.5, 10**20, "3", 0, "é\n"]
    images = [image(i, file_name=f"{i!r}.jpg") for i in ids]
    annotations = [annotation(k, ids[k % 8], tag=k) for k in range(20)]
    expected = {i: [k for k in range(20) if ids[k % 8] == i] for i in (0, 2.5, 3, 10**20, "3", "a", "b", "é\n")}
    for data in ({"images": images, "annotations": annotations}, annotations):
        assert list(loaded(open_label_source(write(tmp_path, data))).items()) == list(expected.items())


def test_a_whole_number_written_as_fraction_is_the_same_id(tmp_path):
    annotations = [annotation(1, 7.0, tag="a"), annotation(2, 7, tag="b")]
    assert loaded(open_label_source(coco(tmp_path, [image(7)], annotations))) == {7: ["a", "b"]}
    assert loaded(open_label_source(write(tmp_path, annotations))) == {7: ["a", "b"]}


def test_an_id_inside_a_nested_object_does_not_count(tmp_path):
    nested = {
        "note": {"image_id": 1, "id": 5},
        "id": 6,
        "image_id": 2,
        "text": '"image_id": 1',
        "list": ["image_id", 1, 2],
    }
    data = [{**nested, "segmentation": FULL}, {**nested, "id": 7, "segmentation": FULL}]
    assert loaded(open_label_source(coco(tmp_path, [image(1), image(2)], data))) == {1: [], 2: [None, None]}


def test_files_without_masks(tmp_path):
    assert list(open_label_source(write(tmp_path, [])).images) == []
    assert list(open_label_source(coco(tmp_path, [], [])).locations) == []
    source = open_label_source(coco(tmp_path, [image(1)], []))
    assert (loaded(source), source.n_annotations) == ({1: []}, 0)
    assert source.record(0) == LabelRecord("1.jpg", H, W)


@pytest.mark.parametrize("info", [{}, {"description": "a } b", "year": {"x": []}}, None, "text", 5, [], [1]])
def test_info_of_any_kind_is_read(tmp_path, info):
    for data in (
        {"info": info, "images": [image(1)], "annotations": []},
        {"images": [image(1)], "annotations": [], "info": info},
    ):
        assert open_label_source(write(tmp_path, data)).info == (info if isinstance(info, dict) else {})


def test_lvis_names_images_by_address(tmp_path):
    url = "http://images.cocodataset.org/val2017/000000000139.jpg"
    images = [
        {"id": 139, "coco_url": url, "height": H, "width": W},
        {"id": 5, "coco_url": None, "height": H, "width": W},
    ]
    images += [{"id": 6, "file_name": "", "height": H, "width": W}, image(7, coco_url=url)]
    assert [i.file_name for i in open_label_source(coco(tmp_path, images, [])).images] == [
        "5",
        "6",
        "7.jpg",
        "val2017/000000000139.jpg",
    ]


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([image(1), image(2), image(1, file_name="x.jpg")], [], "the image id 1 more than once"),
        ([image("a"), image("a", file_name="x.jpg")], [], "the image id 'a' more than once"),
        ([image(1), image(1.0)], [], "the image id 1 more than once"),
        ([image(1), image(2, file_name="1.jpg")], [], "the image '1.jpg' more than once"),
        ([image(1)], [annotation(5, 1), annotation(6, 1), annotation(5, 1)], "the annotation id 5 more than once"),
        ([image(1), image(2)], [annotation(5, 1), annotation(5, 2)], "the annotation id 5 more than once"),
        ([image(1)], [annotation("x", 1), annotation("x", 1)], "the annotation id 'x' more than once"),
        ([image(1)], [annotation(10**20, 1)] * 2, "the annotation id 100000000000000000000 more than once"),
        ([image(1)], [annotation(5, 1), annotation(5.0, 1)], "the annotation id 5.0 more than once"),
        ([image(1)], [annotation(k // 2, 1) for k in range(10)], "the annotation id 0, 1, 2 and 2 more more than once"),
    ],
)
def test_duplicates_are_refused(tmp_path, images, annotations, message):
    path = coco(tmp_path, images, annotations)
    with pytest.raises(DatasetError) as error:
        open_label_source(path)
    assert error.value.message == f"{path} holds {message}."
    assert error.value.hint


def test_an_annotation_of_an_unlisted_image_is_named(tmp_path):
    for stray in (3, "1", 1.5, -1, 0, 10**20):
        path = coco(tmp_path, [image(1)], [annotation(5, 1), annotation(44, stray)])
        with pytest.raises(
            DatasetError, match=f"some.json: annotation 44 belongs to image {stray!r}, which the file does not list"
        ):
            open_label_source(path)


@pytest.mark.parametrize("value", [None, True, [1], {"id": 1}])
def test_ids_that_are_no_ids_are_refused(tmp_path, value):
    for path in (
        coco(tmp_path, [image(1)], [annotation(1, 1), annotation(2, value)]),
        write(tmp_path, [annotation(1, 1), annotation(2, value)]),
    ):
        with pytest.raises(DatasetError, match=r"some\.json: annotation 2 has no valid image_id"):
            open_label_source(path)
    with pytest.raises(DatasetError, match=r"some\.json: an image lacks a valid id"):
        open_label_source(coco(tmp_path, [image(1), image(value)], []))
    if value is not None:
        with pytest.raises(DatasetError, match=r"some\.json: annotation 2 has the id"):
            open_label_source(coco(tmp_path, [image(1)], [annotation(1, 1), annotation(value, 1)]))


@pytest.mark.parametrize("item", [1, "text", None, [], ["id", "image_id", 1, 2], {}])
def test_what_is_no_annotation_is_refused(tmp_path, item):
    for path in (coco(tmp_path, [image(1)], [annotation(1, 1), item]), write(tmp_path, [annotation(1, 1), item])):
        with pytest.raises(DatasetError, match=r"some\.json: annotation 2 has no valid image_id"):
            open_label_source(path)


@pytest.mark.parametrize(
    "bad",
    [
        {"id": 1, "file_name": "a.jpg", "width": W},
        {"id": 1, "file_name": "a.jpg", "height": H},
        {"file_name": "a.jpg", "height": H, "width": W},
        image(1, height=0),
        image(1, height=-6),
        image(1, width=None),
        image(1, width="wide"),
        image(1, width=[8]),
        image(1, width=float("inf")),
        image(1, width=float("nan")),
        image(1, height=46341, width=46341),
        image(1, height=10**30),
        5,
        "text",
        None,
        [1],
    ],
)
def test_images_without_id_or_size_are_refused(tmp_path, bad):
    with pytest.raises(DatasetError, match=r"some\.json: an image lacks a valid id, height or width"):
        open_label_source(coco(tmp_path, [image(2), bad], []))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "not valid JSON"),
        ("no JSON", "not valid JSON"),
        ("5", "not valid JSON"),
        ("{}", "is not a COCO annotation file: it has no list of images"),
        ('{"images": []}', "is not a COCO annotation file: it has no list of annotations"),
        ('{"images": 5, "annotations": []}', "has no list of images"),
        ('{"images": [], "annotations": null}', "has no list of annotations"),
        ('{"images": [], "annotations": {"a": {"image_id": 1}}}', "has no list of annotations"),
        ('{"images": {"a": 1}, "annotations": []}', "has no list of images"),
        ('{"images": [], "annotations": []', "ends too early"),
        ('{"images": [], "annotations": []}\n{"images": [], "annotations": []}', "expected the end of the file"),
        ('[{"image_id": 1}]\n[{"image_id": 2}]', "expected the end of the file"),
        ('[{"image_id": 1}', "ends too early"),
    ],
)
def test_files_of_other_kinds_and_damaged_ones_are_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(DatasetError, match=rf"some\.json.*({message})") as error:
        open_label_source(path)
    assert error.value.hint


def test_missing_files_and_folders_that_hold_no_labels(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.json cannot be read: No such file"):
        open_label_source(tmp_path / "none.json")
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_label_source(tmp_path)
    (tmp_path / "a.jpg.json").write_text(json.dumps(LabelRecord("a.jpg", H, W).to_json()))
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_label_source(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"annotations": 5}', '{"annotations": [5]}', "\udcff"])
def test_a_damaged_record_of_a_folder_is_named(store, text):
    path = store.record_path("a.jpg")
    path.write_bytes(text.encode(errors="surrogateescape"))
    source = open_label_source(store.root)
    for call in (source.locations[0].load, lambda: source.record(0)):
        with pytest.raises(SohesError, match=r"a\.jpg\.json"):
            call()
    path.unlink()
    with pytest.raises(DatasetError, match=r"a\.jpg\.json cannot be read"):
        source.locations[0].load()


def test_damage_inside_an_annotation_shows_when_it_is_loaded(tmp_path):
    good, bad = json.dumps(annotation(1, 1)), '{"id": 2, "image_id": 2, "x": tru}'
    source = open_label_source(write(tmp_path, f"[{good}, {bad}]"))
    assert len(source.locations[0].load()) == 1
    with pytest.raises(DatasetError, match=r"some\.json is not valid JSON"):
        source.locations[1].load()


def one_image(tmp_path, *annotations):
    return open_label_source(coco(tmp_path, [image(1)], annotations))


def test_a_record_leaves_crowds_out_and_roots_their_parts(tmp_path):
    source = one_image(
        tmp_path,
        annotation(4, 1, iscrowd=1),
        annotation(5, 1, iscrowd=0, score=0.5, parent=4),
        annotation(6, 1, parent=5, segmentation=[[0, 0, 4, 0, 4, 3, 0, 3]]),
    )
    record = source.record(0)
    assert [(a.id, a.parent, a.level, a.score, a.area, a.bbox_xywh) for a in record.annotations] == [
        (5, None, 0, 0.5, 48, (0, 0, 8, 6)),
        (6, 5, 1, 1.0, 12, (0, 0, 4, 3)),
    ]
    assert len(source.locations[0].load()) == 3


def test_annotations_without_ids_are_numbered(tmp_path):
    source = one_image(
        tmp_path, *({"image_id": 1, "segmentation": FULL, **extra} for extra in ({}, {"id": None}, {"parent": 1}))
    )
    assert [(a.id, a.parent, a.level) for a in source.record(0).annotations] == [(1, None, 0), (2, None, 0), (3, 1, 1)]


def test_ids_written_as_text_or_fraction_become_integers_with_their_parents(tmp_path):
    source = one_image(tmp_path, annotation("7", 1), annotation(8.0, 1, parent="7"), annotation(9, 1, parent=8))
    assert [(a.id, a.parent, a.level) for a in source.record(0).annotations] == [(7, None, 0), (8, 7, 1), (9, 8, 2)]


@pytest.mark.parametrize(
    "annotations",
    [
        [annotation(1, 1, parent=99)],
        [annotation(1, 1, parent=1)],
        [annotation(1, 1, parent=2), annotation(2, 1, parent=1)],
        [annotation(1, 1, parent=[1])],
        [annotation(1, 1, segmentation=None)],
        [annotation(1, 1, segmentation={"size": [W, H], "counts": [48]})],
        [annotation(1, 1, score=None)],
        [annotation(1, 1, score="high")],
        [annotation("seven", 1)],
        [annotation(float("inf"), 1)],
        [annotation(1, 1), annotation("1", 1)],
        [annotation(2, 1), {"image_id": 1, "segmentation": FULL}],
    ],
)
def test_a_record_that_contradicts_itself_is_an_error(tmp_path, annotations):
    source = one_image(tmp_path, *annotations)
    with pytest.raises(SohesError, match=r"1\.jpg"):
        source.record(0)


def test_a_segmentation_that_is_missing_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"some\.json: an annotation of 1\.jpg has no 'segmentation'"):
        one_image(tmp_path, {"id": 1, "image_id": 1}).record(0)


def test_a_result_file_has_no_records(tmp_path):
    with pytest.raises(DatasetError, match=r"some\.json does not name its images"):
        open_label_source(write(tmp_path, [annotation(1, 1)])).record(0)


def test_a_large_file_is_opened_in_a_fraction_of_the_memory_of_parsing_it(tmp_path):
    n = 60_000
    text = ",".join(
        f'{{"id":{k},"image_id":{k % 50},"score":0.5,"segmentation":{{"size":[6,8],"counts":"o1"}}}}' for k in range(n)
    )
    path = write(tmp_path, f"[{text}]")
    open_label_source(write(tmp_path, "[]", "warm.json"))  # compilation is not to be counted

    def peak(call):
        tracemalloc.start()
        call()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    source = open_label_source(path)
    assert source.n_annotations == n
    assert [a["id"] for a in source.locations[49].load()] == list(range(49, n, 50))
    assert peak(lambda: open_label_source(path)) < peak(lambda: json.loads(path.read_bytes())) / 4
