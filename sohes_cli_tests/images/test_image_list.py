"""A list of images: only these are labeled, and paths that lead nowhere or out of the folder are reported."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sohes_cli.errors import UsageError
from sohes_cli.images.image_list import listed_images
from sohes_cli.labels.store import LabelStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_names_are_sorted_and_counted_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "\ufeffz-helmet.png\n\n  sub/flügel.png \r\na-cup.png\nz-helmet.png\n", encoding="utf-8"
    )
    listing = listed_images(photos, tmp_path / "list.txt")
    assert listing.names == ("a-cup.png", "sub/flügel.png", "z-helmet.png")
    assert listing.unreadable == ()


def test_paths_are_shortened_and_lines_end_at_line_ends_alone(photos: Path, tmp_path: Path) -> None:
    """As `find` prints them; U+2028 is a character of a name, though Python's splitlines ends a line at it."""
    (tmp_path / "list.txt").write_text("./a-cup.png\na-cup.png\nsub//nose.png\nno\u2028such.png\n", encoding="utf-8")
    listing = listed_images(photos, tmp_path / "list.txt")
    assert listing.names == ("a-cup.png", "sub/nose.png")
    assert [name for name, _ in listing.unreadable] == ["no\u2028such.png"]


def test_paths_that_lead_nowhere_or_outside_are_named(photos: Path, tmp_path: Path) -> None:
    bad = [f"../{photos.name}/a-cup.png", str(photos / "a-cup.png"), "nothing.png", "sub", "x" * 5000]
    (tmp_path / "list.txt").write_text("\n".join(["a-cup.png", *bad]))
    listing = listed_images(photos, tmp_path / "list.txt")
    assert listing.names == ("a-cup.png",)
    reasons = dict(listing.unreadable)
    assert set(reasons) == set(bad)
    assert "outside" in reasons[bad[0]]
    assert "outside" in reasons[bad[1]]
    assert all("no such file" in reasons[name] for name in bad[2:])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "names no image"), (b"\n \n", "names no image"), (b"\xff\xfe\x00", "not a text"), (None, "cannot be read")],
)
def test_list_that_names_nothing_is_refused(content: bytes | None, words: str, photos: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        listed_images(photos, tmp_path / "list.txt")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(UsageError, match="does not exist"):
        listed_images(tmp_path / "none", tmp_path / "list.txt")


def test_explore_labels_listed_images_only_and_a_second_list_adds_to_them(
    sohes: Callable, photos: Path, out: Path, reference: dict[str, bytes], labels_of: Callable, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("sub/nose.png\nmissing.png\n")
    (tmp_path / "two.txt").write_text("sub/nose.png\nb-face.png\n")
    first = sohes("explore", photos, "--out", out, "--list", tmp_path / "one.txt", "--workers", 1, "--json")
    assert first.code == 1
    assert "missing.png" in first.err
    assert LabelStore(out).names() == ["sub/nose.png"]
    second = sohes("explore", photos, "--out", out, "--list", tmp_path / "two.txt", "--workers", 1, "--json")
    assert second.code == 0
    assert json.loads(second.out)["done_before"] == 1
    assert LabelStore(out).names() == ["b-face.png", "sub/nose.png"]
    found = labels_of(out)
    assert found == {name: reference[name] for name in found}
