"""A backbone inside the package: found by name, checked by its hash, refused if missing or damaged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from sohes_benchmarks.bundle import bundle

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.explore.distilled import DistilledVit
from sohes_cli.vit import bundled
from sohes_cli.vit.build import build_vit
from sohes_cli.vit.pretrained import BACKBONE_FORMAT, BACKBONE_NAME, find_backbone, load_vit
from sohes_cli.vit.tensor_file import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run: a small ViT with random weights."""
    description = {
        "format": BACKBONE_FORMAT,
        "name": "vit_tiny_patch16_224",
        "shape": SHAPE,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    write_tensors(tmp_path / "run" / BACKBONE_NAME, build_vit("vit_tiny_patch16_224", SHAPE).state_dict(), description)
    return tmp_path / "run"


@pytest.fixture
def shipped(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That backbone bundled, and this version of the package as one that has it."""
    path = tmp_path / "package" / BACKBONE_NAME
    monkeypatch.setattr(bundled, "BACKBONE", replace(bundled.BACKBONE, path=path))
    monkeypatch.setattr(bundled, "BACKBONE", replace(bundled.BACKBONE, sha256=bundle(run)["sha256"]))
    return path


def test_it_is_found_by_name_in_half_precision(run: Path, shipped: Path) -> None:
    assert find_backbone("bundled") == shipped
    assert shipped.stat().st_size < 0.6 * (run / BACKBONE_NAME).stat().st_size
    kept, original = load_vit(shipped)[0].state_dict(), load_vit(run / BACKBONE_NAME)[0].state_dict()
    assert all(torch.equal(kept[name], tensor.half().float()) for name, tensor in original.items())
    assert DistilledVit("bundled").name == "bundled"


def test_it_takes_no_settings_of_a_model(run: Path, shipped: Path) -> None:
    content = shipped.read_bytes()
    with pytest.raises(UsageError, match="is a backbone"):
        bundle(run, {"views": 2})
    assert shipped.read_bytes() == content


def test_a_damaged_or_missing_one_is_refused(shipped: Path) -> None:
    content = bytearray(shipped.read_bytes())
    content[-1] ^= 1
    shipped.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        DistilledVit("bundled")
    shipped.unlink()
    with pytest.raises(WeightsError, match="missing") as caught:
        DistilledVit("bundled")
    assert "color-texture" in caught.value.hint


@pytest.mark.parametrize("flag", ["--backbone", "--weights"])
def test_a_version_without_one_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr(bundled, "BACKBONE", replace(bundled.BACKBONE, sha256=""))
    with pytest.raises(UsageError, match=f"{flag} bundled: .* contains no backbone") as caught:
        find_backbone("bundled", flag)
    assert "sohes pretrain" in caught.value.hint
