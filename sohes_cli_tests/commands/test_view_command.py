"""`sohes view`: pictures or a web page of a folder, a tree of a single record, and one message for each thing that is
wrong.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from sohes_cli.commands.view import view
from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.labels.manifest import Manifest, images_entry, open_store
from sohes_cli.structures import Annotation, LabelRecord

app = typer.Typer()
app.command()(view)

H, W = 40, 60
NAMES = ["a.jpg", "sub/ö.png"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_record(name):
    annotations = []
    for i, (top, left) in enumerate([(2, 2), (8, 10)], start=1):
        mask = np.zeros((H, W), np.uint8, order="F")
        mask[top : H - top, left : W - left] = 1
        rle = coco_mask.encode(mask)
        segmentation = {"size": [H, W], "counts": rle["counts"].decode()}
        box = tuple(int(side) for side in coco_mask.toBbox(rle))
        annotations.append(Annotation(i, segmentation, int(mask.sum()), box, 1 / i, i - 1, i - 1 or None))
    return LabelRecord(name, H, W, tuple(annotations))


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def labels(tmp_path, images):
    root = tmp_path / "labels"
    store = open_store(root, Manifest("explore", images_entry(root, images), {}, {}, {}))
    for name in NAMES:
        store.write(make_record(name))
    return root


def files_below(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_folder_gives_two_pictures_an_image(tmp_path, labels):
    result = run(labels, "--out", tmp_path / "view")
    assert result.exit_code == 0
    assert "2 images" in result.output
    assert files_below(tmp_path / "view") == {
        f"{name}.{end}" for name in NAMES for end in ("overlay.jpg", "forest.png")
    }
    with Image.open(tmp_path / "view" / "a.jpg.overlay.jpg") as overlay:
        assert overlay.size == (W, H)
    with Image.open(tmp_path / "view" / "sub" / "ö.png.forest.png") as forest:
        assert forest.width > W


def test_the_images_may_lie_elsewhere(tmp_path, labels, images):
    images.rename(tmp_path / "moved")
    refused = run(labels, "--out", tmp_path / "view")
    assert isinstance(refused.exception, UsageError)
    assert "--images" in refused.exception.hint
    assert run(labels, "--out", tmp_path / "view", "--images", tmp_path / "moved").exit_code == 0


def test_a_folder_needs_a_place_for_its_pictures(labels):
    result = run(labels)
    assert isinstance(result.exception, UsageError)
    assert "--out" in result.exception.message


def test_an_image_that_is_missing_is_reported_and_the_others_are_drawn(tmp_path, labels, images):
    (images / "a.jpg").unlink()
    result = run(labels, "--out", tmp_path / "view")
    assert type(result.exception) is SohesError
    assert "1 of 2" in result.exception.message
    assert "a.jpg" in result.stderr
    assert files_below(tmp_path / "view") == {"sub/ö.png.overlay.jpg", "sub/ö.png.forest.png"}


def test_a_corrupt_record_is_reported_and_the_others_are_drawn(tmp_path, labels):
    (labels / "a.jpg.json").write_text("{")
    result = run(labels, "--out", tmp_path / "view")
    assert result.exit_code == 1
    assert "a.jpg.json is corrupt" in result.stderr
    assert len(files_below(tmp_path / "view")) == 2


def test_a_photograph_of_another_size_is_reported(tmp_path, labels, images):
    Image.new("RGB", (W, H + 1)).save(images / "a.jpg")
    result = run(labels / "a.jpg.json", "--out", tmp_path / "view")
    assert isinstance(result.exception, StoreError)
    assert "41 x 60" in result.exception.message
    assert not (tmp_path / "view").exists()


def test_a_single_record_is_printed_as_a_tree(labels):
    result = run(labels / "sub" / "ö.png.json")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("sub/ö.png  60 x 40 px, 2 masks in 1 tree")
    assert lines[1].index("#1") < lines[2].index("#2")


def test_a_single_record_with_out_is_drawn_too(tmp_path, labels):
    result = run(labels / "sub" / "ö.png.json", "--out", tmp_path / "view")
    assert result.exit_code == 0
    assert "#2" in result.output
    assert files_below(tmp_path / "view") == {"sub/ö.png.overlay.jpg", "sub/ö.png.forest.png"}


def test_a_record_outside_of_a_label_folder_needs_the_image_folder(tmp_path, labels, images):
    alone = tmp_path / "alone.json"
    alone.write_bytes((labels / "a.jpg.json").read_bytes())
    assert run(alone).exit_code == 0
    refused = run(alone, "--out", tmp_path / "view")
    assert isinstance(refused.exception, UsageError)
    assert run(alone, "--out", tmp_path / "view", "--images", images).exit_code == 0
    assert "a.jpg.forest.png" in files_below(tmp_path / "view")


def test_the_number_of_masks_is_limited_and_checked(labels):
    assert "the best 1 of 2 masks" in run(labels / "a.jpg.json", "--max-masks", 1).output
    assert run(labels / "a.jpg.json", "--max-masks", 0).exit_code == 2


def test_what_does_not_exist_or_is_no_record_is_refused(tmp_path, labels):
    assert isinstance(run(tmp_path / "nowhere").exception, UsageError)
    assert isinstance(run(tmp_path / "images", "--out", tmp_path / "view").exception, StoreError)
    for path in (labels / "manifest.json", write_coco(tmp_path / "truth.json", ["a.jpg"])):
        result = run(path)
        assert isinstance(result.exception, UsageError)
        assert "is not a label record" in result.exception.message
        assert "Delete" not in result.exception.hint, "an annotation file is no run's own to delete"


def test_html_gives_a_page_of_all_images(tmp_path, labels):
    result = run(labels, "--html", tmp_path / "report")
    assert result.exit_code == 0
    assert "a page of 2 images" in result.output
    assert str(tmp_path / "report" / "index.html") in result.output
    assert {"index.html", "data/index.js", "data/000002.js", "photos/000001.jpg"} <= files_below(tmp_path / "report")


def test_pictures_and_a_page_may_be_asked_for_at_once(tmp_path, labels, images):
    (images / "a.jpg").unlink()
    result = run(labels, "--html", tmp_path / "report", "--out", tmp_path / "view")
    assert type(result.exception) is SohesError
    assert result.exception.message == "1 of 2 images could not be shown. 1 of 2 images could not be drawn."
    assert (tmp_path / "report" / "index.html").is_file()
    assert len(files_below(tmp_path / "view")) == 2


def test_the_page_of_a_single_record_has_one_image(tmp_path, labels):
    result = run(labels / "sub" / "ö.png.json", "--html", tmp_path / "report")
    assert result.exit_code == 0
    assert "#1" not in result.output
    assert files_below(tmp_path / "report" / "photos") == {"000001.jpg"}


def test_the_longest_side_of_the_page_is_a_choice(tmp_path):
    photograph = Image.fromarray(np.zeros((100, 200, 3), np.uint8))
    (tmp_path / "images").mkdir()
    photograph.save(tmp_path / "images" / "wide.png")
    store = open_store(tmp_path / "labels", Manifest("explore", "../images", {}, {}, {}))
    store.write(LabelRecord("wide.png", 100, 200))
    assert run(tmp_path / "labels", "--html", tmp_path / "report", "--max-side", 64).exit_code == 0
    with Image.open(tmp_path / "report" / "photos" / "000001.jpg") as photo:
        assert photo.size == (64, 32)
    assert run(tmp_path / "labels", "--html", tmp_path / "report", "--max-side", 63).exit_code == 2


def write_coco(path, names):
    images = [{"id": i, "file_name": name, "height": H, "width": W} for i, name in enumerate(names)]
    segmentation = make_record("a.jpg").annotations[0].segmentation
    annotation = {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "segmentation": segmentation}
    path.write_text(json.dumps({"images": images, "annotations": [annotation], "categories": []}))
    return path


def test_a_page_against_other_labels_says_which_images_they_lack(tmp_path, labels):
    coco = write_coco(tmp_path / "truth.json", ["a.jpg", "q.jpg", "r.jpg"])
    result = run(labels, "--html", tmp_path / "report", "--against", coco)
    assert result.exit_code == 0
    assert "truth.json lacks 1 of these images and has 2 others" in result.output
    assert '"matched":1' in (tmp_path / "report" / "data" / "index.js").read_text()


def test_a_page_of_an_annotation_file_needs_the_image_folder(tmp_path, images):
    coco = write_coco(tmp_path / "truth.json", ["a.jpg"])
    refused = run(coco, "--html", tmp_path / "report")
    assert isinstance(refused.exception, UsageError)
    assert "--images" in refused.exception.hint
    assert run(coco, "--html", tmp_path / "report", "--images", images).exit_code == 0


def test_other_labels_are_of_no_use_without_a_page(tmp_path, labels):
    refused = run(labels, "--out", tmp_path / "view", "--against", labels)
    assert isinstance(refused.exception, UsageError)
    assert "--html" in refused.exception.message
    assert not (tmp_path / "view").exists()
