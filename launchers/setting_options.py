"""Command-line options made from a settings class, one per field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from megatron_longrope.config import StrictConfig
from megatron_longrope.errors import InputError

SettingsT = TypeVar("SettingsT", bound=StrictConfig)


def setting_options(
    kind: type[StrictConfig], leave_out: Collection[str] = ()
) -> list[click.Option]:
    """Returns one option per field of `kind`, with the field's type, default and description.

    `leave_out` names fields that are set otherwise. Values stay text until `settings_of` hands all
    of them to the class, so that what a field allows is written there alone.
    """
    return [
        _option(name, field) for name, field in kind.model_fields.items() if name not in leave_out
    ]


def settings_of(kind: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """Returns the settings that `values`, the parameters of a command, hold.

    Raises InputError that names the option with a wrong value.
    """
    given = {
        name: _parts(values[name]) if _is_list(field) else values[name]
        for name, field in kind.model_fields.items()
        if values.get(name) is not None
    }
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        rule = first["msg"].removeprefix("Value error, ")
        raise InputError(_flag(name), values.get(name), rule) from error


def _option(name: str, field: FieldInfo) -> click.Option:
    kind, default = field.annotation, field.get_default(call_default_factory=True)
    names, text = [_flag(name), name], field.description
    if kind is bool:
        return click.Option(names, is_flag=True, default=default, help=text)
    if get_origin(kind) is Literal:
        return click.Option(names, type=click.Choice(get_args(kind)), default=default, help=text)
    if _is_list(field):
        default = ",".join(
            f"{value:g}" if isinstance(value, float) else str(value) for value in default
        )
    metavar = "N" if int in (kind, *get_args(kind)) else name.rpartition("_")[2].upper()
    return click.Option(names, type=click.STRING, default=default, metavar=metavar, help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _parts(value: object) -> object:
    """Returns the parts of a text that are separated by commas; other values as they are."""
    return tuple(value.split(",")) if isinstance(value, str) else value
