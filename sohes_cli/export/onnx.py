"""Export of a trained model to an ONNX graph of any batch and image size, checked against the model before writing.

    pixels, float32 [B, 3, H, W], RGB in [0, 255], H and W multiples of 32, each image filling its canvas
    -> scores [B, Q]                     P(entity) times the mean probability inside the mask, as in `sohes segment`
       mask_logits [B, Q, H / 4, W / 4]  a mask is their interpolation to the photograph > 0
       ancestor_probabilities [B, Q, Q]  P(query i is an ancestor of query j)

Normalization is part of the graph, so a program that deploys it only resizes. The operations are those of the reference
implementations (deformable attention is a `grid_sample` per level), and position embeddings are interpolated in the
graph.
"""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sohes_cli.errors import SohesError
from sohes_cli.model.config import STRIDE
from sohes_cli.model.files import load_model
from sohes_cli.model.location import find_model
from sohes_cli.model.output import ENTITY
from sohes_cli.runs.files import file_sha256, write_atomically
from sohes_cli.vit.build import normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.segmentation_model import EntityModel

__all__ = ["OUTPUTS", "OnnxSummary", "export_onnx"]

OUTPUTS = ("scores", "mask_logits", "ancestor_probabilities")
_OPSET = 20
_TRACED = (2, 3 * STRIDE, 5 * STRIDE)  # batch, height, width: distinct and not 1, else the export would fix them
_CHECKED = ((1, 4 * STRIDE, 4 * STRIDE), (2, 7 * STRIDE, 4 * STRIDE))
_TOLERANCE = 1e-3  # relative to the largest value of an output
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxSummary:
    """Size and accuracy of an exported graph.

    Args:
        nodes: number of nodes.
        bytes: size of the file.
        difference: largest difference from the model, relative to the largest value of an output.
    """

    nodes: int
    bytes: int
    difference: float


class _Graph(nn.Module):
    """Model with the graph's inputs and outputs."""

    def __init__(self, model: EntityModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model(normalized(pixels / 255))
        masks = output.pred_masks()
        inside = (masks > 0).to(masks.dtype)
        certainty = (masks.sigmoid() * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        entity = output.pred_logits[-1].softmax(-1)[..., ENTITY]
        return entity * certainty, masks, self.model.ancestor_head(output.queries[-1]).sigmoid()


def export_onnx(checkpoint: Path, out: Path) -> OnnxSummary:
    """Write the graph of a model, which takes some minutes.

    Args:
        checkpoint: a model file, or the run folder of `sohes train`.
        out: the file to write; it appears whole or not at all.

    Raises:
        SohesError: if a package of the extra `export` is missing, or the graph's outputs differ from the model's.
        UsageError, WeightsError: if the model is missing or its file damaged.
        StoreError: if the file cannot be written.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        hint = "Install what it needs: pip install 'sohes[export]'"
        raise SohesError(f"The export to ONNX needs {', '.join(missing)}.", hint)
    model, description = load_model(checkpoint)
    graph = _Graph(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        nodes = _write(graph, file, _facts(checkpoint, description))
        difference = _largest_difference(graph, file)
        if not difference <= _TOLERANCE:
            raise SohesError(
                f"The ONNX graph of {checkpoint} differs from the model by {difference:.2g} of the largest value.",
                "Please report it with the versions of torch, onnx and onnxruntime.",
            )
        content = file.read_bytes()
    write_atomically(out, [content])
    return OnnxSummary(nodes, len(content), difference)


def _facts(checkpoint: Path, description: dict[str, Any]) -> dict[str, str]:
    """Make the metadata of the file."""
    hashed = file_sha256(find_model(checkpoint))
    return {"image_size": str(description.get("image_size", "")), "model_sha256": hashed, "stride": str(STRIDE)}


def _write(graph: nn.Module, file: Path, facts: dict[str, str]) -> int:
    """Export the model and return the number of nodes."""
    dynamic = torch.export.Dim.DYNAMIC
    batch, height, width = _TRACED
    example = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad(), redirect_stdout(io.StringIO()):  # progress and advice of the exporter
        traced = torch.export.export(graph, (example,), dynamic_shapes={"pixels": {0: dynamic, 2: dynamic, 3: dynamic}})
        program = torch.onnx.export(
            traced,
            (),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["pixels"],
            output_names=list(OUTPUTS),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise SohesError("PyTorch gave no ONNX program.", "Please report it with the versions of torch and onnxscript.")
    program.model.metadata_props.update(facts)
    program.save(os.fspath(file), external_data=False)
    return len(list(program.model.graph))


def _largest_difference(graph: nn.Module, file: Path) -> float:
    """Compute the largest relative difference from the model, over batches of other sizes than the traced one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
    return max(_difference(graph, session, size) for size in _CHECKED)


def _difference(graph: nn.Module, session: Any, size: Sequence[int]) -> float:
    batch, height, width = size
    pixels = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        wanted = graph(pixels)
    found = session.run(list(OUTPUTS), {"pixels": pixels.numpy()})
    pairs = zip(map(torch.from_numpy, found), wanted, strict=True)
    return max(float((mine - other).abs().max() / other.abs().max().clamp(min=1e-6)) for mine, other in pairs)
