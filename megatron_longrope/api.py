"""One call that does the whole: model, documents and target length in, run result out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints_tools.hf.folder import read_config
from megatron_longrope.config import apply_overrides, build_config, parse_length, read_yaml
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.extend import run_recipe
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.result import RunResult
from megatron_longrope.pipeline.types import Progress
from megatron_longrope.presets import recipe_path
from megatron_longrope.runtime import start_runtime

_FITTED = "extend"


def extend_context(
    model: str | Path,
    documents: Sequence[str | Path],
    target_length: int | str,
    *,
    run_dir: str | Path,
    recipe: str | Path = _FITTED,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Extends `model` (an HF folder) to `target_length` tokens (131072, "128k") and returns where
    everything is.

    `documents` are text files: the first long ones are kept for search and evaluation, the others
    are trained on. `recipe` gives the rest, a shipped name or a YAML file. The shipped `extend` is
    fitted to the model's window: it fine-tunes at a quarter of the target (at twice the window at
    least), searches beyond without training, and recovers the window. Of any other recipe the last
    step gets `target_length`. `settings` are dotted overrides, such as
    {"extension.0.fine_tune.training.steps": 200}. Interrupted, the same call goes on. Raises
    InputError for bad input.
    """
    path = recipe_path(str(recipe))
    values = apply_overrides(read_yaml(path), [])
    values |= {
        "model": str(model),
        "corpus": {"documents": [str(document) for document in documents]},
    }
    target = parse_length(target_length, "target_length")
    if str(recipe) == _FITTED:
        _fit(values, ModelShape.from_hf(read_config(Path(model))).context_length, target)
    else:
        values["extension"][-1]["length"] = target
    for key, value in (settings or {}).items():
        _set(values, key.split("."), value)
    config = build_config(Recipe, values, str(path))
    with start_runtime(config.parallel, seed=config.seed) as runtime:
        return run_recipe(config, Path(run_dir), runtime, progress or Progress())


def _fit(values: dict[str, Any], window: int, target: int) -> None:
    """Puts the lengths of a fine-tuned step, a second interpolation and a recovery where window and
    target are."""
    tuned = min(target, max(2 * window, target // 4))
    first, second = values["extension"]
    first["length"] = first["fine_tune"]["data"]["sequence_length"] = tuned
    second["length"] = target
    values["extension"] = [first, second] if tuned < target else [first]
    values["recovery"][0]["length"] = window
    lengths = sorted({window, tuned, target})
    values["evaluation"]["lengths"] = lengths


def _set(values: Any, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values[int(key)] if isinstance(values, list) else values.setdefault(key, {})
    last = keys[-1]
    values[int(last) if isinstance(values, list) else last] = value
