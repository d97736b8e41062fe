"""Strict typed configs, lengths in tokens, YAML recipes and dotted overrides."""

from megatron_longrope.config.base import StrictConfig, build_config
from megatron_longrope.config.lengths import Length, format_length, parse_length
from megatron_longrope.config.recipe_file import (
    apply_settings,
    parse_overrides,
    parse_yaml,
    read_yaml,
    write_yaml,
)

__all__ = [
    "Length",
    "StrictConfig",
    "apply_settings",
    "build_config",
    "format_length",
    "parse_length",
    "parse_overrides",
    "parse_yaml",
    "read_yaml",
    "write_yaml",
]
