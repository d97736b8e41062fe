"""The stage that packs pieces of text and retrieval documents into training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.documents import TokenDocument
from data_prep.retrieval import RetrievalMix, retrieval_documents
from data_prep.writing import write_packed
from megatron_longrope.config import format_length
from megatron_longrope.data import Filler, TextTokenizer, classic_filler, text_filler
from megatron_longrope.data.manifest import DatasetManifest
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.recipe import FineTuneConfig, RetrievalConfig, TrainingDataConfig
from megatron_longrope.pipeline.run import Run, RunInputs
from megatron_longrope.pipeline.stages.stage import PLACES, Stage

_FILLER_DOCUMENTS = 40
"""Number of documents whose lines fill passkey documents, evenly chosen among all."""
SHORTEST_PIECE = 16
"""Shorter pieces, in tokens, are not trained on; the manifest says how many there were."""


@dataclass(frozen=True)
class PackRows(Stage):
    """Packs the training documents into the rows of one training stage."""

    kind = "pack"
    config: FineTuneConfig
    prefix: str
    """Name of the training stage, and of the dataset in `data/`."""
    max_piece: int | None
    """Most tokens of a piece; None: as the settings say."""

    @property
    def does(self) -> str:
        """What the stage does, with the length of the rows."""
        length = format_length(self.config.data.sequence_length)
        pieces = f", in pieces of {format_length(self.max_piece)}" if self.max_piece else ""
        return f"pack training documents into rows of {length}{pieces}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """No paths: the stage reads nothing in the run directory."""
        return ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The dataset of packed rows."""
        return (str(PLACES.data(self.prefix)),)

    def fingerprint(self, run: RunInputs) -> dict[str, object]:
        """Returns the settings, the documents and the seed."""
        return {
            **self.config.model_dump(mode="json"),
            "documents": run.corpus.train_sha256,
            "max_piece": self.max_piece,
            "seed": run.recipe.seed,
        }

    def work(self, run: Run) -> dict[str, object]:
        """Writes the rows on the main rank; returns how many there are, and their tokens."""
        return on_main(run.runtime, lambda: self._build(run))

    def _build(self, run: Run) -> dict[str, object]:
        manifest = build_training_set(
            run.directory.data(self.prefix),
            run.corpus.train,
            run.tokenizer,
            self.config.data,
            window=run.own.window,
            max_piece=self.max_piece,
            short_rows=self.config.short_inputs != "extended",
            seed=run.recipe.seed,
        )
        return {"rows": manifest.counts.rows, "tokens": manifest.counts.tokens}


def build_training_set(
    prefix: Path,
    documents: Sequence[TokenDocument],
    tokenizer: TextTokenizer,
    config: TrainingDataConfig,
    *,
    window: int,
    max_piece: int | None = None,
    short_rows: bool = False,
    seed: int,
) -> DatasetManifest:
    """Packs documents into training rows and returns the manifest of the dataset.

    Args:
        prefix: The path of the dataset, without suffix.
        documents: Text to train on.
        tokenizer: Encodes retrieval documents.
        config: Lengths and shares of pieces and retrieval documents.
        window: The pretrained window in tokens.
        max_piece: Most tokens of a piece or a retrieval document. A control at the pretrained
            window gets the same text in the same rows that way.
        short_rows: Whether pieces that fit the window have rows of their own, which can then be
            trained under other factors.
        seed: What cuts and retrieval documents depend on.
    """
    longest = min(
        config.piece_length or config.sequence_length, max_piece or config.sequence_length
    )
    pieces = _cut(documents, longest, window, config.short_piece_share, seed)
    text_tokens = sum(len(piece.tokens) for piece in pieces)
    retrieval = _retrieval(tokenizer, config.retrieval, documents, text_tokens, longest, seed)
    return write_packed(
        prefix,
        [*pieces, *retrieval],
        config.sequence_length,
        tokenizer.identity,
        tokenizer.vocab_size,
        min_piece=SHORTEST_PIECE,
        short_limit=window if short_rows else 0,
    )


def _cut(
    documents: Sequence[TokenDocument], longest: int, window: int, short_share: float, seed: int
) -> list[TokenDocument]:
    """Returns each document in pieces of `longest` tokens, or of the window for a random share."""
    random = np.random.default_rng([seed, 1])
    pieces = []
    for document in documents:
        start = 0
        while start < len(document.tokens):
            # a stretch of `longest` tokens stays whole or is cut at the window, so that shares
            # count tokens
            stop = min(start + longest, len(document.tokens))
            size = min(window, longest) if random.random() < short_share else longest
            for first in range(start, stop, size):
                tokens = document.tokens[first : min(first + size, stop)]
                pieces.append(TokenDocument(f"{document.name}[{first}]", tokens, document.sha256))
            start = stop
    return pieces


def _retrieval(
    tokenizer: TextTokenizer,
    config: RetrievalConfig,
    documents: Sequence[TokenDocument],
    text_tokens: int,
    longest: int,
    seed: int,
) -> list[TokenDocument]:
    """Returns retrieval documents that make up `config.share` of all tokens."""
    if config.share == 0:
        return []
    max_length = min(config.max_length, longest)
    min_length = min(config.min_length, max_length)
    wanted = text_tokens * config.share / (1 - config.share)
    count = round(wanted / ((min_length + max_length) / 2))
    mix = RetrievalMix(
        config.key_value_share, config.copy_share, config.text_filler_share, config.longest_key
    )
    return retrieval_documents(
        tokenizer, count, min_length, max_length, seed, _fillers(tokenizer, documents), mix
    )


def _fillers(tokenizer: TextTokenizer, documents: Sequence[TokenDocument]) -> tuple[Filler, ...]:
    """Returns the classic sentences, then lines of some of the documents."""
    step = max(1, len(documents) // _FILLER_DOCUMENTS)
    texts = [tokenizer.decode(document.tokens) for document in documents[::step]]
    lines = [line for text in texts for line in text.splitlines(keepends=True) if line.strip()]
    return (classic_filler(tokenizer), text_filler(tokenizer, lines))
