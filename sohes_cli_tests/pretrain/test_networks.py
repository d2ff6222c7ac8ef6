"""Student and teacher: masked patches, tokens of the heads, and updates of the teacher."""

from __future__ import annotations

import pytest
import torch

from sohes_cli.pretrain.config import PretrainConfig, pretrain_config
from sohes_cli.pretrain.networks import Network
from sohes_cli.training.moving_average import update_teacher

B, LARGE, SMALL, P = 2, 32, 16, 16


def config(*assignments: str) -> PretrainConfig:
    sizes = ["model.embed_dim=32", "model.depth=2", "model.num_heads=2", "loss.hidden_dim=24", "loss.bottleneck_dim=12"]
    return pretrain_config(assignments=[*sizes, "loss.image_prototypes=10", "loss.patch_prototypes=11", *assignments])


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    made = Network(config()).eval()
    torch.nn.init.normal_(made.mask_token)
    return made


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(B * 2, P, dtype=torch.bool)
    masks[0, 3], masks[2, 5:7] = True, True
    return {
        "large": torch.randn(B * 2, 3, LARGE, LARGE, generator=generator),
        "masks": masks,
        "pairs": torch.tensor([[0, 17, 31], [33, 2, 38]]),  # of 2 x 16 patches of large views and 2 x 4 of small ones
        "small": torch.randn(B * 2, 3, SMALL, SMALL, generator=generator),
    }


@pytest.mark.parametrize("hides", [True, False])
def test_what_lies_under_hidden_patches_is_seen_only_when_nothing_is_hidden(network: Network, hides: bool) -> None:
    given = inputs()
    other = given | {"large": given["large"].clone()}
    other["large"][0, :, 0:8, 24:32] += 3  # patch 3 of the first view
    first, second = (network(**views, hides=hides)["features"] for views in (given, other))
    assert torch.equal(first[0], second[0]) == hides
    assert torch.equal(first[1:], second[1:])


@torch.no_grad()
def test_a_hidden_patch_still_has_its_place(network: Network) -> None:
    masks = torch.ones(1, P, dtype=torch.bool)
    _, tokens = network.tokens(torch.zeros(1, 3, LARGE, LARGE), masks)
    assert float((tokens[0, 0] - tokens[0, 5]).abs().max()) > 1e-3


# a plain ViT, one with registers whose class token has no position, one with a norm before its blocks
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch32_clip_224"])
@torch.no_grad()
def test_tokens_are_those_of_timms_own_forward_pass(name: str) -> None:
    torch.manual_seed(0)
    network = Network(config(f"model.name={name}")).eval()
    pixels = torch.randn(2, 3, 40, 24)
    expected = network.vit.forward_features(pixels)
    for masks in (None, torch.zeros(2, 15, dtype=torch.bool)):
        image, patches = network.tokens(pixels, masks)
        torch.testing.assert_close(image, expected[:, 0])
        torch.testing.assert_close(patches, expected[:, -15:])


@torch.no_grad()
def test_a_hidden_patch_is_the_mask_token_in_place_of_its_embedding(network: Network) -> None:
    masks = torch.zeros(1, P, dtype=torch.bool)
    masks[0, [1, 7]] = True
    pixels = inputs()["large"][:1]
    embed = network.vit.patch_embed

    def replaced(_module: torch.nn.Module, _args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        output[0, 0, 1] = output[0, 1, 3] = network.mask_token
        return output

    found = network.tokens(pixels, masks)[1]
    handle = embed.register_forward_hook(replaced)
    expected = network.vit.forward_features(pixels)[:, 1:]
    handle.remove()
    torch.testing.assert_close(found, expected)


def test_the_heads_get_the_tokens_that_they_are_said_to_get(network: Network) -> None:
    given = inputs()
    found = network(**given, hides=True)
    image, large = network.tokens(given["large"], given["masks"])
    small_image, small = network.tokens(given["small"])
    torch.testing.assert_close(found["image"], network.image_head(image))
    torch.testing.assert_close(found["image_small"], network.image_head(small_image))
    torch.testing.assert_close(
        found["masked"], network.masked_head(torch.stack([large[0, 3], large[2, 5], large[2, 6]]))
    )
    wanted = [[large[0, 0], large[1, 1], large[1, 15]], [small[2, 1], large[2, 2], small[3, 2]]]
    torch.testing.assert_close(found["match"], network.match_head(torch.stack([torch.stack(row) for row in wanted])))


@torch.no_grad()
def test_vectors_have_unit_length_and_logits_are_cosines(network: Network) -> None:
    found = network(**inputs())
    torch.testing.assert_close(found["match"].norm(dim=-1), torch.ones(B, 3))
    assert found["image"].shape == (B * 2, 10)
    assert found["masked"].shape == (3, 11)
    assert float(found["image"].abs().max()) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("term", "head"), [("image", "image_head"), ("masked", "masked_head"), ("match", "match_head")]
)
def test_a_term_without_weight_has_no_head(term: str, head: str) -> None:
    network = Network(config(f"loss.{term}_weight=0"))
    assert getattr(network, head) is None
    assert term not in network(**inputs())


def test_without_small_views_their_logits_are_missing(network: Network) -> None:
    given = inputs() | {"small": torch.zeros(0, 3, SMALL, SMALL), "pairs": torch.tensor([[0], [31]])}
    assert "image_small" not in network(**given)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_the_teacher_moves_by_its_momentum(momentum: float) -> None:
    torch.manual_seed(1)
    teacher, student = Network(config()), Network(config())
    before = [p.clone() for p in teacher.parameters()]
    update_teacher(teacher, student, momentum)
    for now, old, target in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(now, momentum * old + (1 - momentum) * target)
        assert momentum != 1 or torch.equal(now, old)
        assert momentum != 0 or torch.equal(now, target)
        assert now.data_ptr() != target.data_ptr()


def test_only_prototypes_are_frozen(network: Network) -> None:
    found = network(**inputs(), hides=True)
    sum(found[name].square().sum() for name in ("image", "image_small", "masked", "match")).backward()
    network.freeze_prototypes()
    frozen = {name for name, p in network.named_parameters() if p.grad is None}
    assert frozen == {"image_head.prototypes", "masked_head.prototypes"}
