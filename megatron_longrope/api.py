"""One call that extends a model: model, documents and target length in, the run's result out."""

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
    """Extends `model` to `target_length` tokens and returns where everything is.

    The shipped recipe `extend` is fitted to the model's window: it searches factors for a quarter
    of the target (at least twice the window) and fine-tunes there, searches again for the target
    without training, and recovers the window. In any other recipe the last extension step gets
    `target_length`. After an interruption the same call goes on where it stopped. Raises InputError
    for bad input.

    Args:
        model: Folder of a Hugging Face checkpoint.
        documents: Text files. The first long ones are kept for search and evaluation, the model is
            trained on the others.
        target_length: Context length in tokens, such as 131072 or "128k".
        run_dir: Folder of the run, which is created where it is missing.
        recipe: Name of a shipped recipe or path of a YAML file, for everything not given here.
        settings: Overrides of the recipe by dotted keys, such as
            {"extension.0.fine_tune.training.steps": 200}.
        progress: Callbacks that are told how far the run is.
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
    """Sets the lengths of the recipe `extend` from window and target, in place.

    The recipe has a fine-tuned step, a second search without training, and a recovery. The second
    one is dropped where the fine-tuned step reaches the target.
    """
    tuned = min(target, max(2 * window, target // 4))
    first, second = values["extension"]
    first["length"] = first["fine_tune"]["data"]["sequence_length"] = tuned
    second["length"] = target
    values["extension"] = [first, second] if tuned < target else [first]
    values["recovery"][0]["length"] = window
    lengths = sorted({window, tuned, target})
    values["evaluation"] |= {"lengths": lengths, "passkey_lengths": lengths}


def _set(values: Any, keys: Sequence[str], value: Any) -> None:
    """Sets the value at a path of keys, numbers for entries of lists, making missing groups."""
    for key in keys[:-1]:
        values = values[int(key)] if isinstance(values, list) else values.setdefault(key, {})
    last = keys[-1]
    values[int(last) if isinstance(values, list) else last] = value
