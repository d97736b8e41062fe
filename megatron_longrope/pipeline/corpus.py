"""The documents of a run in three parts without overlap: trained on, searched on, held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from data_prep.corpus_config import CorpusConfig
from data_prep.documents import TextDocument, TokenDocument, tokenize
from data_prep.package_documents import missing_texts, other_texts, read_test_documents
from data_prep.readers import read_text_files
from data_prep.stdlib_corpus import split as split_standard_library
from megatron_longrope.config import format_length
from megatron_longrope.data import TextTokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import EvaluationDocument, documents_sha256


@dataclass(frozen=True)
class Corpus:
    """The tokenized documents of a run."""

    train: list[TokenDocument]
    search: list[EvaluationDocument]
    held_out: list[EvaluationDocument]
    """Documents that results are measured on, which neither search nor training has seen."""
    notes: tuple[str, ...] = ()
    """What to tell the user about the documents, a line each."""

    @cached_property
    def train_sha256(self) -> str:
        """SHA-256 of the tokens that are trained on."""
        return documents_sha256([EvaluationDocument(d.name, d.tokens) for d in self.train])

    @cached_property
    def held_out_sha256(self) -> str:
        """SHA-256 of the held-out tokens."""
        return documents_sha256(self.held_out)

    def identity(self) -> dict[str, object]:
        """Returns the digests of all three parts, for fingerprints."""
        return {
            "train": self.train_sha256,
            "search": documents_sha256(self.search),
            "held_out": self.held_out_sha256,
        }


def load_corpus(
    config: CorpusConfig,
    tokenizer: TextTokenizer,
    target_length: int,
    num_measured: int | None = None,
) -> Corpus:
    """Returns the documents of `config`, tokenized.

    Raises InputError where a part has no documents, where fewer test documents are on this machine
    than are needed, and where a document to search on or to measure on has fewer than
    `target_length` tokens.

    Args:
        config: Which documents there are.
        tokenizer: What encodes them.
        target_length: Tokens that documents to search on and to measure on have at least.
        num_measured: Number of documents that are measured on; other test documents may be missing.
            None: none may.
    """
    train, search, held_out = _texts(config, tokenizer, target_length, num_measured)
    for name, documents in (("train", train), ("search", search), ("evaluation", held_out)):
        if not documents:
            raise InputError(f"corpus.{name}", "none", "at least one document is needed")
    corpus = Corpus(
        tokenize(train, tokenizer),
        _whole(search, tokenizer),
        _whole(held_out, tokenizer),
        _notes(config),
    )
    for part, whole in (("search", corpus.search), ("evaluation", corpus.held_out)):
        for document in whole:
            if len(document.tokens) < target_length:
                raise InputError(
                    f"corpus.{part}",
                    document.name,
                    f"has {len(document.tokens)} tokens, fewer than the target length "
                    f"{format_length(target_length)}",
                )
    return corpus


Texts = Sequence[TextDocument]


def _texts(
    config: CorpusConfig, tokenizer: TextTokenizer, target_length: int, num_measured: int | None
) -> tuple[Texts, Texts, Texts]:
    if config.standard_library:
        split = split_standard_library()
        if config.judged_on == "development":
            return split.train, split.search, split.development
        return split.train, split.search, read_test_documents(at_least=num_measured)
    if config.documents:
        return _divide(
            list(read_text_files(config.documents, "corpus.documents")),
            config,
            tokenizer,
            target_length,
        )
    return (
        list(read_text_files(config.train, "corpus.train")),
        list(read_text_files(config.search, "corpus.search")),
        list(read_text_files(config.evaluation, "corpus.evaluation")),
    )


def _notes(config: CorpusConfig) -> tuple[str, ...]:
    if not config.standard_library or config.judged_on == "development":
        return ()
    others, missing = other_texts(), missing_texts()
    notes = []
    if others:
        listed = ", ".join(others)
        notes.append(f"published figures are of other test documents than this run's: {listed}")
    if missing:
        listed = ", ".join(missing)
        notes.append(f"test documents that this machine lacks are left out: {listed}")
    return tuple(notes)


def _divide(
    documents: Texts, config: CorpusConfig, tokenizer: TextTokenizer, target_length: int
) -> tuple[Texts, Texts, Texts]:
    """Returns the documents to train on, search on and measure on.

    The first documents of `target_length` tokens or more are searched on, the next ones are
    measured on, and all others are trained on.
    """
    needed = config.num_search + config.num_evaluation
    lengths = [
        len(tokens)
        for tokens in tokenizer.encode_documents([document.text for document in documents])
    ]
    long = [
        document
        for document, length in zip(documents, lengths, strict=True)
        if length >= target_length
    ]
    if len(long) < needed or len(documents) <= needed:
        raise InputError(
            "corpus.documents",
            f"{len(long)} of {len(documents)}",
            f"reach {format_length(target_length)} tokens; {needed} are needed "
            f"({config.num_search} to search on, corpus.num_search, and {config.num_evaluation} to "
            "evaluate on, corpus.num_evaluation), and one more of any length to train on; the "
            f"longest have {_longest(lengths)} tokens",
        )
    search, held_out = long[: config.num_search], long[config.num_search : needed]
    taken = {id(document) for document in (*search, *held_out)}
    return [document for document in documents if id(document) not in taken], search, held_out


def _longest(lengths: Sequence[int]) -> str:
    return ", ".join(f"{length:,}" for length in sorted(lengths, reverse=True)[:3]) or "no"


def _whole(documents: Texts, tokenizer: TextTokenizer) -> list[EvaluationDocument]:
    return [
        EvaluationDocument(document.name, document.tokens)
        for document in tokenize(documents, tokenizer)
    ]
