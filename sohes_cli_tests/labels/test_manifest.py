"""The manifest: a store continues only with the settings it was made with, and nothing but its own files is ever
removed.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.labels.manifest import Manifest, image_folder, images_entry, open_store, read_manifest
from sohes_cli.labels.store import LabelStore
from sohes_cli.structures import LabelRecord

MANIFEST = Manifest(
    phase="explore",
    images="../images",
    config={"backbone": "color-texture", "merging": {"thresholds": (0.6, 0.5), "small": 0.01}, "seed": None},
    backbone={"name": "color-texture", "sha256": "0a1b"},
    versions={"sohes": "0.1.0", "torch": "2.10"},
)


def files_below(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def snapshot(root):
    return {name: (root / name).read_bytes() for name in files_below(root)}


def filled_store(root, names=("a.jpg", "sub/b.jpg", "sub/deep/c.jpg")):
    store = open_store(root, MANIFEST)
    for name in names:
        store.write(LabelRecord(name, 2, 3))
    return store


def test_a_manifest_is_read_back(tmp_path):
    open_store(tmp_path / "new" / "labels", MANIFEST)
    there = read_manifest(tmp_path / "new" / "labels")
    assert there == Manifest.from_json(json.loads(json.dumps(MANIFEST.to_json())))
    data = json.loads((tmp_path / "new" / "labels" / "manifest.json").read_text())
    assert (data["format"], data["format_version"]) == ("sohes-labels", 1)
    assert files_below(tmp_path) == {"new/labels/manifest.json"}


def test_opening_again_changes_nothing(tmp_path):
    filled_store(tmp_path)
    before = snapshot(tmp_path)
    store = open_store(tmp_path, MANIFEST)
    assert store.names() == ["a.jpg", "sub/b.jpg", "sub/deep/c.jpg"]
    assert snapshot(tmp_path) == before


def test_other_versions_continue_the_store_and_keep_its_manifest(tmp_path):
    open_store(tmp_path, MANIFEST)
    open_store(tmp_path, replace(MANIFEST, versions={"sohes": "9"}))
    assert read_manifest(tmp_path).versions == MANIFEST.versions


DIFFERENCES = {
    "a list": (
        replace(MANIFEST, config={**MANIFEST.config, "merging": {"thresholds": [0.6], "small": 0.01}}),
        ["merging.thresholds ([0.6, 0.5] there, [0.6] now)"],
    ),
    "two settings": (
        replace(MANIFEST, config={**MANIFEST.config, "merging": {"thresholds": [0.6, 0.5], "small": 0.02}, "seed": 1}),
        ["merging.small (0.01 there, 0.02 now)", "seed (null there, 1 now)"],
    ),
    "a setting that is new": (
        replace(MANIFEST, config={**MANIFEST.config, "refine": {"kind": "crf"}}),
        ['refine.kind (not set there, "crf" now)'],
    ),
    "a setting that is gone": (
        replace(MANIFEST, config={"backbone": "color-texture", "merging": MANIFEST.config["merging"]}),
        ["seed (null there, not set now)"],
    ),
    "the backbone setting": (
        replace(MANIFEST, config={**MANIFEST.config, "backbone": "vit"}),
        ['backbone ("color-texture" there, "vit" now)'],
    ),
    "the weights": (
        replace(MANIFEST, backbone={"name": "color-texture", "sha256": "ffff"}),
        ['backbone.sha256 ("0a1b" there, "ffff" now)'],
    ),
    "the images": (replace(MANIFEST, images="../others"), ['images ("../images" there, "../others" now)']),
    "the phase": (replace(MANIFEST, phase="correct"), ['phase ("explore" there, "correct" now)']),
}


@pytest.mark.parametrize(("other", "lines"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_each_setting_that_differs_is_named_with_both_values(tmp_path, other, lines):
    filled_store(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path, other)
    assert caught.value.message.partition("other settings: ")[2] == f"{', '.join(lines)}."
    assert "--overwrite" in caught.value.hint
    assert "--out" in caught.value.hint
    assert snapshot(tmp_path) == before


def test_overwrite_starts_anew_and_removes_only_records_and_the_manifest(tmp_path):
    filled_store(tmp_path)
    kept = {"notes.txt": "mine", "sub/picture.png": "mine", "view/a.jpg.overlay.jpg": "mine", ".hidden.json": "{}"}
    for name, text in kept.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "sub/deep/.sohes-0011223344556677.tmp").write_text("half a record")
    other = replace(MANIFEST, images="../others")
    store = open_store(tmp_path, other, overwrite=True)
    assert store.names() == []
    assert read_manifest(tmp_path).images == "../others"
    assert files_below(tmp_path) == {"manifest.json", *kept}
    assert not (tmp_path / "sub/deep").exists()


def test_overwrite_of_nothing_starts_a_store(tmp_path):
    assert open_store(tmp_path / "labels", MANIFEST, overwrite=True).names() == []


def test_overwrite_removes_records_that_a_failing_disk_cut_short(tmp_path):
    store = filled_store(tmp_path)
    store.record_path("a.jpg").write_bytes(b"")
    store.record_path("sub/b.jpg").write_bytes(b'{"image":{"fi')
    assert open_store(tmp_path, MANIFEST, overwrite=True).names() == []


@pytest.mark.parametrize("content", ['{"info": {}, "images": []}', '{"image":{"file_name":"another.jpg"}}', "[1]"])
def test_overwrite_stops_before_json_files_that_are_no_records(tmp_path, content):
    filled_store(tmp_path)
    (tmp_path / "sub/exported.json").write_text(content)
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match=r"sub/exported\.json is not a label record; nothing was removed"):
        open_store(tmp_path, MANIFEST, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("other", ["thesis.doc", "photos/a.jpg", "a.jpg.json"])
def test_a_folder_of_other_files_is_left_alone(tmp_path, other, overwrite):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("mine")
    with pytest.raises(StoreError, match="is no label folder") as caught:
        open_store(tmp_path, MANIFEST, overwrite)
    assert other in caught.value.message
    assert snapshot(tmp_path) == {other: b"mine"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ['{"name": "web app"}', "[]", "{", ""])
def test_a_manifest_of_another_kind_is_left_alone(tmp_path, content, overwrite):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        open_store(tmp_path, MANIFEST, overwrite)
    assert snapshot(tmp_path) == {"manifest.json": content.encode()}


def test_hidden_files_and_empty_folders_do_not_matter(tmp_path):
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "empty").mkdir()
    assert open_store(tmp_path, MANIFEST).names() == []


def test_a_root_that_is_a_file_is_wrong_usage(tmp_path):
    (tmp_path / "labels").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        open_store(tmp_path / "labels", MANIFEST)
    with pytest.raises(StoreError, match="cannot be written"):
        open_store(tmp_path / "labels" / "below", MANIFEST)


def test_a_full_disk_leaves_no_manifest(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left"):
        open_store(tmp_path, MANIFEST)
    assert not list(tmp_path.iterdir())


def test_another_format_version_is_refused_and_can_be_overwritten(tmp_path):
    data = MANIFEST.to_json() | {"format_version": 2}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(StoreError, match="format_version: 2 there, 1 now"):
        open_store(tmp_path, MANIFEST)
    open_store(tmp_path, MANIFEST, overwrite=True)
    assert json.loads((tmp_path / "manifest.json").read_text())["format_version"] == 1


@pytest.mark.parametrize("key", ["phase", "images", "config", "backbone", "versions"])
def test_an_incomplete_manifest_is_damaged(tmp_path, key):
    data = MANIFEST.to_json()
    del data[key]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(StoreError, match=f"damaged.*{key}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_a_folder_without_manifest_says_how_to_make_one(tmp_path, root):
    with pytest.raises(StoreError, match="is no label folder") as caught:
        read_manifest(tmp_path / root)
    assert "sohes explore" in caught.value.hint


def start_together(root, manifests):
    barrier = threading.Barrier(len(manifests))

    def start(manifest):
        barrier.wait()
        try:
            store = open_store(root, manifest)
            store.write(LabelRecord(f"{threading.get_ident()}.jpg", 2, 3))
        except StoreError as error:
            return error.message
        return manifest.images

    with ThreadPoolExecutor(len(manifests)) as pool:
        return list(pool.map(start, manifests))


@pytest.mark.parametrize("folder", ["labels", "new/labels", "new/deep/labels"])
def test_of_runs_that_start_together_the_first_manifest_wins_whole(tmp_path, folder):
    root = tmp_path / folder
    manifests = [replace(MANIFEST, images=f"../images{i}") for i in range(8)]
    results = start_together(root, manifests)
    winner = read_manifest(root).images
    assert results.count(winner) == 1
    assert all(result == winner or f'"{winner}" there' in result for result in results)
    assert len(files_below(root)) == 2


def test_equal_runs_that_start_together_all_get_the_store(tmp_path):
    assert start_together(tmp_path, [MANIFEST] * 8) == [MANIFEST.images] * 8
    assert len(files_below(tmp_path)) == 9


def test_a_file_system_without_links_works_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    open_store(tmp_path, MANIFEST)
    assert files_below(tmp_path) == {"manifest.json"}
    with pytest.raises(StoreError, match="other settings"):
        open_store(tmp_path, replace(MANIFEST, phase="correct"))


def test_the_image_folder_is_found_again_after_both_have_moved(tmp_path):
    root, images = tmp_path / "run" / "labels", tmp_path / "photos"
    entry = images_entry(root, images)
    assert entry == "../../photos"
    manifest = replace(MANIFEST, images=entry)
    assert image_folder(root, manifest) == images
    assert image_folder(Path("/elsewhere/run/labels"), manifest) == Path("/elsewhere/photos")


def test_the_image_folder_is_found_through_a_linked_label_folder(tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "labels").symlink_to(tmp_path / "far" / "away")
    entry = images_entry(tmp_path / "labels", tmp_path / "images")
    assert image_folder(tmp_path / "labels", replace(MANIFEST, images=entry)) == tmp_path / "images"


def test_opening_returns_the_store_of_the_root(tmp_path):
    store = open_store(tmp_path, MANIFEST)
    assert isinstance(store, LabelStore)
    assert store.root == tmp_path
