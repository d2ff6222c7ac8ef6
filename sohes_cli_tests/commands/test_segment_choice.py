"""What `sohes segment` runs when nothing is named: a run's model, the package's, or phase 1; what it says of it, and
what it refuses.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from segment_cases import IMAGE_SIZE, save_tiny, ship_model, ship_no_model
from typer.testing import CliRunner

from sohes_cli.commands.segment import segment
from sohes_cli.errors import ConfigError, SohesError, StoreError, UsageError, WeightsError
from sohes_cli.inference.segmenter import Segmenter
from sohes_cli.labels.manifest import read_manifest
from sohes_cli.labels.store import LabelStore
from sohes_cli.model.location import model_file
from sohes_cli.runs.files import file_sha256
from sohes_cli.vit import bundled

app = typer.Typer()
app.command()(segment)

NAME = "b-face.png"


@pytest.fixture
def fresh(tmp_path, photos, monkeypatch):
    """A machine with one photograph and no run, and a version of the package that has no model."""
    ship_no_model(monkeypatch)
    shutil.copy(photos / NAME, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shipped(fresh, tmp_path_factory, monkeypatch):
    """The same with a model that ships; the run that it comes from lies in `source`, outside of where runs are looked
    for.
    """
    source = save_tiny(fresh / "source", seed=5)
    return ship_model(monkeypatch, source, tmp_path_factory.mktemp("package"))


def run(*arguments):
    return CliRunner().invoke(app, [NAME, *map(str, arguments)])


def assert_refused(result, kind, *words):
    assert type(result.exception) is kind, result
    assert result.stdout == ""
    for word in words:
        assert word in str(result.exception)


@pytest.mark.usefixtures("fresh")
def test_a_fresh_machine_without_a_model_has_phase_1_and_is_told_why(reference_folder):
    result = run("--tree")
    assert result.exit_code == 0, result
    said, total, *_ = result.stderr.splitlines()
    assert said.startswith(
        "Phase 1 labels each photograph by itself, for there is no trained model: neither runs/correct nor "
        "runs/instruct"
    )
    assert said.endswith(
        "none ships with this version of sohes; `sohes explore IMAGES`, then `sohes train --phase instruct` make one."
    )
    assert total == "1 photograph."
    masks = LabelStore(reference_folder).read(NAME).annotations
    assert result.stdout.startswith(f"{NAME}  136 x 104 px, ")
    assert sum(" #" in line for line in result.stdout.splitlines()) == min(60, len(masks))


def test_phase_1_by_default_gives_the_labels_of_explore_and_says_so_in_json(fresh, reference_folder):
    printed = json.loads(run("--json").stdout)
    assert (printed["method"], printed["model"]) == ("explore", None)
    assert run("--json").stderr == ""
    assert run("--out", "out").exit_code == 0
    record = LabelStore(fresh / "out").read(NAME)
    assert record == LabelStore(reference_folder).read(NAME)
    assert [record.to_json()] == printed["records"]
    assert read_manifest(fresh / "out").config["method"] == "explore"
    assert json.loads(run("--out", "out", "--method", "explore", "--json").stdout)["done_before"] == 1


@pytest.mark.usefixtures("fresh")
def test_phase_1_by_default_loads_no_torch():
    code = (
        "import sys; from dataclasses import replace; from sohes_cli import cli; from sohes_cli.vit import bundled\n"
        "bundled.MODEL = replace(bundled.MODEL, sha256='')\n"
        f"sys.argv = ['sohes', 'segment', '{NAME}']\n"
        "try:\n    cli.main()\nfinally:\n    print('loaded:', 'torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert finished.stdout.startswith(NAME)
    assert finished.stdout.endswith("loaded: False\n")


def test_the_model_that_ships_is_used_without_a_run_and_says_so(shipped):
    result = run("--tree", "--device", "cpu")
    assert result.exit_code == 0, result
    said = result.stderr.splitlines()[0]
    assert said.startswith(
        f"Model {shipped} (it ships with sohes, and neither runs/correct nor runs/instruct has a model.safetensors)"
    )
    assert said.endswith(f"photographs of {IMAGE_SIZE} px.")
    prediction = Segmenter.load(shipped, device="cpu")(NAME)
    assert result.stdout.startswith(f"{NAME}  136 x 104 px, {len(prediction)} masks")


def test_a_run_comes_before_the_model_that_ships_and_phase_3_before_phase_2(fresh, shipped):
    sources = {}
    for source in (None, fresh / "runs/instruct", fresh / "runs/correct"):
        if source is not None:
            save_tiny(source, seed=len(sources))
        printed = json.loads(run("--json").stdout)
        assert printed["method"] == "model"
        sources[printed["model"]["file"]] = printed["model"]["sha256"]
    assert list(sources) == [str(shipped), "runs/instruct/model.safetensors", "runs/correct/model.safetensors"]
    assert all(file_sha256(fresh / file) == found for file, found in sources.items())
    assert "Model runs/correct/model.safetensors (the newest phase in ./runs) on" in run().stderr
    bundled_again = json.loads(run("--json", "--checkpoint", "bundled").stdout)
    assert bundled_again["model"] == {"file": str(shipped), "sha256": bundled.MODEL.sha256}


def test_a_model_that_was_asked_for_needs_no_reason(fresh, shipped):
    save_tiny(fresh / "mine")
    assert "Model mine/model.safetensors on " in run("--checkpoint", "mine").stderr
    assert f"Model {shipped} on " in run("--checkpoint", "bundled").stderr


@pytest.mark.usefixtures("shipped")
def test_method_explore_takes_none_of_the_models(tmp_path):
    save_tiny(tmp_path / "runs/instruct")
    result = run("--method", "explore")
    assert result.exit_code == 0
    assert result.stderr.startswith("Phase 1 on each photograph by itself: no model is needed, and none is used.")


@pytest.mark.usefixtures("fresh")
def test_method_model_demands_one():
    words = [
        "There is no trained model",
        "runs/correct",
        "runs/instruct",
        "none ships",
        "--checkpoint",
        "--method explore",
    ]
    assert_refused(run("--method", "model"), SohesError, *words, "sohes train --phase instruct")


@pytest.mark.parametrize(
    "flags",
    [
        ["--forest", "head"],
        ["--forest", "geometry"],
        ["--min-score", "0"],
        ["--max-masks", "5"],
        ["--refine", "superpixels"],
        ["--views", "2"],
        ["--size", "64"],
        ["--batch-size", "1"],
        ["--device", "cpu"],
    ],
)
def test_flags_of_a_model_are_refused_where_there_is_none(fresh, flags):
    words = [flags[0], "there is no trained model", "sohes train", "--checkpoint", "leave it out"]
    assert_refused(run(*flags, "--out", "out"), SohesError, *words)
    assert not (fresh / "out").exists()


@pytest.mark.usefixtures("shipped")
def test_flags_of_a_model_are_for_the_one_that_ships_as_well(tmp_path):
    printed = json.loads(run("--max-masks", 2, "--size", 64, "--forest", "geometry", "--json").stdout)
    assert printed["masks"] == 2
    assert run("--max-masks", 2, "--size", 64, "--refine", "superpixels", "--views", 2, "--out", "out").exit_code == 0
    settings = read_manifest(Path("out")).config
    assert (settings["refine"], settings["views"]) == ("superpixels", 2)
    assert_refused(run("--views", 9), ConfigError, "segment.views", "from 1 to 8")
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.config["method"], manifest.config["image_size"]) == ("model", 64)
    assert manifest.backbone["sha256"] == bundled.MODEL.sha256


def test_a_label_folder_is_continued_by_what_began_it_alone(fresh, monkeypatch):
    save_tiny(fresh / "runs/instruct")
    assert run("--out", "by model").exit_code == 0
    shutil.rmtree(fresh / "runs")
    refused = run("--out", "by model")
    assert_refused(
        refused, StoreError, 'made with other settings: method ("model" there, "explore" now).', "--overwrite"
    )
    assert run("--out", "by phase 1").exit_code == 0
    ship_model(monkeypatch, save_tiny(fresh / "mine"), fresh / "package")
    assert_refused(run("--out", "by phase 1"), StoreError, 'method ("explore" there, "model" now).')
    assert_refused(
        run("--out", "by model", "--size", 64), StoreError, "image_size", "backbone.sha256"
    )  # the bundled weights are others


def test_a_damaged_or_missing_file_of_the_package_is_an_error_and_no_fallback(shipped, sohes):
    content = bytearray(shipped.read_bytes())
    content[-1] ^= 1
    shipped.write_bytes(content)
    for flags in ([], ["--checkpoint", "bundled"], ["--method", "model"]):
        assert_refused(
            run(*flags), WeightsError, str(shipped), "damaged", "Install the package again", "--method explore"
        )
    shipped.unlink()
    assert_refused(run(), WeightsError, str(shipped), "missing")
    result = sohes("segment", NAME)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"Error: The bundled model {shipped} is missing.\n  Install")
    assert run("--method", "explore").exit_code == 0


@pytest.mark.usefixtures("fresh")
def test_the_bundled_model_by_name_in_a_version_without_one(sohes):
    result = sohes("segment", NAME, "--checkpoint", "bundled")
    assert result.code == 2
    assert result.err.startswith(
        "Error: --checkpoint bundled: this version of sohes contains no model.\n  Train one with sohes train"
    )
    with pytest.raises(UsageError, match="contains no model"):
        Segmenter.load("bundled")


def test_the_python_api_takes_the_same_order(fresh, shipped):
    assert model_file(None) == model_file("bundled") == shipped
    prediction = Segmenter.load(device="cpu")(NAME)
    np.testing.assert_array_equal(prediction.scores, Segmenter.load("bundled", device="cpu")(NAME).scores)
    trained = save_tiny(fresh / "runs/instruct")
    assert model_file(None).resolve() == trained


@pytest.mark.usefixtures("shipped")
def test_halves_predict_what_the_run_predicts():
    original = Segmenter.load("source", device="cpu", precision="fp32")(NAME)
    halved = Segmenter.load(device="cpu", precision="fp32")(NAME)
    assert len(halved) == len(original)
    np.testing.assert_allclose(halved.scores, original.scores, rtol=1e-2)
    assert (halved.masks != original.masks).mean() < 1e-2
