"""Checks that generated documents fit the lengths a recipe asks for, by the model's tokenizer."""

from __future__ import annotations

from data_prep.retrieval import RetrievalMix, check_retrieval_lengths
from megatron_longrope.data import TextTokenizer, passkey_document
from megatron_longrope.evaluation.tasks import TASKS
from megatron_longrope.pipeline.preflight.place import at
from megatron_longrope.pipeline.recipe import Recipe, TrainingDataConfig

_LONG = 4096
"""Tokens of a document in which any passkey has room."""


def check_generated(recipe: Recipe, tokenizer: TextTokenizer, window: int) -> None:
    """Raises InputError for a length that is too short for what is generated at it.

    `window` is the window of the model as it arrives: a control is trained at that.
    """
    prefix = tokenizer.document_prefix()
    for place, search, length in recipe.searches:
        if search.retrieval_documents:
            place += ".search.retrieval_documents"
            check_passkeys(place, tokenizer, length, search.seed)
    for number, step in enumerate(recipe.extension):
        if step.fine_tune is not None:
            place, data = f"extension.{number}.fine_tune.data", step.fine_tune.data
            check_mixed_in(place, data, tokenizer)
            if step.fine_tune.control:
                check_mixed_in(place, data, tokenizer, window)
    for name, settings in recipe.evaluation.tasks.items():
        lengths = recipe.evaluation.task_lengths(name)
        with at(f"evaluation.tasks.{name}"):
            TASKS[name].check_lengths(tokenizer, prefix, lengths, settings)


def check_passkeys(place: str, tokenizer: TextTokenizer, length: int, seed: int) -> None:
    """Raises InputError, which names `place`, where a search's passkeys do not fit `length`."""
    with at(place):
        prefix = tokenizer.document_prefix()
        passkey_document(tokenizer, min(length, _LONG), 0.0, seed, prefix=prefix)


def check_mixed_in(
    place: str, data: TrainingDataConfig, tokenizer: TextTokenizer, longest: int | None = None
) -> None:
    """Raises InputError where retrieval documents of a training do not fit their least length.

    `longest` is the most tokens of a piece, where it is less than the settings say.
    """
    retrieval = data.retrieval
    if retrieval.share == 0:
        return
    mix = RetrievalMix(
        retrieval.key_value_share,
        retrieval.copy_share,
        retrieval.text_filler_share,
        retrieval.longest_key,
    )
    most = min(retrieval.max_length, longest or retrieval.max_length)
    with at(f"{place}.retrieval"):
        check_retrieval_lengths(tokenizer, min(retrieval.min_length, most), most, mix)
