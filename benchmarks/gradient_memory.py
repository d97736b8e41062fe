"""Peak memory of a factor gradient against that of a training step, with and without recomputation.

    python -m benchmarks.gradient_memory                one document of 32k tokens
    python -m benchmarks.gradient_memory --length 8k --json out.json

Shape of the demonstration model, random weights, float32. `train` is an optimizer step on one row,
`factors` the gradient of the loss by λ and t of one document as long. Each is measured in a process
of its own, after a short warm-up: the peak of resident memory above what model, optimizer state and
gradient buffers take. One thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ranks import ROOT, PeakMemory, parse_or_measure, run_ranks
from megatron_longrope.config import format_length, parse_length

DEMO = ROOT / "megatron_longrope/presets/models/demo/config.json"
BOUND = 1.3
_WARM_UP_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", default="32k", help="tokens of the document")
    parser.add_argument("--recompute", default="none,selective,full,offload")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parse_or_measure(parser, _measure)
    if options is None:
        return
    length, rows = parse_length(options.length), []
    for recompute in options.recompute.split(","):
        peaks = {}
        for kind in ("train", "factors"):
            settings = {"kind": kind, "length": length, "recompute": recompute}
            (measured,) = run_ranks("benchmarks.gradient_memory", 1, settings)
            peaks[kind] = measured["peak_bytes"]
            rows.append({**settings, **measured})
            print(
                f"{recompute:>9} {kind:>7} {format_length(length):>4}: "
                f"{measured['peak_bytes'] / 2**20:8.1f} MiB  {measured['seconds']:6.1f} s",
                flush=True,
            )
        ratio = peaks["factors"] / peaks["train"]
        print(f"{recompute:>9} factors / train: {ratio:.3f} (bound of full: {BOUND})", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


def _measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own."""
    import numpy as np

    from megatron_longrope.model import ModelShape, build_model, score_with_gradient
    from megatron_longrope.runtime import start_runtime

    shape = ModelShape.from_hf(json.loads(DEMO.read_text()))
    is_offloaded = settings["recompute"] == "offload"
    random = np.random.default_rng(0)

    def document(tokens: int) -> Any:
        return random.integers(0, shape.vocab_size, tokens, dtype=np.int32)

    with start_runtime(threads=1) as runtime, tempfile.TemporaryDirectory() as folder:
        model = build_model(
            shape,
            runtime,
            recompute="full" if is_offloaded else settings["recompute"],
            offload=is_offloaded,
        )

        def factor_gradient(tokens: int) -> None:
            score_with_gradient(model, [document(tokens)], [np.ones(tokens - 1)])

        factor_gradient(_WARM_UP_TOKENS)
        trainer = None
        if settings["kind"] == "train":
            trainer = _trainer(model, document(settings["length"]), Path(folder, "rows"))
        gc.collect()
        memory, started = PeakMemory(), time.perf_counter()
        if trainer is not None:
            trainer.step()
        else:
            factor_gradient(settings["length"])
        return {"peak_bytes": memory.bytes_above(), "seconds": time.perf_counter() - started}


def _trainer(model: Any, tokens: Any, prefix: Path) -> Any:
    """Returns a trainer whose only row is the document."""
    from data_prep.documents import TokenDocument
    from data_prep.writing import write_packed
    from megatron_longrope.data import PackedBatches, PackedDataset
    from megatron_longrope.data.manifest import TokenizerIdentity
    from megatron_longrope.training import Trainer, TrainingConfig

    write_packed(
        prefix,
        [TokenDocument.generated("document", tokens)],
        len(tokens),
        TokenizerIdentity(name="none", sha256="0" * 64),
        model.shape.vocab_size,
    )
    config = TrainingConfig(steps=1, global_batch_size=1, learning_rate=1e-4, warmup_steps=0)
    return Trainer(model, PackedBatches(PackedDataset(prefix), 1), config)


if __name__ == "__main__":
    main()
