"""`sohes explore` as its users meet it: what it prints and writes, and what it says about input that is wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from sohes_cli.labels.manifest import read_manifest
from sohes_cli.labels.store import LabelStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONE = ("--workers", 1)
VIT = ("--backbone", "vit_tiny_patch16_224", "--set", "features.image_size=64", *ONE)


@pytest.fixture
def few(photos: Path, tmp_path: Path) -> Path:
    """Two of the photographs in a folder that a test may change."""
    folder = tmp_path / "few"
    (folder / "sub").mkdir(parents=True)
    for name in ["b-face.png", "sub/nose.png"]:
        shutil.copy(photos / name, folder / name)
    return folder


@pytest.fixture
def labels(few: Path) -> Path:
    return few.parent / "labels"


def assert_refused(result: Any, code: int, *words: str) -> None:
    """One message on stderr, no table, no traceback."""
    assert result.code == code, result
    assert result.out == ""
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in result.err


def test_a_run_labels_every_photograph_and_says_how_long_each_step_took(
    sohes: Callable, photos: Path, out: Path, reference: dict, labels_of: Callable
) -> None:
    result = sohes("explore", photos, "--out", out, *ONE)
    assert result.code == 0
    assert labels_of(out) == reference
    for words in [
        "8 photographs, ",
        " masks in ",
        "reading",
        "features",
        "merging",
        "hierarchy",
        f"8 of 8 photographs have labels in {out}",
    ]:
        assert words in result.out
    assert "Backbone color-texture (embedded, no weights)" in result.err
    assert "--preset paper" in result.err
    assert "\r" not in result.err  # no progress bar, for this is no terminal


def test_the_records_are_forests_of_masks_at_full_size(photos: Path, reference_folder: Path) -> None:
    records = list(LabelStore(reference_folder))
    assert [r.file_name for r in records] == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*"))
    for record in records:
        assert (record.height, record.width) == (104, 136)
        assert len(record.annotations) > 10
        assert any(a.parent is not None for a in record.annotations)
        scores = [a.score for a in record.annotations]
        assert scores == sorted(scores, reverse=True)


def test_the_manifest_holds_settings_backbone_and_thresholds(reference_folder: Path) -> None:
    manifest = read_manifest(reference_folder)
    assert manifest.images == "../photos"
    assert manifest.config["features"] == {
        "backbone": "color-texture",
        "weights": "none",
        "image_size": 480,
        "precision": "fp32",
        "color_share": 0.7,
        "vit_scale": 0.6667,
    }
    assert set(manifest.config) == {
        "features",
        "units",
        "merging",
        "reclustering",
        "pooling",
        "refinement",
        "hierarchy",
    }
    assert manifest.backbone["name"] == "color-texture"
    assert set(manifest.backbone["thresholds"]) == set(manifest.config["merging"]["affinities"])
    assert all(
        thresholds == sorted(thresholds, reverse=True) for thresholds in manifest.backbone["thresholds"].values()
    )
    assert manifest.versions["sohes"]


def test_a_bad_file_is_reported_and_the_others_are_done_once(sohes: Callable, few: Path, labels: Path) -> None:
    (few / "a-text.jpg").write_text("no photograph")
    (few / "empty.png").touch()
    (few / "sub" / "cut.jpg").write_bytes((few / "b-face.png").read_bytes()[:900])
    (few / "gone.png").symlink_to(few / "nowhere.png")
    (few / "line\nend.png").write_text("two lines")
    result = sohes("explore", few, "--out", labels, *ONE)
    assert result.code == 1
    failed = [line for line in result.err.splitlines() if line.startswith("Failed: ")]
    names = ["a-text.jpg", "empty.png", "cut.jpg", "gone.png", r"line\nend.png"]
    assert len(failed) == 5
    assert all(any(name in line for line in failed) for name in names)
    assert "Error: 5 of 7 could not be labeled: a-text.jpg, empty.png, gone.png," in result.err
    assert "Traceback" not in result.err
    assert LabelStore(labels).names() == ["b-face.png", "sub/nose.png"]

    before = {path: path.stat().st_mtime_ns for path in labels.rglob("*.json")}
    again = sohes("explore", few, "--out", labels, *ONE)
    assert again.code == 1
    assert "2 of them done before" in again.err
    assert {path: path.stat().st_mtime_ns for path in labels.rglob("*.json")} == before

    for path in [
        few / "a-text.jpg",
        few / "empty.png",
        few / "sub" / "cut.jpg",
        few / "gone.png",
        few / "line\nend.png",
    ]:
        path.unlink()
    assert sohes("explore", few, "--out", labels, *ONE).code == 0


def test_json_is_the_only_thing_on_stdout(sohes: Callable, few: Path, labels: Path) -> None:
    (few / "bäd.jpg").write_text("no photograph")
    result = sohes("explore", few, "--out", labels, "--json", *ONE)
    assert result.code == 1
    assert result.out.count("\n") == 1
    summary = json.loads(result.out)
    assert {key: summary[key] for key in ("labels", "images", "done_before", "left", "processes", "interrupted")} == {
        "labels": str(labels),
        "images": 2,
        "done_before": 0,
        "left": 0,
        "processes": 1,
        "interrupted": False,
    }
    assert [failure["name"] for failure in summary["failed"]] == ["bäd.jpg"]
    assert summary["masks"] == sum(len(record.annotations) for record in LabelStore(labels))
    assert 0 < summary["seconds_by_step"]["features"] < summary["seconds"]
    (few / "bäd.jpg").unlink()
    again = sohes("explore", few, "--out", labels, "--json", *ONE)
    assert again.code == 0
    assert (json.loads(again.out)["images"], json.loads(again.out)["done_before"]) == (0, 2)


def test_other_settings_need_another_folder_or_overwrite(sohes: Callable, few: Path, labels: Path) -> None:
    run = ("explore", few, "--out", labels, *ONE)
    assert sohes(*run).code == 0
    before = {path.name: path.read_bytes() for path in labels.rglob("*.json")}
    result = sohes(*run, "--set", "pooling.max_masks=5")
    assert_refused(result, 1, "pooling.max_masks (475 there, 5 now)", "--overwrite", "--out")
    assert {path.name: path.read_bytes() for path in labels.rglob("*.json")} == before

    (labels / "notes.txt").write_text("mine")
    assert sohes(*run, "--set", "pooling.max_masks=5", "--overwrite").code == 0
    assert [len(record.annotations) for record in LabelStore(labels)] == [5, 5]
    assert read_manifest(labels).config["pooling"]["max_masks"] == 5
    assert (labels / "notes.txt").read_text() == "mine"


def test_the_toml_file_the_set_option_and_the_flags_reach_the_run(sohes: Callable, few: Path, labels: Path) -> None:
    toml = few.parent / "run.toml"
    toml.write_text("[pooling]\nmax_masks = 7\nnms_iou = 0.8\n[merging]\nthresholds = [0.5]\n")
    flags = ("--config", toml, "--set", "pooling.max_masks=6", "--thresholds", "0.9,0.6", "--refine", "guided")
    assert sohes("explore", few, "--out", labels, *flags, *ONE).code == 0
    config = read_manifest(labels).config
    assert (config["pooling"]["max_masks"], config["pooling"]["nms_iou"]) == (6, 0.8)
    assert (config["merging"]["thresholds"], config["refinement"]["method"]) == ([0.9, 0.6], "guided")
    assert all(len(record.annotations) <= 6 for record in LabelStore(labels))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backbone", "color-textur"], ["Did you mean 'color-texture'?"]),
        (["--set", "pooling.max_mask=5"], ["pooling.max_mask", "Did you mean 'max_masks'?"]),
        (["--set", "pooling.max_masks"], ["pooling.max_masks", "group.name=value"]),
        (["--set", "pooling.max_masks=many"], ["pooling.max_masks", "whole number", "'many'"]),
        (["--thresholds", "0.5,0.6"], ["merging.thresholds", "decreasing"]),
        (["--thresholds", "0.5,high"], ["merging.thresholds", "'high'"]),
        (["--refine", "crff"], ["refinement.method", "cascadepsp"]),
        (["--preset", "papr"], ["--preset", "Did you mean 'paper'?"]),
        (["--config", "nowhere.toml"], ["--config", "nowhere.toml"]),
        (["--weights", "x.pth"], ["--weights", "color-texture has no weights"]),
        (["--backbone", "bundeled"], ["Did you mean 'bundled'?"]),
        (["--backbone", "runs/nowhere"], ["runs/nowhere", "sohes pretrain"]),
        (["--workers", "-1"], ["--workers"]),
    ],
)
def test_settings_that_cannot_be_right_are_wrong_usage(
    sohes: Callable, few: Path, labels: Path, flags: list[str], words: list[str]
) -> None:
    assert_refused(sohes("explore", few, "--out", labels, *flags), 2, *words)
    assert not labels.exists()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--backbone", "vit_base_patch8_224.dinoo"], 2, ["vit_base_patch8_224.dino"]),
        ([*VIT, "--weights", "nowhere.pth"], 2, ["nowhere.pth"]),
        ([*VIT, "--weights", "random", "--device", "abacus"], 2, ["'abacus'"]),
        ([*VIT, "--weights", "corrupt.safetensors"], 1, ["corrupt.safetensors", "cannot be read"]),
    ],
)
def test_backbones_and_weights_that_do_not_exist_or_fit(
    sohes: Callable,
    few: Path,
    labels: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    code: int,
    words: list[str],
) -> None:
    (few.parent / "corrupt.safetensors").write_bytes(b"\x07 no tensors")
    monkeypatch.chdir(few.parent)
    assert_refused(sohes("explore", few, "--out", labels, *flags), code, *words)
    assert not labels.exists()


def test_random_weights_are_named_as_such_and_known_by_their_hash(sohes: Callable, few: Path, labels: Path) -> None:
    result = sohes("explore", few, "--out", labels, *VIT, "--weights", "random")
    assert result.code == 0
    assert "vit_tiny_patch16_224 (RANDOM weights)" in result.err
    assert "--backbone color-texture" in result.err
    manifest = read_manifest(labels)
    assert (manifest.backbone["weights"], len(manifest.backbone["sha256"])) == ("random", 64)
    assert (manifest.config["features"]["weights"], manifest.config["features"]["precision"]) == ("random", "fp32")
    assert manifest.versions["torch"]
    assert_refused(sohes("explore", few, "--out", labels, *ONE), 1, 'features.backbone ("vit_tiny_patch16_224" there')


def test_the_papers_weights_without_network_are_an_error_within_seconds(
    sohes: Callable, few: Path, labels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    from sohes_cli.vit import published

    class ConnectError(Exception):
        """As that of the hub's transport, which is no OSError."""

    def unreachable(*_: object, timeout: float) -> None:
        assert timeout <= 10
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "get_hf_file_metadata", unreachable)
    start = time.monotonic()
    result = sohes("explore", few, "--out", labels, "--preset", "paper")
    assert time.monotonic() - start < 30  # importing timm included
    assert_refused(
        result,
        1,
        "vit_base_patch8_224.dino",
        str(tmp_path / "cache"),
        "ConnectError",
        "--weights FILE",
        "--backbone color-texture",
    )
    assert not labels.exists()


def test_a_refiner_that_is_not_installed_fails_before_the_first_photograph(
    sohes: Callable, few: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_refinement", None)
    assert_refused(sohes("explore", few, "--out", labels, "--refine", "cascadepsp", *ONE), 1, "sohes[cascadepsp]")
    assert not labels.exists()


def test_folders_that_are_missing_empty_or_no_folders(sohes: Callable, few: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("words")
    assert_refused(sohes("explore", tmp_path / "nowhere"), 2, "nowhere", "does not exist")
    assert_refused(sohes("explore", few / "b-face.png"), 2, "b-face.png", "is not a folder")
    assert_refused(sohes("explore", tmp_path / "empty"), 1, "is empty")
    assert_refused(sohes("explore", tmp_path / "words"), 1, "holds no image", "1 other file")
    assert_refused(sohes("explore", few, "--out", few / "b-face.png", *ONE), 2, "b-face.png", "--out")
    assert_refused(sohes("explore", few, "--out", few, *ONE), 1, "is no label folder", "--out")


def test_a_folder_without_one_readable_image_fails_after_naming_each(sohes: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for name in ["a.jpg", "b.jpg"]:
        (tmp_path / "bad" / name).write_text("words")
    result = sohes("explore", tmp_path / "bad", "--out", tmp_path / "labels", *ONE)
    assert result.code == 1
    assert result.err.count("Failed: ") == 2
    assert f"0 of 2 photographs have labels in {tmp_path / 'labels'}" in result.out
    assert "sohes view" not in result.out


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_that_may_not_be_read_is_reported_and_the_others_are_done(
    sohes: Callable, few: Path, labels: Path
) -> None:
    (few / "sub").chmod(0)
    try:
        result = sohes("explore", few, "--out", labels, *ONE)
    finally:
        (few / "sub").chmod(0o755)
    assert result.code == 1
    assert "Failed: sub: permission denied." in result.err
    assert LabelStore(labels).names() == ["b-face.png"]


def test_a_name_too_long_for_a_record_fails_alone(sohes: Callable, few: Path, labels: Path) -> None:
    long = "x" * 247 + ".png"
    (few / "b-face.png").rename(few / long)
    result = sohes("explore", few, "--out", labels, *ONE)
    assert result.code == 1
    assert f"Failed: {long} cannot have a label record" in result.err
    assert LabelStore(labels).names() == ["sub/nose.png"]


def test_a_full_disk_ends_the_run_with_its_reason(
    sohes: Callable, few: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sohes_cli.errors import StoreError

    def full(_store: LabelStore, record: Any) -> None:
        raise StoreError(f"{record.file_name} cannot be written: no space left on device.", "Free space.")

    monkeypatch.setattr(LabelStore, "write", full)
    assert_refused(sohes("explore", few, "--out", labels, *ONE), 1, "no space left on device", "Free space.")


def test_a_defect_of_ours_names_its_place_and_costs_one_photograph(
    sohes: Callable, few: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sohes_cli.images import reading as images

    read = images.read_photograph

    def broken(path: Path, name: str, working_size: int) -> images.Photograph:
        if name == "b-face.png":
            raise ZeroDivisionError("division\nby zero")
        return read(path, name, working_size)

    monkeypatch.setattr(images, "read_photograph", broken)
    result = sohes("explore", few, "--out", labels, *ONE)
    assert result.code == 1
    assert "Failed: b-face.png could not be labeled (ZeroDivisionError in test_explore_command.py:" in result.err
    assert "division by zero)" in result.err
    assert LabelStore(labels).names() == ["sub/nose.png"]
