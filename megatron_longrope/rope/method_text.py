"""Parsing `--method`: NAME[:SCALE][,key=value…], a published factor set, or a factors file."""

from __future__ import annotations

import math
import re

from megatron_longrope.artifacts.factors import FactorSet
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.errors import InputError
from megatron_longrope.rope.methods import METHODS, RopeMethod
from megatron_longrope.rope.methods.uses import closed_form_methods
from megatron_longrope.rope.published import find_factors, resolve_factors

_WORDS = re.compile(r"(?P<name>[^:,]*)(?P<scale>:[^,]*)?(?P<settings>,.*)?", re.DOTALL)


def method_from_text(
    text: str, geometry: RopeGeometry, length: int, target: int | None = None
) -> FactorSet:
    """Returns the factors that `--method TEXT` asks for at `length` tokens.

    TEXT is `NAME[:SCALE][,key=value…]`, such as `yarn:8,beta_fast=4`, the name of a published
    factor set, or a factors file. The default of SCALE is target/window where a target is given,
    else length/window, and never below 1. dynamic-ntk requires SCALE, which is transformers'
    `factor`: with factor 1 it is plain ntk. Raises InputError that names the wrong word.

    >>> geometry = RopeGeometry(base=1e4, head_dim=8, original_length=512)
    >>> method_from_text("pi:2", geometry, length=4096).for_length(4096).rescale
    (2.0, 2.0, 2.0, 2.0)
    >>> method_from_text("pi", geometry, length=4096).for_length(4096).rescale
    (8.0, 8.0, 8.0, 8.0)
    """
    match = _WORDS.fullmatch(text)
    assert match is not None, text
    if match["name"] not in closed_form_methods():
        return _factors_made_before(text, geometry)
    kind = METHODS[match["name"]]
    default = max(1.0, (target or length) / geometry.original_length)
    scale = _scale(text, kind, match["scale"], default)
    settings = _settings(text, kind, match["settings"])
    return kind.from_scale(scale, settings, f"--method {text}").factor_set(geometry, length)


def _scale(text: str, kind: type[RopeMethod], given: str | None, default: float) -> float:
    """Returns the number in `given`, which is `:SCALE`, or `default` where nothing is given."""
    if given is None:
        if kind.without_scale is None:
            return default
        rule = f"give its {kind.scale_setting}, as in {kind.name}:2"
        raise InputError("--method", text, f"{rule}; without one it would be {kind.without_scale}")
    if kind.scale_setting is None:
        raise InputError("--method", text, f"{kind.name} takes no scale")
    try:
        scale = float(given[1:])
    except ValueError as error:
        raise InputError("--method", text, "a scale is a number, as in yarn:2") from error
    if not (math.isfinite(scale) and scale >= 1):
        raise InputError("--method", text, "a scale is finite and at least 1")
    return scale


def _settings(text: str, kind: type[RopeMethod], given: str | None) -> dict[str, str]:
    """Returns the settings in `given`, which is `,key=value,key=value`; values stay text."""
    settings: dict[str, str] = {}
    for part in (given or "").split(",")[1:]:
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise InputError("--method", text, f"a setting is written key=value, got {part!r}")
        if key == kind.scale_setting:
            raise InputError("--method", text, f"{key} goes after a colon, as in {kind.name}:2")
        if key in settings:
            raise InputError("--method", text, f"{key} is given twice")
        settings[key] = value
    return settings


def _factors_made_before(text: str, geometry: RopeGeometry) -> FactorSet:
    """Returns the published set or the file that `text` names; raises InputError for neither.

    Factors of another rotary base or head_dim are refused too: λ belongs to pairs of these θ_i.
    """
    if find_factors(text) is None and not text.endswith(".json"):
        names = ", ".join(closed_form_methods())
        rule = f"one of {names}, a published factor set, or a factors JSON file"
        raise InputError("--method", text, rule)
    return resolve_factors(text, "--method", geometry)
