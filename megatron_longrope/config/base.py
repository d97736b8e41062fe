"""The base class of every config, and its validation errors as one line for the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from megatron_longrope.errors import InputError


class StrictConfig(BaseModel):
    """A frozen pydantic model that refuses unknown keys and floats that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def keys_of(cls, values: object) -> Mapping[str, FieldInfo]:
        """Returns the fields that `values` may have, by their keys.

        A config whose keys depend on a plug-in named in `values` overrides this.
        """
        return cls.model_fields


ConfigT = TypeVar("ConfigT", bound=StrictConfig)


def build_config(kind: type[ConfigT], values: Mapping[str, Any], source: str = "config") -> ConfigT:
    """Returns `values` as a validated `kind`; raises InputError that names the first wrong key.

    `source` says in the error where the values were given.

    >>> class Sizes(StrictConfig):
    ...     knots: int = 8
    >>> build_config(Sizes, {"knot": 4}, "my.yaml")
    Traceback (most recent call last):
    ...
    megatron_longrope.errors.InputError: knot=4: unknown key in my.yaml; known here: knots
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path, value = ".".join(str(part) for part in first["loc"]) or source, first["input"]
        if isinstance(value, Mapping):  # a rule about several keys, which its message names
            value = "several keys"
        if first["type"] == "extra_forbidden":
            known = ", ".join(_known_keys(kind, values, first["loc"][:-1]))
            rule = f"unknown key in {source}; known here: {known}"
        else:
            rule = f"{first['msg'].removeprefix('Value error, ')} (in {source})"
        more = len(error.errors()) - 1
        raise InputError(path, _short(value), rule + (f"; {more} more" if more else "")) from error


def _short(value: object) -> object:
    """Returns `value`, or the beginning of its text where that would not fit a line."""
    text = str(value)
    return value if len(text) <= 80 else text[:77] + "..."


def _known_keys(kind: type[BaseModel], values: object, path: tuple[int | str, ...]) -> list[str]:
    """Returns the names of the fields of the config at `path` below `kind` and `values`."""
    current: Any = kind
    for part in path:
        fields = _fields(current, values)
        values = _inner(values, part)
        if isinstance(part, int):
            continue  # an element of the sequence, whose kind is `current` already
        annotation = fields[part].annotation if part in fields else None
        # the config inside of an optional or a sequence: tuple[Config, ...], Config | None
        arguments = getattr(annotation, "__args__", ())
        inner = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
        current = inner[0] if inner else annotation
    return sorted(_fields(current, values))


def _fields(kind: Any, values: object) -> Mapping[str, FieldInfo]:
    """Returns the fields of `kind` for these values; none where it is no config."""
    if isinstance(kind, type) and issubclass(kind, StrictConfig):
        return kind.keys_of(values)
    return getattr(kind, "model_fields", {})


def _inner(values: object, part: int | str) -> object:
    """Returns the value at `part` of a mapping or sequence; None where there is none."""
    try:
        return values[part]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return None
