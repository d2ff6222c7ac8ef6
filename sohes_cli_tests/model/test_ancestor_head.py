"""Ancestor head: logits equal to those of the training loss, with a direction from ancestor to descendant."""

from __future__ import annotations

import torch
from sohes_kernels.ancestor_loss.reference import ancestor_loss_reference

from sohes_cli.model.ancestor_head import AncestorHead


def test_ancestor_logits_are_those_that_the_loss_trains() -> None:
    layers, images, n, channels = 2, 3, 5, 16
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(layers, images, n, channels, generator=generator)
    ancestors = torch.rand(images, n, n, generator=generator) < 0.3
    matched = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)
    torch.manual_seed(1)
    head = AncestorHead(channels)
    probabilities = head(queries).sigmoid()
    expected = torch.zeros(layers, images)
    for image in range(images):
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j and matched[image, i] and matched[image, j]]
        for i, j in pairs:
            chance = probabilities[:, image, i, j]
            expected[:, image] -= (chance if ancestors[image, i, j] else 1 - chance).log() / len(pairs)
    torch.testing.assert_close(ancestor_loss_reference(queries, head.w1, head.w2, ancestors, matched), expected)


def test_logits_are_directed_from_ancestor_to_descendant() -> None:
    head = AncestorHead(4)
    with torch.no_grad():
        head.w1.zero_()[0, 0] = 2.0
        head.w2.zero_()[1, 0] = 3.0
    queries = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    torch.testing.assert_close(head(queries), torch.tensor([[0.0, 6.0 / 2], [0.0, 0.0]]))
