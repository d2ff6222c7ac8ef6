"""Settings: one frozen dataclass a phase feeds the command line, the TOML file, the manifest and the Python API.

A phase's dataclass has one field for each group of settings; a group is a `Group` whose fields are made by `setting`,
which declares default, meaning and allowed values once. `--config run.toml` gives any settings, `--set
merging.thresholds=[0.9,0.8]` one, and a command's flags the most used ones; later beats earlier in the order preset,
file, --set, flag. An unknown name is refused with the nearest one.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sohes_cli.errors import ConfigError, nearest

if typing.TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "PRECISIONS",
    "Group",
    "count",
    "from_plain",
    "given_settings",
    "is_increasing_pair",
    "probability",
    "require",
    "resolve",
    "setting",
    "share",
    "to_plain",
]

T = TypeVar("T")

PRECISIONS = ("auto", "fp32", "bf16")
"""Choices of a setting `precision`; `sohes train` has fp16 besides."""

_COMPARISONS = {"minimum": operator.ge, "above": operator.gt, "maximum": operator.le, "below": operator.lt}
_WORDS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
_TYPES = {float: "a number", int: "a whole number", str: "a word", bool: "true or false"}


def setting(
    default: Any,
    doc: str,
    *,
    choices: Iterable[Any] = (),
    rule: Callable[[Any], object] | None = None,
    allowed: str = "",
    noun: str = "",
    unit: str = "",
    **bounds: float,
) -> Any:
    """Declare a setting as the field of a `Group`; bounds and choices hold for each item of a tuple.

    Args:
        default: value where none is given.
        doc: meaning, one sentence.
        choices: allowed values.
        rule: true for an allowed value, whose bounds are checked next.
        allowed: allowed values in words, in place of words made of the bounds or choices.
        noun: says the bounds as an interval: `a share` gives "a share in [0, 1]".
        unit: precedes the bounds: `pixels` gives "pixels from 16 to 8192".
        bounds: some of `minimum`, `above`, `maximum` and `below`; a bounded number must also be finite.
    """
    choices = tuple(choices)
    allowed = allowed or _in_words(choices, noun, unit, bounds)
    return dataclasses.field(
        default=default, metadata={"doc": doc, "allowed": allowed, "choices": choices, "rule": rule, "bounds": bounds}
    )


count = partial(setting, minimum=1)
"""Setting of a number of things, at least 1."""

share = partial(setting, minimum=0, maximum=1, noun="a share")
"""Setting in [0, 1]."""

probability = partial(share, noun="a probability")
"""Setting that is a probability."""


def is_increasing_pair(value: Sequence[float]) -> bool:
    """True for two numbers in increasing order: a rule of `setting`."""
    return len(value) == 2 and value[0] <= value[1]


@dataclasses.dataclass(frozen=True)
class Group:
    """Base of a group of settings: `class PoolingConfig(Group, name="pooling")`; refuses values that are not allowed.

    Rules across fields go into the subclass's `__post_init__`, after this one's.
    """

    _name = ""  # no annotation: not a field

    def __init_subclass__(cls, name: str) -> None:
        cls._name = name

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(_is_allowed(value, field.metadata), f"{self._name}.{field.name}", value, field.metadata["allowed"])


def _is_allowed(value: Any, declared: Mapping[str, Any]) -> bool:
    choices, rule, bounds = declared["choices"], declared["rule"], declared["bounds"]
    items = value if isinstance(value, tuple) else (value,)
    ends = {"below": math.inf, **bounds} if bounds else {}
    return (
        (rule is None or bool(rule(value)))
        and all(not choices or item in choices for item in items)
        and all(_COMPARISONS[bound](item, end) for item in items for bound, end in ends.items())
    )


def _in_words(choices: Sequence[Any], noun: str, unit: str, bounds: Mapping[str, float]) -> str:
    if choices:
        return f"one of {', '.join(choices)}"
    if noun:
        left = f"({bounds['above']}" if "above" in bounds else f"[{bounds['minimum']}"
        right = f"{bounds['below']})" if "below" in bounds else f"{bounds['maximum']}]"
        return f"{noun} in {left}, {right}"
    if set(bounds) == {"minimum", "maximum"}:
        return f"{unit} from {bounds['minimum']} to {bounds['maximum']}".strip()
    return " and ".join(f"{_WORDS[bound]} {end}" for bound, end in bounds.items())


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ConfigError with the setting, its value and the allowed values unless the condition holds."""
    if not condition:
        hint = f"Change --set {name}=..., the flag or the TOML file."
        raise ConfigError(f"{name} must be {allowed}, not {value!r}.", hint)


def resolve(
    cls: type[T],
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]],
    preset: str | None = None,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> T:
    """Resolve the settings of a command.

    Args:
        cls: dataclass of the phase, one field for each group.
        presets: named starting points, values by group and name.
        preset: key of `presets`; None for the first one.
        file: TOML file with one table for each group.
        assignments: `group.name=value` strings, the value in TOML notation (quotes around a word are optional).
        flags: values of a command's flags by dotted name, None where not given.

    Raises:
        ConfigError: if a name is unknown or a value has the wrong type or range.
    """
    preset = next(iter(presets)) if preset is None else preset
    if preset not in presets:
        raise ConfigError(f"--preset must be one of {', '.join(presets)}, not {preset!r}.{nearest(preset, presets)}")
    tree: dict[str, Any] = {group: dict(values) for group, values in presets[preset].items()}
    _overlay(tree, given_settings(file, assignments))
    for name, value in (flags or {}).items():
        if value is not None:
            _overlay(tree, _nested(name, value))
    return from_plain(cls, tree)


def given_settings(file: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Read a TOML file and `--set` assignments into a tree; see `resolve`.

    Raises:
        ConfigError: if the file cannot be read, or an assignment has no name or no value.
    """
    tree: dict[str, Any] = {} if file is None else _read_toml(file)
    for assignment in assignments:
        _overlay(tree, _parse_assignment(assignment))
    return tree


def from_plain(cls: type[T], tree: Mapping[str, Any], prefix: str = "") -> T:
    """Make a config from the output of `to_plain` or a part of it; other settings keep their defaults.

    Args:
        cls: dataclass of settings.
        tree: values, by group and name.
        prefix: prefix of names in messages.

    Raises:
        ConfigError: if a name is unknown or a value has the wrong type or range.
    """
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in tree.items():
        name = prefix + key
        if key not in hints:
            shown = ", ".join(prefix + known for known in hints)
            raise ConfigError(f"{name} is not a setting.{nearest(key, hints)}", f"Known: {shown}")
        if not dataclasses.is_dataclass(hints[key]):
            arguments[key] = _converted(value, hints[key], name)
        elif isinstance(value, Mapping):
            arguments[key] = from_plain(typing.cast("type[Any]", hints[key]), value, f"{name}.")
        else:
            raise ConfigError(f"{name} is a group of settings, not a value.", f"Set {name}.NAME instead.")
    return cls(**arguments)


def to_plain(config: Any) -> dict[str, Any]:
    """Convert a config to nested dicts and lists, ready for JSON or TOML."""
    plain = dataclasses.asdict(config)
    return {k: {n: list(v) if isinstance(v, tuple) else v for n, v in group.items()} for k, group in plain.items()}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"--config {file} cannot be read: {error.strerror}."
        raise ConfigError(message, "Name an existing TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file} is not valid TOML: {error}.") from error


def _parse_assignment(assignment: str) -> dict[str, Any]:
    name, equals, text = assignment.partition("=")
    name, text = name.strip(), text.strip()
    if not (name and equals):
        message = f"--set {assignment!r} must look like group.name=value."
        raise ConfigError(message, "For example --set merging.thresholds=[0.9,0.8]")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word, such as units.kind=patches
    return _nested(name, value)


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def _overlay(tree: dict[str, Any], top: Mapping[str, Any]) -> None:
    """Update `tree` with `top` in place, table by table."""
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _overlay(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _converted(value: Any, hint: Any, name: str) -> Any:
    if isinstance(hint, types.GenericAlias):  # tuple[X, ...]
        item = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
            value = [_number(part) for part in value] if item is float else value
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_converted(v, item, name) for v in values)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} must be {_TYPES[hint]}, not {value!r}.")
    return value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
