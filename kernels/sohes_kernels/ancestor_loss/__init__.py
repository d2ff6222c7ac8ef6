"""The loss of the ancestor head: does query i stand for an ancestor of what query j stands for?

    Z = (Q W1)(Q W2)^T / sqrt(C),    loss = mean over matched i != j of BCE(sigmoid(Z[i, j]), T[i, j])

T[i, j] is 1 if the label matched to query i is an ancestor of the one matched to query j. In a pre-order numbering of
the forest a node's descendants are consecutive, so two integers a node stand for the matrix:

    T[i, j] = enter[i] < enter[j] <= exit[i]

The reference computes Z as a matrix; the Triton kernel never stores Z, its sigmoid or T, so its memory is linear in N.

Source: Cao et al. 2024, ancestor prediction (two linear maps and a sigmoid of the query features, and the binary ancestor
matrix as target); the mean over ordered pairs of matched queries is our choice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from sohes_kernels.dispatch import can_always_run, choose_backend, triton_obstacle

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Ancestors: TypeAlias = Tensor | tuple[Tensor, Tensor]

__all__ = ["Backend", "ancestor_loss", "forest_intervals"]

Backend = Literal["auto", "reference", "triton"]
_OFFSETS = 2**31  # within an image


def ancestor_loss(
    queries: Tensor, w1: Tensor, w2: Tensor, ancestors: Ancestors, is_matched: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Mean binary cross entropy of the ancestor logits of each image at each decoder layer.

    Rows that are not matched count nowhere, whatever they hold, and their gradient is zero. Under `torch.autocast` the
    matrix products run in its type. The gradient cannot be differentiated again by the Triton backend.

    Args:
        queries: query features, float [L, B, N, C] of L decoder layers and B images.
        w1: the map of queries as ancestors, [C, C], of the queries' type (any float type under autocast).
        w2: the map of queries as descendants, likewise.
        ancestors: the pre-order intervals (enter, exit) of the matched labels, integers [B, N] or [L, B, N] each (see
            `forest_intervals`), or the matrix T, bool [B, N, N] or [L, B, N, N].
        is_matched: which queries have a label, bool [B, N] or [L, B, N].
        backend: "triton", "reference" (plain PyTorch) or "auto", which is "triton" for CUDA tensors it can
            take and "reference" otherwise. Under TRITON_INTERPRET=1, "triton" takes CPU tensors.

    Returns:
        The loss, float32 [L, B] (float64 for float64 queries); 0 where fewer than two queries are matched.

    Raises:
        ValueError: if a shape, a type or a device does not fit the queries', or the backend is unknown.
        RuntimeError: if "triton" is asked for and cannot run; says why.

    Source: Cao et al. 2024, ancestor prediction.
    """
    _check_float(queries, w1, w2)
    _check_rows("is_matched", is_matched, queries, boolean=True)
    _check_ancestors(ancestors, queries)
    obstacles = {"triton": lambda: _triton_obstacle(queries), "reference": can_always_run}
    chosen = choose_backend("ancestor_loss", backend, obstacles, is_on_gpu=queries.is_cuda)
    if chosen == "reference":
        from sohes_kernels.ancestor_loss.reference import ancestor_loss_reference

        return ancestor_loss_reference(queries, w1, w2, ancestors, is_matched)
    from sohes_kernels.ancestor_loss.triton_kernel import ancestor_loss_triton

    return ancestor_loss_triton(queries, w1, w2, ancestors, is_matched)


@overload
def forest_intervals(parents: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def forest_intervals(parents: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
def forest_intervals(
    parents: Tensor | NDArray[np.integer[Any]],
) -> tuple[Tensor, Tensor] | tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Number the nodes of a forest in pre-order, so that i is an ancestor of j exactly when enter[i] < enter[j] <= exit[i].

    Args:
        parents: each node's parent as its index, -1 for a root, an integer tensor or array [N]; several roots and any
            depth and order are allowed.

    Returns:
        enter, a permutation of 0..N-1 in which parents come before their children and lower indices before higher
        siblings; and exit, the largest number below the node or its own; int32 [N] each, on the parents' device.

    Raises:
        ValueError: if `parents` is not integer [N], names a node that does not exist, or has a cycle.
    """
    if isinstance(parents, np.ndarray):
        return _intervals(parents)
    import torch

    enter, leave = _intervals(parents.detach().cpu().numpy())
    return torch.from_numpy(enter).to(parents.device), torch.from_numpy(leave).to(parents.device)


def _intervals(parents: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if parents.ndim != 1 or not np.issubdtype(parents.dtype, np.integer):
        raise ValueError(f"parents must be integers [N], not {parents.dtype} of shape {parents.shape}")
    if parents.size and not -1 <= parents.min() <= parents.max() < parents.size:
        raise ValueError(f"parents must be -1 or a node 0..{parents.size - 1}, found {parents.min()}..{parents.max()}")
    parent_of: list[int] = parents.tolist()
    children: list[list[int]] = [[] for _ in range(parents.size + 1)]  # the roots come last, at index -1
    for node in reversed(range(parents.size)):
        children[parent_of[node]].append(node)
    order: list[int] = []
    waiting = children[-1]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting.extend(children[node])
    if len(order) < parents.size:
        node = min(set(range(parents.size)).difference(order))
        raise ValueError(f"parents must form a forest, but the parents of node {node} lead into a cycle")
    enter = np.empty(parents.size, dtype=np.int32)
    enter[order] = np.arange(parents.size, dtype=np.int32)
    leave = enter.copy()
    for node in reversed(order):
        if parent_of[node] >= 0:
            leave[parent_of[node]] = max(leave[parent_of[node]], leave[node])
    return enter, leave


def _triton_obstacle(queries: Tensor) -> str:
    """Why the Triton kernel cannot take these queries, or an empty string."""
    if 2 * math.prod(queries.shape[2:]) >= _OFFSETS:
        return f"it counts to 2^31 within an image, and {queries.shape[2]} queries of {queries.shape[3]} channels are too many"
    return triton_obstacle(queries)


def _check_float(queries: Tensor, w1: Tensor, w2: Tensor) -> None:
    import torch

    if queries.ndim != 4 or not queries.is_floating_point() or queries.shape[-1] == 0:
        raise ValueError(
            f"queries must be float [L, B, N, C], C at least 1, not {queries.dtype} of shape {tuple(queries.shape)}"
        )
    channels = queries.shape[-1]
    for name, weight in (("w1", w1), ("w2", w2)):
        if weight.shape != (channels, channels) or not weight.is_floating_point():
            raise ValueError(
                f"{name} must be float [{channels}, {channels}], not {weight.dtype} of shape {tuple(weight.shape)}"
            )
        if weight.dtype != queries.dtype and not torch.is_autocast_enabled(queries.device.type):
            raise ValueError(
                f"{name} must be {queries.dtype} as the queries are, not {weight.dtype}, outside of torch.autocast"
            )
        _check_device(name, weight, queries)


def _check_ancestors(ancestors: Ancestors, queries: Tensor) -> None:
    if isinstance(ancestors, tuple | list):
        if len(ancestors) != 2:
            raise ValueError(f"ancestors must be the pair (enter, exit) or a matrix, not {len(ancestors)} tensors")
        for name, bound in zip(("enter", "exit"), ancestors, strict=True):
            _check_rows(name, bound, queries, boolean=False)
        return
    n_queries = queries.shape[2]
    shape = tuple(ancestors.shape)
    if str(ancestors.dtype) != "torch.bool" or shape[-2:] != (n_queries,) * 2 or not _are_leading(shape[:-2], queries):
        allowed = f"[{queries.shape[0]}, {queries.shape[1]}, {n_queries}, {n_queries}], the first optional"
        raise ValueError(f"a matrix of ancestors must be bool {allowed}, not {ancestors.dtype} of shape {shape}")
    _check_device("ancestors", ancestors, queries)


def _check_rows(name: str, rows: Tensor, queries: Tensor, *, boolean: bool) -> None:
    """Refuse what is not one value a query, [B, N] or [L, B, N]."""
    import torch

    fits = rows.dtype == torch.bool if boolean else rows.dtype in (torch.int32, torch.int64)
    if not fits or rows.shape[-1:] != queries.shape[2:3] or not _are_leading(tuple(rows.shape[:-1]), queries):
        allowed = f"{'bool' if boolean else 'int32 or int64'} {list(queries.shape[:3])}, the first dimension optional"
        raise ValueError(f"{name} must be {allowed}, not {rows.dtype} of shape {tuple(rows.shape)}")
    _check_device(name, rows, queries)


def _are_leading(shape: tuple[int, ...], queries: Tensor) -> bool:
    layers, images = queries.shape[:2]
    return shape in ((images,), (layers, images))


def _check_device(name: str, tensor: Tensor, queries: Tensor) -> None:
    if tensor.device != queries.device:
        raise ValueError(f"{name} is on {tensor.device} and the queries on {queries.device}; move one of them")
