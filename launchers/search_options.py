"""What the options of `longrope search` ask for, checked before torch is imported and a model is
loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launchers.options import check_json_folder
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.search import EvolutionSettings, SearcherChoice


def check_request(out: Path, json_path: Path | None, settings: Mapping[str, Any]) -> None:
    """Raises InputError for what is wrong whatever the model."""
    _check_out(out)
    check_json_folder(json_path)
    if settings["critical_pair"] is not None and settings["space"] != "longrope2":
        raise InputError(
            "--critical-pair", settings["critical_pair"], "belongs to --space longrope2"
        )
    build_config(
        SearcherChoice,
        {"searcher": settings["searcher"], **searcher_sizes(settings)},
        "longrope search",
    )


def _check_out(out: Path) -> None:
    """Raises InputError where the folder `out` is not there and cannot be made, or takes no
    files."""
    existing = next(
        path for path in (out.absolute(), *out.absolute().parents) if os.path.exists(path)
    )
    if not existing.is_dir():
        raise InputError("--out", out, f"{existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError("--out", out, f"{existing} may not be written to")


def searcher_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the searcher asked for, under its name. Raises InputError for sizes
    of another one."""
    searcher = settings["searcher"]
    evolution = [settings[name] for name in ("population", "offspring", "iterations")]
    is_evolution = searcher in ("evolution", "piecewise")
    if any(size is not None for size in evolution) and not is_evolution:
        raise InputError("--searcher", searcher, "has no --population, --offspring or --iterations")
    passes, ramp_rounds = settings["passes"], settings["ramp_rounds"]
    if passes is not None and searcher not in ("hybrid", "gradient"):
        raise InputError("--searcher", searcher, "has no --passes")
    if ramp_rounds is not None and searcher != "hybrid":
        raise InputError("--searcher", searcher, "has no --ramp-rounds")
    if is_evolution:
        return {"evolution": _evolution(settings)}
    if searcher == "gradient":
        return {} if passes is None else {"gradient": {"passes": passes}}
    return {"hybrid": _hybrid(passes, ramp_rounds)} if searcher == "hybrid" else {}


def _hybrid(passes: int | None, ramp_rounds: int | None) -> dict[str, Any]:
    descent = (
        {"cycles": 0} if passes == 0 else {} if passes is None else {"descent": {"passes": passes}}
    )
    return descent if ramp_rounds is None else {**descent, "ramp": {"max_rounds": ramp_rounds}}


def _evolution(settings: Mapping[str, Any]) -> dict[str, Any]:
    population, offspring = settings["population"], settings["offspring"]
    changes = {
        "population": population,
        "iterations": settings["iterations"],
        "mutants": offspring,
        "crossovers": offspring,
        "parents": population and max(1, population // 2),
    }
    sizes = EvolutionSettings.paper(settings["target"]).model_dump()
    return sizes | {key: value for key, value in changes.items() if value is not None}
