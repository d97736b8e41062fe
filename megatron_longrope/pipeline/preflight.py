"""Checks of a run that need no weights, so that it is refused before hours of work."""

from __future__ import annotations

from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.recipe import Recipe, SearchConfig


def check_search_documents(recipe: Recipe, corpus: Corpus) -> None:
    """Raises InputError where a search takes more tokens of a document than it holds.

    `load_corpus` has checked that each document reaches the target length.
    """
    steps: list[tuple[str, SearchConfig, int]] = [
        *((f"extension.{n}", s.search, s.length) for n, s in enumerate(recipe.extension)),
        *((f"recovery.{n}", s.search, s.length) for n, s in enumerate(recipe.recovery)),
    ]
    for place, search, length in steps:
        longest = max((length, *search.mixture)) * search.windows_per_document
        for document in corpus.search[: search.num_documents]:
            if len(document.tokens) < longest:
                raise InputError(
                    f"{place}.search",
                    document.name,
                    f"has {len(document.tokens):,} tokens; {longest:,} of each document are "
                    f"searched on (windows_per_document={search.windows_per_document}, mixture)",
                )


def check_layout(recipe: Recipe, shape: ModelShape, world_size: int) -> None:
    """Raises InputError for a layout that does not fit the model, its lengths or its batches.

    Lengths that do not exceed the model's window are refused as well.
    """
    layout = recipe.parallel
    data_parallel = layout.data_parallel(world_size)
    layout.check_model(
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        ffn_hidden_size=shape.ffn_hidden_size,
    )
    for step in recipe.extension:
        layout.check_sequence(step.length)
        if step.fine_tune is not None:
            training = step.fine_tune.training
            layout.check_batch(training.global_batch_size, training.micro_batch_size, data_parallel)
        if step.length <= shape.context_length:
            window = format_length(shape.context_length)
            rule = f"a target must exceed the model's window of {window} tokens"
            raise InputError("extension.length", format_length(step.length), rule)
