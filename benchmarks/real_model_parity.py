"""Compares a real model's per-token losses with transformers' under short and long factors.

    python benchmarks/real_model_parity.py --lengths 2k,12k \\
        --model runs/smollm2/huggingface/SmolLM2-135M-Instruct

The folder is imported and exported again, and every tensor is compared. Then it is exported with
two factor sets (`two`: short up to the window, long beyond) and with the long one at every length
(`long`). transformers scores the exported folder, our model the checkpoint, and the largest
difference of a token's loss is printed. All is float32; our angles repeat transformers' float32
order of operations (`hf`). 12k tokens take about 3 GB and, on two CPU cores, ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import load_model
from checkpoints_tools.verify import all_equal, verify
from data_prep.stdlib_corpus import split
from megatron_longrope.config import format_length, parse_length
from megatron_longrope.data import load_tokenizer
from megatron_longrope.model import score_documents
from megatron_longrope.model.checkpoints.checkpoint import read_description
from megatron_longrope.rope import FactorOrigin, FactorRange, FactorSet, RopeFactors, RopeGeometry
from megatron_longrope.runtime import start_runtime

BOUND = 1e-4
_CHUNK = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="HF folder")
    parser.add_argument("--lengths", default="2k,12k", help="in tokens")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = _measure(
            options.model,
            Path(scratch),
            [parse_length(text) for text in options.lengths.split(",")],
        )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))
    sys.exit(0 if all(row["largest_token_difference"] <= BOUND for row in rows) else 1)


def _measure(source: Path, folder: Path, lengths: list[int]) -> list[dict[str, Any]]:
    import_hf(source, folder / "megatron")
    export_hf(folder / "megatron", folder / "back")
    table = verify(source, folder / "back") + verify(source, folder / "megatron")
    assert all_equal(table), [row.name for row in table if not row.equal]
    print(f"there and back: {len(table) // 2} rows equal in every bit", flush=True)
    tokenizer = load_tokenizer(source)
    tokens = max((tokenizer.encode_document(text.text) for text in split().development), key=len)
    short, long = _factors(read_description(folder / "megatron").factor_set.geometry)
    window = short.original_length
    two = FactorSet(
        ranges=(FactorRange(up_to=window, factors=short), FactorRange(up_to=None, factors=long))
    )
    rows = []
    for name, factors in (("two", two), ("long", FactorSet.single(long))):
        exported = folder / name
        export_hf(folder / "megatron", exported, factors)
        for length in lengths:
            if name == "long" and length > window:
                continue  # `two` serves the same factors there
            ours = _ours(folder / "megatron", factors, tokens[:length])
            theirs = _theirs(exported, tokens[:length])
            used = "short" if factors.for_length(length) == short else "long"
            rows.append(
                {
                    "length": length,
                    "sets": name,
                    "used": used,
                    "ours": float(ours.mean()),
                    "largest_token_difference": float(np.abs(ours - theirs).max()),
                }
            )
            print(
                f"{format_length(length):>4} {name:>4} sets, {used:>5} factors: mean loss "
                f"{ours.mean():.5f}, "
                f"largest token difference {rows[-1]['largest_token_difference']:.1e}",
                flush=True,
            )
    return rows


def _factors(geometry: RopeGeometry) -> tuple[RopeFactors, RopeFactors]:
    """Returns short and long factors that resemble a search's: λ rise from 1.

    Both have one attention factor, as a Hugging Face config holds only one.
    """

    def grown(most: float, target: int) -> RopeFactors:
        pairs = geometry.num_pairs
        rescale = tuple(
            round(1 + (most - 1) * (pair / (pairs - 1)) ** 2, 2) for pair in range(pairs)
        )
        return RopeFactors(
            rescale=rescale,
            start_tokens=0,
            attention_factor=1.05,
            base=geometry.base,
            head_dim=geometry.head_dim,
            original_length=geometry.original_length,
            target_length=target,
            origin=FactorOrigin(method="parity"),
        )

    return grown(1.3, geometry.original_length), grown(2.2, 2 * geometry.original_length)


def _ours(checkpoint: Path, factors: FactorSet, tokens: np.ndarray) -> np.ndarray:
    with start_runtime() as runtime:
        model = load_model(checkpoint, runtime, angle_precision="hf").model
        model.set_factors(factors)
        (scores,) = score_documents(model, [tokens])
        return scores.nll.astype(np.float64)


@torch.no_grad()
def _theirs(folder: Path, tokens: np.ndarray) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    hidden = model.model(inputs[None]).last_hidden_state[0, :-1]
    losses = [
        cross_entropy(model.lm_head(part), labels, reduction="none")
        for part, labels in zip(hidden.split(_CHUNK), inputs[1:].split(_CHUNK), strict=True)
    ]
    return torch.cat(losses).double().numpy()


if __name__ == "__main__":
    main()
