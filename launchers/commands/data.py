"""`longrope data pack | inspect | tokenizer`: token datasets and tokenizers from documents."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launchers.list_options import ListOptionsCommand
from launchers.options import LENGTH, json_option, write_json
from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError

if TYPE_CHECKING:  # these import torch, which `--help` does without
    from data_prep.documents import TextDocument
    from megatron_longrope.data import DatasetManifest, TextTokenizer

CallableT = TypeVar("CallableT", bound=Callable[..., Any])
_SECONDS_BETWEEN_LINES = 10.0


@click.group()
def command() -> None:
    """Make token datasets from text, look into one, or train a tokenizer."""


def _source_options(function: CallableT) -> CallableT:
    """Adds the options that say where documents come from; `_read` reads the documents."""
    parts = click.Choice(["train", "search", "development", "test"])
    options = (
        click.option(
            "--text",
            "texts",
            multiple=True,
            metavar="FILE …",
            help="Text files in UTF-8, one document per file.",
        ),
        click.option(
            "--jsonl",
            "jsonls",
            multiple=True,
            metavar="FILE …",
            help="JSON Lines files, one document per line.",
        ),
        click.option(
            "--text-field",
            default="text",
            metavar="NAME",
            help="Field of a JSON line that holds the text.",
        ),
        click.option(
            "--stdlib",
            type=parts,
            help="A part of the running Python's standard library, as this project divides it; "
            "test: modules of packages it requires, to measure what is published.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command(cls=ListOptionsCommand)
@_source_options
@click.option(
    "--tokenizer",
    "tokenizer_path",
    required=True,
    metavar="PATH",
    help="A tokenizer.json, or a folder (such as a model's) that holds one.",
)
@click.option(
    "--sequence-length", type=LENGTH, metavar="LENGTH", help="Tokens per packed row, e.g. 2k."
)
@click.option(
    "--whole-documents", is_flag=True, help="Write one row per document, instead of packed rows."
)
@click.option(
    "--min-piece",
    type=click.IntRange(1),
    default=1,
    help="Leave out pieces of fewer tokens than this.",
)
@click.option(
    "--add-bos",
    is_flag=True,
    help="Begin each document with a BOS token where the tokenizer adds none.",
)
@click.option(
    "--append-eos", is_flag=True, help="End each document with the tokenizer's EOS token."
)
@click.option(
    "--drop-duplicates",
    is_flag=True,
    help="Keep only the first of several documents with equal text.",
)
@click.option(
    "--out", required=True, metavar="PREFIX", help="Writes PREFIX.bin, PREFIX.idx and PREFIX.json."
)
@json_option
def pack(
    texts: tuple[str, ...],
    jsonls: tuple[str, ...],
    text_field: str,
    stdlib: str | None,
    tokenizer_path: str,
    sequence_length: int | None,
    whole_documents: bool,
    min_piece: int,
    add_bos: bool,
    append_eos: bool,
    drop_duplicates: bool,
    out: str,
    json_path: Path | None,
) -> None:
    """Write documents as a token dataset, packed or whole.

    With --sequence-length, documents are cut into pieces of at most that many tokens, and the
    pieces are packed best-fit into rows of that length: each token is there once. With
    --whole-documents each document is a row of its own, as `longrope eval ppl --data` reads them.
    """
    if whole_documents == (sequence_length is not None):
        raise InputError(
            "--sequence-length", sequence_length, "give either it or --whole-documents"
        )
    if whole_documents and min_piece > 1:
        raise InputError(
            "--min-piece", min_piece, "whole documents are not cut; it goes with --sequence-length"
        )
    from data_prep.documents import filter_documents, tokenize
    from data_prep.writing import write_documents, write_packed
    from megatron_longrope.data import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    documents, left_out = filter_documents(
        _read(texts, jsonls, text_field, stdlib), drop_duplicates
    )
    end_token = _end_token(tokenizer) if append_eos else None
    tokenized = tokenize(documents, tokenizer, add_bos, end_token, _progress(len(documents)))
    if sequence_length is None:
        manifest = write_documents(out, tokenized, tokenizer.identity, tokenizer.vocab_size)
    else:
        identity, vocab_size = tokenizer.identity, tokenizer.vocab_size
        manifest = write_packed(out, tokenized, sequence_length, identity, vocab_size, min_piece)
    click.echo(_summary(out, manifest))
    for reason, names in (("empty", left_out.empty), ("duplicate", left_out.duplicates)):
        if names:
            click.echo(
                f"left out    {len(names)} {reason} documents: "
                f"{', '.join(names[:5])}{' …' * (len(names) > 5)}"
            )
    if json_path is not None:
        filtered = {"empty": left_out.empty, "duplicates": left_out.duplicates}
        write_json(json_path, {"prefix": out, "filtered": filtered, **manifest.model_dump()})


@command.command()
@click.argument("prefix")
@click.option("--verify", is_flag=True, help="Also read all tokens and compare their checksums.")
@json_option
def inspect(prefix: str, verify: bool, json_path: Path | None) -> None:
    """Show what the dataset PREFIX (PREFIX.bin, PREFIX.idx and PREFIX.json) holds."""
    from megatron_longrope.data import PackedDataset

    dataset = PackedDataset(prefix)
    if verify:
        dataset.verify()
    click.echo(_summary(prefix, dataset.manifest))
    click.echo(f"checksums   {'equal' if verify else 'not compared (--verify compares them)'}")
    if json_path is not None:
        write_json(
            json_path, {"prefix": prefix, "verified": verify, **dataset.manifest.model_dump()}
        )


@command.command(cls=ListOptionsCommand)
@_source_options
@click.option(
    "--vocab-size",
    type=click.IntRange(1),
    required=True,
    metavar="N",
    help="Size of the vocabulary, special tokens included.",
)
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Folder that gets tokenizer.json and two config files beside it.",
)
@json_option
def tokenizer(
    texts: tuple[str, ...],
    jsonls: tuple[str, ...],
    text_field: str,
    stdlib: str | None,
    vocab_size: int,
    out: str,
    json_path: Path | None,
) -> None:
    """Train a byte-level BPE tokenizer on documents; every digit is a token of its own."""
    from data_prep.bpe import train_bpe
    from data_prep.documents import filter_documents

    documents, _ = filter_documents(_read(texts, jsonls, text_field, stdlib))
    trained = train_bpe((document.text for document in documents), vocab_size, out)
    click.echo(f"tokenizer {out}: {trained.vocab_size} entries, sha256 {trained.identity.sha256}")
    if json_path is not None:
        write_json(
            json_path,
            {"out": out, "vocab_size": trained.vocab_size, **trained.identity.model_dump()},
        )


def _read(
    texts: tuple[str, ...], jsonls: tuple[str, ...], text_field: str, stdlib: str | None
) -> Iterator[TextDocument]:
    from data_prep import package_documents, readers, stdlib_corpus

    if not (texts or jsonls or stdlib):
        raise InputError("--text", "(nothing)", "give documents with --text, --jsonl or --stdlib")
    yield from readers.read_text_files(texts)
    for path in jsonls:
        yield from readers.read_jsonl(path, text_field)
    if stdlib == "test":
        yield from package_documents.read_test_documents()
    elif stdlib is not None:
        yield from getattr(stdlib_corpus.split(), stdlib)


def _end_token(tokenizer: TextTokenizer) -> int:
    if tokenizer.eos_id is None:
        raise InputError(
            "--append-eos", tokenizer.identity.name, "this tokenizer names no eos_token"
        )
    return tokenizer.eos_id


def _progress(total: int) -> Callable[[int, int], None]:
    """Returns a function that now and then prints documents done, rate and time left on stderr."""
    started = last = time.monotonic()

    def show(documents: int, tokens: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            rate, left = tokens / (now - started), (now - started) * (total - documents) / documents
            print(
                f"{documents}/{total} documents, {rate:,.0f} tokens/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    return show


def _summary(prefix: str, manifest: DatasetManifest) -> str:
    counts = manifest.counts
    lines = [
        f"dataset     {prefix}",
        f"tokenizer   {manifest.tokenizer.name} {manifest.tokenizer.sha256[:12]}…",
    ]
    lines[-1] += f", vocabulary {manifest.vocab_size}"
    if manifest.sequence_length is None:
        lines.append(f"documents   {counts.rows}, whole, {counts.tokens:,} tokens")
        return "\n".join(lines)
    space = counts.rows * manifest.sequence_length
    lines.append(f"rows        {counts.rows:,} of {format_length(manifest.sequence_length)} tokens")
    lines.append(
        f"contents    {counts.pieces:,} pieces of {len(manifest.documents):,} documents, "
        f"{counts.tokens:,} tokens"
    )
    lines.append(
        f"unused      {counts.unused:,} tokens of row space ({100 * counts.unused / space:.2f} %)"
    )
    if counts.left_out_pieces:
        rule = f"pieces under {manifest.min_piece} tokens"
        lines.append(
            f"left out    {counts.left_out_pieces:,} {rule}, {counts.left_out:,} tokens in all"
        )
    return "\n".join(lines)
