"""Checks of a run's documents: long enough, told apart, of the model's vocabulary, enough."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.documents import TokenDocument
from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import EvaluationDocument, Tokens, documents_sha256
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.recipe import Recipe, TrainingDataConfig
from megatron_longrope.pipeline.stages.packing import SHORTEST_PIECE
from megatron_longrope.training import TrainingConfig


def check_run_documents(recipe: Recipe, corpus: Corpus, vocab_size: int) -> None:
    """Raises InputError for documents that a later stage would stop at, or that prove nothing."""
    _check_vocabulary(corpus, vocab_size)
    _check_told_apart(corpus)
    _check_search_documents(recipe, corpus)
    for number, step in enumerate(recipe.extension):
        if step.fine_tune is not None:
            tune = step.fine_tune
            check_enough(f"extension.{number}.fine_tune.", tune.data, tune.training, corpus.train)


def check_enough(
    place: str, data: TrainingDataConfig, training: TrainingConfig, train: Sequence[TokenDocument]
) -> None:
    """Raises InputError where the text trained on does not fill the rows of one global batch.

    `place` is what stands before `training` in the recipe.
    """
    text = sum(len(document.tokens) for document in train if len(document.tokens) >= SHORTEST_PIECE)
    tokens = round(text / (1 - data.retrieval.share))
    needed = training.global_batch_size * data.sequence_length
    if tokens < needed:
        rule = (
            f"one step takes {needed:,} tokens in rows of {format_length(data.sequence_length)}; "
            f"the documents to train on have {tokens:,}, retrieval documents included"
        )
        raise InputError(f"{place}training.global_batch_size", training.global_batch_size, rule)


def _check_vocabulary(corpus: Corpus, vocab_size: int) -> None:
    every = [(document.name, document.tokens) for document in corpus.train]
    every += [(document.name, document.tokens) for document in (*corpus.search, *corpus.held_out)]
    for name, tokens in every:
        largest = int(tokens.max())
        if largest >= vocab_size:
            rule = f"has token {largest}; the model's vocabulary has {vocab_size} entries"
            raise InputError("document", name, f"{rule}: wrong tokenizer?")


def _check_told_apart(corpus: Corpus) -> None:
    """Checks that no document is searched on and measured on, or trained on as well."""
    parts = {"corpus.evaluation": corpus.held_out, "corpus.search": corpus.search}
    seen: dict[str, str] = {}
    for part, documents in parts.items():
        for document in documents:
            sha256 = _digest(document.name, document.tokens)
            if sha256 in seen:
                raise InputError(part, document.name, f"holds the same text as {seen[sha256]}")
            seen[sha256] = f"{document.name} of {part}"
    lengths = {len(document.tokens) for documents in parts.values() for document in documents}
    for trained in corpus.train:
        if len(trained.tokens) in lengths:  # only then it can be one of them
            same = seen.get(_digest(trained.name, trained.tokens))
            if same is not None:
                raise InputError("corpus.train", trained.name, f"holds the same text as {same}")


def _digest(name: str, tokens: Tokens) -> str:
    return documents_sha256([EvaluationDocument(name, tokens)])


def _check_search_documents(recipe: Recipe, corpus: Corpus) -> None:
    """Checks that no search takes more tokens of a document than it holds.

    `load_corpus` has checked that each document reaches the target length.
    """
    for place, search, length in recipe.searches:
        longest = max((length, *search.mixture)) * search.windows_per_document
        for document in corpus.search[: search.num_documents]:
            if len(document.tokens) < longest:
                raise InputError(
                    f"{place}.search",
                    document.name,
                    f"has {len(document.tokens):,} tokens; {longest:,} of each document are "
                    f"searched on (windows_per_document={search.windows_per_document}, mixture)",
                )
