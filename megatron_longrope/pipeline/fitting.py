"""A recipe for a model, documents and a target: a shipped one, its lengths fitted to the model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints_tools.hf.folder import read_config
from data_prep.readers import find_text_files
from megatron_longrope.config import apply_settings, build_config, format_length, read_yaml
from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures import with_rope_said
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.presets import model_path, recipe_path
from megatron_longrope.rope import OwnScaling

PROGRESSIVE = "progressive"
"""The shipped recipe whose lengths are fitted to a model's window."""


def recipe_for(
    model: str | Path,
    documents: Sequence[str | Path],
    target_length: int,
    *,
    recipe: str | Path = PROGRESSIVE,
    settings: Iterable[tuple[str, Any]] = (),
) -> Recipe:
    """Returns the recipe that extends `model` to `target_length` tokens with these documents.

    Args:
        model: A Hugging Face folder, or `preset:NAME`.
        documents: Text files, folders of them, or patterns.
        target_length: Tokens.
        recipe: A shipped recipe's name or a YAML file. `progressive` is fitted to the model's
            window, of any other the last step gets the target length.
        settings: Dotted keys and values that have the last word.

    Raises InputError for a model or documents that are not there, and for settings that the recipe
    does not know.
    """
    path = recipe_path(str(recipe))
    values = read_yaml(path)
    if str(recipe) == PROGRESSIVE:
        own = OwnScaling.from_hf(with_rope_said(read_config(model_path(str(model)))))
        values = fit_to_window(values, own.window, target_length)
    else:
        values["extension"][-1]["length"] = target_length
    values |= {
        "name": f"{Path(str(model).removeprefix('preset:')).name}-{format_length(target_length)}",
        "model": str(model),
        "corpus": {"documents": find_text_files(documents)},
    }
    return build_config(Recipe, apply_settings(values, settings), str(path))


def fit_to_window(values: Mapping[str, Any], window: int, target: int) -> dict[str, Any]:
    """Returns the progressive recipe's values with its lengths where `window` and `target` are.

    Trained is a quarter of the target, twice the window at least; the target is searched beyond it
    without training, where it is longer. Short inputs are recovered up to the window: the one the
    model arrives with, its own scaling included. Raises InputError unless the target exceeds it.
    """
    if target <= window:
        rule = f"must exceed the {format_length(window)} tokens that the model arrives with"
        raise InputError("target_length", format_length(target), rule)
    fitted = copy.deepcopy(dict(values))
    tuned = min(target, max(2 * window, target // 4))
    first, second = fitted["extension"]
    first["length"] = first["fine_tune"]["data"]["sequence_length"] = tuned
    second["length"] = target
    fitted["extension"] = [first, second] if tuned < target else [first]
    fitted["recovery"][0]["length"] = window
    lengths = sorted({window, tuned, target})
    fitted["evaluation"]["lengths"] = lengths
    return fitted
