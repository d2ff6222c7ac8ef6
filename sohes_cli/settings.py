"""The settings of a phase: one frozen dataclass that feeds the command line, the TOML file, the manifest and the Python API.

`--config run.toml` gives any of them, `--set merging.thresholds=[0.9,0.8]` one of them, and the flags of a command the
most used ones; later beats earlier in the order preset, file, --set, flag. An unknown name is refused with the nearest one.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sohes_cli.errors import ConfigError, nearest

if typing.TYPE_CHECKING:
    from pathlib import Path

__all__ = ["from_plain", "given_settings", "require", "resolve", "to_plain"]

T = TypeVar("T")


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError, which names the setting, its value and what is allowed, unless the condition holds."""
    if not condition:
        raise ConfigError(
            f"{name} must be {allowed}, not {value!r}.", f"Change --set {name}=..., the flag or the TOML file."
        )


def resolve(
    cls: type[T],
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]],
    preset: str,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> T:
    """Resolve the settings of a command.

    Args:
        cls: the dataclass of settings, each field of it a group.
        presets: named starting points, values by group and name.
        preset: a key of `presets`.
        file: a TOML file with tables named as the groups.
        assignments: `group.name=value` strings, the value in TOML notation (quotes around a word may be left out).
        flags: dotted names to values that a command's own flags gave.

    Raises:
        ConfigError: if a name is unknown or a value has the wrong type or range.
    """
    if preset not in presets:
        raise ConfigError(f"--preset must be one of {', '.join(presets)}, not {preset!r}.{nearest(preset, presets)}")
    tree: dict[str, Any] = {group: dict(values) for group, values in presets[preset].items()}
    _overlay(tree, given_settings(file, assignments))
    for name, value in (flags or {}).items():
        _overlay(tree, _nested(name, value))
    return from_plain(cls, tree)


def given_settings(file: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """What a TOML file and `--set` give, as a tree; see `resolve`.

    Raises:
        ConfigError: if the file cannot be read, or an assignment has no name or no value.
    """
    tree: dict[str, Any] = {} if file is None else _read_toml(file)
    for assignment in assignments:
        _overlay(tree, _parse_assignment(assignment))
    return tree


def from_plain(cls: type[T], tree: Mapping[str, Any]) -> T:
    """A config from what `to_plain` gave, or from a part of it; the rest keeps its defaults.

    Raises:
        ConfigError: if a name is unknown or a value has the wrong type or range.
    """
    return _build(cls, tree, "")


def to_plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts and lists, ready for JSON or TOML."""
    plain = dataclasses.asdict(config)
    return {k: {n: list(v) if isinstance(v, tuple) else v for n, v in group.items()} for k, group in plain.items()}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {file} cannot be read: {error.strerror}.", "Name an existing TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file} is not valid TOML: {error}.") from error


def _parse_assignment(assignment: str) -> dict[str, Any]:
    name, equals, text = assignment.partition("=")
    name, text = name.strip(), text.strip()
    if not (name and equals):
        raise ConfigError(
            f"--set {assignment!r} must look like group.name=value.", "For example --set merging.thresholds=[0.9,0.8]"
        )
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
    """Put `top` over `tree` in place, table by table."""
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _overlay(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _build(cls: type[T], tree: Mapping[str, Any], prefix: str) -> T:
    """Make the dataclass `cls` from a mapping, naming unknown keys and wrong types by their dotted name."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in tree.items():
        if key not in hints:
            shown = ", ".join(f"{prefix}{name}" for name in hints)
            raise ConfigError(f"{prefix}{key} is not a setting.{nearest(key, hints)}", f"Known: {shown}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{prefix}{key} is a group of settings, not a value.", f"Set {prefix}{key}.NAME instead."
                )
            arguments[key] = _build(typing.cast("type[Any]", hints[key]), value, f"{prefix}{key}.")
        else:
            arguments[key] = _converted(value, hints[key], prefix + key)
    return cls(**arguments)


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
        raise ConfigError(f"{name} must be {_WORDS[hint]}, not {value!r}.")
    return value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


_WORDS = {float: "a number", int: "a whole number", str: "a word", bool: "true or false"}
