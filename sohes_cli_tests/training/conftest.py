"""Labels to train on, and a folder for a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from train_cases import write_scene

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label folder beside its images, `labels` and `images` of one folder; read-only."""
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Folder of a run, which does not exist yet."""
    return tmp_path / "run"
