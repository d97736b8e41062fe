"""What `longrope search` does: objective, journal, factors and result of one search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.load_any import load_model
from data_prep.documents import tokenize
from data_prep.readers import read_text_files
from launchers.extension import search_lines
from launchers.progress import ProgressLines
from megatron_longrope.config import build_config, format_length
from megatron_longrope.data import load_tokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import EvaluationDocument, check_documents, documents_sha256
from megatron_longrope.model import LongRopeModel
from megatron_longrope.model.backend_settings import BackendSettings
from megatron_longrope.pipeline.margins import baseline_margins
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.run_directory import RunDirectory, write_json
from megatron_longrope.pipeline.searching import (
    SearchProblem,
    cost_json,
    first_search,
    search_cost_json,
    search_factors,
    search_objective,
    second_search,
)
from megatron_longrope.rope import read_factors, write_factors
from megatron_longrope.runtime import start_runtime
from megatron_longrope.search import EvolutionSettings


def run_factor_search(out: Path, **settings: Any) -> dict[str, Any] | None:
    """Runs the search and returns its result on the main rank. Raises InputError for bad input."""
    target = settings["target"]
    with start_runtime(timeout_seconds=24 * 3600) as runtime:
        loaded = load_model(settings["model_path"], runtime, dtype=getattr(torch, settings["dtype"]),
                            backend=BackendSettings(engine=settings["engine"]))  # fmt: skip
        if loaded.tokenizer_file is None:
            raise InputError("--model", settings["model_path"], "has no tokenizer.json to encode the documents with")
        tokenizer = load_tokenizer(loaded.tokenizer_file)
        texts = tokenize(read_text_files(settings["texts"]), tokenizer)
        documents = [EvaluationDocument(text.name, text.tokens) for text in texts]
        check_documents(documents, [target])
        config = search_config(settings, len(documents))
        problem = _problem(config, loaded.model, target, settings["from_factors"])
        directory = RunDirectory(out)
        lines = ProgressLines(runtime.is_main)
        objective = search_objective(loaded.model, documents, tokenizer, config, target)
        sha256 = documents_sha256(documents)
        factors, outcome = search_factors(problem, objective, config, directory, sha256, search_lines(lines))
        margins, margins_cost = baseline_margins(problem, objective, outcome, directory, sha256, lines.counter())
        if not runtime.is_main:
            return None
        write_factors(directory.factors("best"), factors)
        shape = loaded.model.shape
        result = {"perplexity": outcome.evaluation.perplexity, **search_cost_json(outcome, shape, target),
                  "recovered": outcome.recovered, "target_length": target, "baselines": margins,
                  "baselines_cost": cost_json(margins_cost, shape, target),
                  "factors": str(directory.factors("best"))}  # fmt: skip
        write_json(directory.result, result)
        return result


def search_config(settings: dict[str, Any], num_documents: int) -> SearchConfig:
    """Returns what the options ask for; sizes belong to the searcher they are of. Raises InputError for others."""
    searcher = settings["searcher"]
    values: dict[str, Any] = {
        "searcher": searcher,
        "num_documents": num_documents,
        "seed": settings["seed"],
        "temperature": settings["temperature"],
        "search_start_tokens": settings["start_tokens"],
        "space": settings["space"],
        "critical_pair": settings["critical_pair"],
        "last_fraction": settings["last_fraction"],
        "retrieval_documents": settings["retrieval_documents"],
    }
    if settings["starts"]:
        values["starts"] = settings["starts"]
    if not settings["early_stopping"]:
        values["early_stopping"] = None
    return build_config(SearchConfig, values | _sizes(searcher, settings), "longrope search")


def _sizes(searcher: str, settings: dict[str, Any]) -> dict[str, Any]:
    evolution = [settings[name] for name in ("population", "offspring", "iterations")]
    is_evolution = searcher in ("evolution", "piecewise")
    if any(size is not None for size in evolution) and not is_evolution:
        raise InputError("--searcher", searcher, "has no --population, --offspring or --iterations")
    passes, ramp_rounds = settings["passes"], settings["ramp_rounds"]
    if passes is not None and searcher not in ("hybrid", "gradient"):
        raise InputError("--searcher", searcher, "has no --passes")
    if ramp_rounds is not None and searcher != "hybrid":
        raise InputError("--searcher", searcher, "has no --ramp-rounds")
    if is_evolution:
        return {"evolution": _evolution(settings)}
    if searcher == "gradient":
        return {} if passes is None else {"gradient": {"passes": passes}}
    return {"hybrid": _hybrid(passes, ramp_rounds)} if searcher == "hybrid" else {}


def _hybrid(passes: int | None, ramp_rounds: int | None) -> dict[str, Any]:
    descent = {"cycles": 0} if passes == 0 else {} if passes is None else {"descent": {"passes": passes}}
    return descent if ramp_rounds is None else {**descent, "ramp": {"max_rounds": ramp_rounds}}


def _evolution(settings: dict[str, Any]) -> dict[str, Any]:
    population, offspring = settings["population"], settings["offspring"]
    changes = {
        "population": population,
        "iterations": settings["iterations"],
        "mutants": offspring,
        "crossovers": offspring,
        "parents": population and max(1, population // 2),
    }
    sizes = EvolutionSettings.paper(settings["target"]).model_dump()
    return sizes | {key: value for key, value in changes.items() if value is not None}


def _problem(config: SearchConfig, model: LongRopeModel, target: int, tuned: Path | None) -> SearchProblem:
    window = model.shape.context_length
    if target <= window:
        rule = f"a target must exceed the model's window of {format_length(window)} tokens"
        raise InputError("--target", format_length(target), rule)
    if tuned is None:
        return first_search(config, model.geometry, target)
    factors = read_factors(tuned).ranges[-1].factors
    if factors.target_length >= target:
        rule = f"must exceed the {format_length(factors.target_length)} tokens of {tuned}"
        raise InputError("--target", format_length(target), rule)
    return second_search(config, model.geometry, target, factors)
