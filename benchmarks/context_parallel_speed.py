"""Measures the speed of a forward pass on context-parallel ranks, and transformers' beside it.

    python -m benchmarks.context_parallel_speed     64k tokens: one rank, two, transformers
    python -m benchmarks.context_parallel_speed --length 16k --repeats 3 --json out.json
    python -m benchmarks.context_parallel_speed --exchanges --length 512,1k,4k,16k --ranks 1,2,4
                                                 ring against all-gather, length by length

The model is the demonstration model in float32. Every rank has as many threads as transformers'
Llama (sdpa) has. Both sides compute the loss of every token; transformers runs its base model and
computes logits in chunks, which is its cheapest way. Peak memory is counted above the idle process
and the weights, and freed memory is returned to the system at once, on both sides and at the same
cost in time. The best of `--repeats` counts, and a repeat is as slow as its slowest rank. Ratios
mean something only on a machine with a free core for each rank.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ranks import ROOT, PeakMemory, parse_or_measure, run_ranks
from megatron_longrope.config import format_length, parse_length

DEMO = ROOT / "megatron_longrope/presets/models/demo"
BOUND_SCALING, BOUND_MEMORY = 0.9, 0.5
_WARM_UP_TOKENS = 2048  # long enough that the ring exchange is used
_LOGIT_CHUNK = 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--length", default="64k", help="tokens of the document; several with commas"
    )
    parser.add_argument(
        "--ranks", default="1,2", help="context-parallel sizes; the first must be 1"
    )
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--exchanges",
        action="store_true",
        help="compare ring and all-gather; leave transformers out",
    )
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parse_or_measure(parser, _measure)
    if options is None:
        return
    rows: list[dict[str, Any]] = []
    for length in map(parse_length, options.length.split(",")):
        rows += _exchanges(options, length) if options.exchanges else _scaling(options, length)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


def _scaling(options: argparse.Namespace, length: int) -> list[dict[str, Any]]:
    rows = []
    for size in map(int, options.ranks.split(",")):
        rows.append(_row(options, length, size, "ours"))
        speedup = rows[-1]["tokens_per_second"] / rows[0]["tokens_per_second"]
        rows[-1]["efficiency"] = speedup / size
        print(
            f"{_line(rows[-1])}  {speedup / size:.3f} × ranks (bound {BOUND_SCALING})", flush=True
        )
    rows.append(_row(options, length, 1, "transformers"))
    ours, theirs = rows[0], rows[-1]
    speed, memory = (ours[key] / theirs[key] for key in ("tokens_per_second", "peak_bytes"))
    print(
        f"{_line(theirs)}  ours: {speed:.2f} × its tokens/s (bound 1), {memory:.2f} × its peak "
        f"(bound {BOUND_MEMORY})"
    )
    return rows


def _exchanges(options: argparse.Namespace, length: int) -> list[dict[str, Any]]:
    rows = []
    for size in (n for n in map(int, options.ranks.split(",")) if n > 1):
        for exchange in ("ring", "all_gather"):
            rows.append(_row(options, length, size, "ours", exchange))
            print(_line(rows[-1]), flush=True)
    return rows


def _row(
    options: argparse.Namespace, length: int, size: int, whose: str, exchange: str = "auto"
) -> dict[str, Any]:
    settings = {
        "length": length,
        "size": size,
        "whose": whose,
        "exchange": exchange,
        "repeats": options.repeats,
        "threads": options.threads,
    }
    ranks = run_ranks("benchmarks.context_parallel_speed", size, settings, options.threads)
    seconds = min(map(max, zip(*(rank["seconds"] for rank in ranks), strict=True)))
    peak = max(rank["peak_bytes"] for rank in ranks)
    return settings | {
        "seconds": seconds,
        "tokens_per_second": length / seconds,
        "peak_bytes": peak,
        "nats": ranks[0]["nats"],
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{format_length(row['length']):>5} {row['whose']:>12} on {row['size']} "
        f"{row['exchange']:>10}: "
        f"{row['tokens_per_second']:9.0f} tokens/s, peak {row['peak_bytes'] / 2**20:7.1f} MiB, "
        f"{row['nats']:.6f} nats"
    )


def _measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds, peak memory and loss of this rank; runs on every rank."""
    import numpy as np
    import torch

    torch.set_num_threads(settings["threads"])
    random = np.random.default_rng(0)
    vocabulary = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    document = random.integers(0, vocabulary, settings["length"])
    if settings["whose"] == "transformers":
        return _timed(_transformers(), document, settings["repeats"])

    from checkpoints_tools.load_any import load_model
    from megatron_longrope.model import score_documents
    from megatron_longrope.runtime import ParallelLayout, start_runtime

    layout = ParallelLayout(
        context_parallel=settings["size"], context_exchange=settings["exchange"]
    )
    with start_runtime(layout, threads=settings["threads"]) as runtime:
        model = load_model(DEMO, runtime, dtype=torch.float32).model
        return _timed(
            lambda tokens: score_documents(model, [tokens])[0].nll.mean(),
            document,
            settings["repeats"],
            runtime.barrier,
        )


def _transformers() -> Callable[[Any], float]:
    """Returns a function for transformers' mean loss of a document, in nats per token."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        DEMO, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    @torch.no_grad()
    def loss(document: Any) -> float:
        tokens = torch.from_numpy(document)
        hidden = model.model(tokens[None], use_cache=False).last_hidden_state[0, :-1]
        total = 0.0
        for part, labels in zip(
            hidden.split(_LOGIT_CHUNK), tokens[1:].split(_LOGIT_CHUNK), strict=True
        ):
            total += float(cross_entropy(model.lm_head(part), labels, reduction="sum"))
        return total / (len(tokens) - 1)

    return loss


def _timed(
    loss: Callable[[Any], float],
    document: Any,
    repeats: int,
    barrier: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    loss(document[:_WARM_UP_TOKENS])
    gc.collect()
    memory, seconds, nats = PeakMemory(), [], 0.0
    for _ in range(repeats):
        barrier()
        started = time.perf_counter()
        nats = float(loss(document))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "peak_bytes": memory.bytes_above(), "nats": nats}


if __name__ == "__main__":
    main()
