"""The two ways to labels of a photograph: a trained model, or phase 1 on this photograph alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
from threadpoolctl import threadpool_limits

from sohes_cli.explore.config import explore_config
from sohes_cli.explore.features import Backbone, build_backbone
from sohes_cli.explore.pipeline import explore_photograph
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.forest import ForestAgreement, forest_agreement, geometric_forest, head_forest
from sohes_cli.labels.manifest import Manifest
from sohes_cli.model.location import model_file, reason_for
from sohes_cli.runs.shards import shard_of_environment
from sohes_cli.settings import to_plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sohes_cli.images.reading import Photograph
    from sohes_cli.inference.prediction import Prediction
    from sohes_cli.inference.segmenter import Segmenter
    from sohes_cli.structures import LabelRecord

__all__ = ["ExploreMethod", "Labeled", "Method", "ModelMethod"]

_PHASE = "segment"
_GPU_BATCH = 8


class Labeled(NamedTuple):
    """Labels of a photograph, and the agreement of ancestor head and geometry on their forest, if there is a head."""

    record: LabelRecord
    agreement: ForestAgreement | None = None


class Method(Protocol):
    """Interface of a labeling method."""

    @property
    def working_size(self) -> int:
        """Square root of the pixels to which a photograph is reduced when it is read."""
        ...

    @property
    def batch_size(self) -> int:
        """Photographs in one pass."""
        ...

    @property
    def description(self) -> str:
        """Method and its reason, in one sentence."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """JSON entries: `method`, and file and hash of its `model`, if any."""
        ...

    def manifest(self, images: str) -> Manifest:
        """Build the manifest; `images` is its entry for the image folder."""
        ...

    def label(self, photographs: Sequence[Photograph]) -> list[Labeled]:
        """The labels of each photograph."""
        ...


@dataclass(frozen=True)
class ModelMethod:
    """A trained model.

    Args:
        segmenter: the model.
        file: its file.
        sha256: of the file when it was read.
        batch: photographs in one pass, 0 to choose: 8 on a GPU, or as many as have 8 views together, else 1, since a
            CPU gains nothing from more.
        reason: why this model, in a few words; empty if it was asked for.
    """

    segmenter: Segmenter
    file: Path
    sha256: str
    batch: int = 0
    reason: str = ""

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None = None,
        *,
        size: int | None = None,
        batch_size: int = 0,
        device: str = "auto",
        **settings: Any,
    ) -> ModelMethod:
        """Read a model file.

        Args:
            checkpoint: the folder of a run, its model file or `bundled`; None for what `model_file` takes then.
            size: pixels of the longer side; None for the model's own, or else the size that it was trained at.
            batch_size: photographs in one pass, 0 to choose.
            device: `auto` gives each process of a machine a GPU of its own.
            settings: of `SegmentConfig`; the others are the model's own, or else the defaults.

        Raises:
            SohesError: if there is no model, it does not run here, or a setting is wrong.
        """
        from sohes_cli.runs.files import file_sha256

        SegmentConfig(**settings)  # tells of wrong ones before there is a model to look for
        file = model_file(checkpoint)
        from sohes_cli.inference.segmenter import Segmenter  # loads PyTorch, which phase 1 and errors do not need

        segmenter = Segmenter.load(file, device=shard_of_environment().own_device(device), image_size=size, **settings)
        return cls(segmenter, file, file_sha256(file), batch_size, "" if checkpoint else reason_for(file))

    @property
    def working_size(self) -> int:
        """Square root of the pixels to which a photograph is reduced when it is read."""
        return self.segmenter.working_size

    @property
    def batch_size(self) -> int:
        """Photographs in one pass."""
        return self.batch or (
            1 if self.segmenter.device.type == "cpu" else max(1, _GPU_BATCH // self.segmenter.config.views)
        )

    @property
    def description(self) -> str:
        """Method and its reason, in one sentence."""
        s, reason = self.segmenter, self.reason and f" ({self.reason})"
        views = f" in {s.config.views} views" if s.config.views > 1 else ""
        edges = "" if s.config.refine == "none" else f", masks along {s.config.refine}"
        return (
            f"Model {self.file}{reason} on {s.device} in {s.precision}, photographs of {s.image_size} px{views}{edges}."
        )

    @property
    def identity(self) -> dict[str, Any]:
        """JSON entries: `method`, file and hash of its `model`."""
        return {"method": "model", "model": {"file": str(self.file), "sha256": self.sha256}}

    def manifest(self, images: str) -> Manifest:
        """Build the manifest; `images` is its entry for the image folder."""
        segmenter = self.segmenter
        settings = {
            "method": "model",
            "image_size": segmenter.image_size,
            "precision": segmenter.precision,
            **asdict(segmenter.config),
        }
        identity = {"name": segmenter.model.config.backbone, "sha256": self.sha256}
        return Manifest(
            _PHASE, images, settings, identity, _versions("sohes", "numpy", "torch", "timm", "numba", "pillow")
        )

    def label(self, photographs: Sequence[Photograph]) -> list[Labeled]:
        """The labels of each photograph."""
        return [Labeled(p.to_record(), self._agreement(p)) for p in self.segmenter.segment_batch(photographs)]

    def _agreement(self, prediction: Prediction) -> ForestAgreement:
        masks, probabilities = prediction.packed, prediction.ancestor_probabilities
        by_head = self.segmenter.config.forest == "head"
        other = geometric_forest(masks) if by_head else head_forest(probabilities, masks)
        return forest_agreement(prediction.forest, other)


class ExploreMethod:
    """Phase 1 with its default settings; a forest by geometry.

    Args:
        backbone: the feature extractor; None for the embedded one.
        description: what runs and why, in one sentence.
    """

    batch_size = 1

    def __init__(
        self,
        backbone: Backbone | None = None,
        description: str = "Phase 1 on each photograph by itself: no model is needed, and none is used.",
    ) -> None:
        self.description = description
        self._config = explore_config()
        self._backbone = backbone or build_backbone(self._config.features, "cpu")
        cv2.setNumThreads(1)  # as in `sohes explore`, so that sums come out the same

    @property
    def working_size(self) -> int:
        """Square root of the pixels to which a photograph is reduced when it is read."""
        return self._config.units.working_size

    @property
    def identity(self) -> dict[str, Any]:
        """JSON entries: `method`, without `model`."""
        return {"method": "explore", "model": None}

    def manifest(self, images: str) -> Manifest:
        """Build the manifest; `images` is its entry for the image folder."""
        settings = {"method": "explore", **to_plain(self._config)}
        return Manifest(
            _PHASE, images, settings, self._backbone.identity, _versions("sohes", "numpy", "scipy", "numba", "pillow")
        )

    def label(self, photographs: Sequence[Photograph]) -> list[Labeled]:
        """The labels of each photograph."""
        with threadpool_limits(1):
            return [Labeled(explore_photograph(photo, self._backbone, self._config)) for photo in photographs]


def _versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}
