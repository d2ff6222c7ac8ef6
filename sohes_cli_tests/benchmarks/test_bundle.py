"""Weights on their way into the package: what half precision changes and what it leaves, what is refused, and what the
tree holds.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from model_cases import SMALL, small_model
from safetensors.torch import load_file
from sohes_benchmarks import bundle as module
from sohes_benchmarks.bundle import LARGEST_BYTES, bundle
from tolerances import assert_near
from typer import Typer
from typer.testing import CliRunner

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.segmenter import Segmenter
from sohes_cli.model.files import load_model, save_model
from sohes_cli.model.location import MODEL_NAME
from sohes_cli.vit import bundled
from sohes_cli.vit.tensor_file import read_tensors, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

app = Typer()
app.command()(module.main)

DESCRIPTION: dict[str, Any] = {
    "config": {"model": asdict(SMALL), "run": {"seed": 3}},
    "versions": {"sohes": "0.1.0"},
    "labels_sha256": "ab" * 32,
    "photographs": 6,
    "image_size": 64,
    "step": 7,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, whose model has seen 70,000 batches: more than half precision can count."""
    model = small_model()
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(70_001)
    save_model(tmp_path / "run" / MODEL_NAME, model, DESCRIPTION)
    return tmp_path / "run"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the package's model lies, in a folder that a test may fill."""
    path = tmp_path / "package" / MODEL_NAME
    monkeypatch.setattr(bundled, "MODEL", replace(bundled.MODEL, path=path))
    return path


def test_weights_become_halves_and_whole_numbers_stay(run: Path, place: Path) -> None:
    bundle(run)
    before, after = load_file(run / MODEL_NAME), load_file(place)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.half() if tensor.is_floating_point() else tensor)
        assert after[name].dtype == (torch.half if tensor.is_floating_point() else tensor.dtype)
    counters = [tensor for name, tensor in after.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(counter.item() == 70_001 for counter in counters)
    assert place.stat().st_size < 0.6 * (run / MODEL_NAME).stat().st_size


def test_no_path_of_the_machine_that_trained_it_is_in_the_file(run: Path, place: Path) -> None:
    model, description = load_model(run)
    config = {
        **description["config"],
        "model": {**description["config"]["model"], "weights": str(run.parent / "pretrain")},
    }
    save_model(run / MODEL_NAME, model, {**description, "config": config})
    bundle(run)
    assert load_model(place)[1]["config"]["model"]["weights"] == "pretrain"
    assert str(run.parent).encode() not in place.read_bytes()


@torch.no_grad()
def test_the_model_is_loaded_in_fp32_and_says_what_the_runs_model_says(run: Path, place: Path) -> None:
    bundle(run)
    (original, _), (shipped, description) = load_model(run), load_model(place)
    assert {tensor.dtype for tensor in shipped.parameters()} == {torch.float32}
    assert {name: description[name] for name in DESCRIPTION} == DESCRIPTION
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected, actual = original(pixels)._asdict(), shipped(pixels)._asdict()
    assert_near(actual, expected, torch.half)
    assert not all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_the_facts_are_those_of_the_file_and_of_its_run(run: Path, place: Path) -> None:
    facts = bundle(run)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (place, run / MODEL_NAME)]
    assert (facts["file"], facts["bytes"]) == (str(place), str(place.stat().st_size))
    assert [facts["sha256"], facts["source_sha256"]] == hashes
    assert (facts["step"], facts["photographs"], facts["labels_sha256"]) == ("7", "6", "ab" * 32)


def test_what_is_in_half_precision_already_stays_as_it_is(run: Path, place: Path, tmp_path: Path) -> None:
    facts = bundle(run)
    place.rename(tmp_path / "again.safetensors")
    assert bundle(tmp_path / "again.safetensors") == facts
    with_settings = bundle(tmp_path / "again.safetensors", {"views": 2})
    place.rename(tmp_path / "again.safetensors")
    assert bundle(tmp_path / "again.safetensors") == with_settings != facts


def test_settings_that_suit_the_model_go_with_it(run: Path, place: Path) -> None:
    result = CliRunner().invoke(app, [str(run), "--size", "96", "--views", "2", "--refine", "superpixels"])
    assert "segment: {'image_size': 96, 'views': 2, 'refine': 'superpixels'}" in result.stdout.splitlines()
    segmenter = Segmenter.load(place, device="cpu")
    assert (segmenter.image_size, segmenter.config) == (96, SegmentConfig(views=2, refine="superpixels"))
    bundle(run)
    assert Segmenter.load(place, device="cpu").config == SegmentConfig()


@pytest.mark.parametrize(
    ("flags", "word"), [(["--views", "9"], "segment.views"), (["--size", "5"], "segment.image_size")]
)
def test_wrong_settings_are_refused_before_anything_is_written(
    run: Path, place: Path, flags: list[str], word: str
) -> None:
    refused = CliRunner().invoke(app, [str(run), *flags])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert word in refused.stderr
    assert not place.exists()


def test_a_number_beyond_half_precision_is_refused(run: Path, place: Path) -> None:
    tensors, description = read_tensors(run / MODEL_NAME, "sohes-model")
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = 70_000
    write_tensors(run / MODEL_NAME, tensors, description)
    with pytest.raises(WeightsError, match=name) as caught:
        bundle(run)
    assert "65,504" in caught.value.hint
    assert not place.exists()


def test_all_weights_together_have_a_limit(run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = int(bundle(run)["bytes"])
    content = place.read_bytes()
    monkeypatch.setattr(module, "LARGEST_BYTES", size)
    bundle(run)  # replaces the file, which does not count beside itself
    (place.parent / "backbone.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"model\.safetensors would have .* MB") as caught:
        bundle(run)
    assert caught.value.exit_code == 2
    assert place.read_bytes() == content
    (place.parent / "backbone.safetensors").unlink()
    monkeypatch.setattr(module, "LARGEST_BYTES", size - 1)
    with pytest.raises(UsageError, match="all together may have"):
        bundle(run)


def test_the_command_prints_the_hash_and_errors_without_a_traceback(run: Path, place: Path) -> None:
    result = CliRunner().invoke(app, [str(run)])
    assert result.exit_code == 0, result
    assert f"sha256: {hashlib.sha256(place.read_bytes()).hexdigest()}" in result.stdout.splitlines()
    (run / MODEL_NAME).write_bytes(b"words")
    damaged = CliRunner().invoke(app, [str(run)])
    assert (damaged.exit_code, damaged.stdout) == (1, "")
    assert damaged.stderr.startswith(f"Error: {run / MODEL_NAME} cannot be read")
    assert CliRunner().invoke(app, [str(run / "nowhere")]).exit_code == 2


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "sohes_benchmarks.bundle", "nowhere"]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("Error: There is no model nowhere.")


@pytest.mark.parametrize("kind", ["BACKBONE", "MODEL"])
def test_the_tree_has_what_the_hash_says_or_nothing(kind: str) -> None:
    file = getattr(bundled, kind)
    if file.ships:
        assert file.checked("--checkpoint") == file.path
        assert file.sha256 in (file.path.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    else:
        assert not file.path.exists()


def test_the_weights_in_the_tree_keep_to_the_limit_and_are_all_known() -> None:
    weights = list(bundled.MODEL.path.parent.glob("*.safetensors"))
    assert set(weights) <= {bundled.BACKBONE.path, bundled.MODEL.path}
    assert sum(path.stat().st_size for path in weights) <= LARGEST_BYTES == 30_000_000
