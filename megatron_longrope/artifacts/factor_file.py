"""Factor sets as JSON files: with a version, written atomically, validated when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_longrope.artifacts.factors import FactorSet, RopeFactors
from megatron_longrope.atomic import write_json_file
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError

FORMAT = "longrope-factors"
VERSION = 1


def write_factors(path: Path | str, factors: FactorSet | RopeFactors) -> None:
    """Writes `factors` to `path` as JSON, whole or not at all; floats are read back bit for bit.

    >>> from megatron_longrope.rope import RopeGeometry, Yarn
    >>> geometry = RopeGeometry(base=10000.0, head_dim=8, original_length=512)
    >>> factors = Yarn(scale=8).factors(geometry)
    >>> write_factors(folder / "factors.json", factors)
    >>> read_factors(folder / "factors.json") == FactorSet.single(factors)
    True
    """
    write_json_file(Path(path), factors_to_json(factors))


def read_factors(path: Path | str) -> FactorSet:
    """Returns the factor set in `path`; raises InputError that names what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            "factors", path, "a folder, not a factors file" if path.is_dir() else "no such file"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("factors", path, f"not a whole JSON file: {error}") from error
    except _NotFiniteError as error:
        raise InputError("factors", path, f"holds {error}; factors are finite numbers") from error
    return factors_from_json(values, str(path))


def factors_to_json(factors: FactorSet | RopeFactors) -> dict[str, Any]:
    """Returns the contents of a factors file as plain JSON values."""
    factor_set = FactorSet.single(factors) if isinstance(factors, RopeFactors) else factors
    return {"format": FORMAT, "version": VERSION, **factor_set.model_dump(mode="json")}


def factors_from_json(values: object, source: str) -> FactorSet:
    """Returns the factor set of a parsed factors file; raises InputError that names `source`."""
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError("factors", source, f'not a factors file: it has no "format": "{FORMAT}"')
    version = values.get("version")
    if version != VERSION or isinstance(version, bool):
        raise InputError("version", version, f"this release reads version {VERSION} ({source})")
    return build_config(
        FactorSet, {k: v for k, v in values.items() if k not in ("format", "version")}, source
    )


class _NotFiniteError(ValueError):
    """Raised for NaN and infinities, which Python's JSON reader would let through."""


def _refuse_constant(name: str) -> float:
    raise _NotFiniteError(name)
