"""Loss of the ancestor head: does query i stand for an ancestor of the region of query j?

    Z = (Q W1)(Q W2)^T / sqrt(C),    loss = mean over matched i != j of BCE(sigmoid(Z[i, j]), T[i, j])

T[i, j] is 1 if the label matched to query i is an ancestor of the one matched to query j. In a pre-order numbering of
the forest the descendants of a node are consecutive, so two integers per node replace the matrix:

    T[i, j] = enter[i] < enter[j] <= exit[i]

The reference computes Z as a matrix; the Triton kernel never stores Z, its sigmoid or T: its memory is linear in N.

Source: Cao et al. 2024, ancestor prediction (two linear maps and a sigmoid of the query features, and the binary
ancestor matrix as target); the mean over ordered pairs of matched queries is our choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from sohes_kernels.dispatch import can_always_run, choose_backend

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Ancestors: TypeAlias = Tensor | tuple[Tensor, Tensor]
    Intervals: TypeAlias = tuple[NDArray[np.int32], NDArray[np.int32]]

__all__ = ["Backend", "ancestor_loss", "forest_intervals"]

Backend = Literal["auto", "reference", "triton"]


def ancestor_loss(
    queries: Tensor, w1: Tensor, w2: Tensor, ancestors: Ancestors, is_matched: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Compute the mean binary cross entropy of the ancestor logits of each image at each decoder layer.

    Unmatched rows have no effect, whatever their values, and zero gradient. Under `torch.autocast` the matrix products
    run in its dtype. The Triton backend is differentiable once.

    Args:
        queries: query features, float [L, B, N, C] of L decoder layers and B images.
        w1: linear map of queries as ancestors, [C, C], in the queries' dtype (any float dtype under autocast).
        w2: linear map of queries as descendants, likewise.
        ancestors: pre-order intervals (enter, exit) of the matched labels, integers [B, N] or [L, B, N] each (see
            `forest_intervals`), or the matrix T, bool [B, N, N] or [L, B, N, N].
        is_matched: True for queries with a label, bool [B, N] or [L, B, N].
        backend: "triton", "reference" (plain PyTorch) or "auto", which is "triton" for CUDA tensors it can
            take and "reference" otherwise. Under TRITON_INTERPRET=1, "triton" takes CPU tensors.

    Returns:
        The loss, float32 [L, B] (float64 for float64 queries); 0 with fewer than two matched queries.

    Raises:
        ValueError: if a shape, dtype or device does not fit the queries', or the backend is unknown.
        RuntimeError: if "triton" is requested and cannot run, with the reason.

    Source: Cao et al. 2024, ancestor prediction.
    """
    from sohes_kernels.ancestor_loss.checks import ancestor_obstacle, check_inputs

    check_inputs(queries, w1, w2, ancestors, is_matched)
    obstacles = {"triton": lambda: ancestor_obstacle(queries), "reference": can_always_run}
    if choose_backend("ancestor_loss", backend, obstacles, is_on_gpu=queries.is_cuda) == "reference":
        from sohes_kernels.ancestor_loss.reference import ancestor_loss_reference

        return ancestor_loss_reference(queries, w1, w2, ancestors, is_matched)
    from sohes_kernels.ancestor_loss.triton_kernel import ancestor_loss_triton

    return ancestor_loss_triton(queries, w1, w2, ancestors, is_matched)


@overload
def forest_intervals(parents: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def forest_intervals(parents: NDArray[np.integer[Any]]) -> Intervals: ...
def forest_intervals(parents: Tensor | NDArray[np.integer[Any]]) -> tuple[Tensor, Tensor] | Intervals:
    """Number the nodes of a forest in pre-order: i is an ancestor of j exactly if enter[i] < enter[j] <= exit[i].

    Args:
        parents: index of each node's parent, -1 for a root, integer tensor or array [N]; any number of roots, any depth
            and order.

    Returns:
        enter, a permutation of 0..N-1 with parents before children and siblings in order of their index; and exit, the
        largest number among the node and its descendants; int32 [N] each, on the parents' device.

    Raises:
        ValueError: if `parents` is not integer [N], names a node that does not exist, or has a cycle.
    """
    if isinstance(parents, np.ndarray):
        return _intervals(parents)
    import torch

    enter, leave = _intervals(parents.detach().cpu().numpy())
    return torch.from_numpy(enter).to(parents.device), torch.from_numpy(leave).to(parents.device)


def _intervals(parents: NDArray[np.integer[Any]]) -> Intervals:
    if parents.ndim != 1 or not np.issubdtype(parents.dtype, np.integer):
        raise ValueError(f"parents must be integers [N], not {parents.dtype} of shape {parents.shape}")
    if parents.size and not -1 <= parents.min() <= parents.max() < parents.size:
        raise ValueError(f"parents must be -1 or a node 0..{parents.size - 1}, found {parents.min()}..{parents.max()}")
    parent_of: list[int] = parents.tolist()
    children: list[list[int]] = [[] for _ in range(parents.size + 1)]  # the roots come last, at index -1
    for node in reversed(range(parents.size)):
        children[parent_of[node]].append(node)
    order: list[int] = []
    stack = children[-1]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(children[node])
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
