"""Measures loss, tokens/s, TFLOP/s and memory of every attention engine on one GPU.

    python benchmarks/gpu_attention.py --json gpu.json
    python benchmarks/gpu_attention.py --lengths 8k --paths torch,te-bf16
    python benchmarks/gpu_attention.py --dry-run     on a CPU: a tiny model, to try the script

A batch is one document of 8k, 64k or 256k tokens. Each length takes the largest of Llama-3.1-8B,
Llama-3.2-3B and Llama-3.2-1B that can be trained with full recomputation in all paths (a path is an
engine with its precision settings). Weights are random BF16, the same in every path; there is no
optimizer. A training pass is a forward and a backward pass, counted as three times the operations
of ModelShape.forward_flops, without recomputation. Losses are compared with the first path's on the
same tokens: the difference of the means, and the mean difference of single tokens. Means of BF16
paths are expected within 0.001 nats of each other, those of FP8 paths within 0.02.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints_tools.common.weight_map import rule_of
from megatron_longrope.config import format_length, parse_length
from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, ModelShape, build_model
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.model.forward import run_stage
from megatron_longrope.rope import Yarn
from megatron_longrope.runtime import Runtime, start_runtime

PATHS = {
    "torch": BackendSettings(engine="torch", packed=False),
    "flash-attn": BackendSettings(engine="flash-attn", packed=False),
    "te-bf16": BackendSettings(engine="transformer-engine", packed=False),
    "te-bf16-fused-rope": BackendSettings(
        engine="transformer-engine", packed=False, fused_rope=True
    ),
    "te-fp8": BackendSettings(engine="transformer-engine", packed=False, fp8="tensorwise"),
    "te-fp8-blockwise": BackendSettings(engine="transformer-engine", packed=False, fp8="blockwise"),
    "te-fp8-attention": BackendSettings(
        engine="transformer-engine", packed=False, fp8="delayed", fp8_attention=True
    ),
    "te-fp8-attention-bf16-backward": BackendSettings(
        engine="transformer-engine",
        packed=False,
        fp8="delayed",
        fp8_attention=True,
        fp8_attention_backward=False,
    ),
}
_LLAMA: dict[str, Any] = {
    "vocab_size": 128256,
    "context_length": 8192,
    "rope_base": 500000.0,
    "head_dim": 128,
    "num_kv_heads": 8,
}
SHAPES = {
    "Llama-3.1-8B": ModelShape(
        num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_heads=32, **_LLAMA
    ),
    "Llama-3.2-3B": ModelShape(
        num_layers=28,
        hidden_size=3072,
        ffn_hidden_size=8192,
        num_heads=24,
        tie_embeddings=True,
        **_LLAMA,
    ),
    "Llama-3.2-1B with head_dim 128": ModelShape(
        num_layers=16,
        hidden_size=2048,
        ffn_hidden_size=8192,
        num_heads=16,
        tie_embeddings=True,
        **_LLAMA,
    ),
}
TINY = {
    "tiny": ModelShape(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=1000,
        context_length=64,
    )
}
_WEIGHT_SCALE = 0.04  # twice the usual standard deviation, so that attention is not uniform


@dataclass(frozen=True)
class Measured:
    """Figures of one path at one length; seconds are medians, memory the peak of training."""

    path: str
    shape: str
    length: int
    loss: float
    loss_difference: float
    """Mean loss less the first path's, in nats."""
    token_difference: float
    """Mean absolute difference of single tokens' losses from the first path's, in nats."""
    forward_seconds: float
    training_seconds: float
    forward_tokens_per_second: float
    training_tokens_per_second: float
    forward_tflops: float
    training_tflops: float
    peak_gib: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths", help="in tokens  [default: 8k,64k,256k; with --dry-run 256,512]"
    )
    parser.add_argument(
        "--paths", default=None, help=f"of {', '.join(PATHS)}  [default: all that can be built]"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each kind")
    parser.add_argument(
        "--dry-run", action="store_true", help="on a CPU, with a tiny model in float32"
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    texts = options.lengths or ("256,512" if options.dry_run else "8k,64k,256k")
    lengths = [parse_length(text) for text in texts.split(",")]
    asked = (
        options.paths.split(",")
        if options.paths
        else (["torch"] if options.dry_run else list(PATHS))
    )
    rows: list[Measured] = []
    with start_runtime() as runtime:
        if runtime.device.type == "cpu" and not options.dry_run:
            raise SystemExit("no CUDA device: on a CPU only --dry-run runs")
        for length in lengths:
            rows += measure_length(
                runtime, length, asked, TINY if options.dry_run else SHAPES, options
            )
    if options.json:
        options.json.write_text(
            json.dumps({"device": _device(), "rows": [asdict(row) for row in rows]}, indent=1)
        )


def measure_length(
    runtime: Runtime,
    length: int,
    paths: Sequence[str],
    shapes: dict[str, ModelShape],
    options: argparse.Namespace,
) -> list[Measured]:
    """Returns a row for each path at one length, for the largest model that fits in all paths.

    Args:
        runtime: the running process.
        length: tokens of the document.
        paths: names of the paths to measure.
        shapes: the models, largest first.
        options: the command's options.
    """
    for name, shape in shapes.items():
        rows: list[Measured] = []
        first: torch.Tensor | None = None
        for path in paths:
            fits, result = True, None
            try:
                result = measure_path(runtime, shape, name, path, length, first, options)
            except torch.OutOfMemoryError:
                # Memory can be freed only after this clause: the exception refers to the frames,
                # and these to the model.
                fits = False
            _free()
            if not fits:
                print(
                    f"{format_length(length)}: {name} does not fit in {path}; the next smaller one",
                    flush=True,
                )
                break
            if result is not None:
                rows.append(result[0])
                first = result[1] if first is None else first
                print(_line(result[0]), flush=True)
        else:
            return rows
    raise SystemExit(f"no model fits at {format_length(length)} tokens")


def measure_path(
    runtime: Runtime,
    shape: ModelShape,
    name: str,
    path: str,
    length: int,
    first: torch.Tensor | None,
    options: argparse.Namespace,
) -> tuple[Measured, torch.Tensor] | None:
    """Returns the row of one path and the nats of each token; None where it cannot be built.

    A path that was asked for by name and cannot be built ends the program.

    Args:
        runtime: the running process.
        shape: sizes of the model.
        name: name of the model.
        path: name of the path.
        length: tokens of the document.
        first: nats of each token in the first path; None for the first path itself.
        options: the command's options.
    """
    dtype = torch.float32 if options.dry_run else torch.bfloat16
    try:
        model = build_model(
            shape,
            runtime,
            dtype=dtype,
            recompute="full",
            initialize=False,
            backend=PATHS[path],
            sequence_length=length,
        )
    except InputError as refusal:
        if options.paths:
            raise SystemExit(f"{path}: {refusal}") from refusal
        print(f"{path} is left out: {refusal}", flush=True)
        return None
    fill_weights(model)
    return measure(model, path, name, length, first, options.repeats)


def measure(
    model: LongRopeModel,
    path: str,
    name: str,
    length: int,
    first: torch.Tensor | None,
    repeats: int,
) -> tuple[Measured, torch.Tensor]:
    """Returns the row of one path and the nats of each token, for later paths to compare with.

    Args:
        model: the model on the path's engine.
        path: name of the path.
        name: name of the model.
        length: tokens of the document.
        first: nats of each token in the first path; None for the first path itself.
        repeats: number of timed passes of each kind.
    """
    tokens = np.random.default_rng(0).integers(0, model.shape.vocab_size, length)
    batch = DocumentBatch.from_documents([tokens], pad_to_multiple=model.backend.token_multiple)
    scale = max(1.0, length / model.shape.context_length)
    model.set_factors(Yarn(scale=scale).factors(model.geometry))
    _reset_peak()
    training_pass(model, batch)
    training = _median_seconds(lambda: training_pass(model, batch), repeats)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    model.stage.zero_grad(set_to_none=True)
    losses = forward_pass(model, batch)[: length - 1].float().cpu()
    forward = _median_seconds(lambda: forward_pass(model, batch), repeats)
    compared = losses if first is None else first
    flops = model.shape.forward_flops(length)
    row = Measured(
        path=path,
        shape=name,
        length=length,
        loss=losses.double().mean().item(),
        loss_difference=(losses.double().mean() - compared.double().mean()).item(),
        token_difference=(losses - compared).abs().mean().item(),
        forward_seconds=forward,
        training_seconds=training,
        forward_tokens_per_second=length / forward,
        training_tokens_per_second=length / training,
        forward_tflops=flops / forward / 1e12,
        training_tflops=3 * flops / training / 1e12,
        peak_gib=peak,
    )
    return row, losses


def training_pass(model: LongRopeModel, batch: DocumentBatch) -> None:
    """Runs forward and backward over one batch; gradients are accumulated."""
    model.stage.train()
    model.stage.set_is_first_microbatch()
    run_stage(model, model.stage, batch).mean().backward()


@torch.no_grad()
def forward_pass(model: LongRopeModel, batch: DocumentBatch) -> torch.Tensor:
    """Returns the loss of each token, [tokens] in nats."""
    model.stage.eval()
    model.stage.set_is_first_microbatch()
    return run_stage(model, model.stage, batch)


@torch.no_grad()
def fill_weights(model: LongRopeModel) -> None:
    """Draws each weight with its checkpoint name as seed, so that all engines get the same."""
    for name, parameter in model.stage.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        seed = zlib.crc32(rule_of(name, model.shape).stored.encode())
        generator = torch.Generator(parameter.device).manual_seed(seed)
        parameter.normal_(0.0, _WEIGHT_SCALE, generator=generator)


def _median_seconds(run: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        _synchronize()
        started = time.perf_counter()
        run()
        _synchronize()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _line(row: Measured) -> str:
    return (
        f"{format_length(row.length):>5} {row.shape:>14} {row.path:<31} loss {row.loss:.4f} "
        f"({row.loss_difference:+.4f}, by token {row.token_difference:.4f})  "
        f"training {row.training_tokens_per_second:,.0f} tokens/s {row.training_tflops:.1f} "
        "TFLOP/s  "
        f"forward {row.forward_tokens_per_second:,.0f} tokens/s {row.forward_tflops:.1f} TFLOP/s  "
        f"peak {row.peak_gib:.1f} GiB"
    )


if __name__ == "__main__":
    main()
