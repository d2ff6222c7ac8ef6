"""Photographs of folders and tar shards: equal names, order and pixels on every machine, and damaged shards."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from sohes_cli.errors import ImageError, SohesError, UsageError
from sohes_cli.images.reading import read_photograph
from sohes_cli.pretrain.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from sohes_cli.pretrain.sources import ImageSource

needs_permissions = pytest.mark.skipif(
    os.geteuid() == 0, reason="root may read everything, so permissions cannot be tested"
)
SIZE = 64


def picture(seed: int, suffix: str = "png") -> bytes:
    """Encode an image of 24 x 32 random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    return file.getvalue()


def write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def pack(path: Path, *members: tuple[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar of members in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pixels_of(source: ImageSource) -> list[np.ndarray]:
    return [source.read(index, SIZE) for index in range(len(source))]


def image(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def assert_equal(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    assert len(first) == len(second)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Folder of two files and two shards, written in another order than that of the names."""
    folder = tmp_path / "mixed"
    write(folder, {"z.png": picture(0), "sub/b.jpg": picture(1, "jpg"), "notes.txt": b"no image"})
    pack(folder / "sub/c.tar", ("2.png", picture(3)), ("1.webp", picture(2, "webp")))
    pack(folder / "a.tar", ("deep/er/x.png", picture(4)), ("README.md", b"no image"))
    return folder


# Names and pixels


def test_a_folder_is_read_as_explore_reads_it(photos: Path) -> None:
    source = open_source(photos)
    assert "sub/flügel.png" in source.names
    assert source.names == tuple(sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*g")))
    for index, name in enumerate(source.names):
        pixels = source.read(index, 50)
        assert pixels.dtype == np.uint8
        assert pixels.shape[0] * pixels.shape[1] <= 2500
        assert np.array_equal(pixels, read_photograph(photos / name, name, 50).pixels)


def test_a_shard_gives_the_pixels_of_the_folder_it_was_packed_from(tmp_path: Path, photos: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, arcname=".")  # members are called ./a-cup.png, as `tar -cf photos.tar .` calls them
    shard, folder = open_source(tmp_path / "photos.tar"), open_source(photos)
    assert shard.names == tuple(f"photos.tar/{name}" for name in folder.names)
    assert shard.sizes.tolist() == folder.sizes.tolist()
    assert_equal(pixels_of(shard), pixels_of(folder))


def test_files_and_shards_are_one_sequence(mixed: Path) -> None:
    source = open_source(mixed)
    assert source.names == ("a.tar/deep/er/x.png", "sub/b.jpg", "sub/c.tar/1.webp", "sub/c.tar/2.png", "z.png")
    assert len(source) == 5
    assert source.unreadable == ()
    contents = [picture(4), picture(1, "jpg"), picture(2, "webp"), picture(3), picture(0)]
    assert_equal(pixels_of(source), [image(c) for c in contents])


def test_one_shard_counts_like_a_folder_with_it_alone(tmp_path: Path) -> None:
    shard = pack(tmp_path / "only.TAR", ("b.png", picture(1)), ("a.png", picture(2)), ("c.png", picture(3)))
    alone, in_folder = open_source(shard), open_source(tmp_path)
    assert alone.names == in_folder.names == ("only.TAR/a.png", "only.TAR/b.png", "only.TAR/c.png")
    assert alone.sha256 == in_folder.sha256
    assert_equal(pixels_of(alone), pixels_of(in_folder))


def test_the_order_is_that_of_code_points_however_a_shard_was_packed(tmp_path: Path) -> None:
    names = ["a/1.png", "a-b/1.png", "B.png", "a.png", "é.png", "猫.png"]
    first = open_source(pack(tmp_path / "1/x.tar", *((name, picture(i)) for i, name in enumerate(names))))
    second = open_source(pack(tmp_path / "2/x.tar", *reversed([(name, picture(i)) for i, name in enumerate(names)])))
    assert (
        first.names
        == second.names
        == tuple(f"x.tar/{name}" for name in ("B.png", "a-b/1.png", "a.png", "a/1.png", "é.png", "猫.png"))
    )
    assert first.sha256 == second.sha256
    assert_equal(pixels_of(first), pixels_of(second))


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, tar_format: int) -> None:
    name = "/".join(["ordner-ü" * 12] * 3) + "/1.png"
    shard = pack(tmp_path / "a.tar", (name, picture(0)), ("2.png", picture(1)), tar_format=tar_format)
    source = open_source(shard)
    assert source.names == ("a.tar/2.png", f"a.tar/{name}")
    assert np.array_equal(source.read(1, SIZE), image(picture(0)))


def test_hidden_members_and_other_files_are_passed_over(tmp_path: Path) -> None:
    hidden = [".a.png", "._b.png", ".cache/c.png", "d/.e/f.png"]
    others = ["g.txt", "h", "png", "i.tar", "j.png/k.json"]
    source = open_source(pack(tmp_path / "a.tar", *((n, b"x") for n in hidden + others), ("./l.PNG", picture(0))))
    assert source.names == ("a.tar/l.PNG",)
    assert source.unreadable == ()


def test_of_members_with_one_path_the_last_counts(tmp_path: Path) -> None:
    members = [("a.png", picture(0)), ("b.png", picture(1)), ("./a.png", picture(2)), ("b.png", picture(3))]
    source = open_source(pack(tmp_path / "x.tar", *members))
    assert source.names == ("x.tar/a.png", "x.tar/b.png")
    assert_equal(pixels_of(source), [image(picture(i)) for i in (2, 3)])


def test_members_that_lead_out_of_the_shard_are_names_like_others(tmp_path: Path) -> None:
    write(tmp_path, {"x/a.png": picture(9)})
    source = open_source(pack(tmp_path / "x/x.tar", ("../a.png", picture(0)), ("/etc/a.png", picture(1))))
    assert source.names == ("x.tar/../a.png", "x.tar/etc/a.png")
    assert_equal(pixels_of(source), [image(picture(i)) for i in (0, 1)])


def test_links_in_a_shard_are_reported_and_not_read(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("1.png", picture(0)), ("4.png", picture(1)))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind in (
            ("2.png", tarfile.SYMTYPE),
            ("3.png", tarfile.LNKTYPE),
            ("4.png", tarfile.SYMTYPE),
            ("5.png", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.png"
            tar.addfile(info)
    source = open_source(tmp_path)
    assert source.names == ("a.tar/1.png",)  # the link took the place of 4.png
    assert [name for name, _ in source.unreadable] == ["a.tar/2.png", "a.tar/3.png", "a.tar/4.png"]
    assert "link" in source.unreadable[0][1]


def test_a_sparse_member_is_reported_and_not_read(tmp_path: Path) -> None:
    content = picture(0)
    info = tarfile.TarInfo("GNUSparseFile.0/1.png")
    info.size = len(content)
    info.pax_headers = {"GNU.sparse.size": "9999", "GNU.sparse.map": f"0,{len(content)}"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
        info.name, info.pax_headers = "2.png", {}
        tar.addfile(info, io.BytesIO(content))
    source = open_source(tmp_path)
    assert source.names == ("a.tar/2.png",)
    assert [name for name, _ in source.unreadable] == ["a.tar/GNUSparseFile.0/1.png"]
    assert "sparse" in source.unreadable[0][1]


def test_what_cannot_be_read_is_reported_beside_the_rest(mixed: Path) -> None:
    (mixed / "broken.jpg").symlink_to(mixed / "nowhere")
    pack(mixed / "latin.tar", (os.fsdecode(b"caf\xe9.png"), picture(0)))
    source = open_source(mixed)
    assert len(source) == 5
    assert source.unreadable == (
        ("broken.jpg", "the link leads nowhere"),
        ("latin.tar/caf\\xe9.png", "its name is not valid UTF-8"),
    )


# Processes and threads


def test_a_pickled_source_reads_the_same_and_holds_no_pixels(mixed: Path) -> None:
    source = open_source(mixed)
    before = pixels_of(source)
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < sum(source.sizes.tolist())
    assert (copy.names, copy.sha256) == (source.names, source.sha256)
    assert_equal(pixels_of(copy), before)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_read_the_same(mixed: Path, method: str) -> None:
    source = open_source(mixed)
    with ProcessPoolExecutor(1, get_context(method)) as pool:
        assert_equal(list(pool.map(source.read, range(5), [SIZE] * 5)), pixels_of(source))


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_threads_read_one_shard_at_a_time_each(tmp_path: Path) -> None:
    source = open_source(pack(tmp_path / "a.tar", *((f"{i:02}.png", picture(i)) for i in range(20))))
    expected = pixels_of(source)
    descriptors = open_files()
    with ThreadPoolExecutor(4) as pool:
        assert_equal(list(pool.map(lambda i: source.read(i % 20, SIZE), range(200))), expected * 10)
    assert open_files() == descriptors


# Identity


def test_the_hash_tells_sets_of_photographs_apart_but_not_their_times(mixed: Path) -> None:
    seen = [open_source(mixed).sha256]
    for path in mixed.rglob("*"):
        os.utime(path, (1, 1))
    assert open_source(mixed).sha256 == seen[0]

    (mixed / "z.png").write_bytes(picture(0) + b"\0")
    seen.append(open_source(mixed).sha256)
    (mixed / "z.png").rename(mixed / "y.png")
    seen.append(open_source(mixed).sha256)
    pack(mixed / "a.tar", ("deep/er/x.png", picture(4) + b"\0"))
    seen.append(open_source(mixed).sha256)
    pack(mixed / "a.tar", ("deep/er/y.png", picture(4) + b"\0"))
    seen.append(open_source(mixed).sha256)
    (mixed / "y.png").unlink()
    seen.append(open_source(mixed).sha256)
    assert len(set(seen)) == len(seen) == 6


# Bad images


def test_a_damaged_image_is_named(mixed: Path) -> None:
    pack(
        mixed / "a.tar",
        ("cut.png", picture(0)[:700]),
        ("empty.png", b""),
        ("text.png", b"just a text" * 9),
        ("whole.png", picture(1)),
    )
    write(mixed, {"sub/b.jpg": b"just a text" * 9})
    source = open_source(mixed)
    messages = {
        0: r"a\.tar/cut\.png is damaged",
        1: r"a\.tar/empty\.png is empty",
        2: r"a\.tar/text\.png is no image",
        4: r"sub/b\.jpg is no",
    }
    for index, message in messages.items():
        with pytest.raises(ImageError, match=f"^{message}"):
            source.read(index, SIZE)
    assert np.array_equal(source.read(3, SIZE), image(picture(1)))


def test_a_photograph_that_vanished_is_named(mixed: Path) -> None:
    source = open_source(mixed)
    for path in ("a.tar", "z.png"):
        (mixed / path).unlink()
    for index, name in ((0, r"a\.tar/deep/er/x\.png"), (4, r"z\.png")):
        with pytest.raises(ImageError, match=f"^{name} does not exist"):
            source.read(index, SIZE)


def test_a_shard_that_shrank_is_named(tmp_path: Path) -> None:
    source = open_source(pack(tmp_path / "a.tar", ("1.png", picture(0)), ("2.png", picture(1))))
    os.truncate(tmp_path / "a.tar", int(source.offsets[1]) + 100)
    assert source.read(0, SIZE).shape == (24, 32, 3)
    with pytest.raises(ImageError, match=r"^a\.tar/2\.png is cut off"):
        source.read(1, SIZE)


@pytest.mark.parametrize("index", [0, 4])
def test_working_size_must_be_positive(mixed: Path, index: int) -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        open_source(mixed).read(index, 0)


# Bad shards


def damage(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes(byte ^ 0x55 for byte in content[offset : offset + 100]) + content[offset + 100 :]


HARM: dict[str, Callable[[bytes, int], bytes]] = {  # from the bytes of a shard and the offset of its second header
    "empty": lambda _whole, _header: b"",
    "text": lambda _whole, _header: b"just a text\n" * 500,
    "compressed": lambda whole, _header: gzip.compress(whole),
    "first header damaged": lambda whole, _header: damage(whole, 0),
    "second header damaged": damage,
    "cut within an image": lambda whole, header: whole[: header + 700],
    "cut within a header": lambda whole, header: whole[: header + 100],
    "cut behind an image": lambda whole, header: whole[:header],
    "two joined": lambda whole, _header: whole + whole,
    "negative size": lambda whole, header: with_size(whole, header, b"-0000001000\0"),
    "endless size": lambda whole, header: with_size(whole, header, b"\x80" + b"\x7f" * 11),
}


def with_size(whole: bytes, header: int, size: bytes) -> bytes:
    """Replace the size in a header of a shard, with a valid checksum."""
    block = bytearray(whole[header : header + 512])
    block[124:136], block[148:156] = size, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return whole[:header] + bytes(block) + whole[header + 512 :]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("direct", [True, False])
def test_a_damaged_shard_is_an_error_that_names_it(mixed: Path, harm: str, direct: bool) -> None:
    shard = pack(mixed / "sub/bad.tar", ("1.png", picture(0)), ("2.png", picture(1)), ("3.png", picture(2)))
    with tarfile.open(shard) as tar:
        header = tar.getmembers()[1].offset
    shard.write_bytes(HARM[harm](shard.read_bytes(), header))
    with pytest.raises(
        SohesError, match=r"^The shard .*sub/bad\.tar is damaged, incomplete or no uncompressed tar \(.+\)\. "
    ) as caught:
        open_source(shard if direct else mixed)
    assert "pack its photographs anew" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_shard_may_end_with_any_number_of_zeros(tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", ("1.png", picture(0)))
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        tar.getmembers()
        end = tar.offset
    for content in (whole[: end + 512], whole + bytes(2**21)):
        shard.write_bytes(content)
        assert open_source(shard).names == ("a.tar/1.png",)


@needs_permissions
def test_a_forbidden_shard(mixed: Path) -> None:
    (mixed / "a.tar").chmod(0)
    with pytest.raises(SohesError, match=r"a\.tar cannot be read: Permission denied"):
        open_source(mixed)


# Wrong usage


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.XZ", "a.tar.zst"])
def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(picture(0)))
    with pytest.raises(UsageError, match=f"{name} is a compressed tar") as caught:
        open_source(tmp_path / name)
    assert "Decompress it" in caught.value.hint


def test_other_files_and_missing_paths_are_wrong_usage(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(0)})
    with pytest.raises(UsageError, match=r"a\.png is neither a folder nor a \.tar file"):
        open_source(tmp_path / "a.png")
    for name in ("absent", "absent.tar"):
        with pytest.raises(UsageError, match=f"{name} does not exist"):
            open_source(tmp_path / name)


def test_without_an_image_there_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(SohesError, match="is empty"):
        open_source(tmp_path)
    write(tmp_path, {"a.txt": b"x", "b.tar.gz": b"x"})
    with pytest.raises(SohesError, match="holds no image; 2 other files were seen") as caught:
        open_source(tmp_path)
    assert ".tar" in caught.value.hint
    shard = pack(tmp_path / "c.tar", ("a.txt", b"x"))
    for path in (tmp_path, shard):
        with pytest.raises(SohesError, match=rf"^{path} holds no image in its \.tar shards\."):
            open_source(path)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SohesError, match=r"1 could not be read \(first: broken\.jpg, the link leads nowhere\)"):
        open_source(tmp_path)
