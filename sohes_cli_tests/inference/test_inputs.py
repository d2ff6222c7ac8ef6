"""What can be segmented: names below a common folder, and one and the same pixels whatever the form of an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sohes_cli.errors import ImageError, SohesError, UsageError
from sohes_cli.images.reading import Photograph, read_photograph
from sohes_cli.inference.inputs import as_photograph, gather_images


@pytest.fixture
def album(tmp_path):
    """Photographs in two folders, one of them nested."""
    for name in ["one/a.png", "one/in/b.png", "two/c.png", "two/note.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(tmp_path / name, "PNG")
    return tmp_path


def names_of(*paths):
    found = gather_images(list(paths))
    assert all((found.root / name).is_file() for name in found.names)
    return found.root, found.names


def test_files_and_folders_meet_in_the_deepest_folder_of_all(album):
    assert names_of(album / "one/a.png") == (album / "one", ("a.png",))
    assert names_of(album / "one") == (album / "one", ("a.png", "in/b.png"))
    assert names_of(album / "one/in", album / "one/a.png") == (album / "one", ("a.png", "in/b.png"))
    assert names_of(album / "two/c.png", album / "one") == (album, ("one/a.png", "one/in/b.png", "two/c.png"))
    assert names_of(album / "one", album / "one/in/b.png", album / "one/in") == (album / "one", ("a.png", "in/b.png"))
    assert names_of(album / "two/note.txt") == (album / "two", ("note.txt",))  # named by hand: its content decides


def test_relative_paths_and_links_keep_their_names(album, monkeypatch):
    (album / "link.png").symlink_to(album / "one/a.png")
    monkeypatch.chdir(album / "one")
    assert names_of(album.relative_to(album) / "a.png") == (album / "one", ("a.png",))
    assert names_of(album / "one" / ".." / "link.png") == (album, ("link.png",))


def test_what_is_not_there_is_refused_and_what_cannot_be_read_is_kept(album):
    with pytest.raises(UsageError, match=r"nowhere\.png"):
        gather_images([album / "one", album / "nowhere.png"])
    (album / "empty").mkdir()
    with pytest.raises(SohesError, match="is empty"):
        gather_images([album / "one", album / "empty"])
    (album / "one/gone.png").symlink_to(album / "nowhere.png")
    found = gather_images([album / "one"])
    assert (found.names, len(found)) == (("a.png", "in/b.png"), 3)
    assert found.unreadable[0][0] == "gone.png"


def test_pictures_that_a_run_wrote_are_no_photographs(album):
    assert gather_images([album], album / "one").names == ("two/c.png",)
    assert gather_images([album], album / "on").names == ("one/a.png", "one/in/b.png", "two/c.png")
    assert gather_images([album / "two", album / "one/a.png"], album / "one").names == ("one/a.png", "two/c.png")
    with pytest.raises(SohesError, match="--out"):
        gather_images([album / "one"], album / "one")


def random_pixels(height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_path_an_image_and_an_array_have_the_same_pixels(tmp_path):
    pixels, path = random_pixels(), tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        forms = [path, str(path), image, pixels, pixels[:, ::-1][:, ::-1], read_photograph(path, "a.png", 1000)]
        photographs = [as_photograph(form, 1000) for form in forms]
    for photo in photographs:
        np.testing.assert_array_equal(photo.pixels, pixels)
        assert (photo.height, photo.width) == (20, 30)
    assert [photo.name for photo in photographs] == ["a.png", "a.png", "a.png", "image", "image", "a.png"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pillow_images_of_any_mode_are_read_like_their_files(tmp_path, mode, orientation):
    pixels = random_pixels()
    image = Image.fromarray(pixels).convert(mode if mode != "LA" else "L").convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels[..., 0]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, exif=exif)
    with Image.open(path) as opened:
        opened.load()
        found = as_photograph(opened, 1000)
    expected = read_photograph(path, path.name, 1000)
    assert (found.height, found.width) == ((30, 20) if orientation == 6 else (20, 30))
    np.testing.assert_allclose(found.pixels.astype(int), expected.pixels, atol=1)


def test_a_file_is_reduced_to_the_working_size(tmp_path):
    Image.fromarray(random_pixels(200, 300)).save(tmp_path / "a.png")
    photo = as_photograph(tmp_path / "a.png", 100)
    assert photo.pixels.shape[0] * photo.pixels.shape[1] <= 100**2
    assert (photo.height, photo.width) == (200, 300)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((3, 4, 5), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        Image.new("F", (4, 5)),
    ],
)
def test_images_that_have_no_8_bit_colors_are_refused(wrong):
    with pytest.raises(ValueError, match=r"8-bit|uint8"):
        as_photograph(wrong, 100)


def test_other_objects_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(TypeError, match="bytes"):
        as_photograph(b"image", 100)
    (tmp_path / "a.png").write_text("words")
    with pytest.raises(ImageError, match=r"a\.png"):
        as_photograph(tmp_path / "a.png", 100)
    photo = Photograph("a.png", random_pixels(), 40, 60)
    assert as_photograph(photo, 100) is photo
