"""Searches factors of SmolLM2-135M (window 8k) for 16k tokens, and judges them on a new document.

    python benchmarks/real_model_search.py --out runs/smollm2-16k \\
        --model runs/smollm2/huggingface/SmolLM2-135M-Instruct

    python benchmarks/real_model_search.py … --arrives-with-yarn 2 --length 24k --ramp-rounds 1

The search starts from YaRN, with its own attention factor and with √(1 + ln s / ln L). It runs the
default searcher's ramp and, with `--passes`, its descent, on one long file of the standard library.
Then the best factors found and YaRN's are scored on another file. With `--arrives-with-yarn FACTOR`
the model's config says YaRN first, as that of a model which arrives scaled: the search goes beyond
those factors, which are scored as well, as they are and with YaRN on top. After an interruption the
same command goes on, or with `--judge` judges the best so far. A forward pass over 16k tokens takes
two to four minutes on a CPU core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from checkpoints_tools.load_any import load_model
from data_prep.documents import TextDocument
from data_prep.stdlib_corpus import split
from megatron_longrope.artifacts.journal import read_journal
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import parse_length
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.evaluation import (
    EvaluationDocument,
    PerplexityObjective,
    check_documents,
    documents_sha256,
)
from megatron_longrope.pipeline.margins import candidate_of
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import (
    extension_search,
    methods_compared,
    search_cost,
    search_factors,
    search_objective,
)
from megatron_longrope.runtime import start_runtime
from megatron_longrope.search import SearchProgress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="HF folder of a Llama model")
    parser.add_argument("--out", type=Path, required=True, help="run directory")
    parser.add_argument("--length", default="16k")
    parser.add_argument("--ramp-rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=0)
    parser.add_argument("--arrives-with-yarn", type=float, metavar="FACTOR")
    parser.add_argument(
        "--judge", action="store_true", help="search no further; judge the best of the journal"
    )
    options = parser.parse_args()
    folder = options.model
    if options.arrives_with_yarn is not None:
        folder = _with_yarn(folder, options.out / "model", options.arrives_with_yarn)
    length = parse_length(options.length)
    searcher = {
        "name": "hybrid",
        "ramp": {"max_rounds": options.ramp_rounds},
        "cycles": int(options.passes > 0),
        "descent": {"passes": max(1, options.passes)},
    }
    config = SearchConfig.model_validate(
        {"num_documents": 1, "starts": ["yarn"], "searcher": searcher}
    )
    with start_runtime(timeout_seconds=24 * 3600) as runtime:
        loaded = load_model(folder, runtime)
        model, tokenizer = loaded.model, load_tokenizer(folder)
        parts = split()
        search, held_out = (
            _longest(tokenizer, part, length) for part in (parts.search, parts.development)
        )
        problem = extension_search(config, loaded.own, length)
        objective = search_objective(model, [search], tokenizer, config, length)
        directory = RunDirectory(options.out)
        if not options.judge:
            search_factors(problem, objective, config, directory, documents_sha256([search]), _say)
        _, entries = read_journal(directory.journal(problem.name))
        scored = [entry for entry in entries if entry.evaluation.usable]
        best = min(scored, key=lambda entry: entry.evaluation.loss)
        judge = PerplexityObjective(
            model, [held_out.prefix(length)], target_length=length, max_batch_tokens=length
        )
        others = {method.name: method for method in methods_compared(loaded.own, length)}
        names = {"longrope": best.candidate} | {
            name: candidate_of(others[name].factors_at(length).for_length(length))
            for name in ("model", "second-yarn", "yarn")
            if name in others
        }
        found = {name: judge([candidate])[0].perplexity for name, candidate in names.items()}
        cost = search_cost(entries, objective.cost)
        forward_equivalents = cost.flops / objective.cost.whole_flops
    row = {
        "length": length,
        "search": search.name,
        "held_out": held_out.name,
        "evaluations": cost.evaluations,
        "forward_equivalents": forward_equivalents,
        "search_perplexity": best.evaluation.perplexity,
        "held_out_perplexity": found,
        "attention_factor": best.candidate.attention_factor,
    }
    print(json.dumps(row, indent=1))


def _with_yarn(source: Path, folder: Path, factor: float) -> Path:
    """Returns a copy of a Hugging Face folder, weights linked, whose config says YaRN."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        place = folder / file.name
        if file.name != "config.json" and not place.exists():
            place.symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    window = config["max_position_embeddings"]
    own = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": window}
    base = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    config |= {
        "rope_scaling": own,
        "rope_parameters": own | {"rope_theta": base},
        "max_position_embeddings": round(factor * window),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def _longest(
    tokenizer: TextTokenizer, texts: list[TextDocument], length: int
) -> EvaluationDocument:
    documents = [
        EvaluationDocument(text.name, tokenizer.encode_document(text.text)) for text in texts
    ]
    longest = max(documents, key=lambda document: len(document.tokens))
    check_documents([longest], [length])
    return longest


def _say(progress: SearchProgress) -> None:
    print(f"{progress.done} evaluations, best perplexity {progress.best_perplexity}", flush=True)


if __name__ == "__main__":
    main()
