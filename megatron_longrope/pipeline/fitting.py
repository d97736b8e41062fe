"""Makes a recipe for a model, documents and a target length out of a shipped one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints_tools.hf.folder import read_config
from data_prep.readers import find_text_files
from megatron_longrope.config import (
    apply_settings,
    build_config,
    format_length,
    parse_length,
    read_yaml,
)
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
        target_length: Context length in tokens to reach.
        recipe: The name of a shipped recipe, or a YAML file. The lengths of `progressive` are
            fitted to the model's window; of any other recipe the last step gets the target, and
            with it its rows and the longest length measured.
        settings: Pairs of a dotted key and a value that are set in the recipe at last.

    Raises InputError for a model or documents that do not exist, and for settings that the recipe
    does not know.
    """
    path = recipe_path(str(recipe))
    values = read_yaml(path)
    if str(recipe) == PROGRESSIVE:
        own = OwnScaling.from_hf(with_rope_said(read_config(model_path(str(model)))))
        values = fit_to_window(values, own.window, target_length)
    else:
        values = _with_target(values, target_length)
    values |= {
        "name": f"{Path(str(model).removeprefix('preset:')).name}-{format_length(target_length)}",
        "model": str(model),
        "corpus": {"documents": find_text_files(documents, "documents")},
    }
    return build_config(Recipe, apply_settings(values, settings), str(path))


_ROUND = 128
"""A length that is chosen here is a multiple of this, so that every layout can divide it."""


def _with_target(values: Mapping[str, Any], target: int) -> dict[str, Any]:
    """Returns the values of a recipe whose last step reaches `target` tokens, measured there."""
    changed = copy.deepcopy(dict(values))
    last = changed["extension"][-1]
    last["length"] = target
    if last.get("fine_tune"):
        last["fine_tune"]["data"]["sequence_length"] = target
    measured = changed["evaluation"]
    # tasks with lengths of their own, and an export measured at some, go to the target too
    limited = (*measured.get("tasks", {}).values(), measured.get("exported") or {})
    for part in (measured, *(part for part in limited if part.get("lengths"))):
        lengths = {parse_length(length) for length in part["lengths"]}
        part["lengths"] = sorted({*(length for length in lengths if length < target), target})
    return changed


def fit_to_window(values: Mapping[str, Any], window: int, target: int) -> dict[str, Any]:
    """Returns the values of the recipe `progressive` with all lengths fitted, in tokens.

    The model is fine-tuned at a quarter of the target, but at twice the window at least and at the
    target at most. Where the target is longer still, it is searched without further training. Short
    inputs are recovered up to the window: the one that the model arrives with, scaling of its own
    included. Raises InputError for a target that does not exceed the window.
    """
    if target <= window:
        rule = f"must exceed the {format_length(window)} tokens that the model arrives with"
        raise InputError("target_length", format_length(target), rule)
    fitted = copy.deepcopy(dict(values))
    quarter = target // 4 // _ROUND * _ROUND
    tuned = min(target, max(2 * window, quarter))
    first, second = fitted["extension"]
    first["length"] = first["fine_tune"]["data"]["sequence_length"] = tuned
    second["length"] = target
    fitted["extension"] = [first, second] if tuned < target else [first]
    recovery = fitted["recovery"][0]
    recovery["length"] = window
    # documents are sure to reach the target, not to hold several windows
    windows = recovery["search"].get("windows_per_document", 1)
    recovery["search"]["windows_per_document"] = max(1, min(windows, target // window))
    lengths = sorted({window, tuned, target})
    fitted["evaluation"]["lengths"] = lengths
    return fitted
