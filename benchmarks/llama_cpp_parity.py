"""Compares greedy continuations of a model by llama.cpp (GGUF) and transformers (HF export).

    python -m benchmarks.llama_cpp_parity MODEL.gguf HF_DIR TEXT --prompts 100,1500 --new 32

Both get the same token ids. llama.cpp chooses the factor set by the context it allocates,
transformers by the length of the prompt; so llama.cpp is given just the context it needs (in steps
of 256). A prompt whose continuation crosses the window is refused, as transformers would then mix
two sets in one cache. The script needs `llama-cpp-python`, which the project does not depend on.

For each prompt it prints the number of equal tokens, the largest difference of the logits after the
prompt, the same with the long set for a prompt inside the window (a control), and how far apart the
two best tokens were where the continuations differ. The exit code is 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

_F32 = 0
"""ggml's number of float32, for cached keys and values as in transformers (default: float16)."""
STEP = 256
"""Number of tokens that llama.cpp allocates contexts in multiples of (llama_context, GGML_PAD)."""


def llama_cpp_greedy(
    path: Path, prompt: list[int], new: int, context: int
) -> tuple[list[int], np.ndarray]:
    """Returns llama.cpp's continuation and the logits [vocabulary] of its first token."""
    from llama_cpp import Llama

    model = Llama(
        str(path),
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        logits_all=False,
        n_gpu_layers=0,
        n_threads=1,
        verbose=False,
        flash_attn=False,
        type_k=_F32,
        type_v=_F32,
    )
    tokens: list[int] = []
    first = np.empty(0)
    batch = prompt
    for _ in range(new):
        model.eval(batch)
        logits = np.ctypeslib.as_array(
            model._ctx.get_logits_ith(-1), shape=(model.n_vocab(),)
        ).copy()
        first = logits if not tokens else first
        batch = [int(logits.argmax())]
        tokens += batch
    model.close()
    return tokens, first


def transformers_greedy(
    folder: Path, prompt: list[int], new: int
) -> tuple[list[int], np.ndarray, list[float]]:
    """Returns transformers' continuation, the first token's logits, and each choice's margin.

    Logits are [vocabulary]; a margin is the best logit less the second best.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids, cache, tokens, margins = torch.tensor([prompt]), None, [], []
    first = np.empty(0)
    with torch.no_grad():
        for _ in range(new):
            done = model(ids, past_key_values=cache, use_cache=True)
            logits, cache = done.logits[0, -1], done.past_key_values
            first = logits.numpy().copy() if not tokens else first
            best = logits.topk(2).values
            margins.append(float(best[0] - best[1]))
            ids = logits.argmax()[None, None]
            tokens.append(int(ids))
    return tokens, first, margins


def compare(
    gguf: Path, folder: Path, prompt: list[int], new: int, window: int
) -> dict[str, object]:
    """Returns the figures of one prompt, one row of the table."""
    context = -(-(len(prompt) + new) // STEP) * STEP
    ours, our_logits = llama_cpp_greedy(gguf, prompt, new, context)
    theirs, their_logits, margins = transformers_greedy(folder, prompt, new)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), new)
    return {
        "prompt": len(prompt),
        "equal": same,
        "of": new,
        "logits": float(np.abs(our_logits - their_logits).max()),
        "logits with the long set": _with_long_set(gguf, prompt, window, their_logits)
        if context <= window
        else None,
        "margin where they part": margins[same] if same < new else None,
        "smallest margin": min(margins),
    }


def _with_long_set(gguf: Path, prompt: list[int], window: int, expected: np.ndarray) -> float:
    """Returns the largest difference of logits with the long set for a prompt in the window."""
    return float(np.abs(llama_cpp_greedy(gguf, prompt, 1, window + STEP)[1] - expected).max())


def tokens_of(folder: Path, text: Path) -> list[int]:
    """Returns the token ids of a text by the folder's tokenizer."""
    from tokenizers import Tokenizer

    ids: list[int] = (
        Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text.read_bytes().decode()).ids
    )
    return ids


def same_tokens(gguf: Path, folder: Path, text: Path) -> bool:
    """Returns whether llama.cpp encodes a text as the folder's tokenizer does."""
    from llama_cpp import Llama

    model = Llama(str(gguf), vocab_only=True, verbose=False)
    theirs = model.tokenize(text.read_bytes(), add_bos=False, special=True)
    return list(theirs) == tokens_of(folder, text)


def main() -> int:
    """Runs the comparison and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path)
    parser.add_argument("hf_dir", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--prompts", default="100,1500", help="lengths in tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    given = parser.parse_args()
    config = json.loads((given.hf_dir / "config.json").read_text())
    window = config.get("original_max_position_embeddings", config["max_position_embeddings"])
    tokens = tokens_of(given.hf_dir, given.text)
    same = same_tokens(given.gguf, given.hf_dir, given.text)
    print(
        f"{given.text.name}: {len(tokens)} tokens, {'the same' if same else 'OTHERS'} by llama.cpp"
    )
    rows = []
    for length in map(int, given.prompts.split(",")):
        if length > len(tokens) or length <= window < length + given.new:
            parser.error(
                f"--prompts {length}: the text has {len(tokens)} tokens, and the window {window} "
                "is crossed"
            )
        rows.append(compare(given.gguf, given.hf_dir, tokens[:length], given.new, window))
        print(json.dumps(rows[-1]), flush=True)
    return 0 if same and all(row["equal"] == row["of"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
