"""Settings of `sohes pipeline`: those of each stage's command, named STAGE.GROUP.NAME.

Command line: `--set instruct.optimizer.steps=1000`; TOML: `[instruct.optimizer]`. The settings of `segment`, with which
models label the photographs of a ground truth, have no groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import ConfigError, SohesError, nearest
from sohes_cli.explore.config import ExploreConfig, explore_config
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.settings import from_plain, given_settings, to_plain
from sohes_cli.training.config import TrainConfig, train_config
from sohes_cli.training.correct_config import CorrectConfig, correct_config

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PipelineConfig", "pipeline_config", "stage_named"]

_STAGES = ("explore", "instruct", "correct", "segment")


@dataclass(frozen=True)
class PipelineConfig:
    """Settings of all stages.

    Args:
        explore: settings of phase 1.
        instruct: settings of phase 2.
        correct: settings of phase 3, derived from those of phase 2.
        segment: settings of the evaluated models.
        corrections: given settings of phase 3, which override those of the model of phase 2.
    """

    explore: ExploreConfig
    instruct: TrainConfig
    correct: CorrectConfig
    segment: SegmentConfig
    corrections: Mapping[str, Any]

    def of_stages(self) -> dict[str, dict[str, Any]]:
        """Return the settings of the three phases by stage, ready for JSON."""
        return {stage: to_plain(getattr(self, stage)) for stage in ("explore", "instruct", "correct")}

    def of_segment(self) -> dict[str, Any]:
        """Return the settings of `segment` by name."""
        return asdict(self.segment)


def pipeline_config(preset: str = "tiny", file: Path | None = None, assignments: Sequence[str] = ()) -> PipelineConfig:
    """Resolve the settings of all stages.

    Args:
        preset: preset of phase 2 (tiny, small or base), whose model phase 3 continues.
        file: TOML file with tables named after the stages and their groups.
        assignments: `stage.group.name=value` strings; see `sohes_cli.settings.resolve`.

    Raises:
        ConfigError: if a stage or name is unknown, or a value has the wrong type or range.
    """
    given = given_settings(file, assignments)
    _check_stages(given)
    explore, instruct, correct, segment = (given.get(stage, {}) for stage in _STAGES)
    with stage_named("explore"):
        explored = explore_config(flags=explore)
    with stage_named("instruct"):
        instructed = train_config(preset, flags=instruct)
    with stage_named("correct"):
        corrected = correct_config(to_plain(instructed), flags=correct)
    with stage_named("segment"):
        segmented = from_plain(SegmentConfig, segment)
    return PipelineConfig(explored, instructed, corrected, segmented, correct)


@contextmanager
def stage_named(stage: str) -> Iterator[None]:
    """Add the stage to the errors about its settings."""
    try:
        yield
    except SohesError as error:
        hint = error.hint if f"--set {stage}." in error.hint else error.hint.replace("--set ", f"--set {stage}.")
        raise type(error)(f"Stage {stage}: {error.message}", hint) from error


def _check_stages(given: Mapping[str, Any]) -> None:
    for stage, values in given.items():
        if stage not in _STAGES:
            example = "For example --set instruct.optimizer.steps=1000"
            hint = f"A setting begins with its stage: {', '.join(_STAGES)}. {example}"
            raise ConfigError(f"{stage} is not a stage.{nearest(stage, _STAGES)}", hint)
        if not isinstance(values, Mapping):
            name = "NAME" if stage == "segment" else "GROUP.NAME"
            raise ConfigError(f"{stage} is a stage, not a setting.", f"Set {stage}.{name} instead.")
