"""Recipes: YAML 1.2 files and dotted overrides, as plain dictionaries."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from megatron_longrope.atomic import replacing
from megatron_longrope.errors import InputError


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML 1.2 file; raises InputError where it is none.

    Unlike in YAML 1.1, `2e-5` is a number and `off` a word.
    """
    if not path.is_file():
        raise InputError("recipe", path, "no such file")
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Returns the mapping in YAML `text`; raises InputError that names `source`."""
    try:
        values = _yaml().load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(
            "recipe", source, f"not valid YAML at line {line}: {error.problem}"
        ) from error
    except YAMLError as error:
        raise InputError(
            "recipe", source, f"not valid YAML: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(values, dict):
        raise InputError("recipe", source, "a recipe is a mapping of keys to values")
    return values


def parse_overrides(overrides: Iterable[str]) -> list[tuple[str, Any]]:
    """Returns dotted keys and their values, read as YAML, of `key.sub=value` as typed for `--set`.

    >>> parse_overrides(["extension.0.length=4k", "seed=2"])
    [('extension.0.length', '4k'), ('seed', 2)]
    """
    settings = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError("--set", override, "an override is written key.sub=value")
        try:
            settings.append((key, _yaml().load(text)))
        except YAMLError as error:
            raise InputError("--set", override, "the value is not valid YAML") from error
    return settings


def apply_settings(
    values: Mapping[str, Any], settings: Iterable[tuple[str, Any]]
) -> dict[str, Any]:
    """Returns `values` with each dotted key set, in the order given; groups are made where missing.

    An entry of a list goes by its number, from 0 on. Raises InputError for a key that leads into a
    plain value or to an entry that is not there.

    >>> apply_settings({"steps": [{"length": 1}]}, [("steps.0.length", "4k"), ("a.b", 2)])
    {'steps': [{'length': '4k'}], 'a': {'b': 2}}
    """
    result = copy.deepcopy(dict(values))
    for key, value in settings:
        *parents, last = key.split(".")
        place: dict[str, Any] | list[Any] = result
        for parent in parents:
            place = _group(place, parent, key)
        if isinstance(place, list):
            place[_index(place, last, key)] = value
        else:
            place[last] = value
    return result


def write_yaml(values: Mapping[str, Any], path: Path) -> None:
    """Writes `values` to `path` as YAML 1.2, whole or not at all."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as stream:
        _yaml().dump(dict(values), stream)


def _group(place: dict[str, Any] | list[Any], key: str, dotted: str) -> dict[str, Any] | list[Any]:
    """The group of keys or the list at `key`, made where a mapping has none yet."""
    inner = (
        place[_index(place, key, dotted)] if isinstance(place, list) else place.setdefault(key, {})
    )
    if not isinstance(inner, dict | list):
        raise InputError("setting", dotted, f"{key} is a value, not a group of keys")
    return inner


def _index(place: list[Any], key: str, dotted: str) -> int:
    if not (key.isdecimal() and int(key) < len(place)):
        raise InputError(
            "setting", dotted, f"{key} is not one of the list's entries, 0 to {len(place) - 1}"
        )
    return int(key)


def _yaml() -> YAML:
    """Returns a reader and writer of YAML 1.2; ruamel.yaml's other one, in C, reads YAML 1.1."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    return yaml
