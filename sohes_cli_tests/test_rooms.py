"""The rooms of the package: which folder may import which, read from the syntax trees of every file.

Type annotations count: what a module names in a signature it depends on.
"""

from __future__ import annotations

import ast
from pathlib import Path

import sohes_cli

ROOT = Path(sohes_cli.__file__).parent

ALLOWED = {  # from the ground up: a room imports only from rooms above it in this table, so nothing runs in a circle
    "errors": "",
    "version": "",
    "settings": "errors",
    "structures": "errors",
    "runs": "errors",
    "samples": "errors runs",
    "images": "errors",
    "masks": "structures",
    "vit": "errors runs",
    "labels": "errors version structures runs masks",
    "explore": "errors settings structures runs images masks vit labels",
    "evaluation": "errors structures runs masks labels",
    "view": "errors version structures runs images masks labels",
    "model": "errors settings vit",
    "data": "errors settings structures images masks labels model",
    "inference": "errors settings structures runs images masks vit labels explore view model data",
    "training": "errors settings structures runs images masks vit labels view model data inference",
    "pretrain": "errors settings runs images vit data training",
    "convert": "errors version structures runs masks",
    "export": "errors runs vit model",
    "pipeline": "errors settings runs images labels explore evaluation model data inference training",
    "__init__": "version inference",
    "commands": "errors structures runs images samples labels explore evaluation view model inference training "
    "pretrain "
    "convert export pipeline",
    "cli": "errors version runs commands",
    "__main__": "cli",
}


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports, inside functions and for annotations too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            base = (node.module or "").split(".")
            names = [[*base, alias.name] for alias in node.names] if len(base) == 1 else [base]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "sohes_cli" and len(name) > 1}
    return found


def edges() -> dict[tuple[str, str], list[str]]:
    """Files by the pair of rooms that they tie."""
    tied: dict[tuple[str, str], list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        room = room_of(path.relative_to(ROOT).parts)
        for other in imported_rooms(path) - {room}:
            tied.setdefault((room, other), []).append(str(path.relative_to(ROOT)))
    return tied


def test_rooms_import_only_what_the_table_allows():
    beyond = {pair: files for pair, files in edges().items() if pair[1] not in ALLOWED.get(pair[0], "").split()}
    assert not beyond


def test_the_table_names_no_import_that_no_file_makes():
    stale = {(room, other) for room, others in ALLOWED.items() for other in others.split()} - set(edges())
    assert not stale


HOMONYMS = {  # one class a command for the settings of each group, named as the group
    *("LossConfig", "ModelConfig", "OptimizerConfig", "RunConfig", "ViewsConfig")
}


def public_definitions(path: Path) -> set[str]:
    """The classes and functions of a file that its `__all__` names."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    exported: set[str] = set()
    for node in body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            exported = set(ast.literal_eval(node.value))
    defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in body if isinstance(node, defined)} & exported


def test_a_public_name_is_defined_in_one_module_only():
    places: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for name in public_definitions(path):
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    several = {name: files for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in several.items() if name not in HOMONYMS} == {}
    assert several.keys() == HOMONYMS


def test_the_table_runs_downward():
    order = list(ALLOWED)
    assert not [
        (r, other) for r, others in ALLOWED.items() for other in others.split() if order.index(other) >= order.index(r)
    ]
