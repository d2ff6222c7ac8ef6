"""Published checkpoints: a counterpart for every name of Mask2Former and ViT-Adapter, and a report of the others."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from model_cases import SMALL, randomize, small_model
from safetensors.torch import save_file
from torch import Tensor

from sohes_cli.errors import UsageError, WeightsError
from sohes_cli.model.public_weights import from_public, load_public
from sohes_cli.model.segmentation_model import EntityModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Names = dict[str, str]  # published -> ours

CONFIG = replace(SMALL, patch_size=16)
LINEAR, BATCH_NORM = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def each(published: str, ours: str, kinds: tuple[str, ...] = LINEAR) -> Names:
    return {f"{published}.{kind}": f"{ours}.{kind}" for kind in kinds}


def mask2former(prefix: str = "sem_seg_head.") -> Names:
    """MSDeformAttnPixelDecoder and MultiScaleMaskedTransformerDecoder of facebookresearch/Mask2Former."""
    pixels, queries = f"{prefix}pixel_decoder", f"{prefix}predictor"
    names = {f"{pixels}.transformer.level_embed": "pixel_decoder.transformer.level_embed"}
    for level in range(3):
        for part in (0, 1):  # a convolution and a group norm
            names |= each(f"{pixels}.input_proj.{level}.{part}", f"pixel_decoder.input_proj.{level}.{part}")
    for number in range(CONFIG.pixel_layers):
        layer = f"transformer.encoder.layers.{number}"
        for part in (*(f"self_attn.{name}" for name in DEFORMABLE), "norm1", "norm2", "linear1", "linear2"):
            names |= each(f"{pixels}.{layer}.{part}", f"pixel_decoder.{layer}.{part}")
    for part in ("adapter_1", "layer_1"):
        names |= each(f"{pixels}.{part}", f"pixel_decoder.{part}", ("weight",))
        names |= each(f"{pixels}.{part}.norm", f"pixel_decoder.{part}.norm")
    names |= each(f"{pixels}.mask_features", "pixel_decoder.mask_features")
    for number in range(CONFIG.decoder_layers):
        for layers, attention in (("cross", "multihead_attn"), ("self", "self_attn")):
            layer = f"transformer_{layers}_attention_layers.{number}"
            names |= each(
                f"{queries}.{layer}.{attention}",
                f"query_decoder.{layer}.{attention}",
                ("in_proj_weight", "in_proj_bias"),
            )
            for part in (f"{attention}.out_proj", "norm"):
                names |= each(f"{queries}.{layer}.{part}", f"query_decoder.{layer}.{part}")
        for part in ("linear1", "linear2", "norm"):
            layer = f"transformer_ffn_layers.{number}"
            names |= each(f"{queries}.{layer}.{part}", f"query_decoder.{layer}.{part}")
    for part in ("query_feat", "query_embed", "level_embed"):
        names |= each(f"{queries}.{part}", f"query_decoder.{part}", ("weight",))
    for part in ("decoder_norm", "class_embed", *(f"mask_embed.layers.{i}" for i in range(3))):
        names |= each(f"{queries}.{part}", f"query_decoder.{part}")
    return names


def openmmlab(prefix: str = "decode_head.") -> Names:
    """MSDeformAttnPixelDecoder and Mask2FormerHead of OpenMMLab, which ViT-Adapter's segmentation models have."""
    pixels, queries = f"{prefix}pixel_decoder", prefix.rstrip(".")
    names = {f"{pixels}.level_encoding.weight": "pixel_decoder.transformer.level_embed"}
    for level in range(3):
        names |= each(f"{pixels}.input_convs.{level}.conv", f"pixel_decoder.input_proj.{level}.0")
        names |= each(f"{pixels}.input_convs.{level}.gn", f"pixel_decoder.input_proj.{level}.1")
    for number in range(CONFIG.pixel_layers):
        theirs, ours = f"{pixels}.encoder.layers.{number}", f"pixel_decoder.transformer.encoder.layers.{number}"
        for part in DEFORMABLE:
            names |= each(f"{theirs}.attentions.0.{part}", f"{ours}.self_attn.{part}")
        names |= each(f"{theirs}.norms.0", f"{ours}.norm1") | each(f"{theirs}.norms.1", f"{ours}.norm2")
        names |= each(f"{theirs}.ffns.0.layers.0.0", f"{ours}.linear1") | each(
            f"{theirs}.ffns.0.layers.1", f"{ours}.linear2"
        )
    for theirs, ours in (("lateral_convs", "adapter_1"), ("output_convs", "layer_1")):
        names |= each(f"{pixels}.{theirs}.0.conv", f"pixel_decoder.{ours}", ("weight",))
        names |= each(f"{pixels}.{theirs}.0.gn", f"pixel_decoder.{ours}.norm")
    names |= each(f"{pixels}.mask_feature", "pixel_decoder.mask_features")
    for number in range(CONFIG.decoder_layers):
        layer = f"{queries}.transformer_decoder.layers.{number}"
        cross, own = (f"query_decoder.transformer_{kind}_attention_layers.{number}" for kind in ("cross", "self"))
        mlp = f"query_decoder.transformer_ffn_layers.{number}"
        for part, ours in ((0, f"{cross}.multihead_attn"), (1, f"{own}.self_attn")):
            names |= each(f"{layer}.attentions.{part}.attn", ours, ("in_proj_weight", "in_proj_bias"))
            names |= each(f"{layer}.attentions.{part}.attn.out_proj", f"{ours}.out_proj")
        for part, ours in enumerate((cross, own, mlp)):
            names |= each(f"{layer}.norms.{part}", f"{ours}.norm")
        names |= each(f"{layer}.ffns.0.layers.0.0", f"{mlp}.linear1") | each(
            f"{layer}.ffns.0.layers.1", f"{mlp}.linear2"
        )
    for part in ("query_feat", "query_embed", "level_embed"):
        names |= each(f"{queries}.{part}", f"query_decoder.{part}", ("weight",))
    names |= each(f"{queries}.transformer_decoder.post_norm", "query_decoder.decoder_norm")
    names |= each(f"{queries}.cls_embed", "query_decoder.class_embed")
    for theirs, ours in ((0, 0), (2, 1), (4, 2)):
        names |= each(f"{queries}.mask_embed.{theirs}", f"query_decoder.mask_embed.layers.{ours}")
    return names


def vit_adapter() -> Names:
    """ViTAdapter of czczup/ViT-Adapter, whose class token is no parameter."""
    names = {
        f"backbone.{name}": f"backbone.vit.{name}"
        for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    for number in range(CONFIG.depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            names |= each(f"backbone.blocks.{number}.{part}", f"backbone.vit.blocks.{number}.{part}")
    parts: dict[str, tuple[str, ...]] = {f"spm.fc{i}": LINEAR for i in range(1, 5)}
    for stage, places in (("stem", (0, 3, 6)), ("conv2", (0,)), ("conv3", (0,)), ("conv4", (0,))):
        for place in places:
            parts |= {f"spm.{stage}.{place}": ("weight",), f"spm.{stage}.{place + 1}": BATCH_NORM}
    for number in range(CONFIG.interactions):
        exchange = f"interactions.{number}"
        extractors = ["extractor", *(f"extra_extractors.{i}" for i in range(2) if number == CONFIG.interactions - 1)]
        for part in ("injector", *extractors):
            parts |= {
                f"{exchange}.{part}.{name}": LINEAR
                for name in ("query_norm", "feat_norm", *(f"attn.{n}" for n in DEFORMABLE))
            }
        for part in extractors:
            parts |= {
                f"{exchange}.{part}.{name}": LINEAR for name in ("ffn_norm", "ffn.fc1", "ffn.dwconv.dwconv", "ffn.fc2")
            }
        parts |= {f"{exchange}.injector": ("gamma",)}
    parts |= {"up": LINEAR, **{f"norm{i}": BATCH_NORM for i in range(1, 5)}}
    for part, kinds in parts.items():
        names |= each(f"backbone.{part}", f"backbone.{part}", kinds)
    return names | {"backbone.level_embed": "backbone.level_embed"}


LAYOUTS: dict[str, tuple[Names, set[str]]] = {  # and the parts of the model that they fill
    "Mask2Former": (mask2former(), {"pixel_decoder", "query_decoder"}),
    "Mask2Former without prefix": (mask2former(""), {"pixel_decoder", "query_decoder"}),
    "Mask2Former in a wrapper": (mask2former("module.model.sem_seg_head."), {"pixel_decoder", "query_decoder"}),
    "ViT-Adapter": (vit_adapter(), {"backbone"}),
    "ViT-Adapter with OpenMMLab's decoder": (
        vit_adapter() | openmmlab(),
        {"backbone", "pixel_decoder", "query_decoder"},
    ),
    "OpenMMLab's panoptic head": (openmmlab("panoptic_head."), {"pixel_decoder", "query_decoder"}),
    "ViT-Adapter with Mask2Former's": (vit_adapter() | mask2former(), {"backbone", "pixel_decoder", "query_decoder"}),
}
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
CLASS_TOKEN = "backbone.vit.cls_token"


def source() -> EntityModel:
    """A model other than any that is filled."""
    model = small_model(seed=1, patch_size=16)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.num_batches_tracked.fill_(17)
    return model


def target() -> EntityModel:
    return small_model(patch_size=16)


def published(names: Names) -> dict[str, Tensor]:
    state = source().state_dict()
    return {theirs: state[ours] for theirs, ours in names.items()}


def written(state: Mapping[str, Tensor], folder: Path) -> Path:
    torch.save({"model": dict(state), "iteration": 7}, folder / "public.pth")
    return folder / "public.pth"


@EVERY_LAYOUT
def test_every_parameter_of_a_part_has_a_published_name(layout: str) -> None:
    names, parts = LAYOUTS[layout]
    model = source()
    wanted = {name for name in model.state_dict() if name.split(".")[0] in parts} - {CLASS_TOKEN}
    assert set(names.values()) == wanted
    assert len(names) == len(wanted)


@EVERY_LAYOUT
def test_published_names_become_ours(layout: str) -> None:
    names, _ = LAYOUTS[layout]
    found, expected = from_public(published(names)), source().state_dict()
    assert found.keys() == set(names.values())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@EVERY_LAYOUT
def test_a_model_is_filled_from_a_file(layout: str, tmp_path: Path) -> None:
    names, _ = LAYOUTS[layout]
    model, before, expected = target(), target().state_dict(), source().state_dict()
    report = load_public(model, written(published(names), tmp_path))
    assert set(report.loaded) == set(names.values())
    assert set(report.missing) == expected.keys() - set(report.loaded)
    assert {"ancestor_head.w1", "ancestor_head.w2"} <= set(report.missing)
    assert report.unexpected == ()
    for name, tensor in model.state_dict().items():
        if name == "backbone.vit.pos_embed" and name in report.loaded:
            torch.testing.assert_close(tensor, expected[name])
        else:
            assert torch.equal(tensor, (expected if name in report.loaded else before)[name]), name


def test_tensors_without_a_counterpart_or_of_another_shape_are_reported(tmp_path: Path) -> None:
    state = published(mask2former())
    others = {
        "sem_seg_head.predictor.class_embed.weight": torch.ones(81, CONFIG.hidden_dim),
        "sem_seg_head.predictor.class_embed.bias": torch.ones(81),
        "sem_seg_head.predictor.query_feat.weight": torch.ones(100, CONFIG.hidden_dim),
        "criterion.empty_weight": torch.ones(81),
        "backbone.res2.0.conv1.weight": torch.ones(3),
    }
    model, before = target(), target().state_dict()
    report = load_public(model, written(state | others, tmp_path))
    assert set(report.unexpected) == set(others)
    kept = {"query_decoder.class_embed.weight", "query_decoder.class_embed.bias", "query_decoder.query_feat.weight"}
    assert kept <= set(report.missing)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in kept)


def test_names_of_the_first_version_are_known() -> None:
    names = {}
    for theirs, ours in mask2former().items():
        old = theirs.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
        names[old] = ours
    found, expected = from_public(published(names)), source().state_dict()
    assert found.keys() == set(names.values())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_another_backbone_is_not_taken_for_a_vit_adapter(tmp_path: Path) -> None:
    names = mask2former()
    swin = {
        "backbone.patch_embed.proj.weight": torch.ones(32, 3, 16, 16),
        "backbone.norm1.weight": torch.ones(32),
        "backbone.layers.0.blocks.0.attn.qkv.weight": torch.ones(96, 32),
    }
    report = load_public(target(), written(published(names) | swin, tmp_path))
    assert set(report.unexpected) == set(swin)
    assert set(report.loaded) == set(names.values())


def test_layer_scale_has_another_name_here() -> None:
    state = published(vit_adapter()) | {f"backbone.blocks.1.gamma{i}": torch.full((32,), float(i)) for i in (1, 2)}
    found = from_public(state)
    assert torch.equal(found["backbone.vit.blocks.1.ls1.gamma"], torch.full((32,), 1.0))
    assert torch.equal(found["backbone.vit.blocks.1.ls2.gamma"], torch.full((32,), 2.0))


def positions(model: EntityModel, tokens: Tensor, folder: Path) -> Tensor:
    """Return the position embeddings of a model loaded from a checkpoint with these."""
    load_public(model, written(published(vit_adapter()) | {"backbone.pos_embed": tokens}, folder))
    embedding: Tensor = model.backbone.vit.pos_embed
    return embedding.detach()


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("side", [14, 7])
def test_positions_are_interpolated_with_or_without_a_class_token(side: int, prefix: int, tmp_path: Path) -> None:
    model = target()
    own = model.backbone.vit.pos_embed.detach().clone()
    ramp = (torch.arange(side).float() + 0.5)[:, None].expand(side, side) / side  # grows from row to row
    tokens = torch.cat([torch.full((prefix, 32), 9.0), ramp.reshape(-1, 1).expand(-1, 32)])[None]
    found = positions(model, tokens, tmp_path)
    assert torch.equal(found[:, 0], tokens[:, 0] if prefix else own[:, 0])
    grid = found[0, 1:, 0].view(14, 14)
    torch.testing.assert_close(grid, grid[:, :1].expand(14, 14))
    torch.testing.assert_close(grid[3:-3, 0], ((torch.arange(14).float() + 0.5) / 14)[3:-3], rtol=0, atol=0.02)


def test_positions_of_a_model_without_those_of_its_class_token(tmp_path: Path) -> None:
    model = EntityModel(replace(SMALL, backbone="vit_small_patch14_reg4_dinov2", patch_size=16))
    randomize(model)
    side = model.backbone.vit.patch_embed.grid_size[0]
    tokens = torch.randn(1, 1 + side * side, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(positions(model, tokens, tmp_path), tokens[:, 1:])


@pytest.mark.parametrize("shape", [(1, 14 * 15, 32), (1, 197, 64), (197, 32)])
def test_positions_that_are_no_square_of_this_vit_are_left_out(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = target()
    own = model.backbone.vit.pos_embed.detach().clone()
    assert torch.equal(positions(model, torch.zeros(shape), tmp_path), own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_stays_in_32_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    names = vit_adapter()
    save_file(
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in published(names).items()},
        tmp_path / "public.safetensors",
    )
    model = target()
    report = load_public(model, tmp_path / "public.safetensors")
    assert set(report.loaded) == set(names.values())
    for name, tensor in source().state_dict().items():
        if name in report.loaded:
            found = model.state_dict()[name]
            assert found.dtype == tensor.dtype
            torch.testing.assert_close(found, tensor, rtol=1e-2, atol=1e-2)


def test_a_file_of_something_else_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model, before = target(), target().state_dict()
    path = written({"layer1.0.conv1.weight": torch.ones(2), "fc.bias": torch.ones(3)}, tmp_path)
    with pytest.raises(
        WeightsError,
        match=r"public\.pth has no tensor of this model; its tensors are layer1\.0\.conv1\.weight, fc\.bias",
    ):
        load_public(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(UsageError, match="There is no weights file"):
        load_public(model, tmp_path / "absent.pth")


def test_a_pickle_of_detectron2_is_refused_and_can_be_converted_as_the_hint_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = published(mask2former())
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    (tmp_path / "X.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party"}))
    with pytest.raises(WeightsError, match="pickle of detectron2") as caught:
        load_public(target(), tmp_path / "X.pkl")
    begin, end = "convert it in Python: ", ". Then give"
    code = caught.value.hint[caught.value.hint.index(begin) + len(begin) : caught.value.hint.index(end)]
    monkeypatch.chdir(tmp_path)
    run: Callable[..., None] = exec
    run(code, {"pickle": pickle, "torch": torch})
    assert set(load_public(target(), tmp_path / "X.pth").loaded) == set(mask2former().values())


def test_projections_of_queries_keys_and_values_are_joined_in_this_order() -> None:
    begin = "model.transformer_module.decoder.layers.2.self_attn."
    parts = {letter: torch.full((2, 2), float(number)) for number, letter in enumerate("qkv")}
    state = {f"{begin}{letter}_proj.weight": parts[letter] for letter in "kvq"}
    found = from_public(state | {f"{begin}out_proj.bias": torch.zeros(2)})
    ours = "query_decoder.transformer_self_attention_layers.2.self_attn."
    assert found.keys() == {f"{ours}in_proj_weight", f"{ours}out_proj.bias"}
    assert torch.equal(found[f"{ours}in_proj_weight"], torch.cat([parts[letter] for letter in "qkv"]))
