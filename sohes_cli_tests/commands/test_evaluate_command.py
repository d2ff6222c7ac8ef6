"""`sohes evaluate` as users run it: tables, JSON, pictures, notes, and errors that name file and id."""

from __future__ import annotations

import json
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from worker_processes import wait_for_workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def box(height: int, width: int, y: int, x: int, size: int) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + size, x : x + size] = 1
    rle = coco_mask.encode(mask)
    return {"size": [height, width], "counts": rle["counts"].decode()}


@pytest.fixture
def case() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two images, each a whole with a part; results that find all four and one thing more."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    results = []
    for image_id in (1, 2):
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 60, "width": 80})
        for k, (y, x, size) in enumerate([(5, 5, 40), (10, 10, 12)]):
            annotation = {
                "id": 10 * image_id + k,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "area": size**2,
                "bbox": [x, y, size, size],
            }
            truth["annotations"].append(
                {**annotation, "segmentation": box(60, 80, y, x, size), "parent": 10 * image_id if k else None}
            )
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": box(60, 80, y, x, size),
                    "score": 0.9 - 0.1 * k,
                }
            )
        results.append({"image_id": image_id, "category_id": 1, "segmentation": box(60, 80, 50, 70, 8), "score": 0.1})
    return truth, results


@pytest.fixture
def evaluate(tmp_path: Path, sohes: Callable, case: tuple[dict[str, Any], list[dict[str, Any]]]) -> Callable:
    """Write the case, changed as wanted, and evaluate it."""

    def run(
        *arguments: object,
        change: Callable[[dict[str, Any], list[dict[str, Any]]], object] = lambda _truth, _results: None,
    ) -> Any:
        change(*case)
        (tmp_path / "gt.json").write_text(json.dumps(case[0]))
        (tmp_path / "results.json").write_text(json.dumps(case[1]))
        return sohes("evaluate", tmp_path / "results.json", "--gt", tmp_path / "gt.json", *arguments)

    return run


def test_table_shows_percent(evaluate: Callable) -> None:
    result = evaluate()
    assert result.code == 0
    rows = {
        cells[0]: cells[1]
        for line in result.out.splitlines()
        if len(cells := [c.strip() for c in line.strip("│┃ ").split("│")]) == 2
    }
    assert {k: rows[k] for k in ("AR@1", "AR@10", "AP", "AR@1000 small", "AR@1000 large")} == {
        "AR@1": "50.0",
        "AR@10": "100.0",
        "AP": "100.0",
        "AR@1000 small": "100.0",
        "AR@1000 large": "-",
    }
    assert (rows["images"], rows["masks an image"]) == ("2", "3.0")
    assert "2 images, 4 masks" in result.out


def test_json_holds_scores_counts_and_nothing_else(evaluate: Callable, tmp_path: Path) -> None:
    result = evaluate("--json")
    data = json.loads(result.out)
    assert (data["images"], data["annotations"], data["crowd_regions"]) == (2, 4, 0)
    (prediction,) = data["predictions"]
    assert prediction["path"] == str(tmp_path / "results.json")
    assert (prediction["kind"], prediction["matched_by"], prediction["masks"]) == ("result file", "id", 6)
    assert prediction["all_images"]["ar_1"] == 0.5
    assert prediction["all_images"]["ar_large"] is None
    assert prediction["hierarchy"] is None
    assert data["forest"]["mean_depth"] == 2.0


def test_hierarchy_of_results_with_ids_and_parents(evaluate: Callable) -> None:
    def link(_truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        for i, r in enumerate(results, start=1):
            r |= {"id": i, "parent": None}
        results[1]["parent"] = 1  # of the two pairs one is linked

    result = evaluate("--json", change=link)
    hierarchy = json.loads(result.out)["predictions"][0]["hierarchy"]
    assert (hierarchy["part_of_recall"], hierarchy["pairs_found"], hierarchy["link_precision"]) == (0.5, 1.0, 1.0)
    assert "part-of recall" in evaluate().out


def test_label_folder_annotation_file_and_results_agree(
    sohes: Callable, reference_folder: Path, tmp_path: Path
) -> None:
    """One label set in all three forms against ground truth made of it; by itself it is perfect, hierarchy included."""
    sohes("export", reference_folder, "--out", tmp_path / "gt.json")
    exported = json.loads((tmp_path / "gt.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(exported["annotations"]))
    result = sohes(
        "evaluate",
        reference_folder,
        tmp_path / "gt.json",
        tmp_path / "results.json",
        "--gt",
        tmp_path / "gt.json",
        "--json",
    )
    assert result.code == 0, result.err
    folder, annotations, results = json.loads(result.out)["predictions"]
    assert [p["kind"] for p in (folder, annotations, results)] == ["label folder", "annotation file", "result file"]
    for key in ("all_images", "hierarchy", "forest", "masks"):
        assert folder[key] == annotations[key] == results[key], key
    assert folder["all_images"]["ar_1000"] == folder["all_images"]["ar_small"] == 1.0  # AP stops at 100 masks an image
    assert folder["hierarchy"]["part_of_recall"] == folder["hierarchy"]["link_precision"] == 1.0


def test_images_without_predictions_are_told_and_shown_apart(evaluate: Callable) -> None:
    result = evaluate(change=lambda _truth, results: results.__delitem__(slice(3, None)))
    assert result.code == 0
    assert "no predictions for 1 of 2 annotated images (2.jpg)" in result.err
    assert "predicted only" in result.out
    assert [
        c.strip() for c in next(line for line in result.out.splitlines() if "AR@10 " in line).strip("│ ").split("│")
    ] == ["AR@10", "50.0", "100.0"]


def test_images_without_annotations_are_told(evaluate: Callable) -> None:
    result = evaluate(change=lambda _truth, results: results.append({**results[0], "image_id": 99}))
    assert result.code == 0
    assert "1 of its images are not annotated and not scored (image 99)" in result.err


BAD: dict[str, tuple[Callable[[dict[str, Any], list[dict[str, Any]]], object], str]] = {
    "damaged run lengths": (
        lambda _, r: r[1]["segmentation"].update(counts="~~"),
        "results.json: annotation number 2 of 1.jpg: its run-length string",
    ),
    "mask of another size": (
        lambda _, r: r[3].update(segmentation=box(80, 60, 1, 1, 5)),
        "annotation number 1 of 2.jpg: its mask has size [80, 60]",
    ),
    "no mask": (lambda _, r: r[0].pop("segmentation"), "annotation number 1 of 1.jpg: its segmentation"),
    "no score": (lambda _, r: r[0].pop("score"), "annotation number 1 of 1.jpg: it has no score"),
    "score not a number": (lambda _, r: r[0].update(score=float("nan")), "its score is nan"),
    "damaged annotation": (
        lambda t, _: t["annotations"][3]["segmentation"].update(counts="0"),
        "gt.json: annotation 21 of 2.jpg",
    ),
    "negative area": (
        lambda t, _: t["annotations"][0].update(area=-1),
        "gt.json: annotation 10 of 1.jpg: its area is -1",
    ),
    "area that no float holds": (
        lambda t, _: t["annotations"][0].update(area=10**400),
        "annotation 10 of 1.jpg: its area is 1000",
    ),
    "score that no float holds": (
        lambda _, r: r[0].update(score=10**400),
        "annotation number 1 of 1.jpg: its score is 1000",
    ),
    "crowd flag that is a text": (
        lambda t, _: t["annotations"][0].update(iscrowd="0"),
        "annotation 10 of 1.jpg: its iscrowd is '0'",
    ),
    "images that are no list": (lambda t, _: t.update(images={"1": t["images"][0]}), "it has no list of images"),
    "no annotations": (lambda t, _: t.update(annotations=None), "it has no list of annotations"),
    "unknown parent": (lambda t, _: t["annotations"][1].update(parent=77), "annotation 11 names the parent 77"),
    "parent that is a list": (
        lambda t, _: t["annotations"][1].update(parent=[10]),
        "annotation 11 names the parent [10]",
    ),
    "parents in a circle": (lambda t, _: t["annotations"][0].update(parent=11), "parents form a cycle"),
    "annotation twice": (
        lambda t, _: t["annotations"].append(t["annotations"][0]),
        "holds the annotation id 10 more than once",
    ),
    "image twice": (
        lambda t, _: t["images"].append({**t["images"][0], "file_name": "x"}),
        "holds the image id 1 more than once",
    ),
    "annotation of no image": (lambda t, _: t["annotations"][0].update(image_id=8), "annotation 10 belongs to image 8"),
    "other ids": (lambda _, r: [x.update(image_id=f"{x['image_id']:012}") for x in r], "No image id of"),
    "no image id": (lambda _, r: r[0].pop("image_id"), "annotation 1 has no valid image_id"),
    "no predictions": (lambda _, r: r.clear(), "holds no predictions"),
    "nothing annotated": (lambda t, _: t["annotations"].clear(), "holds no masks that count"),
    "nothing found": (lambda _, r: [x.update(segmentation=box(60, 80, 0, 70, 9)) for x in r], "Every score of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_never_a_silent_zero(name: str, evaluate: Callable) -> None:
    change, words = BAD[name]
    result = evaluate(change=change)
    assert result.code == 1
    assert words in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


def test_one_bad_prediction_does_not_lose_the_scores_of_another(
    evaluate: Callable, sohes: Callable, tmp_path: Path
) -> None:
    evaluate()
    good = tmp_path / "results.json"
    results = json.loads(good.read_text())
    results[1]["segmentation"]["counts"] = "~~"
    (tmp_path / "bad.json").write_text(json.dumps(results))
    result = sohes("evaluate", tmp_path / "bad.json", good, "--gt", tmp_path / "gt.json", "--json")
    assert result.code == 1
    assert [p["path"] for p in json.loads(result.out)["predictions"]] == [str(good)]
    assert "bad.json: annotation number 2 of 1.jpg" in result.err
    both = sohes("evaluate", tmp_path / "bad.json", tmp_path / "bad.json", "--gt", tmp_path / "gt.json")
    assert (both.code, both.out) == (1, "")
    assert "2 of 2 predictions could not be scored." in both.err


def test_all_bad_masks_are_listed_up_to_twenty(evaluate: Callable) -> None:
    def spoil(_truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        results.extend({**results[0], "score": None} for _ in range(30))

    result = evaluate(change=spoil)
    assert result.code == 1
    assert result.err.count("its score is None") == 20
    assert "... and 10 more." in result.err
    assert "30 problems in the masks of 1 of 2 images" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "ar.gif"], "format '.gif' is not known"),
        (["--plot", "ar"], "not known"),
        (["--plot", "ar.png", "--published", "cocoo"], "Did you mean 'coco'?"),
        (["--plot", "/dev/null/ar.png"], "nothing can be written in /dev/null"),
        (["--match", "name"], "has no file names"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], words: str, evaluate: Callable) -> None:
    result = evaluate(*arguments)
    assert result.code == 2
    assert words in result.err


def test_parent_of_parts_alone_gives_roots_alone_a_forest_too(evaluate: Callable) -> None:
    """Only the parts of one image have the key: the other image is a forest of roots, whose pair is found and not
    linked.
    """

    def link(_truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        for i, r in enumerate(results, start=1):
            r["id"] = i
        results[1]["parent"] = 1

    (prediction,) = json.loads(evaluate("--json", change=link).out)["predictions"]
    assert (prediction["hierarchy"]["pairs_found"], prediction["hierarchy"]["link_recall"]) == (1.0, 0.5)
    assert (prediction["forest"]["mean_depth"], prediction["forest"]["trees_per_image"]) == (1.5, 2.5)


def test_class_of_any_size_is_taken(evaluate: Callable) -> None:
    result = evaluate(
        change=lambda truth, results: [a.update(category_id=10**30) for a in (truth["annotations"][0], results[0])]
    )
    assert result.code == 0, result.err


def test_predictions_written_twice_are_told(evaluate: Callable) -> None:
    result = evaluate("--json", change=lambda _, results: results.extend([dict(results[0]), dict(results[4])]))
    assert "2 masks repeat an earlier one in mask, score and class (first: annotation number 4 of 1.jpg)" in result.err
    assert json.loads(result.out)["predictions"][0]["masks_repeated"] == 2
    assert "repeat" not in evaluate(change=lambda _, results: results.__delitem__(slice(6, None))).err


def test_annotations_without_scores_are_told(evaluate: Callable, sohes: Callable, tmp_path: Path) -> None:
    evaluate()
    result = sohes("evaluate", tmp_path / "gt.json", "--gt", tmp_path / "gt.json", "--json")
    assert "gt.json: 4 masks have no score and count as 1" in result.err
    assert json.loads(result.out)["predictions"][0]["masks_without_score"] == 4


def test_record_of_another_image_is_refused(sohes: Callable, reference_folder: Path, tmp_path: Path) -> None:
    sohes("export", reference_folder, "--out", tmp_path / "gt.json")
    shutil.copytree(reference_folder, tmp_path / "labels")
    shutil.copy(tmp_path / "labels" / "a-cup.png.json", tmp_path / "labels" / "b-face.png.json")
    result = sohes("evaluate", tmp_path / "labels", "--gt", tmp_path / "gt.json")
    assert result.code == 1
    assert "b-face.png.json should be the record of 'b-face.png', but names 'a-cup.png'" in result.err


def test_all_predictions_are_opened_before_the_first_is_scored(
    evaluate: Callable, sohes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate()
    monkeypatch.setattr(
        "sohes_cli.evaluation.session.score_image", lambda _task: pytest.fail("scored before all were opened")
    )
    result = sohes("evaluate", tmp_path / "results.json", tmp_path / "none.json", "--gt", tmp_path / "gt.json")
    assert result.code == 1
    assert "none.json cannot be read" in result.err


def test_columns_are_told_apart_and_keep_their_numbers(
    evaluate: Callable, sohes: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one name are shown with their folders, brackets in a name are no markup, and a narrow terminal cuts
    nothing.
    """
    monkeypatch.setenv("COLUMNS", "20")
    evaluate()
    for name in ("a/r[v2].json", "b/r[v2].json"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(tmp_path / "results.json", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    result = sohes("evaluate", "a/r[v2].json", "b/r[v2].json", "--gt", "gt.json")
    assert result.code == 0, result.err
    header = "".join(c.strip() for line in result.out.splitlines() if "┃" in line for c in line.split("┃")[2:3])
    assert header == "a/r[v2].json"
    assert ["AR@1000 medium", "100.0", "100.0"] in [
        [c.strip() for c in line.strip("│").split("│")] for line in result.out.splitlines()
    ]
    assert "Note" not in sohes("evaluate", "a/r[v2].json", "--gt", "gt.json").err


def test_ground_truth_must_be_annotations(evaluate: Callable, sohes: Callable, tmp_path: Path) -> None:
    evaluate()
    result = sohes("evaluate", tmp_path / "gt.json", "--gt", tmp_path / "results.json")
    assert result.code == 2
    assert "is a result file" in result.err
    assert sohes("evaluate", tmp_path / "gt.json", "--gt", tmp_path / "none.json").code == 1


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_picture_is_drawn(suffix: str, evaluate: Callable, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"ar{suffix}"
    result = evaluate("--plot", path, "--published", "coco")
    assert result.code == 0, result.err
    assert f"Wrote {path}." in result.out
    if suffix == ".png":
        with Image.open(path) as picture:
            assert min(picture.size) > 500
            colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
        assert {(0, 0x72, 0xB2), (255, 255, 255)} <= colors
    elif suffix == ".svg":
        assert b"<svg" in path.read_bytes()


def test_converted_ground_truth_brings_its_published_scores(evaluate: Callable, tmp_path: Path) -> None:
    evaluate("--plot", tmp_path / "plain.svg")
    evaluate("--plot", tmp_path / "published.svg", change=lambda truth, _: truth.update(info={"dataset": "coco"}))
    evaluate(
        "--plot",
        tmp_path / "training.svg",
        change=lambda truth, _: truth.update(info={"dataset": "coco", "split": "train2017"}),
    )
    shown = {name: (tmp_path / f"{name}.svg").stat().st_size for name in ("plain", "published", "training")}
    assert shown["published"] > 1.1 * shown["plain"]
    assert shown["training"] < 1.1 * shown["plain"]


@pytest.mark.parametrize("name", ["$cost_{$.json", "_results.json", "x" * 100 + ".json"])
def test_any_name_can_stand_in_the_picture(name: str, evaluate: Callable, sohes: Callable, tmp_path: Path) -> None:
    evaluate(change=lambda truth, _: truth.update(info={"dataset": ["no", "name"]}))
    shutil.copy(tmp_path / "results.json", tmp_path / name)
    result = sohes("evaluate", tmp_path / name, "--gt", tmp_path / "gt.json", "--plot", tmp_path / "ar.svg")
    assert result.code == 0, result.err
    assert f"{name} (3 masks an image)" in (tmp_path / "ar.svg").read_text()  # Matplotlib writes each text as a comment


def test_names_that_are_too_long_for_a_file_are_errors(evaluate: Callable, sohes: Callable, tmp_path: Path) -> None:
    evaluate()
    name = tmp_path / ("x" * 300 + ".png")
    for arguments in (
        [name, "--gt", tmp_path / "gt.json"],
        [tmp_path / "results.json", "--gt", tmp_path / "gt.json", "--plot", name],
    ):
        result = sohes("evaluate", *arguments)
        assert result.code == 1
        assert "File name too long" in result.err
        assert "Unexpected" not in result.err


def test_killed_command_leaves_no_process(
    case: tuple[dict[str, Any], list[dict[str, Any]]], start: Callable, tmp_path: Path
) -> None:
    write_many(tmp_path, *case)
    process = start("evaluate", tmp_path / "results.json", "--gt", tmp_path / "gt.json", "--workers", "2")
    wait_for_workers(process, 2)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=20)  # ends when the last process that holds its end of the pipes is gone


def write_many(folder: Path, truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """3,000 images with 40 results each, which take some seconds."""
    images = [{**truth["images"][0], "id": i, "file_name": f"{i}.jpg"} for i in range(1, 3000)]
    annotations = [{**truth["annotations"][0], "id": i, "image_id": i} for i in range(1, 3000)]
    (folder / "gt.json").write_text(json.dumps({**truth, "images": images, "annotations": annotations}))
    (folder / "results.json").write_text(
        json.dumps([{**results[0], "image_id": i} for i in range(1, 3000) for _ in range(40)])
    )


@pytest.mark.parametrize("later_s", [0, 1])
def test_interruption_ends_all_processes(
    case: tuple[dict[str, Any], list[dict[str, Any]]], start: Callable, tmp_path: Path, later_s: float
) -> None:
    """While workers start, and while they work."""
    write_many(tmp_path, *case)
    process = start("evaluate", tmp_path / "results.json", "--gt", tmp_path / "gt.json", "--workers", "2")
    wait_for_workers(process, 2)
    time.sleep(later_s)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Interrupted." in err
