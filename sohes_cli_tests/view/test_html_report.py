"""Files of the HTML report: content as in the records, whatever the names; files of others untouched."""

from __future__ import annotations

import json
import math
from importlib.resources import files

import label_cases
import numpy as np
import pytest
from label_cases import annotate
from PIL import Image

from sohes_cli.errors import DatasetError, StoreError, UsageError
from sohes_cli.labels.manifest import Manifest, open_store
from sohes_cli.masks.rle import decode_mask
from sohes_cli.structures import Annotation, LabelRecord
from sohes_cli.view import html_report
from sohes_cli.view.html_image import files_of_image, script_call
from sohes_cli.view.html_report import open_labels, write_report

H, W = 40, 60
NAMES = ["a.png", "sub/a.png", 'sub/ü "b" #1 50%.png', "x<!--/y<b>.png", "z</script>.png"]


def rectangle(left, top, right, bottom, size=(H, W)):
    return label_cases.rectangle(left, top, right, bottom, size)


def make_record(name):
    whole, part, other = rectangle(2, 2, 40, 38), rectangle(5, 5, 20, 20), rectangle(45, 10, 58, 30)
    return LabelRecord(
        name, H, W, (annotate(whole, 4, score=0.9), annotate(part, 7, 4, 0.25, 1), annotate(other, 9, score=0.125))
    )


def make_store(root, records):
    store = open_store(root, Manifest("explore", "images", {}, {}, {}))
    for record in records:
        store.write(record)
    return root


def save_photograph(images, name, height=H, width=W):
    path = images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)


@pytest.fixture
def images(tmp_path):
    for name in NAMES:
        save_photograph(tmp_path / "images", name)
    return tmp_path / "images"


@pytest.fixture
def labels(tmp_path):
    return open_labels(make_store(tmp_path / "labels", map(make_record, NAMES)))


def argument_of(script):
    text = script.decode("ascii")
    return json.loads(text[text.index("(") + 1 : text.rindex(")")])


def index_of(report):
    return argument_of((report / "data/index.js").read_bytes())


def files_below(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_report_has_a_page_an_index_and_three_files_an_image(tmp_path, labels, images):
    summary = write_report(labels, images, tmp_path / "report", 1280, 60)
    assert (summary.n_written, summary.n_failed) == (5, 0)
    numbers = [f"{n:06d}" for n in range(1, 6)]
    found = {name for name in files_below(tmp_path / "report") if not name.startswith("assets/")}
    assert found == {"index.html", "report.json", "data/index.js"} | {
        f"{folder}/{n}.{end}" for n in numbers for folder, end in [("photos", "jpg"), ("thumbs", "jpg"), ("data", "js")]
    }
    index = index_of(tmp_path / "report")
    assert [image["file_name"] for image in index["images"]] == sorted(NAMES)
    assert all((image["masks"], image["trees"], image["depth"]) == (3, 2, 2) for image in index["images"])
    assert index["sets"] == ["labels"]
    assert index["max_masks"] == 60


def test_every_asset_that_the_page_names_is_there(tmp_path, labels, images):
    write_report(labels, images, tmp_path / "report", 1280, 60)
    page = (tmp_path / "report/index.html").read_text()
    named = {part.split('"')[0] for part in page.replace('href="', 'src="').split('src="')[1:]} - {"data:,"}
    assert named == {f"assets/{path.name}" for path in (tmp_path / "report/assets").iterdir()}
    assert "http" not in page


def test_no_name_of_a_file_reaches_html_or_ends_a_script(tmp_path, labels, images):
    write_report(labels, images, tmp_path / "report", 1280, 60)
    assert (tmp_path / "report/index.html").read_bytes() == (
        files("sohes_cli.view") / "html" / "report.html"
    ).read_bytes()
    for path in (tmp_path / "report/data").iterdir():
        assert b"<" not in path.read_bytes()
        assert path.read_bytes().isascii()
        assert path.read_bytes().count(b"\n") == 1


def test_a_script_is_one_call_with_the_object_that_went_in():
    value = {"</script>": "\u2028 ' \" \\ <!-- \U0001f600", "n": [1, 2.5, None]}
    script = script_call("receive", value)
    assert script.startswith(b"receive({")
    assert script.endswith(b"});\n")
    assert argument_of(script) == value


def test_the_data_of_an_image_is_that_of_its_record(images):
    record = make_record("a.png")
    made = files_of_image(12, record, None, images, 1280)
    data = argument_of(made.files["data/000012.js"])
    assert data["file_name"] == "a.png"
    assert (data["height"], data["width"], data["shown"], data["photo"]) == (H, W, [H, W], "photos/000012.jpg")
    assert data["pairs"] == []
    (side,) = data["sides"]
    for found, annotation in zip(side["masks"], record.to_json()["annotations"], strict=True):
        assert {key: found[key] for key in ("id", "parent", "area", "bbox", "score")} == {
            key: annotation[key] for key in ("id", "parent", "area", "bbox", "score")
        }
        assert found["counts"] == annotation["segmentation"]["counts"]


def test_a_large_photograph_and_its_masks_are_reduced_but_not_its_numbers(tmp_path):
    save_photograph(tmp_path, "large.png", 300, 400)
    mask = rectangle(100, 60, 300, 240, (300, 400))
    record = LabelRecord("large.png", 300, 400, (annotate(mask, 1),))
    made = files_of_image(1, record, None, tmp_path, 100)
    data = argument_of(made.files["data/000001.js"])
    (tmp_path / "photo.jpg").write_bytes(made.files["photos/000001.jpg"])
    with Image.open(tmp_path / "photo.jpg") as photo:
        width, height = photo.size
    assert data["shown"] == [height, width] == [75, 100]
    assert (data["height"], data["width"]) == (300, 400)
    shown = data["sides"][0]["masks"][0]
    assert (shown["area"], shown["bbox"]) == (200 * 180, [100, 60, 200, 180])
    assert decode_mask({"size": [height, width], "counts": shown["counts"]}).mean() == pytest.approx(
        mask.mean(), abs=0.02
    )


@pytest.mark.parametrize("side", [64, 100, 333])
def test_a_panorama_keeps_to_the_longest_side(tmp_path, side):
    save_photograph(tmp_path, "wide.png", 20, 2000)
    made = files_of_image(1, LabelRecord("wide.png", 20, 2000), None, tmp_path, side)
    assert max(argument_of(made.files["data/000001.js"])["shown"]) == side


def test_what_is_wrong_with_an_image_is_reported_and_the_others_go_on(tmp_path, labels, images, capsys):
    (images / "a.png").unlink()
    (labels.path / "sub/a.png.json").write_text("{")
    Image.new("RGB", (W, H + 1)).save(images / NAMES[2])
    summary = write_report(labels, images, tmp_path / "report", 1280, 60)
    assert (summary.n_written, summary.n_failed) == (2, 3)
    error = capsys.readouterr().err
    assert "a.png: " in error
    assert "sub/a.png.json is corrupt" in error
    assert f"{NAMES[2]} is 41 x 60 pixels" in error
    shown = [image["number"] for image in index_of(tmp_path / "report")["images"]]
    assert [labels.names[n - 1] for n in shown] == NAMES[3:]
    assert len(files_below(tmp_path / "report/photos")) == 2


@pytest.mark.parametrize(("counts", "score"), [("é", 0.5), ("0", 0.5), (None, math.nan)])
def test_a_damaged_mask_is_named(images, counts, score):
    whole = annotate(rectangle(0, 0, 5, 5), 8, score=score)
    segmentation = whole.segmentation if counts is None else {"size": [H, W], "counts": counts}
    record = LabelRecord("a.png", H, W, (Annotation(8, segmentation, 25, (0, 0, 5, 5), score),))
    with pytest.raises(StoreError, match=r"a\.png are corrupt: annotation 8"):
        files_of_image(1, record, None, images, 1280)


def test_a_second_report_replaces_the_first_and_nothing_else(tmp_path, labels, images):
    report = tmp_path / "report"
    write_report(labels, images, report, 1280, 60)
    for name in ("notes.txt", "data/notes.txt", "photos/mine.jpg"):
        (report / name).write_text("mine")
    few = open_labels(make_store(tmp_path / "few", [make_record("sub/a.png")]))
    write_report(few, images, report, 1280, 60)
    assert [image["file_name"] for image in index_of(report)["images"]] == ["sub/a.png"]
    assert files_below(report / "data") == {"000001.js", "index.js", "notes.txt"}
    assert files_below(report / "photos") == {"000001.jpg", "mine.jpg"}
    assert (report / "notes.txt").read_text() == "mine"


def test_a_wrong_image_folder_is_refused_before_a_report_is_replaced(tmp_path, labels, images):
    write_report(labels, images, tmp_path / "report", 64, 60)
    before = sorted((tmp_path / "report").rglob("*"))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match=r"elsewhere holds none of the 5 images of .*labels"):
        write_report(labels, tmp_path / "elsewhere", tmp_path / "report", 64, 60)
    assert sorted((tmp_path / "report").rglob("*")) == before


def test_a_folder_of_another_kind_is_refused_and_left_alone(tmp_path, labels, images):
    before = files_below(images)
    with pytest.raises(UsageError, match="no report"):
        write_report(labels, images, images, 1280, 60)
    assert files_below(images) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        write_report(labels, images, tmp_path / "file", 1280, 60)
    with pytest.raises(UsageError, match="no image folder"):
        write_report(labels, tmp_path / "nowhere", tmp_path / "report", 1280, 60)
    assert not (tmp_path / "report").exists()


def test_an_interrupted_run_leaves_no_page_and_the_next_one_completes_it(tmp_path, labels, images, monkeypatch):
    report = tmp_path / "report"
    write_report(labels, images, report, 1280, 60)
    whole = {name: (report / name).read_bytes() for name in files_below(report)}

    def interrupt(number, *arguments):
        if number == 3:
            raise KeyboardInterrupt
        return files_of_image(number, *arguments)

    monkeypatch.setattr(html_report, "files_of_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(labels, images, report, 1280, 60)
    assert not (report / "index.html").exists()
    assert not (report / "data/index.js").exists()
    monkeypatch.undo()
    write_report(labels, images, report, 1280, 60)
    assert {name: (report / name).read_bytes() for name in files_below(report)} == whole


def shifted_record(name):
    """Masks 4 and 9 of `make_record` moved a little or not at all, its part missing, and one that is new."""
    masks = [rectangle(45, 10, 58, 30), rectangle(4, 2, 42, 38), rectangle(0, 39, 60, 40)]
    return LabelRecord(name, H, W, tuple(annotate(mask, i + 1) for i, mask in enumerate(masks)))


def test_masks_of_two_sets_are_paired_by_iou_each_once(images):
    made = files_of_image(1, make_record("a.png"), shifted_record("a.png"), images, 1280)
    pairs = argument_of(made.files["data/000001.js"])["pairs"]
    assert [(i, j) for i, j, _ in pairs] == [(2, 0), (0, 1)]
    assert pairs[0][2] == 1
    assert pairs[1][2] == pytest.approx(36 / 40, abs=1e-4)
    assert made.entry["matched"] == 2
    assert made.entry["other"] == {"masks": 3, "trees": 3, "depth": 1}


def test_many_masks_are_paired_with_themselves(images):
    rng = np.random.default_rng(0)
    masks = rng.random((300, H, W)) < 0.3
    record = LabelRecord("a.png", H, W, tuple(annotate(mask, i + 1) for i, mask in enumerate(masks)))
    pairs = argument_of(files_of_image(1, record, record, images, 1280).files["data/000001.js"])["pairs"]
    assert sorted(pairs) == [[i, i, 1.0] for i in range(300)]


def test_images_of_two_sets_are_matched_by_their_names(tmp_path, labels, images):
    other = open_labels(
        make_store(
            tmp_path / "other", [shifted_record("sub/a.png"), LabelRecord("a.png", H, W), shifted_record("q.png")]
        )
    )
    summary = write_report(labels, images, tmp_path / "report", 1280, 60, other)
    assert (summary.n_written, summary.n_without_other, summary.n_other_only) == (5, 3, 1)
    index = index_of(tmp_path / "report")
    assert index["sets"] == ["labels", "other"]
    matched = {image["file_name"]: image.get("matched") for image in index["images"]}
    assert matched == {"a.png": 0, "sub/a.png": 2, **dict.fromkeys(NAMES[2:])}


def test_sets_of_the_same_name_get_distinct_titles(tmp_path, images):
    sets = [open_labels(make_store(tmp_path / run / "labels", [make_record("a.png")])) for run in ("one", "two")]
    write_report(sets[0], images, tmp_path / "report", 1280, 60, sets[1])
    assert index_of(tmp_path / "report")["sets"] == ["one/labels", "two/labels"]


def test_sets_without_a_common_image_are_refused_before_anything_is_written(tmp_path, labels, images):
    other = open_labels(make_store(tmp_path / "other", [make_record("b.png")]))
    with pytest.raises(DatasetError, match=r"'a\.png'.*'b\.png'"):
        write_report(labels, images, tmp_path / "report", 1280, 60, other)
    assert not (tmp_path / "report").exists()


def test_labels_of_another_size_are_refused(images):
    with pytest.raises(StoreError, match="its labels are 10 x 10"):
        files_of_image(1, make_record("a.png"), LabelRecord("a.png", 10, 10), images, 1280)


def coco_file(path, annotations):
    content = {
        "images": [{"id": 3, "file_name": "a.png", "height": H, "width": W}],
        "annotations": annotations,
        "categories": [],
    }
    path.write_text(json.dumps(content))
    return path


def test_a_coco_file_and_a_single_record_are_label_sets_too(tmp_path, labels):
    part = rectangle(5, 5, 20, 20)
    annotations = [
        {
            "id": 50 + i,
            "image_id": 3,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": annotate(mask, 1).segmentation,
            "parent": parent,
        }
        for i, (mask, parent) in enumerate([(rectangle(2, 2, 40, 38), None), (part, 50)])
    ]
    coco = open_labels(coco_file(tmp_path / "gt.json", annotations))
    assert coco.names == ("a.png",)
    assert [(a.id, a.parent, a.area) for a in coco.read(0).annotations] == [
        (50, None, 38 * 36),
        (51, 50, int(part.sum())),
    ]
    single = open_labels(labels.path / "sub/a.png.json")
    assert single.names == ("sub/a.png",)
    assert single.read(0) == make_record("sub/a.png")


def test_a_result_file_is_refused_because_it_names_no_images(tmp_path):
    result = tmp_path / "results.json"
    result.write_text(
        json.dumps(
            [
                {
                    "image_id": 1,
                    "category_id": 1,
                    "score": 0.5,
                    "segmentation": annotate(rectangle(0, 0, 5, 5), 1).segmentation,
                }
            ]
        )
    )
    with pytest.raises(DatasetError, match="result file"):
        open_labels(result)
    result.write_text("[]")
    with pytest.raises(DatasetError, match="result file"):
        open_labels(result)


def test_no_labels_at_all_give_an_empty_gallery(tmp_path, images):
    summary = write_report(open_labels(make_store(tmp_path / "none", [])), images, tmp_path / "report", 1280, 60)
    assert summary.n_written == 0
    assert index_of(tmp_path / "report")["images"] == []
