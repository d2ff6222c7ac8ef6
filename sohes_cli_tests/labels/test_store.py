"""The label store: what is written is read back, in equal bytes, whole or not at all, and under the right name."""

from __future__ import annotations

import errno
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sohes_cli.errors import StoreError
from sohes_cli.labels.store import LabelStore, read_record, record_head, visible_files
from sohes_cli.runs.files import write_atomically
from sohes_cli.structures import Annotation, LabelRecord

WHOLE = {"size": [2, 3], "counts": "06"}  # all six pixels


def make_record(file_name, score=0.5, n=2):
    annotations = [Annotation(1, WHOLE, 6, (0, 0, 3, 2), score)]
    annotations += [Annotation(i, WHOLE, 6, (0, 0, 3, 2), score / i, level=1, parent=1) for i in range(2, n + 1)]
    return LabelRecord(file_name, 2, 3, tuple(annotations))


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "sub/deep/a.png", "Straße/写真 1.jpeg", "no_suffix", 'quo"te\\.jpg', "sub/manifest", "ä" * 120 + ".jpg"],
)
def test_a_record_is_read_back_as_written(tmp_path, name):
    store = LabelStore(tmp_path)
    record = make_record(name)
    assert not store.has(name)
    store.write(record)
    assert store.has(name)
    assert store.read(name) == record
    assert store.names() == [name]
    assert store.record_path(name) == tmp_path / f"{name}.json"


@given(score=st.floats(0, 1), n=st.integers(1, 5))
def test_scores_survive_bit_for_bit_and_equal_records_give_equal_bytes(tmp_path_factory, score, n):
    stores = [LabelStore(tmp_path_factory.mktemp("store")) for _ in range(2)]
    for store in stores:
        store.write(make_record("a.jpg", score, n))
    first, second = (store.record_path("a.jpg").read_bytes() for store in stores)
    assert first == second
    assert [a.score for a in stores[0].read("a.jpg").annotations] == [
        a.score for a in make_record("a.jpg", score, n).annotations
    ]


def test_the_bytes_are_compact_utf8_with_a_final_newline(tmp_path):
    LabelStore(tmp_path).write(LabelRecord("ö.jpg", 2, 3, ()))
    expected = '{"image":{"file_name":"ö.jpg","height":2,"width":3},"annotations":[]}\n'
    assert (tmp_path / "ö.jpg.json").read_bytes() == expected.encode()
    assert expected.encode().startswith(record_head("ö.jpg"))


def test_equal_stems_and_equal_names_in_other_folders_do_not_meet(tmp_path):
    store = LabelStore(tmp_path)
    names = ["a.jpg", "a.png", "b/a.jpg", "c/a.jpg", "B.jpg"]
    for i, name in enumerate(names):
        store.write(make_record(name, score=i / 10))
    assert store.names() == sorted(names)
    assert [record.file_name for record in store] == sorted(names)
    assert store.read("b/a.jpg").annotations[0].score == 0.2


def test_writing_again_replaces_the_record(tmp_path):
    store = LabelStore(tmp_path)
    store.write(make_record("a.jpg", n=5))
    store.write(make_record("a.jpg", n=1))
    assert len(store.read("a.jpg").annotations) == 1


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/a.jpg",
        "../a.jpg",
        "a/../b.jpg",
        "./a.jpg",
        "a//b.jpg",
        ".a.jpg",
        "a/.b/c.jpg",
        "a\0.jpg",
        "manifest",
        "\udcff.jpg",
    ],
)
def test_names_that_would_leave_the_store_or_not_be_listed_are_refused(tmp_path, name):
    store = LabelStore(tmp_path / "store")
    with pytest.raises(StoreError, match="cannot name a label record"):
        store.record_path(name)
    with pytest.raises(StoreError):
        store.write(make_record(name))
    assert not list(tmp_path.iterdir())


def test_hidden_files_and_the_manifest_are_no_records(tmp_path):
    store = LabelStore(tmp_path)
    store.write(make_record("a.jpg"))
    for other in ["manifest.json", "._a.jpg.json", ".cache/b.jpg.json", "notes.txt", "sub/.sohes-00.tmp"]:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("{}")
    assert store.names() == ["a.jpg"]
    assert set(visible_files(tmp_path)) == {"a.jpg.json", "manifest.json", "notes.txt"}


def test_iteration_reads_one_record_at_a_time(tmp_path):
    store = LabelStore(tmp_path)
    store.write(make_record("a.jpg"))
    store.write(make_record("b.jpg"))
    store.record_path("b.jpg").write_text("{")
    records = iter(store)
    assert next(records).file_name == "a.jpg"
    with pytest.raises(StoreError, match=r"b\.jpg\.json"):
        next(records)


BROKEN = {
    "cut short": lambda text: text[:-20],
    "empty": lambda _: "",
    "a list": lambda _: "[]",
    "a string": lambda _: '"record"',
    "nested without end": lambda _: "[" * 200_000,
    "no image": lambda text: text.replace('"image"', '"picture"'),
    "size of one number": lambda text: text.replace('"size":[2,3]', '"size":[2]', 1),
    "size without numbers": lambda text: text.replace('"size":[2,3]', '"size":[]', 1),
    "another size": lambda text: text.replace('"size":[2,3]', '"size":[2,4]', 1),
    "infinite area": lambda text: text.replace('"area":6', '"area":Infinity', 1),
    "unknown parent": lambda text: text.replace('"parent":1', '"parent":9', 1),
    "a parent cycle": lambda text: text.replace('"parent":null', '"parent":2', 1),
    "an id twice": lambda text: text.replace('"id":2', '"id":1', 1),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_corrupt_record_is_named(tmp_path, damage):
    store = LabelStore(tmp_path)
    store.write(make_record("sub/a.jpg"))
    path = store.record_path("sub/a.jpg")
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(StoreError) as caught:
        store.read("sub/a.jpg")
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_record_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "a.jpg.json"
    path.write_bytes(b'{"image":{"file_name":"\xff"}}')
    with pytest.raises(StoreError, match=r"a\.jpg\.json is corrupt"):
        read_record(path)


def test_a_record_under_the_name_of_another_image_is_refused(tmp_path):
    store = LabelStore(tmp_path)
    store.write(make_record("a.jpg"))
    store.record_path("a.jpg").rename(store.record_path("b.jpg"))
    assert read_record(tmp_path / "b.jpg.json").file_name == "a.jpg"
    with pytest.raises(StoreError, match=r"should be the record of 'b\.jpg', but belongs to 'a\.jpg'"):
        store.read("b.jpg")


def test_missing_records_and_folders_are_reported(tmp_path):
    with pytest.raises(StoreError, match=r"a\.jpg\.json cannot be read: No such file"):
        LabelStore(tmp_path).read("a.jpg")
    with pytest.raises(StoreError, match="nowhere cannot be listed"):
        LabelStore(tmp_path / "nowhere").names()


def test_a_full_disk_is_reported_and_leaves_the_old_record(tmp_path, monkeypatch):
    store = LabelStore(tmp_path)
    store.write(make_record("a.jpg"))
    before = store.record_path("a.jpg").read_bytes()

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    for name in ["a.jpg", "b.jpg"]:
        with pytest.raises(StoreError, match=rf"{name}\.json cannot be written: No space left"):
            store.write(make_record(name, score=0.9))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg.json"]
    assert store.record_path("a.jpg").read_bytes() == before


def test_a_path_that_is_blocked_by_a_file_is_reported(tmp_path):
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be written"):
        LabelStore(tmp_path).write(make_record("sub/a.jpg"))
    with pytest.raises(StoreError, match=r"cannot be written: File name too long"):
        LabelStore(tmp_path).write(make_record("x" * 254))


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def chunks():
        yield b"half"
        raise StoreError("the second half is corrupt")

    with pytest.raises(StoreError, match="second half"):
        write_atomically(tmp_path / "file.json", chunks())
    assert not list(tmp_path.iterdir())


def test_the_leftover_of_a_killed_writer_is_replaced(tmp_path, monkeypatch):
    store = LabelStore(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(type(tmp_path), "replace", lambda *_: sys.exit(9))
        killed.setattr(type(tmp_path), "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            store.write(make_record("a.jpg"))
    assert len(list(tmp_path.iterdir())) == 1
    assert store.names() == []
    assert not store.has("a.jpg")
    store.write(make_record("a.jpg"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg.json"]


def test_a_score_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        LabelStore(tmp_path).write(make_record("a.jpg", score=float("nan")))


def test_the_layout_is_that_of_sa1b(tmp_path):
    LabelStore(tmp_path).write(make_record("a.jpg"))
    data = json.loads((tmp_path / "a.jpg.json").read_text())
    assert data["image"] == {"file_name": "a.jpg", "height": 2, "width": 3}
    assert [a["parent"] for a in data["annotations"]] == [None, 1]
    assert {"id", "segmentation", "area", "bbox", "score", "level", "parent"} == set(data["annotations"][0])
