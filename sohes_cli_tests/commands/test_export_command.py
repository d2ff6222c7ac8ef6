"""`sohes export`: what it writes, and what it refuses with which exit code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from sohes_cli.commands.export import export
from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.labels.manifest import Manifest, open_store
from sohes_cli.structures import Annotation, LabelRecord

app = typer.Typer()
app.command()(export)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def labels(tmp_path):
    store = open_store(tmp_path / "labels", Manifest("explore", "../images", {}, {}, {}))
    counts = coco_mask.encode(np.ones((4, 5), np.uint8, order="F"))["counts"].decode()
    annotation = Annotation(1, {"size": [4, 5], "counts": counts}, 20, (0, 0, 5, 4), 0.5)
    for name in ["a.jpg", "sub/b.jpg"]:
        store.write(LabelRecord(name, 4, 5, (annotation,)))
    return tmp_path / "labels"


def test_it_writes_the_file_and_says_how_much(tmp_path, labels):
    out = tmp_path / "new" / "labels.json"
    result = run(labels, "--format", "coco", "--out", out)
    assert result.exit_code == 0
    assert "2 images, 2 masks" in result.output
    assert [image["file_name"] for image in json.loads(out.read_text())["images"]] == ["a.jpg", "sub/b.jpg"]


def test_a_file_that_exists_is_replaced_only_when_asked(tmp_path, labels):
    out = tmp_path / "labels.json"
    out.write_text("mine")
    refused = run(labels, "--out", out)
    assert isinstance(refused.exception, StoreError)
    assert "--overwrite" in refused.exception.hint
    assert out.read_text() == "mine"
    assert run(labels, "--out", out, "--overwrite").exit_code == 0
    assert len(json.loads(out.read_text())["images"]) == 2


def test_an_unknown_format_or_a_missing_option_is_wrong_usage(tmp_path, labels):
    assert run(labels, "--format", "yolo", "--out", tmp_path / "x.json").exit_code == 2
    assert run(labels).exit_code == 2
    assert run("--out", tmp_path / "x.json").exit_code == 2


def test_the_label_folder_is_no_place_for_the_file(labels):
    for out in [labels / "labels.json", labels / "sub" / ".." / "labels.json"]:
        result = run(labels, "--out", out)
        assert isinstance(result.exception, UsageError)
        assert not out.exists()


def test_a_folder_is_no_file(tmp_path, labels):
    assert isinstance(run(labels, "--out", tmp_path, "--overwrite").exception, UsageError)


def test_a_folder_without_labels_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    for folder in ["other", "nowhere"]:
        result = run(tmp_path / folder, "--out", tmp_path / "labels.json")
        assert isinstance(result.exception, StoreError)
        assert "is no label folder" in result.exception.message
    assert not (tmp_path / "labels.json").exists()


def test_a_corrupt_record_is_named_and_nothing_is_left(tmp_path, labels):
    (labels / "sub" / "b.jpg.json").write_text('{"image"')
    result = run(labels, "--out", tmp_path / "labels.json")
    assert isinstance(result.exception, SohesError)
    assert result.exception.exit_code == 1
    assert "b.jpg.json" in result.exception.message
    assert {path.name for path in tmp_path.iterdir()} == {"labels"}
