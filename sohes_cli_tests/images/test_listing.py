"""Listing of photographs: names in one order, links and loops, and everything in a folder that is no photograph."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.images.listing import IMAGE_SUFFIXES, list_images
from sohes_cli.images.reading import _FORMATS

if TYPE_CHECKING:
    from pathlib import Path

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_listing_is_nested_sorted_and_counts_other_files(tmp_path: Path) -> None:
    names = ["b/1.jpg", "a/1.jpg", "1.PNG", "a/deep/er/ß.TiFf", "a-b/1.jpg", "写真/猫.webp", "Z.jpeg", "with space.gif"]
    touch(tmp_path, *names, "notes.txt", "a/labels.json", "noextension", "jpg")
    listing = list_images(tmp_path)
    assert listing.names == tuple(sorted(names))
    assert listing.names.index("a-b/1.jpg") < listing.names.index("a/1.jpg")  # '-' comes before '/', whatever the tree
    assert listing.ignored == 4
    assert listing.unreadable == ()


def test_hidden_files_and_folders_are_passed_over_in_silence(tmp_path: Path) -> None:
    touch(tmp_path, "seen.jpg", ".hidden.jpg", ".cache/thumb.jpg", "a/.DS_Store", ".jpg")
    listing = list_images(tmp_path)
    assert (listing.names, listing.ignored, listing.unreadable) == (("seen.jpg",), 0, ())


def test_a_folder_named_like_an_image_is_walked(tmp_path: Path) -> None:
    touch(tmp_path, "album.jpg/1.jpg")
    assert list_images(tmp_path).names == ("album.jpg/1.jpg",)


def test_a_hidden_or_linked_root_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, ".photos/1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / ".photos")
    assert list_images(tmp_path / ".photos").names == ("1.jpg",)
    assert list_images(tmp_path / "link").names == ("1.jpg",)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "m/1.jpg")
    touch(outside, "2.jpg", "sub/3.jpg")
    (root / "m/up").symlink_to(root)
    (root / "m/self").symlink_to(root / "m")
    (root / "a-link").symlink_to(root / "m")  # sorts before the real folder, whose name must win
    (root / "out").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "same.jpg").symlink_to(root / "m/1.jpg")
    listing = list_images(root)
    assert listing.names == ("m/1.jpg", "out/2.jpg", "out/sub/3.jpg", "same.jpg")
    assert listing.unreadable == ()


def test_broken_links_and_pipes_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.jpg").symlink_to(tmp_path / "round.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    listing = list_images(tmp_path)
    assert listing.names == ("good.jpg",)
    assert [name for name, _ in listing.unreadable] == ["broken.jpg", "pipe.jpg", "round.jpg"]
    assert listing.unreadable[0][1] == "the link leads nowhere"


def test_names_that_are_not_utf8_are_reported_printably(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"x")
        touch(tmp_path / os.fsdecode(b"d\xe9"), "1.jpg")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    listing = list_images(tmp_path)
    assert listing.names == ("good.jpg",)
    assert listing.ignored == 1
    assert [name for name, _ in listing.unreadable] == ["caf\\xe9.jpg", "d\\xe9"]
    assert all("UTF-8" in reason for _, reason in listing.unreadable)
    "".join(name for name, _ in listing.unreadable).encode("utf-8")


@needs_permissions
def test_a_forbidden_sub_folder_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg", "secret/1.jpg")
    (tmp_path / "secret").chmod(0)
    try:
        listing = list_images(tmp_path)
    finally:
        (tmp_path / "secret").chmod(0o700)
    assert listing.names == ("good.jpg",)
    assert listing.unreadable == (("secret", "permission denied"),)


@needs_permissions
def test_a_forbidden_folder_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "secret/1.jpg")
    (tmp_path / "secret").chmod(0)
    try:
        with pytest.raises(SohesError, match="secret may not be read: permission denied") as caught:
            list_images(tmp_path / "secret")
    finally:
        (tmp_path / "secret").chmod(0o700)
    assert caught.value.exit_code == 1


def test_folders_that_fail_to_open_are_reported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "good.jpg", "secret/1.jpg")
    real = os.scandir

    def scandir(path: Path) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list_images(tmp_path).unreadable == (("secret", "permission denied"),)
    with pytest.raises(SohesError, match="secret may not be read: permission denied"):
        list_images(tmp_path / "secret")


def test_a_missing_folder_and_a_file_are_wrong_usage(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    with pytest.raises(UsageError, match="absent does not exist"):
        list_images(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"1\.jpg is not a folder"):
        list_images(tmp_path / "1.jpg")
    with pytest.raises(UsageError, match="is not a folder"):
        list_images(tmp_path / "1.jpg" / "below")


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SohesError, match="is empty") as caught:
        list_images(tmp_path)
    assert caught.value.exit_code == 1
    touch(tmp_path, "a.txt", "sub/b.heic")
    with pytest.raises(SohesError, match="holds no image; 2 other files were seen") as caught:
        list_images(tmp_path)
    assert ".jpeg" in caught.value.hint
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SohesError, match=r"1 could not be read \(first: broken.jpg, the link leads nowhere\)"):
        list_images(tmp_path)


def test_every_suffix_is_lower_case_and_one_that_pillow_reads() -> None:
    known = Image.registered_extensions()
    common = ".jpg .jpeg .png .webp .bmp .tif .tiff .gif .ppm .pgm .jp2 .avif"
    assert set(common.split()) <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and known[suffix] in _FORMATS for suffix in IMAGE_SUFFIXES)
