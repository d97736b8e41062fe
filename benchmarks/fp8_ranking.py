"""Tests whether FP8 ranks factor candidates as BF16 does, on the first generation of a search.

    python benchmarks/fp8_ranking.py --model DIR --text FILE … --target 256k --fp8 tensorwise
    python benchmarks/fp8_ranking.py --model DIR --text FILE … --target 1k --dry-run   on a CPU

Candidates are those a search begins with: PI, NTK, YaRN and mutants of them. The order is kept if
both precisions rank them in the very same order. Otherwise the report says how far apart in BF16
the candidates are that changed places, and whether the best one stayed the best. `fp8_scoring`
should be set only where the order is kept; where it is not, the exit code is 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints_tools.load_any import load_model
from data_prep.documents import tokenize
from data_prep.readers import read_text_files
from megatron_longrope.config import format_length, parse_length
from megatron_longrope.data import load_tokenizer
from megatron_longrope.errors import LongRopeError
from megatron_longrope.evaluation import EvaluationDocument, check_documents
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.pipeline.recipe import SearchConfig
from megatron_longrope.pipeline.searching import first_search, search_objective
from megatron_longrope.runtime import Runtime, start_runtime
from megatron_longrope.search import Candidate, EvolutionSearch, EvolutionSettings, SearchTask


@dataclass(frozen=True)
class Ranking:
    """Losses of all candidates in two precisions, and how the two orders compare."""

    reference: tuple[float, ...]
    """Losses in the reference precision, in nats per token."""
    tested: tuple[float, ...]
    """Losses in the tested precision, in nats per token."""
    rank_correlation: float
    """Spearman's rank correlation; 1 where both orders are the same."""
    order_kept: bool
    best_kept: bool
    swapped_pairs: int
    """Number of pairs of candidates that one precision ranks one way, the other the other way."""
    largest_swapped_gap: float
    """Largest difference of the reference losses of a swapped pair, in nats; 0 without any."""
    largest_difference: float
    """Largest difference between the two losses of one candidate, in nats."""


def compare(reference: Sequence[float], tested: Sequence[float]) -> Ranking:
    """Returns how two scorings rank the same candidates; ties keep the order they came in."""
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(tested, dtype=np.float64)
    order_a, order_b = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")
    ranks_a, ranks_b = np.argsort(order_a), np.argsort(order_b)
    first, second = np.triu_indices(len(a), k=1)
    swapped = (ranks_a[first] - ranks_a[second]) * (ranks_b[first] - ranks_b[second]) < 0
    gaps = np.abs(a[first] - a[second])[swapped]
    return Ranking(
        reference=tuple(a.tolist()),
        tested=tuple(b.tolist()),
        rank_correlation=float(np.corrcoef(ranks_a, ranks_b)[0, 1]),
        order_kept=bool(np.array_equal(order_a, order_b)),
        best_kept=bool(order_a[0] == order_b[0]),
        swapped_pairs=int(swapped.sum()),
        largest_swapped_gap=float(gaps.max(initial=0.0)),
        largest_difference=float(np.abs(a - b).max()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="HF folder, checkpoint or run directory"
    )
    parser.add_argument("--text", nargs="+", required=True, help="UTF-8, one document per file")
    parser.add_argument("--target", required=True, help="length in tokens")
    parser.add_argument("--fp8", default="tensorwise", choices=["tensorwise", "blockwise", "mxfp8"])
    parser.add_argument(
        "--fp8-attention", action="store_true", help="attention in FP8 too: not on Hopper"
    )
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the candidates")
    parser.add_argument(
        "--dry-run", action="store_true", help="on a CPU: float32 as BF16, BF16 as FP8"
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    attention = {"fp8_attention": options.fp8_attention, "packed": not options.fp8_attention}
    fp8 = BackendSettings(
        engine="transformer-engine", fp8=options.fp8, fp8_scoring=True, **attention
    )
    kinds = [(torch.bfloat16, BackendSettings(engine="transformer-engine")), (torch.bfloat16, fp8)]
    if options.dry_run:
        kinds = [
            (torch.float32, BackendSettings(engine="torch")),
            (torch.bfloat16, BackendSettings(engine="torch")),
        ]
    try:
        with start_runtime() as runtime:
            losses = [
                score_candidates(runtime, options, dtype, backend) for dtype, backend in kinds
            ]
    except LongRopeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    ranking = compare(*losses)
    print(_text(ranking, "BF16 instead of FP8" if options.dry_run else options.fp8))
    if options.json:
        result = {
            "dry_run": options.dry_run,
            "fp8": options.fp8,
            "fp8_attention": options.fp8_attention,
            "model": str(options.model),
            "target": parse_length(options.target),
            **asdict(ranking),
        }
        options.json.write_text(json.dumps(result, indent=1))
    sys.exit(0 if ranking.order_kept else 1)


def score_candidates(
    runtime: Runtime, options: argparse.Namespace, dtype: torch.dtype, backend: BackendSettings
) -> list[float]:
    """Returns the loss of each candidate in nats per token; every call scores the same ones."""
    length = parse_length(options.target)
    loaded = load_model(options.model, runtime, dtype=dtype, backend=backend)
    if loaded.tokenizer_file is None:
        raise SystemExit(f"{options.model} has no tokenizer.json to encode the documents with")
    tokenizer = load_tokenizer(loaded.tokenizer_file)
    texts = tokenize(read_text_files(tuple(options.text)), tokenizer)
    documents = [EvaluationDocument(text.name, text.tokens) for text in texts]
    check_documents(documents, [length])
    config = SearchConfig(num_documents=len(documents), seed=options.seed)
    problem = first_search(config, loaded.model.geometry, length)
    sizes = EvolutionSettings(population=options.candidates, iterations=0)
    task = SearchTask(length, length / loaded.model.geometry.original_length, len(documents))
    candidates: list[Candidate] = EvolutionSearch(
        problem.space, sizes, problem.seeds, options.seed, task
    ).ask(options.candidates)
    objective = search_objective(loaded.model, documents, tokenizer, config, length)
    found = [evaluation.loss for evaluation in objective(candidates)]
    print(
        f"{len(found)} candidates at {format_length(length)} on {loaded.model.backend.engine} in "
        f"{dtype}",
        flush=True,
    )
    del loaded, objective
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _text(ranking: Ranking, name: str) -> str:
    verdict = "is kept" if ranking.order_kept else "is NOT kept"
    return (
        f"The order of {len(ranking.reference)} candidates {verdict} ({name}): rank correlation "
        f"{ranking.rank_correlation:.4f}, {ranking.swapped_pairs} pairs swapped, at most "
        f"{ranking.largest_swapped_gap:.5f} nats apart; the best one "
        f"{'stays' if ranking.best_kept else 'changes'}; "
        f"a candidate's loss differs by at most {ranking.largest_difference:.5f} nats"
    )


if __name__ == "__main__":
    main()
