"""Measures how a process's peak memory depends on its share of the context and on the vocabulary.

    python -m benchmarks.context_parallel_memory        64k tokens on 1, 2 and 4 processes
    python -m benchmarks.context_parallel_memory --length 16k --plot memory.png --json out.json

The model has the demonstration model's shape with random weights in float32; the data is one
document. `train` is a forward and backward pass without recomputation, `score` an evaluation. The
figure is the largest peak of all ranks, less what the idle process, the weights and the gradient of
the output layer take (no other gradient exists yet when the peak is reached). Every process has one
thread. At 64k the whole takes some hours of a CPU core and up to 6 GB.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

from benchmarks.ranks import ROOT, PeakMemory, parse_or_measure, run_ranks
from megatron_longrope.config import format_length, parse_length

DEMO = ROOT / "megatron_longrope/presets/models/demo/config.json"
BOUND_SHARE, BOUND_VOCABULARY = 1.15, 1.05
_WARM_UP_TOKENS = 2048  # long enough that the ring exchange is used


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", default="64k", help="tokens of the document")
    parser.add_argument(
        "--ranks", default="1,2,4", help="context-parallel sizes; the first must be 1"
    )
    parser.add_argument("--passes", default="train,score")
    parser.add_argument(
        "--vocabularies", default="4k,256k", help="compared on one process; empty: not at all"
    )
    parser.add_argument("--vocabulary-length", default="8k", help="tokens of that comparison")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parse_or_measure(parser, _measure)
    if options is None:
        return
    length, rows = parse_length(options.length), []
    for kind in options.passes.split(","):
        alone = None
        for size in map(int, options.ranks.split(",")):
            peak = _peak(size, {"kind": kind, "length": length, "vocabulary": None})
            alone = peak if alone is None else alone
            rows.append(
                {
                    "pass": kind,
                    "length": length,
                    "ranks": size,
                    "peak_bytes": peak,
                    "share_of_one_times_ranks": peak / alone * size,
                }
            )
            print(
                f"{kind:>5} {format_length(length):>5} on {size}: {peak / 2**20:8.1f} MiB per "
                "rank, "
                f"{peak / alone * size:.3f} / {size} of one (bound {BOUND_SHARE})",
                flush=True,
            )
    rows += _vocabularies(options)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))
    if options.plot:
        _plot(rows, options.plot)


def _vocabularies(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    length = parse_length(options.vocabulary_length)
    for text in filter(None, options.vocabularies.split(",")):
        peak = _peak(1, {"kind": "train", "length": length, "vocabulary": parse_length(text)})
        first = rows[0]["peak_bytes"] if rows else peak
        rows.append(
            {
                "pass": "train",
                "length": length,
                "ranks": 1,
                "vocabulary": parse_length(text),
                "peak_bytes": peak,
                "against_smallest": peak / first,
            }
        )
        print(
            f"train {format_length(length):>5}, vocabulary {text:>5}: {peak / 2**20:8.1f} MiB, "
            f"{peak / first:.3f} of the smallest's (bound {BOUND_VOCABULARY})",
            flush=True,
        )
    return rows


def _peak(size: int, settings: dict[str, Any]) -> int:
    return max(
        int(rank["peak_bytes"])
        for rank in run_ranks(
            "benchmarks.context_parallel_memory", size, {"size": size, **settings}
        )
    )


def _measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the peak memory of this rank; runs on every rank."""
    import numpy as np

    from megatron_longrope.data import DocumentBatch
    from megatron_longrope.model import ModelShape, build_model, score_documents
    from megatron_longrope.model.forward import run_stage, share_of
    from megatron_longrope.runtime import ParallelLayout, start_runtime

    shape = ModelShape.from_hf(json.loads(DEMO.read_text()))
    if settings["vocabulary"]:
        shape = shape.model_copy(update={"vocab_size": settings["vocabulary"]})
    random = np.random.default_rng(0)

    with start_runtime(ParallelLayout(context_parallel=settings["size"]), threads=1) as runtime:
        model = build_model(shape, runtime)
        output = model.stage.output_layer.weight

        def run(tokens: int) -> None:
            document = random.integers(0, shape.vocab_size, tokens, dtype=np.int32)
            if settings["kind"] == "score":
                score_documents(model, [document])
                return
            batch = share_of(
                model, DocumentBatch.from_documents([document], runtime.layout.sequence_divisor)
            )
            losses = run_stage(model, model.stage, batch)
            (losses * batch.loss_mask.to(losses.device)).sum().backward()
            model.stage.zero_grad(set_to_none=True)

        run(_WARM_UP_TOKENS)
        gc.collect()
        runtime.barrier()
        memory = PeakMemory()
        run(settings["length"])
        gradient = output.numel() * output.element_size() if settings["kind"] == "train" else 0
        return {"peak_bytes": memory.bytes_above() - gradient}


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = [row for row in rows if "vocabulary" not in row]
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for kind, marker in (("train", "o"), ("score", "s")):
        points = [row for row in shares if row["pass"] == kind]
        if points:
            sizes, peaks = [p["ranks"] for p in points], [p["peak_bytes"] / 2**20 for p in points]
            (line,) = axes.plot(sizes, peaks, marker + "-", label=kind)
            axes.plot(
                sizes,
                [BOUND_SHARE * peaks[0] / n for n in sizes],
                ":",
                color=line.get_color(),
                label=f"{kind}: {BOUND_SHARE} / ranks of one process",
            )
            for size, peak in zip(sizes, peaks, strict=True):
                axes.annotate(
                    f"{peak:.0f}",
                    (size, peak),
                    textcoords="offset points",
                    xytext=(0, -14),
                    ha="center",
                )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="context-parallel ranks",
        ylabel="peak per rank, MiB",
        title=f"{format_length(shares[0]['length'])} tokens, demonstration model, float32",
    )
    ticks = sorted({row["ranks"] for row in shares})
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.15)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
