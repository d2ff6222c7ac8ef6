"""Pairing of images: by id, by name, by stem, and what is said when nothing agrees."""

from __future__ import annotations

from pathlib import Path

import pytest

from sohes_cli.errors import DatasetError, UsageError
from sohes_cli.evaluation.pairing import ImageMatch, pair_images
from sohes_cli.labels.sources import ImageEntry, LabelSource, Location


def source(kind: str, *images: tuple[int | str | None, str | None]) -> LabelSource:
    entries = [ImageEntry(i, name, 10, 10) for i, name in images]
    return LabelSource(Path(f"/{kind}"), kind, entries, [Location(Path("/"))] * len(images), {})


TRUTH = source("annotation file", (1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg"))


def test_result_file_is_paired_by_id() -> None:
    pairing = pair_images(TRUTH, source("result file", (3, None), (1, None), (9, None)))
    assert (pairing.by, pairing.partners) == (ImageMatch.id, [1, -1, 0])
    assert [i.id for i in pairing.missing] == [2]
    assert [i.id for i in pairing.unknown] == [9]


def test_annotation_file_is_paired_by_name_though_ids_differ() -> None:
    pairing = pair_images(TRUTH, source("annotation file", (1, "c.jpg"), (2, "a.jpg")))
    assert (pairing.by, pairing.partners) == (ImageMatch.name, [1, -1, 0])


def test_stems_are_tried_where_no_name_agrees() -> None:
    pairing = pair_images(TRUTH, source("label folder", (None, "val/a.png"), (None, "val/c.png")))
    assert (pairing.by, pairing.partners) == (ImageMatch.stem, [0, -1, 1])


def test_stems_are_not_tried_where_a_name_agrees() -> None:
    pairing = pair_images(TRUTH, source("label folder", (None, "a.jpg"), (None, "b.png")))
    assert (pairing.by, pairing.partners) == (ImageMatch.name, [0, -1, -1])


def test_stem_that_occurs_twice_is_refused() -> None:
    with pytest.raises(DatasetError, match="several images called 'a'"):
        pair_images(TRUTH, source("label folder", (None, "x/a.png"), (None, "y/a.png")))


def test_ids_may_be_asked_for() -> None:
    pairing = pair_images(TRUTH, source("annotation file", (2, "x.jpg")), ImageMatch.id)
    assert pairing.partners == [-1, 0, -1]


@pytest.mark.parametrize(
    ("kind", "match", "words"),
    [
        ("label folder", "id", "has no image ids"),
        ("result file", "name", "no file names"),
        ("result file", "stem", "no file names"),
    ],
)
def test_what_a_source_lacks_cannot_be_compared(kind: str, match: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pair_images(TRUTH, source(kind, (None if kind == "label folder" else 1, "a.jpg")), ImageMatch(match))


def test_nothing_in_common_shows_both_sides() -> None:
    with pytest.raises(
        DatasetError, match=r"No image id of /result file is in /annotation file: 'a', 'b' against 1, 2, 3"
    ):
        pair_images(TRUTH, source("result file", ("a", None), ("b", None)))


def test_text_and_number_are_different_ids() -> None:
    with pytest.raises(DatasetError, match="'1' against 1"):
        pair_images(TRUTH, source("result file", ("1", None)))


def test_empty_sides_are_named() -> None:
    with pytest.raises(DatasetError, match="holds no predictions"):
        pair_images(TRUTH, source("result file"))
    with pytest.raises(DatasetError, match="holds no images"):
        pair_images(source("annotation file"), source("label folder", (None, "a.jpg")))
