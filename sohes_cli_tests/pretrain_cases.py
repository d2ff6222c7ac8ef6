"""Settings of tiny runs of `sohes pretrain`, with steps of a few hundredths of a second."""

from __future__ import annotations

from sohes_cli.pretrain.config import PretrainConfig, pretrain_config

TINY = (
    "model.embed_dim=64",
    "model.depth=2",
    "model.num_heads=2",
    "views.global_size=64",
    "views.local_size=32",
    "views.local_views=2",
    "views.working_size=96",
    "loss.hidden_dim=64",
    "loss.bottleneck_dim=16",
    "loss.image_prototypes=32",
    "loss.patch_prototypes=32",
    "optimizer.precision=fp32",
    "optimizer.batch_size=4",
    "run.log_every=1",
)
FLAGS = tuple(part for assignment in TINY for part in ("--set", assignment))
"""`TINY` for the command line."""


def tiny_config(steps: int, *assignments: str) -> PretrainConfig:
    """Resolve the settings of a tiny run; later assignments win."""
    return pretrain_config(assignments=(*TINY, f"optimizer.steps={steps}", *assignments))
