"""The sample photographs and the command that writes them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sohes_cli import samples
from sohes_cli.commands.samples import samples as samples_command
from sohes_cli.errors import SohesError, UsageError
from sohes_cli.images.listing import list_images
from sohes_cli.images.reading import read_photograph
from sohes_cli.samples import LICENSES_NAME, SAMPLES, write_samples

if TYPE_CHECKING:
    from pathlib import Path

app = typer.Typer()
app.command()(samples_command)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the samples must come without a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_samples_are_real_color_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "photos"
    written = write_samples(folder)
    names = {path.name for path in written}
    assert names == {sample.name for sample in SAMPLES} | {LICENSES_NAME} == set(contents(folder))
    assert 6 <= len(SAMPLES) <= 8
    assert list_images(folder).names == tuple(sorted(sample.name for sample in SAMPLES))
    for sample in SAMPLES:
        with Image.open(folder / sample.name) as image:
            assert image.format == "JPEG"
        pixels = read_photograph(folder / sample.name, sample.name, 200).pixels.astype(float)
        assert pixels.std() > 10
        assert np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 2  # color, not gray


def test_jpegs_show_what_scikit_image_holds(tmp_path: Path) -> None:
    from skimage import data

    write_samples(tmp_path)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        with Image.open(tmp_path / f"{name}.jpg") as image:
            pixels = np.asarray(image).astype(float)
        original = getattr(data, name)()
        assert pixels.shape == original.shape
        assert np.abs(pixels - original).mean() < 4


def test_each_photograph_has_a_license_line(tmp_path: Path) -> None:
    write_samples(tmp_path)
    lines = (tmp_path / LICENSES_NAME).read_text(encoding="utf-8").splitlines()
    assert [line.partition(":")[0] for line in lines] == [sample.name for sample in SAMPLES]
    assert all("CC0" in line or "public domain" in line for line in lines)


def test_a_second_call_writes_nothing_and_a_missing_file_is_restored(tmp_path: Path) -> None:
    write_samples(tmp_path)
    before = contents(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write_samples(tmp_path) == []
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "coffee.jpg").unlink()
    assert write_samples(tmp_path) == [tmp_path / "coffee.jpg"]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["rocket.jpg", LICENSES_NAME])
def test_a_users_file_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(SohesError, match=rf"{name} exists and is not the sample") as caught:
        write_samples(tmp_path)
    assert caught.value.exit_code == 1
    assert contents(tmp_path) == {name: b"mine"}


def test_folders_and_broken_links_of_a_samples_name_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a" / "rocket.jpg").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "rocket.jpg").symlink_to(tmp_path / "nowhere")
    for folder in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(SohesError, match=r"rocket\.jpg exists"):
            write_samples(folder)
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "b" / "rocket.jpg").is_symlink()


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    write_samples(tmp_path)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"mine"


def test_a_file_in_place_of_the_folder_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot be a folder"):
            write_samples(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere, so permissions cannot be tested")
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SohesError, match="Permission denied"):
            write_samples(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_failed_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SohesError, match="No space left on device"):
        write_samples(tmp_path)
    assert contents(tmp_path) == {}


def test_a_photograph_that_scikit_image_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SAMPLES", (samples.Sample("a.jpg", "absent.png", "CC0"),))
    with pytest.raises(SohesError, match=r"does not carry the photograph absent\.png"):
        write_samples(tmp_path)


def test_the_command_names_the_files_and_the_next_command(tmp_path: Path) -> None:
    folder = tmp_path / "my [bold]photos"
    result = CliRunner().invoke(app, [str(folder)], catch_exceptions=False)
    assert result.exit_code == 0
    for sample in SAMPLES:
        assert f"Wrote {folder / sample.name}" in result.output
    assert f"sohes explore '{folder}' --out labels" in result.output
    again = CliRunner().invoke(app, [str(folder)], catch_exceptions=False)
    assert "already" in again.output
    assert "Wrote" not in again.output


def test_the_commands_help_has_one_sentence_and_an_example() -> None:
    lines = (samples_command.__doc__ or "").strip().splitlines()
    assert lines[0] == "Write free sample photographs into a folder."
    assert lines[-1].strip() == "Example: sohes samples photos"
    result = CliRunner().invoke(app, ["--help"])
    assert lines[0] in result.output


def test_the_command_leaves_errors_to_the_caller(tmp_path: Path) -> None:
    (tmp_path / "rocket.jpg").write_bytes(b"mine")
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert isinstance(result.exception, SohesError)
