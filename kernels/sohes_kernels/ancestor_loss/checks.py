"""Argument checks of the ancestor loss: shapes, dtypes and devices against the queries [L, B, N, C]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sohes_kernels.dispatch import triton_obstacle

if TYPE_CHECKING:
    from torch import Tensor

    from sohes_kernels.ancestor_loss import Ancestors

__all__ = ["ancestor_obstacle", "check_inputs"]

_MAX_OFFSET = 2**31  # within an image


def check_inputs(queries: Tensor, w1: Tensor, w2: Tensor, ancestors: Ancestors, is_matched: Tensor) -> None:
    """Raise ValueError for a shape, dtype or device outside the contract of `ancestor_loss`."""
    _check_float(queries, w1, w2)
    _check_rows("is_matched", is_matched, queries, boolean=True)
    if isinstance(ancestors, tuple | list):
        if len(ancestors) != 2:
            raise ValueError(f"ancestors must be the pair (enter, exit) or a matrix, not {len(ancestors)} tensors")
        for name, bound in zip(("enter", "exit"), ancestors, strict=True):
            _check_rows(name, bound, queries, boolean=False)
    else:
        _check_matrix(ancestors, queries)


def ancestor_obstacle(queries: Tensor) -> str:
    """Return the obstacle to the Triton kernel on these queries, or an empty string."""
    if 2 * math.prod(queries.shape[2:]) >= _MAX_OFFSET:
        n_queries, channels = queries.shape[2:]
        return f"it counts to 2^31 within an image, and {n_queries} queries of {channels} channels are too many"
    return triton_obstacle(queries)


def _check_float(queries: Tensor, w1: Tensor, w2: Tensor) -> None:
    if queries.ndim != 4 or not queries.is_floating_point() or queries.shape[-1] == 0:
        raise ValueError(f"queries must be float [L, B, N, C], C at least 1, not {_described(queries)}")
    channels = queries.shape[-1]
    for name, weight in (("w1", w1), ("w2", w2)):
        if weight.shape != (channels, channels) or not weight.is_floating_point():
            raise ValueError(f"{name} must be float [{channels}, {channels}], not {_described(weight)}")
        if weight.dtype != queries.dtype and not torch.is_autocast_enabled(queries.device.type):
            raise ValueError(
                f"{name} must be {queries.dtype} as the queries are, not {weight.dtype}, outside of torch.autocast"
            )
        _check_device(name, weight, queries)


def _check_matrix(ancestors: Tensor, queries: Tensor) -> None:
    """Require bool [B, N, N] or [L, B, N, N]."""
    n_layers, n_images, n_queries = queries.shape[:3]
    shape = tuple(ancestors.shape)
    if ancestors.dtype != torch.bool or shape[-2:] != (n_queries,) * 2 or not _are_leading(shape[:-2], queries):
        allowed = f"[{n_layers}, {n_images}, {n_queries}, {n_queries}], the first optional"
        raise ValueError(f"a matrix of ancestors must be bool {allowed}, not {_described(ancestors)}")
    _check_device("ancestors", ancestors, queries)


def _check_rows(name: str, rows: Tensor, queries: Tensor, *, boolean: bool) -> None:
    """Require one value per query, [B, N] or [L, B, N]."""
    fits = rows.dtype == torch.bool if boolean else rows.dtype in (torch.int32, torch.int64)
    if not fits or rows.shape[-1:] != queries.shape[2:3] or not _are_leading(tuple(rows.shape[:-1]), queries):
        allowed = f"{'bool' if boolean else 'int32 or int64'} {list(queries.shape[:3])}, the first dimension optional"
        raise ValueError(f"{name} must be {allowed}, not {_described(rows)}")
    _check_device(name, rows, queries)


def _are_leading(shape: tuple[int, ...], queries: Tensor) -> bool:
    layers, images = queries.shape[:2]
    return shape in ((images,), (layers, images))


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _check_device(name: str, tensor: Tensor, queries: Tensor) -> None:
    if tensor.device != queries.device:
        raise ValueError(f"{name} is on {tensor.device} and the queries on {queries.device}; move one of them")
