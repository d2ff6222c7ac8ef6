"""Metrics of a run: one JSON object a line, the same for TensorBoard, and no repeated step after a resumption."""

from __future__ import annotations

import io
import json
import math
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sohes_cli.errors import StoreError
from sohes_cli.training.metrics import MetricsLog, read_metrics

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, start: int, end: int) -> None:
    """Log the steps after `start` up to `end`."""
    with MetricsLog(folder, start) as log:
        for step in range(start + 1, end + 1):
            log.write(step, {"loss": 1 / step, "rate": 0.5})


def events(folder: Path) -> list[Event]:
    """Read the records of all event files by name: length, its checksum, content, its checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            body = content[12 : 12 + length]
            for checked, stored in ((content[:8], content[8:12]), (body, content[12 + length : 16 + length])):
                checksum = crc32c(checked)
                rotated = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
                assert struct.pack("<I", rotated) == stored
            found.append(Event.FromString(body))
            content = content[16 + length :]
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value for event in events(folder) for value in event.summary.value}


def test_each_step_is_a_line_of_json_and_a_point(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == read_metrics(tmp_path) == [{"step": step, "loss": 1 / step, "rate": 0.5} for step in (1, 2, 3)]
    assert scalars(tmp_path) == pytest.approx(
        {(name, line["step"]): line[name] for line in lines for name in ("loss", "rate")}
    )


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "a": None, "b": None, "c": 1.0}
    assert scalars(tmp_path) == {("c", 1): 1.0}


def test_steps_after_the_one_that_is_resumed_are_removed(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    write(tmp_path, 2, 4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    restarts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert restarts[-1] == 3  # TensorBoard drops what earlier files have from this step on


@pytest.mark.parametrize(
    "damage", [b'{"step": 3, "lo', b"\0" * 9, b"\xff\xfe\n", b"[]\n", b'{"loss": 1}\n', b'{"step": "3"}\n', b"\n"]
)
def test_what_a_crash_left_is_no_line(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, 2, 3)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_run_without_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    write(tmp_path, 0, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 2.0})
        assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _content: object) -> int:
            raise OSError(28, "No space left on device")

    with MetricsLog(tmp_path, 0) as log:
        monkeypatch.setattr(log, "_file", Full())
        with pytest.raises(StoreError, match=r"metrics\.jsonl cannot be written: No space left"):
            log.write(1, {"loss": 2.0})


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file in its place")
    with pytest.raises(StoreError, match="cannot be written"):
        MetricsLog(tmp_path, 0)


def test_a_picture_is_stored_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
    with MetricsLog(tmp_path, 0) as log:
        log.picture(4, "predictions", pixels)
    ((step, value),) = [(e.step, v) for e in events(tmp_path) for v in e.summary.value]
    assert (step, value.tag) == (4, "predictions")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)).convert("RGB")), pixels)
