"""Asks whether pairs slower than the window should stand still: fixed tapers, and open searches.

    python benchmarks/tapers.py fixed --model megatron_longrope/presets/models/demo --length 2k
    python benchmarks/tapers.py fixed --model runs/smollm2/huggingface/SmolLM2-135M-Instruct \\
        --length 12k --documents 1
    python benchmarks/tapers.py search --out runs/tapers --length 2k --seeds 1 2
    python benchmarks/tapers.py search --out runs/tapers --length 2k --searcher cma

`fixed` gives the perplexity under no scaling, YaRN, CoPE's taper, and YaRN with the taper on top,
on modules of the standard library. `search` searches in the closed and in the open space, from
YaRN, from YaRN and CoPE, and from CoPE, with the same settings. What is found is judged on modules
that nothing was searched on. After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from checkpoints_tools.load_any import LoadedModel, load_model
from data_prep.stdlib_corpus import EVALUATION_MODULES, SEARCH_MODULES, stdlib_folder
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.config import parse_length
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.evaluation import (
    EvaluationDocument,
    PerplexityObjective,
    check_documents,
    documents_sha256,
)
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import (
    extension_search,
    search_cost,
    search_factors,
    search_objective,
)
from megatron_longrope.rope import RopeGeometry, Yarn
from megatron_longrope.rope.methods.cope import Cope
from megatron_longrope.runtime import start_runtime
from megatron_longrope.search import Candidate

DEMO = Path("megatron_longrope/presets/models/demo")
SEARCHES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("longrope", ("yarn",)),
    ("open", ("yarn",)),
    ("open", ("yarn", "cope")),
    ("open", ("cope",)),
)
"""Space and starts of each search."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["fixed", "search"])
    parser.add_argument("--model", type=Path, default=DEMO, help="Hugging Face folder")
    parser.add_argument("--length", default="2k")
    parser.add_argument("--documents", type=int, default=len(EVALUATION_MODULES), metavar="N")
    parser.add_argument("--out", type=Path, help="run directories of searches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--searcher", default="hybrid", help="of its default size, but for hybrid")
    options = parser.parse_args()
    length = parse_length(options.length)
    with start_runtime(timeout_seconds=24 * 3600) as runtime:
        loaded, tokenizer = load_model(options.model, runtime), load_tokenizer(options.model)
        judged = _documents(tokenizer, EVALUATION_MODULES, length)
        judged = sorted(judged, key=lambda document: -len(document.tokens))[: options.documents]
        judge = PerplexityObjective(
            loaded.model,
            [document.prefix(length) for document in judged],
            target_length=length,
            max_batch_tokens=length,
        )
        names = ", ".join(document.name for document in judged)
        print(f"judged on the first {options.length} of {names}", flush=True)
        if options.what == "fixed":
            for name, candidate in _fixed(loaded.own.geometry, length):
                _say(method=name, perplexity=judge([candidate])[0].perplexity)
            return
        searched = _documents(tokenizer, SEARCH_MODULES[:4], length)
        for seed in options.seeds:
            for space, starts in SEARCHES:
                config = _config(space, starts, seed, options.searcher)
                place = options.out / "-".join((space, *starts, str(seed)))
                best, row = _search(loaded, tokenizer, searched, config, length, place)
                row["judged"] = judge([best])[0].perplexity
                _say(space=space, starts=" ".join(starts), seed=seed, **row)


def _fixed(geometry: RopeGeometry, length: int) -> Iterator[tuple[str, Candidate]]:
    """Yields names and factors to compare; on top of YaRN the taper leaves YaRN's temperature."""
    yarn = Yarn(scale=length / geometry.original_length).factors(geometry)
    temperature = yarn.attention_factor
    yield "yarn", Candidate(yarn.rescale, attention_factor=temperature)
    for onset in (1, 3):
        taper = Cope(onset=onset).factors(geometry).rescale
        on_top = tuple(a * b for a, b in zip(yarn.rescale, taper, strict=True))
        yield f"yarn x cope,onset={onset}", Candidate(on_top, attention_factor=temperature)
    taper = Cope().factors(geometry).rescale
    yield "cope", Candidate(taper)
    yield "cope, yarn's temperature", Candidate(taper, attention_factor=temperature)
    yield "none", Candidate((1.0,) * geometry.num_pairs)


def _config(space: str, starts: Sequence[str], seed: int, searcher: str) -> SearchConfig:
    sizes = {"ramp": {"max_rounds": 4}, "descent": {"passes": 8}} if searcher == "hybrid" else {}
    return SearchConfig.model_validate(
        {
            "num_documents": 4,
            "space": space,
            "starts": starts,
            "searcher": {"name": searcher, **sizes},
            "seed": seed,
            "early_stopping": None,  # so that each costs what it says
        }
    )


def _search(
    loaded: LoadedModel,
    tokenizer: TextTokenizer,
    documents: list[EvaluationDocument],
    config: SearchConfig,
    length: int,
    place: Path,
) -> tuple[Candidate, dict[str, Any]]:
    """Returns the best candidate of one search and a row of figures about it.

    Args:
        loaded: The model with the scaling that it arrives with.
        tokenizer: The model's tokenizer.
        documents: What is searched on.
        config: The settings of the search.
        length: The length in tokens to search for.
        place: The run directory.
    """
    problem = extension_search(config, loaded.own, length)
    objective = search_objective(loaded.model, documents, tokenizer, config, length)
    sha256 = documents_sha256(documents)
    factors, outcome = search_factors(
        problem, objective, config, RunDirectory(place), sha256, _mute
    )
    cost = search_cost(outcome.entries, loaded.model.shape, length)
    scale = length / loaded.own.geometry.original_length
    one = loaded.model.shape.forward_flops(length) * len(documents)
    return outcome.best, {
        "evaluations": cost.evaluations,
        "forward_equivalents": round(cost.flops / one, 1),
        "searched": outcome.evaluation.perplexity,
        "attention_factor": round(factors.attention_factor, 4),
        "above": sum(value > 1.25 * scale for value in factors.rescale),
        "largest": [round(value, 2) for value in factors.rescale[-6:]],
    }


def _documents(
    tokenizer: TextTokenizer, modules: Sequence[str], length: int
) -> list[EvaluationDocument]:
    texts = ((name, (stdlib_folder() / name).read_text(encoding="utf-8")) for name in modules)
    found = [EvaluationDocument(name, tokenizer.encode_document(text)) for name, text in texts]
    check_documents(found, [length])
    return found


def _mute(progress: object) -> None:
    del progress


def _say(**row: object) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
