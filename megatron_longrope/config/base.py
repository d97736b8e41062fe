"""The base of every config: frozen, typed, no unknown keys; and its errors in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from megatron_longrope.errors import InputError


class StrictConfig(BaseModel):
    """A frozen pydantic model that refuses unknown keys and non-finite floats."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def keys_of(cls, values: object) -> Mapping[str, FieldInfo]:
        """Returns the keys that `values` may have: the fields, unless a plug-in named in `values`
        has a say."""
        return cls.model_fields


ConfigT = TypeVar("ConfigT", bound=StrictConfig)


def build_config(kind: type[ConfigT], values: Mapping[str, Any], source: str = "config") -> ConfigT:
    """Returns `values` as a validated `kind`; raises InputError that names the first wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path, value = ".".join(str(part) for part in first["loc"]) or source, first["input"]
        if isinstance(value, Mapping):  # a rule about several keys, which its message names
            value = "several keys"
        if first["type"] == "extra_forbidden":
            rule = (
                f"unknown key in {source}; known here: "
                f"{', '.join(_known_keys(kind, values, first['loc'][:-1]))}"
            )
        else:
            rule = f"{first['msg'].removeprefix('Value error, ')} (in {source})"
        more = len(error.errors()) - 1
        raise InputError(path, _short(value), rule + (f"; {more} more" if more else "")) from error


def _short(value: object) -> object:
    """The value itself, or the beginning of one that would not fit a line."""
    text = str(value)
    return value if len(text) <= 80 else text[:77] + "..."


def _known_keys(kind: type[BaseModel], values: object, path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields at `path` below `kind` and `values`, where that place is a config."""
    current: Any = kind
    for part in path:
        fields = _fields(current, values)
        values = _inner(values, part)
        if isinstance(part, int):
            continue  # an element of the sequence, whose kind is `current` already
        annotation = fields[part].annotation if part in fields else None
        inner = [
            a
            for a in getattr(annotation, "__args__", ())
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        current = inner[0] if inner else annotation
    return sorted(_fields(current, values))


def _fields(kind: Any, values: object) -> Mapping[str, FieldInfo]:
    if isinstance(kind, type) and issubclass(kind, StrictConfig):
        return kind.keys_of(values)
    return getattr(kind, "model_fields", {})


def _inner(values: object, part: int | str) -> object:
    """What stands at `part` of a mapping or sequence; None where nothing does."""
    try:
        return values[part]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return None
