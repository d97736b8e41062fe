"""One call that extends a model: model, documents and target length in, the run's result out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longrope.config import parse_length
from megatron_longrope.pipeline.extend import run_recipe
from megatron_longrope.pipeline.fitting import PROGRESSIVE, recipe_for
from megatron_longrope.pipeline.result import RunResult
from megatron_longrope.pipeline.run import Progress
from megatron_longrope.runtime import start_runtime

__all__ = ["Progress", "RunResult", "extend_context"]


def extend_context(
    model: str | Path,
    documents: Sequence[str | Path],
    target_length: int | str,
    *,
    run_dir: str | Path,
    recipe: str | Path = PROGRESSIVE,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Extends a model to `target_length` tokens and returns where everything is.

    Interrupted, the same call goes on where it was. `longrope extend --model DIR --text FILE …
    --target LENGTH` does the same from the command line.

    Args:
        model: A Hugging Face folder, or `preset:demo`.
        documents: UTF-8 text files, folders of them, or patterns such as `books/*.txt`. The first
            that reach the target length are kept for search and evaluation, the others are trained
            on.
        target_length: Tokens: 131072 or "128k".
        run_dir: Folder for everything the run leaves, and to go on from.
        recipe: All the rest: a shipped recipe's name or a YAML file. `progressive` is fitted to the
            model's window: it fine-tunes at a quarter of the target (at twice the window at least),
            searches beyond without training, and recovers the window. Of any other recipe the last
            step gets `target_length`, which becomes the longest length measured.
        settings: Dotted keys of the recipe and their values, which have the last word.
        progress: Where the run shows how far it is; silent by default.

    Raises InputError for bad input: what is wrong, its value and the rule in one line.

    Example:
        >>> from megatron_longrope import extend_context
        >>> def extend() -> None:
        ...     result = extend_context(
        ...         "models/SmolLM2-135M",
        ...         ["books/"],
        ...         "32k",
        ...         run_dir="runs/smollm2-32k",
        ...         settings={"extension.0.fine_tune.training.steps": 200},
        ...     )
        ...     print(result.report, result.hugging_face)
    """
    target = parse_length(target_length, "target_length")
    given = (settings or {}).items()
    config = recipe_for(model, documents, target, recipe=recipe, settings=given)
    with start_runtime(config.parallel, seed=config.seed) as runtime:
        return run_recipe(config, Path(run_dir), runtime, progress or Progress())
