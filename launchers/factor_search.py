"""What `longrope search` does: one search, its comparison with all baselines, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.load_any import ModelFolder, load_model, open_model
from data_prep.documents import TextDocument, tokenize
from data_prep.readers import find_text_files, read_text_files
from launchers.extension import search_lines
from launchers.options import layout_of
from launchers.printing.progress import ProgressLines
from launchers.search_options import searcher_section
from launchers.typed_names import typed_names
from megatron_longrope.artifacts.records import write_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.summaries import SearchSummary
from megatron_longrope.config import build_config, format_length
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import EvaluationDocument, check_documents, documents_sha256
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.pipeline.margins import baseline_margins, held_out_margins
from megatron_longrope.pipeline.preflight.generated import check_passkeys
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.run import geometry_of
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    extension_search,
    held_out_objective,
    loss_in_words,
    search_cost,
    search_factors,
    search_objective,
    second_search,
)
from megatron_longrope.rope import RopeFactors, resolve_factors, write_factors
from megatron_longrope.runtime import start_runtime


def run_factor_search(out: Path, **settings: Any) -> tuple[SearchSummary, Path] | None:
    """Runs the search and returns on the main rank what it found, and the path of its plot.

    Raises InputError for bad input.
    """
    target = settings["target"]
    sources = list(read_text_files(find_text_files(settings["texts"])))
    held_out_sources = _held_out_sources(settings["held_out"], sources)
    config = search_config(settings, len(sources))
    with typed_names():
        folder = open_model(settings["model_path"])
    own = folder.own
    tuned = _tuned_factors(settings["from_factors"], target)
    builds_on_factors = tuned is not None or own.is_scaled
    mistake = config.mistake("second" if builds_on_factors else "first", target)
    if mistake is not None:
        raise InputError(*mistake)
    if folder.tokenizer_file is None:
        rule = "has no tokenizer.json to encode the documents with"
        raise InputError("--model", settings["model_path"], rule)
    tokenizer = load_tokenizer(folder.tokenizer_file)
    documents = _encoded(sources, tokenizer, target)
    others = _encoded(held_out_sources, tokenizer, target) if held_out_sources else []
    problem = _problem(config, folder, target, tuned)
    if config.retrieval_documents:
        check_passkeys("--retrieval-documents", tokenizer, target, config.seed)
    with start_runtime(layout_of(settings), timeout_seconds=24 * 3600) as runtime:
        loaded = load_model(
            settings["model_path"],
            runtime,
            dtype=getattr(torch, settings["dtype"]),
            angle_precision=settings["angle_precision"],
            recompute=settings["recompute"],
            offload=settings["offload"],
            backend=BackendSettings(engine=settings["engine"]),
        )
        directory = RunDirectory(out)
        lines = ProgressLines(runtime.is_main)
        if own.is_scaled and tuned is None:
            lines.stage(
                f"{loaded.name} arrives with {own.describe()} for {format_length(own.window)}: "
                "a second-stage search from these factors (--from-factors FILE takes others)"
            )
        objective = search_objective(loaded.model, documents, tokenizer, config, target)
        sha256 = documents_sha256(documents)
        factors, outcome = search_factors(
            problem, objective, config, directory, sha256, search_lines(lines), loaded.name
        )
        margins, margins_cost = baseline_margins(
            problem, objective, outcome, directory, sha256, lines.counter()
        )
        held_out = None
        if others:
            unseen = held_out_objective(loaded.model, others, config, target)
            held_out = held_out_margins(
                problem, unseen, outcome, directory, others, lines.counter()
            )
        if not runtime.is_main:
            return None
        write_factors(directory.factors("best"), factors)
        cost = search_cost(outcome.entries, objective.cost)
        summary = SearchSummary(
            **cost.model_dump(),
            **loss_in_words(objective, outcome.evaluation),
            stopped_early=outcome.stopped_early,
            forward_equivalents=cost.flops / objective.cost.whole_flops,
            recovered=outcome.recovered,
            target_length=target,
            journal=problem.name,
            baselines=tuple(margins),
            baselines_cost=margins_cost,
            factors=str(directory.factors("best")),
            held_out=held_out,
        )
        write_record(directory.result, summary)
        from megatron_longrope.report import write_convergence_plot  # brings matplotlib

        return summary, write_convergence_plot(out)


def search_config(settings: dict[str, Any], num_documents: int) -> SearchConfig:
    """Returns the search that the options ask for; raises InputError for bad input."""
    values: dict[str, Any] = {
        "searcher": searcher_section(settings),
        "num_documents": num_documents,
        "seed": settings["seed"],
        "attention_factor": settings["attention_factor"],
        "search_start_tokens": settings["start_tokens"],
        "space": settings["space"],
        "critical_pair": settings["critical_pair"],
        "last_fraction": settings["last_fraction"],
        "retrieval_documents": settings["retrieval_documents"],
    }
    if settings["starts"]:
        values["starts"] = settings["starts"]
    ladder = list(settings["ladder"])
    if ladder and not settings["early_stopping"]:
        raise InputError("--ladder", format_length(ladder[0]), "is part of early stopping")
    values["early_stopping"] = {"ladder": ladder} if settings["early_stopping"] else None
    return build_config(SearchConfig, values, "longrope search")


def _tuned_factors(name_or_file: str | None, target: int) -> RopeFactors | None:
    """Returns the fine-tuned factors that a second search goes on from; None for a first search."""
    if name_or_file is None:
        return None
    factors = resolve_factors(name_or_file, "--from-factors").ranges[-1].factors
    if factors.target_length >= target:
        rule = f"must exceed the {format_length(factors.target_length)} tokens of {name_or_file}"
        raise InputError("--target", format_length(target), rule)
    return factors


def _held_out_sources(paths: Sequence[str], searched: Sequence[TextDocument]) -> list[TextDocument]:
    """Returns the held-out texts, none of which is searched on.

    Raises InputError for a text that is, whatever its file is called, and for one given twice.
    """
    seen = {text.sha256: f"is what --text {text.name} holds" for text in searched}
    held_out = list(read_text_files(find_text_files(paths, "--held-out"), "--held-out"))
    for text in held_out:
        if text.sha256 in seen:
            raise InputError("--held-out", text.name, seen[text.sha256])
        seen[text.sha256] = f"is what --held-out {text.name} holds"
    return held_out


def _encoded(
    sources: Sequence[TextDocument], tokenizer: TextTokenizer, length: int
) -> list[EvaluationDocument]:
    """Returns the texts as documents; raises InputError for one shorter than `length` tokens."""
    documents = [
        EvaluationDocument(text.name, text.tokens) for text in tokenize(sources, tokenizer)
    ]
    check_documents(documents, [length])
    return documents


def _problem(
    config: SearchConfig, folder: ModelFolder, target: int, tuned: RopeFactors | None
) -> SearchProblem:
    """Returns the search beyond the factors given, else beyond what the model arrives with."""
    geometry = geometry_of(folder.shape)
    window = folder.own.window if tuned is None else geometry.original_length
    if target <= window:
        rule = f"a target must exceed the model's window of {format_length(window)} tokens"
        raise InputError("--target", format_length(target), rule)
    if tuned is None:
        return extension_search(config, folder.own, target)
    return second_search(config, geometry, target, tuned)
