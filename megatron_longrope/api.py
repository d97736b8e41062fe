"""One call that does the whole: model, documents and target length in, run result out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longrope.config import apply_overrides, build_config, parse_length, read_yaml
from megatron_longrope.pipeline.extend import run_recipe
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.result import RunResult
from megatron_longrope.pipeline.types import Progress
from megatron_longrope.presets import recipe_path
from megatron_longrope.runtime import start_runtime


def extend_context(
    model: str | Path,
    documents: Sequence[str | Path],
    target_length: int | str,
    *,
    run_dir: str | Path,
    recipe: str | Path = "extend",
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Extends `model` (an HF folder) to `target_length` tokens (131072, "128k") and returns where everything is.

    `documents` are text files: the first long ones are kept for search and evaluation, the others are trained on.
    `recipe` gives the rest, a shipped name or a YAML file; its last extension step gets `target_length`. `settings` are
    dotted overrides, such as {"extension.0.fine_tune.training.steps": 200}. Interrupted, the same call goes on.
    Raises InputError for bad input.
    """
    path = recipe_path(str(recipe))
    values = apply_overrides(read_yaml(path), [])
    values |= {"model": str(model), "corpus": {"documents": [str(document) for document in documents]}}
    values["extension"][-1]["length"] = parse_length(target_length, "target_length")
    for key, value in (settings or {}).items():
        _set(values, key.split("."), value)
    config = build_config(Recipe, values, str(path))
    with start_runtime(config.parallel, seed=config.seed) as runtime:
        return run_recipe(config, Path(run_dir), runtime, progress or Progress())


def _set(values: Any, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values[int(key)] if isinstance(values, list) else values.setdefault(key, {})
    last = keys[-1]
    values[int(last) if isinstance(values, list) else last] = value
