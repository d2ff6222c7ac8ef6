"""Every Triton kernel once on small inputs of awkward sizes: a program for NVIDIA's compute-sanitizer to watch."""

from __future__ import annotations

import torch
from sohes_kernels import ancestor_loss, deformable_attention, forest_intervals, merge_regions

PARENTS = torch.tensor([-1, 0, 0, 1, -1, 4, 2])


def run_all() -> None:
    """Run each operation forward and, where it has a gradient, backward."""
    torch.manual_seed(0)
    merge_regions(torch.randn(3, 37, 7, 11, device="cuda"), [0.5, 0.0, -1.0], backend="triton")
    merge_regions(torch.randn(37, 13, 17, device="cuda") + 3, [0.99, 0.9], backend="triton")  # a background: bounds

    queries = torch.randn(2, 1, 7, 33, device="cuda", requires_grad=True)
    weights = [torch.randn(33, 33, device="cuda", requires_grad=True) for _ in range(2)]
    forest = tuple(numbers[None].cuda() for numbers in forest_intervals(PARENTS))
    is_matched = torch.tensor([[True, True, False, True, True, True, True]], device="cuda")
    ancestor_loss(queries, *weights, forest, is_matched, backend="triton").sum().backward()

    value = torch.randn(1, 7 * 5 + 2 * 3, 3, 24, device="cuda", requires_grad=True)
    locations = (torch.rand(1, 13, 3, 2, 4, 2, device="cuda") * 1.4 - 0.2).requires_grad_()
    attention = torch.randn(1, 13, 3, 2, 4, device="cuda", requires_grad=True)
    deformable_attention(value, [(7, 5), (2, 3)], locations, attention, backend="triton").sum().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    run_all()
