"""Searches the rescale factors of a model for one length, without training, from Python.

    python examples/search_factors.py path/to/hf-model books/*.txt --target 16k

The best factors are written to OUT/factors; `longrope eval ppl --method FILE` measures them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from checkpoints_tools.load_any import load_model
from data_prep.documents import tokenize
from data_prep.readers import read_text_files
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import build_config, parse_length
from megatron_longrope.data import load_tokenizer
from megatron_longrope.evaluation import EvaluationDocument, documents_sha256
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import first_search, search_factors, search_objective
from megatron_longrope.runtime import start_runtime

# The `search:` section of a recipe. The paper's search has a population of 64 and 40 iterations.
SIZES = {"population": 16, "mutants": 8, "crossovers": 8, "parents": 8, "iterations": 4}
SEARCH = {"searcher": {"name": "evolution", **SIZES}, "num_documents": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description="Search a model's rescale factors.")
    parser.add_argument("model", help="a Hugging Face folder with its tokenizer")
    parser.add_argument("texts", nargs="+", help="text files of at least the target length")
    parser.add_argument(
        "--target", type=parse_length, default="16k", help="length in tokens to search for"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    arguments = parser.parse_args()
    config = build_config(SearchConfig, SEARCH)

    with start_runtime() as runtime:
        model = load_model(arguments.model, runtime).model
        tokenizer = load_tokenizer(arguments.model)
        texts = tokenize(read_text_files(arguments.texts), tokenizer)
        documents = [EvaluationDocument(text.name, text.tokens) for text in texts]

        # Where the search runs and starts, and what its candidates are scored by.
        problem = first_search(config, model.geometry, arguments.target)
        objective = search_objective(model, documents, tokenizer, config, arguments.target)
        # Every evaluation goes into OUT/journals: a search that was stopped goes on from there.
        out, checksum = RunDirectory(arguments.out), documents_sha256(documents)
        factors, outcome = search_factors(problem, objective, config, out, checksum)

    print(f"{len(outcome.entries)} evaluations, perplexity {outcome.evaluation.perplexity:.4f}")
    print("rescale factors:", " ".join(f"{rescale:.4f}" for rescale in factors.rescale))
    print("written to:", out.factors(problem.name))


if __name__ == "__main__":
    main()
