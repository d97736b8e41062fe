"""Compares our perplexity of SmolLM2-135M with transformers', without scaling and with yarn:2.

    python benchmarks/perplexity_parity.py --model runs/smollm2/huggingface/SmolLM2-135M-Instruct
    python benchmarks/perplexity_parity.py --model DIR --lengths 2k,8k,16k --json parity.json

Both sides score the same tokens of one document in float32. Of the angle precisions, `float64` is
our default, and `hf` repeats transformers' float32 order of operations. Peak memory at 16k is about
6 GB; on two CPU cores the whole takes about 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from checkpoints_tools.load_any import load_model
from data_prep.stdlib_corpus import split
from megatron_longrope.config import format_length, parse_length
from megatron_longrope.data import load_tokenizer
from megatron_longrope.model import score_documents
from megatron_longrope.rope import method_from_text
from megatron_longrope.runtime import start_runtime

METHODS = ("none", "yarn:2")
_CHUNK = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="HF folder of a Llama model")
    parser.add_argument("--lengths", default="2k,8k,16k", help="in tokens")
    parser.add_argument("--precisions", default="float64,hf", help="of our angles")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    lengths = [parse_length(text) for text in options.lengths.split(",")]
    tokenizer = load_tokenizer(options.model)
    texts = split().development
    tokens = max((tokenizer.encode_document(text.text) for text in texts), key=len)
    rows = []
    for length in lengths:
        for method in METHODS:
            theirs, their_seconds = _theirs(options.model, tokens[:length], method)
            for precision in options.precisions.split(","):
                ours, our_seconds = _ours(options.model, tokens[:length], method, precision)
                rows.append(
                    _row(length, method, precision, ours, theirs, our_seconds, their_seconds)
                )
                print(_line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


def _ours(
    folder: Path, tokens: np.ndarray, method: str, precision: str
) -> tuple[np.ndarray, float]:
    with start_runtime() as runtime:
        model = load_model(folder, runtime, angle_precision=precision).model  # type: ignore[arg-type]
        model.set_factors(method_from_text(method, model.geometry, len(tokens)))
        started = time.perf_counter()
        (scores,) = score_documents(model, [tokens])
        return scores.nll, time.perf_counter() - started


@torch.no_grad()
def _theirs(folder: Path, tokens: np.ndarray, method: str) -> tuple[np.ndarray, float]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if method != "none":
        name, _, factor = method.partition(":")
        config.rope_parameters = {
            "rope_type": name,
            "factor": float(factor),
            "rope_theta": config.rope_parameters["rope_theta"],
            "original_max_position_embeddings": config.max_position_embeddings,
        }
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    inputs = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    started = time.perf_counter()
    hidden = model.model(inputs[None]).last_hidden_state[0, :-1]
    losses = [
        cross_entropy(model.lm_head(part), labels, reduction="none")
        for part, labels in zip(hidden.split(_CHUNK), inputs[1:].split(_CHUNK), strict=True)
    ]
    return torch.cat(losses).numpy(), time.perf_counter() - started


def _row(
    length: int,
    method: str,
    precision: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    our_seconds: float,
    their_seconds: float,
) -> dict[str, Any]:
    our_perplexity, their_perplexity = (
        math.exp(nll.astype(np.float64).mean()) for nll in (ours, theirs)
    )
    return {
        "length": length,
        "method": method,
        "angle_precision": precision,
        "ours": our_perplexity,
        "transformers": their_perplexity,
        "relative_difference": abs(our_perplexity / their_perplexity - 1),
        "largest_token_difference": float(np.abs(ours - theirs).max()),
        "seconds_ours": round(our_seconds, 2),
        "seconds_transformers": round(their_seconds, 2),
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{format_length(row['length']):>4} {row['method']:>7} {row['angle_precision']:>8}  "
        f"ours {row['ours']:.6f}  transformers {row['transformers']:.6f}  "
        f"relative {row['relative_difference']:.2e}  token {row['largest_token_difference']:.1e}  "
        f"{row['seconds_ours']:.1f} s / {row['seconds_transformers']:.1f} s"
    )


if __name__ == "__main__":
    main()
