"""`longrope demo --model smollm2`: a real small model, measured under every scaling method."""

from __future__ import annotations

from pathlib import Path

import click

from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import load_model
from checkpoints_tools.smollm2 import fetch_smollm2
from data_prep.documents import tokenize
from data_prep.stdlib_corpus import split
from launchers.printing.evaluation_report import TokenProgress, print_tables
from megatron_longrope.artifacts.results import write_rows
from megatron_longrope.artifacts.rows import EvaluationLabels, PerplexityRow
from megatron_longrope.data import load_tokenizer
from megatron_longrope.evaluation import (
    EvaluationDocument,
    check_documents,
    measure_perplexity,
)
from megatron_longrope.model.checkpoints.checkpoint import is_checkpoint
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.searching import methods_compared
from megatron_longrope.runtime import Runtime, start_runtime


def evaluate_smollm2(directory: Path, length: int, json_path: Path | None) -> None:
    """Prints the perplexity of one held-out document at `length` tokens under every method.

    The document is the longest held-out module of the standard library. The model is fetched and
    converted the first time; rows are left in `directory`, and in `json_path` if given.
    """
    with start_runtime(timeout_seconds=3600) as runtime:
        loaded = load_model(_converted(directory, runtime), runtime)
        assert loaded.tokenizer_file is not None
        tokenizer = load_tokenizer(loaded.tokenizer_file)
        texts = tokenize(split().development, tokenizer)
        longest = max(texts, key=lambda text: len(text.tokens))
        documents = [EvaluationDocument(longest.name, longest.tokens)]
        check_documents(documents, [length])
        methods = methods_compared(loaded.own, max(length, loaded.own.window))
        progress = TokenProgress(length * len(methods), shown=runtime.is_main)
        rows: list[PerplexityRow] = []
        for method in methods:
            loaded.model.set_factors(method.factors_at(length))
            labels = EvaluationLabels("smollm2-135m", method.name)
            rows += measure_perplexity(loaded.model, documents, length, labels).rows
            progress.advance(length, f"{method.name} at {length} tokens")
        if runtime.is_main:
            print_tables(rows)
            write_rows(directory / "evals" / "perplexity.json", rows)
            click.echo(f"rows: {directory / 'evals' / 'perplexity.json'}")
            if json_path is not None:
                write_rows(json_path, rows)


def _converted(directory: Path, runtime: Runtime) -> Path:
    """Returns the model's Megatron checkpoint, which is fetched and converted the first time."""
    checkpoint = directory / "checkpoints" / "smollm2"
    folder = on_main(runtime, lambda: fetch_smollm2(directory / "huggingface"))
    if not on_main(runtime, lambda: is_checkpoint(checkpoint)):
        import_hf(folder, checkpoint, runtime)
    return checkpoint
