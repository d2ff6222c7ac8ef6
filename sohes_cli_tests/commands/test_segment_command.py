"""`sohes segment` as its users meet it: what it prints and writes, how it goes on, and what it says about input that is
wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from segment_cases import TINY, save_tiny
from typer.testing import CliRunner

from sohes_cli.commands.evaluate import evaluate
from sohes_cli.commands.export import export
from sohes_cli.commands.segment import segment
from sohes_cli.commands.view import view
from sohes_cli.errors import SohesError, StoreError, UsageError, WeightsError
from sohes_cli.inference.partition import cut_level_of, partition
from sohes_cli.inference.segmenter import Segmenter
from sohes_cli.labels.manifest import image_folder, read_manifest
from sohes_cli.labels.store import LabelStore
from sohes_cli.structures import LabelRecord

app = typer.Typer()
for command in (segment, view, evaluate, export):
    app.command()(command)

NAMES = ["b-face.png", "sub/nose.png", "z-helmet.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "runs" / "instruct")


@pytest.fixture
def few(photos, tmp_path):
    """Three of the photographs in a folder that a test may change."""
    folder = tmp_path / "few"
    (folder / "sub").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(photos / name, folder / name)
    return folder


@pytest.fixture
def run(model):
    """Run the command with the untrained model on the CPU."""

    def run_segment(*arguments):
        return CliRunner().invoke(app, ["segment", *map(str, arguments), "--checkpoint", str(model), "--device", "cpu"])

    return run_segment


def stored(out):
    """The bytes of every file of a label folder, pictures included."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def assert_refused(result, kind, *words):
    assert isinstance(result.exception, kind), result
    assert result.stdout == ""
    for word in words:
        assert word in str(result.exception)


def test_one_photograph_prints_its_forest(run, few, model):
    result = run(few / "b-face.png")
    assert result.exit_code == 0
    prediction = Segmenter.load(model, device="cpu")(few / "b-face.png")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(
        f"b-face.png  136 x 104 px, {len(prediction)} masks in {prediction.parents.count(-1)} tree"
    )
    assert sum(" #" in line for line in lines) == len(prediction)
    assert "of the masks the same parent" in result.stderr
    assert str(model) in result.stderr


def test_several_photographs_print_a_line_or_a_tree_each(run, few):
    lines = run(few / "sub", few / "b-face.png").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["b-face.png", "sub/nose.png"]
    assert all(" masks, " in line and " level" in line for line in lines)
    trees = run(few, "--tree").stdout
    assert [line for line in trees.splitlines() if " px, " in line] == [
        line for name in NAMES for line in trees.splitlines() if line.startswith(name)
    ]
    assert trees.count(" px, ") == 3


def test_json_is_the_only_thing_on_stdout(run, few, model):
    result = run(few, "--json", "--tree")
    summary = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    records = [LabelRecord.from_json(record) for record in summary["records"]]
    segmenter = Segmenter.load(model, device="cpu")
    assert [r.file_name for r in records] == NAMES
    assert [r.annotations for r in records] == [segmenter(few / name).to_record().annotations for name in NAMES]
    assert summary["masks"] == sum(len(r.annotations) for r in records)
    assert 0 <= summary["forest_agreement"]["parent_share"] <= 1
    assert (summary["labels"], summary["images"], summary["failed"]) == (None, 3, [])


def test_a_label_folder_holds_records_that_every_command_reads(run, few, tmp_path, model):
    out = tmp_path / "out"
    result = run(few, "--out", out)
    assert result.exit_code == 0
    assert f"3 of 3 photographs have labels in {out}." in result.stdout
    store, segmenter = LabelStore(out), Segmenter.load(model, device="cpu")
    assert store.names() == NAMES
    for record in store:
        assert record.annotations == segmenter(few / record.file_name).to_record().annotations
        assert Image.open(out / f"{record.file_name}.overlay.jpg").size == (136, 104)
    manifest = read_manifest(out)
    assert image_folder(out, manifest) == few
    assert (manifest.phase, manifest.config["method"], manifest.config["forest"]) == ("segment", "model", "head")
    assert len(manifest.backbone["sha256"]) == 64

    coco = tmp_path / "coco.json"
    invoke = CliRunner().invoke
    assert invoke(app, ["export", str(out), "--out", str(coco)]).exit_code == 0
    assert invoke(app, ["view", str(out), "--html", str(tmp_path / "page")]).exit_code == 0
    scores = invoke(app, ["evaluate", str(out), "--gt", str(coco), "--json"])
    assert scores.exit_code == 0, scores
    assert invoke(app, ["view", str(out / "sub/nose.png.json")]).stdout == run(few / "sub/nose.png").stdout.replace(
        "nose", "sub/nose", 1
    )


@pytest.mark.parametrize(
    ("flags", "level"), [(["--cut-level", 1], 1), (["--granularity", 1.0], None), (["--cut-level", 0], 0)]
)
def test_the_partition_is_that_of_the_record(run, few, tmp_path, flags, level):
    out = tmp_path / "out"
    assert run(few, "--out", out, "--no-pictures", *flags).exit_code == 0
    for record in LabelStore(out):
        cut = cut_level_of(record, 1.0) if level is None else level
        with Image.open(out / f"{record.file_name}.partition.png") as image:
            np.testing.assert_array_equal(np.asarray(image), partition(record, cut))
        assert (out / f"{record.file_name}.partition.jpg").is_file()
    assert not list(out.rglob("*.overlay.jpg"))


def test_another_cut_needs_no_model_pass_and_leaves_the_records(run, few, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run(few, "--out", out, "--cut-level", 0).exit_code == 0
    before = stored(out)

    def never(*_):
        raise AssertionError("the network ran")

    monkeypatch.setattr(Segmenter, "segment_batch", never)
    result = run(few, "--out", out, "--cut-level", 3)
    assert result.exit_code == 0
    assert "3 of them done before" in result.stderr
    after = stored(out)
    assert {name for name in before if before[name] != after[name]} <= {
        f"{n}.partition.{s}" for n in NAMES for s in ("png", "jpg")
    }
    assert before != after


def test_a_run_in_parts_ends_with_the_files_of_a_whole_one(run, few, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(few, "--out", whole, "--granularity", 0.5).exit_code == 0
    assert run(few, "--out", parts, "--granularity", 0.5).exit_code == 0
    (parts / "sub/nose.png.json").unlink()
    untouched = {p: p.stat().st_mtime_ns for p in parts.rglob("*.json")}
    again = run(few, "--out", parts, "--granularity", 0.5, "--json")
    assert (json.loads(again.stdout)["images"], json.loads(again.stdout)["done_before"]) == (1, 2)
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    assert stored(parts) == stored(whole)
    for entry in json.loads(again.stdout)["files"]:
        assert set(entry) == {"name", "record", "overlay", "partition", "partition_picture"}
        assert all(Path(path).is_file() for key, path in entry.items() if key != "name")


def test_a_label_folder_may_lie_among_the_photographs(run, few):
    assert run(few, "--out", few / "out", "--cut-level", 0).exit_code == 0
    result = run(few, "--out", few / "out", "--cut-level", 0, "--json")
    assert (json.loads(result.stdout)["images"], json.loads(result.stdout)["done_before"]) == (0, 3)
    assert LabelStore(few / "out").names() == NAMES


def test_batches_give_the_labels_of_single_photographs(run, few, tmp_path):
    assert run(few, "--out", tmp_path / "single", "--no-pictures").exit_code == 0
    assert run(few, "--out", tmp_path / "batched", "--no-pictures", "--batch-size", 2).exit_code == 0
    for one, other in zip(LabelStore(tmp_path / "single"), LabelStore(tmp_path / "batched"), strict=True):
        assert [a.score for a in one.annotations] == pytest.approx([a.score for a in other.annotations], rel=1e-3)


def test_other_settings_need_another_folder_or_overwrite(run, few, tmp_path):
    out = tmp_path / "out"
    assert run(few, "--out", out, "--cut-level", 0).exit_code == 0
    before = stored(out)
    assert_refused(run(few, "--out", out, "--max-masks", 2), StoreError, "max_masks (1000 there, 2 now)", "--overwrite")
    assert_refused(run(few / "sub", "--out", out), StoreError, "images (")
    assert_refused(run(few, "--out", out, "--forest", "geometry"), StoreError, 'forest ("head" there')
    assert stored(out) == before
    assert run(few, "--out", out, "--max-masks", 2, "--overwrite", "--no-pictures").exit_code == 0
    assert [len(record.annotations) for record in LabelStore(out)] == [2, 2, 2]
    assert not list(out.rglob("*.jpg")) + list(out.rglob("*.png"))  # those of the old labels went with them


def test_a_bad_photograph_is_reported_and_the_others_are_done(run, few, tmp_path):
    (few / "a-text.jpg").write_text("no photograph")
    (few / "empty.png").touch()
    (few / "gone.png").symlink_to(few / "nowhere.png")
    result = run(few, "--out", tmp_path / "out", "--batch-size", 2)
    assert isinstance(result.exception, SohesError)
    assert result.exception.exit_code == 1
    assert "3 of 6 could not be segmented: a-text.jpg, empty.png, gone.png" in str(result.exception)
    failed = [line for line in result.stderr.splitlines() if line.startswith("Failed: ")]
    assert len(failed) == 3
    assert LabelStore(tmp_path / "out").names() == NAMES
    printed = run(few, "--json")
    assert [failure["name"] for failure in json.loads(printed.stdout)["failed"]] == [
        "a-text.jpg",
        "empty.png",
        "gone.png",
    ]


def test_a_photograph_that_was_damaged_since_cannot_be_cut_again(run, few, tmp_path):
    out = tmp_path / "out"
    assert run(few, "--out", out).exit_code == 0
    (few / "b-face.png").write_text("words")
    result = run(few, "--out", out, "--cut-level", 0)
    assert "1 of 3 could not be segmented: b-face.png" in str(result.exception)
    assert sorted(p.name for p in out.rglob("*.partition.png")) == [
        "nose.png.partition.png",
        "z-helmet.png.partition.png",
    ]


def test_ctrl_c_stops_after_the_photograph_in_work_and_the_next_run_continues(run, photos, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(photos, "--out", whole).exit_code == 0
    segment_batch = Segmenter.segment_batch

    def slow(self, images):
        time.sleep(0.3)
        return segment_batch(self, images)

    def interrupt():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(out.rglob("*.png.json")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Segmenter, "segment_batch", slow)
    waiting = threading.Thread(target=interrupt)
    waiting.start()
    result = run(photos, "--out", out, "--json")
    waiting.join()
    summary = json.loads(result.stdout)
    assert result.exit_code == 130
    assert summary["interrupted"] is True
    assert 1 <= summary["images"] < 8
    assert summary["images"] + summary["left"] == 8
    assert f"Stopped with {summary['left']} of 8 to do. Run the same command again to continue." in result.stderr
    monkeypatch.undo()
    assert run(photos, "--out", out).exit_code == 0
    assert stored(out) == stored(whole)


def test_processes_share_the_photographs(run, few, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        summary = json.loads(run(few, "--out", tmp_path / "out", "--json").stdout)
        shares.append(summary["images"])
    assert shares == [2, 1]
    assert LabelStore(tmp_path / "out").names() == NAMES
    assert_refused(run(few, "--out", tmp_path / "out", "--overwrite"), UsageError, "--overwrite", "processes")


def test_a_defect_of_ours_costs_one_photograph(run, few, monkeypatch):
    segment_batch = Segmenter.segment_batch

    def broken(self, images):
        if images[0].name == "sub/nose.png":
            raise ZeroDivisionError("division\nby zero")
        return segment_batch(self, images)

    monkeypatch.setattr(Segmenter, "segment_batch", broken)
    result = run(few)
    assert "Failed: sub/nose.png could not be segmented (ZeroDivisionError: division by zero)." in result.stderr
    assert "1 of 3" in str(result.exception)
    assert len(result.stdout.splitlines()) == 2


def test_phase_1_needs_no_model_and_gives_the_labels_of_explore(photos, reference_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "segment",
        str(photos / "b-face.png"),
        str(photos / "sub/nose.png"),
        "--method",
        "explore",
        "--out",
        "out",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result
    explored = LabelStore(reference_folder)
    for record in LabelStore(tmp_path / "out"):
        assert record == explored.read(record.file_name)
    assert read_manifest(tmp_path / "out").config["method"] == "explore"
    assert "same parent" not in result.stdout
    refused = CliRunner().invoke(app, [*arguments, "--forest", "head", "--batch-size", "2"])
    assert_refused(refused, UsageError, "--batch-size, --forest", "--method explore")


@pytest.mark.parametrize(
    ("flags", "kind", "words"),
    [
        (["--cut-level", "1", "--granularity", "0.5", "--out", "o"], UsageError, ["--cut-level", "--granularity"]),
        (["--cut-level", "1"], UsageError, ["--out"]),
        (["--granularity", "0"], UsageError, ["--out"]),
        (["--overwrite"], UsageError, ["--overwrite", "--out"]),
        (["--min-score", "2"], UsageError, ["min_score"]),
        (["--max-masks", "0"], UsageError, ["max_masks"]),
        (["--size", "9"], UsageError, ["--size"]),
    ],
)
def test_flags_that_cannot_be_right_are_wrong_usage(run, few, flags, kind, words):
    assert_refused(run(few, *flags), kind, *words)


def test_files_that_are_not_there_or_of_another_kind(run, few, tmp_path):
    assert_refused(run(few / "nowhere.png"), UsageError, "nowhere.png")
    (tmp_path / "corrupt.safetensors").write_bytes(b"\x07 no tensors")
    for checkpoint, kind in [("nowhere", UsageError), ("corrupt.safetensors", WeightsError)]:
        arguments = ["segment", str(few), "--checkpoint", str(tmp_path / checkpoint), "--out", str(tmp_path / "out")]
        assert_refused(CliRunner().invoke(app, arguments), kind, checkpoint)
    assert not (tmp_path / "out").exists()


def test_min_score_and_forest_reach_the_model(run, few):
    everything = json.loads(run(few / "b-face.png", "--json", "--min-score", 0).stdout)["records"][0]["annotations"]
    assert len(everything) <= TINY.queries
    least = everything[2]["score"]
    sure = json.loads(run(few / "b-face.png", "--json", "--min-score", least - 1e-5).stdout)["records"][0][
        "annotations"
    ]
    assert [a["score"] for a in sure] == [a["score"] for a in everything if a["score"] >= least]
    geometry = json.loads(run(few / "b-face.png", "--json", "--min-score", 0, "--forest", "geometry").stdout)[
        "records"
    ][0]["annotations"]
    assert [a["segmentation"] for a in geometry] == [a["segmentation"] for a in everything]
    assert [a["parent"] for a in geometry] != [a["parent"] for a in everything]
