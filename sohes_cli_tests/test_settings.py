"""Settings: every source (preset, file, --set, flag), which of them wins, and the message for each kind of mistake."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from sohes_cli.errors import ConfigError
from sohes_cli.explore.config import (
    PRESETS,
    ExploreConfig,
    FeaturesConfig,
    MergingConfig,
    PoolingConfig,
    explore_config,
)
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.pretrain.config import PretrainConfig
from sohes_cli.settings import from_plain, to_plain
from sohes_cli.training.config import TrainConfig
from sohes_cli.training.correct_config import CorrectConfig

GROUPS = [
    (cls, group.name, getattr(cls(), group.name))
    for cls in (ExploreConfig, PretrainConfig, TrainConfig, CorrectConfig)
    for group in dataclasses.fields(cls)
]
SETTINGS = [
    pytest.param(*settings, field, id=f"{settings[0].__name__}.{settings[1]}.{field.name}")
    for settings in [*GROUPS, (SegmentConfig, "segment", SegmentConfig())]
    for field in dataclasses.fields(settings[2])
]


def set_one(assignment):
    return explore_config(assignments=[assignment])


def as_toml(plain):
    """Nested settings as TOML, by way of JSON: their scalars and lists are written alike."""
    return "\n".join(
        f"[{group}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items())
        for group, values in plain.items()
    )


def test_the_default_preset_is_the_plain_dataclass():
    assert explore_config() == ExploreConfig()


def test_the_paper_preset_is_dino_on_patches_with_the_papers_thresholds():
    config = explore_config("paper")
    assert config.features.backbone == "vit_base_patch8_224.dino"
    assert config.units.kind == "patches"
    assert config.merging == MergingConfig(affinities=("features",), thresholds=(0.6, 0.5, 0.4, 0.3, 0.2, 0.1))
    assert config.reclustering.enabled
    assert config.hierarchy.cover == 0.9


def test_resolving_a_preset_leaves_the_presets_alone():
    before = json.dumps(PRESETS)
    explore_config("paper", assignments=["units.kind=superpixels", "merging.thresholds=[0.5]"])
    assert json.dumps(PRESETS) == before


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"default, paper, not 'papr'\. Did you mean 'paper'\?"):
        explore_config("papr")


@pytest.mark.parametrize(
    ("assignment", "group", "name", "value"),
    [
        ("features.image_size=224", "features", "image_size", 224),
        ("pooling.nms_iou=0.8", "pooling", "nms_iou", 0.8),
        ("pooling.nms_iou=1", "pooling", "nms_iou", 1.0),
        ("merging.boundary_weight=2e-1", "merging", "boundary_weight", 0.2),
        ("units.kind=patches", "units", "kind", "patches"),
        ('units.kind="patches"', "units", "kind", "patches"),
        (" units.kind = 'patches' ", "units", "kind", "patches"),
        ("features.weights=dir/my weights.pth", "features", "weights", "dir/my weights.pth"),
        ("features.weights=a=b.pth", "features", "weights", "a=b.pth"),
        ("features.weights=", "features", "weights", ""),
        ("reclustering.enabled=true", "reclustering", "enabled", True),
        ("refinement.fill_holes=false", "refinement", "fill_holes", False),
        ("merging.thresholds=[0.9, 0.8]", "merging", "thresholds", (0.9, 0.8)),
        ("merging.thresholds=0.9,0.8", "merging", "thresholds", (0.9, 0.8)),
        ("merging.thresholds=0.9, 0.8,", "merging", "thresholds", (0.9, 0.8)),
        ("merging.thresholds=0.5", "merging", "thresholds", (0.5,)),
        ("merging.thresholds=[1, 0]", "merging", "thresholds", (1.0, 0.0)),
        ("merging.thresholds=", "merging", "thresholds", ()),
        ("merging.affinities=features", "merging", "affinities", ("features",)),
        ("merging.affinities=both,features", "merging", "affinities", ("both", "features")),
        ('merging.affinities=["both", "features"]', "merging", "affinities", ("both", "features")),
    ],
)
def test_one_setting_is_read_from_an_assignment(assignment, group, name, value):
    config = set_one(assignment)
    found = getattr(getattr(config, group), name)
    assert found == value
    assert type(found) is type(value)
    changed = dataclasses.replace(getattr(ExploreConfig(), group), **{name: value})
    assert config == dataclasses.replace(ExploreConfig(), **{group: changed})


def test_a_bare_list_of_numbers_replaces_the_presets_list():
    assert explore_config("paper", assignments=["merging.thresholds="]).merging.thresholds == ()


def test_a_file_gives_any_of_the_settings(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[merging]\nthresholds = [0.9, 0.5]\n[units]\nkind = "patches"\n', encoding="utf-8")
    config = explore_config(file=file)
    assert config.merging.thresholds == (0.9, 0.5)
    assert config.units.kind == "patches"
    assert config.pooling == PoolingConfig()


def test_later_sources_win_preset_file_set_flag(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        "[features]\nimage_size = 100\nprecision = 'fp32'\n[pooling]\nmax_masks = 7\nmin_area_px = 9\n",
        encoding="utf-8",
    )
    config = explore_config(
        "paper",
        file,
        ["features.image_size=200", "pooling.max_masks=8", "pooling.max_masks=11"],
        {"features.image_size": 300},
    )
    assert config.features == FeaturesConfig("vit_base_patch8_224.dino", "", 300, "fp32")
    assert config.pooling == PoolingConfig(max_masks=11, min_area_px=9)
    assert config.merging == explore_config("paper").merging


def test_a_flag_may_give_a_list_as_text():
    assert explore_config(flags={"merging.thresholds": "0.6,0.5"}).merging.thresholds == (0.6, 0.5)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("mergin.thresholds=0.5", r"mergin is not a setting\. Did you mean 'merging'\?"),
        ("merging.threshold=0.5", r"merging\.threshold is not a setting\. Did you mean 'thresholds'\?"),
        ("merging.xyz=0.5", r"merging\.xyz is not a setting\. Known: merging\.affinities, "),
        ("thresholds=0.5", r"thresholds is not a setting\. Known: features, units, "),
        ("merging=0.5", r"merging is a group of settings, not a value\. Set merging\.NAME"),
        ("merging.thresholds.first=0.5", r"merging\.thresholds must be a number, not \{'first': 0.5\}"),
        ("features.image_size=480.5", r"features\.image_size must be a whole number, not 480\.5"),
        ("features.image_size=large", r"features\.image_size must be a whole number, not 'large'"),
        ("features.image_size=true", r"features\.image_size must be a whole number, not True"),
        ("pooling.nms_iou=high", r"pooling\.nms_iou must be a number, not 'high'"),
        ("pooling.nms_iou=false", r"pooling\.nms_iou must be a number, not False"),
        ("pooling.nms_iou=[0.5]", r"pooling\.nms_iou must be a number, not \[0\.5\]"),
        ("reclustering.enabled=1", r"reclustering\.enabled must be true or false, not 1"),
        ("reclustering.enabled=yes", r"reclustering\.enabled must be true or false, not 'yes'"),
        ("units.kind=3", r"units\.kind must be a word, not 3"),
        ("merging.thresholds=0.9,low", r"merging\.thresholds must be a number, not 'low'"),
        ("merging.affinities=[1]", r"merging\.affinities must be a word, not 1"),
        ("units.kind", r"'units\.kind' must look like group\.name=value"),
        ("=3", r"'=3' must look like group\.name=value"),
    ],
)
def test_a_wrong_name_or_type_is_named(assignment, message):
    with pytest.raises(ConfigError) as caught:
        set_one(assignment)
    assert caught.match(message)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "assignment",
    [
        "features.backbone=''",
        "features.image_size=15",
        "features.image_size=9000",
        "features.precision=fp16",
        "units.kind=pixels",
        "units.working_size=8",
        "units.superpixel_scale=0",
        "units.superpixel_scale=inf",
        "units.superpixel_area_px=0",
        "merging.affinities=[]",
        "merging.affinities=color",
        "merging.affinities=both,both",
        "merging.thresholds=0.5,0.5",
        "merging.thresholds=0.5,0.6",
        "merging.thresholds=1.5",
        "merging.thresholds=nan",
        "merging.boundary_weight=-1",
        "merging.boundary_weight=inf",
        "merging.diffusion_times=[]",
        "merging.diffusion_times=0",
        "merging.diffusion_times=inf",
        "merging.eigenvectors=0",
        "merging.feature_power=0",
        "merging.feature_power=nan",
        "reclustering.max_area=0.0",
        "reclustering.context=0.5",
        "reclustering.context=inf",
        "reclustering.crop_size=8",
        "reclustering.min_inside=1.1",
        "reclustering.max_crops=0",
        "pooling.max_area=1.1",
        "pooling.min_area_px=0",
        "pooling.nms_iou=0",
        "pooling.max_masks=0",
        "pooling.area_exponent=-0.1",
        "refinement.method=blur",
        "refinement.min_iou=2",
        "hierarchy.cover=0.5",
        "hierarchy.cover=nan",
    ],
)
def test_a_value_out_of_range_names_its_setting_what_is_allowed_and_the_remedy(assignment):
    name = assignment.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        set_one(assignment)
    assert caught.value.message.startswith(f"{name} must be ")
    assert ", not " in caught.value.message
    assert f"--set {name}=" in caught.value.hint


def refused_values(default, declared):
    """Values just outside of the bounds and choices of a setting; for a tuple, each in the place of its first item."""
    steps = {"minimum": -1, "above": 0, "maximum": 1, "below": 0}
    outside = [end + steps[bound] for bound, end in declared["bounds"].items()]
    if outside and not isinstance(default, int):
        outside = [*map(float, outside), math.nan, math.inf, -math.inf]
    if declared["choices"] and not isinstance(default, int):
        outside = [f"{declared['choices'][0]}x"]
    return [(value, *default[1:]) for value in outside] if isinstance(default, tuple) else outside


@pytest.mark.parametrize(("cls", "name", "group", "field"), SETTINGS)
def test_every_setting_is_declared_with_a_sentence_and_keeps_its_bounds(cls, name, group, field):
    assert len(field.metadata["doc"]) > 10
    assert field.metadata["doc"].endswith(".")
    for value in refused_values(getattr(group, field.name), field.metadata):
        with pytest.raises(ConfigError) as caught:
            from_plain(cls, {field.name: value} if cls is SegmentConfig else {name: {field.name: value}})
        message = f"{name}.{field.name} must be {field.metadata['allowed']}, not {value!r}."
        assert caught.value.message == message
        assert f"--set {name}.{field.name}=" in caught.value.hint


def test_bounds_are_tried_on_most_settings():
    tried = [p for p in SETTINGS if refused_values(getattr(p.values[2], p.values[3].name), p.values[3].metadata)]
    assert len(tried) > 0.8 * len(SETTINGS)


@pytest.mark.parametrize("preset", PRESETS)
def test_plain_settings_come_back_the_same_from_json_and_toml(preset, tmp_path):
    config = explore_config(preset, assignments=["merging.diffusion_times=[1.5, 20.0]"])
    plain = to_plain(config)
    assert json.loads(json.dumps(plain)) == plain
    file = tmp_path / "settings.toml"
    file.write_text(as_toml(plain), encoding="utf-8")
    assert explore_config(file=file) == config


def test_every_setting_is_in_the_plain_form():
    plain = to_plain(ExploreConfig())
    assert list(plain) == [field.name for field in dataclasses.fields(ExploreConfig)]
    for group, values in plain.items():
        assert list(values) == [field.name for field in dataclasses.fields(getattr(ExploreConfig(), group))]


def test_settings_cannot_be_changed_and_can_be_hashed():
    config = explore_config("paper")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.units = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.features.image_size = 3
    assert hash(config) == hash(explore_config("paper"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[merging\n", "is not valid TOML"),
        (b"\xff\xfe\x00", "is not valid TOML"),
        (b"[merging]\nthreshold = [0.5]\n", "Did you mean 'thresholds'"),
        (b"merging = 3\n", "merging is a group of settings"),
    ],
)
def test_a_bad_file_is_one_message(tmp_path, content, message):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        explore_config(file=file)


def test_a_missing_file_or_a_folder_is_one_message(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            explore_config(file=path)
        assert str(path) in caught.value.message
