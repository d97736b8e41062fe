"""A tiny random model, documents and a recipe of a few steps, for tests of whole runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from checkpoints_tools.initialize import initialize_model
from data_prep.bpe import train_bpe
from megatron_longrope.config import build_config
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.recipe import Recipe

WINDOW, TUNED, TARGET = 128, 256, 512
SHAPE = ModelShape(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=320,
    context_length=WINDOW,
)
_WORDS = (
    *("def", "return", "self", "import", "class", "value", "index", "for", "in", "range", "length"),
    *("token", "window", "factor", "search", "if", "else", "not"),
)


def make_texts(folder: Path) -> list[Path]:
    """Writes twelve files of random words, each as long as the target, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(12):
        words = random.Random(number)
        lines = (" ".join(words.choices(_WORDS, k=8)) for _ in range(120))
        paths.append(folder / f"text-{number}.txt")
        paths[-1].write_text("\n".join(lines), encoding="utf-8")
    return paths


def make_model(folder: Path, texts: list[Path]) -> Path:
    """Writes an HF folder with a fresh two-layer model and its tokenizer, and returns it."""
    tokenizer = folder.with_name("tokenizer")
    keys = (
        "The pass key is 0123456789. Remember it. What is the pass key? The grass is green. The "
        "sky is blue.\n" * 9
    )
    train_bpe([keys, *(path.read_text(encoding="utf-8") for path in texts)], 320, tokenizer)
    initialize_model(SHAPE, "normal", 1, folder, tokenizer)
    return folder


def recipe_values(model: Path, texts: list[Path]) -> dict[str, Any]:
    """Returns the values of a recipe that goes through every stage in seconds."""
    sizes = {"population": 6, "mutants": 2, "crossovers": 2, "parents": 4, "iterations": 1}
    search = {"num_documents": 2, "searcher": {"name": "evolution", **sizes}}
    training = {
        "steps": 4,
        "global_batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "checkpoint_every": 2,
    }
    data = {
        "sequence_length": TUNED,
        "short_piece_share": 0.5,
        "retrieval": {"share": 0.2, "min_length": 100, "max_length": TUNED},
    }
    inherited = {**search, "attention_factor": "inherited"}
    return {
        "name": "tiny",
        "model": str(model),
        "corpus": {
            "documents": [str(path) for path in texts],
            "num_search": 3,
            "num_evaluation": 2,
        },
        "extension": [
            {
                "length": TUNED,
                "search": search,
                "fine_tune": {"training": training, "data": data, "control": True},
            },
            {"length": TARGET, "search": {**inherited, "retrieval_documents": 1}},
        ],
        "recovery": [{"length": WINDOW, "search": inherited}],
        "evaluation": {
            "lengths": [32, WINDOW, TUNED, TARGET],
            "num_documents": 2,
            "tasks": {"passkey": {"lengths": [TUNED, TARGET], "depths": [0.0, 1.0], "trials": 1}},
        },
    }


def make_recipe(folder: Path) -> Recipe:
    """Returns a recipe after writing its model and documents to `folder`."""
    texts = make_texts(folder / "texts")
    model = make_model(folder / "model", texts)
    return build_config(Recipe, recipe_values(model, texts), "tiny")
