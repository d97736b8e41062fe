"""Extends models that arrive with RoPE scaling of their own to four times that, without training.

    python benchmarks/arrives_scaled.py --out runs/arrives-scaled
    python benchmarks/arrives_scaled.py --out runs/arrives-scaled --kinds yarn,longrope

The demonstration model (window 256) is made to arrive at 512 in four ways: llama3, yarn, longrope
with two sets, linear. Each is extended to 2048 by the pipeline, searched on three modules of the
standard library and measured on three others: its own factors as they are, PI, NTK and YaRN on top
of them, and what the search found. Before that, its own factors by transformers alone and by ours,
on the same tokens. Interrupted, it goes on. Under two minutes a kind on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from megatron_longrope.artifacts.results import aggregate, read_evaluations
from megatron_longrope.artifacts.rows import AS_IT_IS, PerplexityRow
from megatron_longrope.config import build_config
from megatron_longrope.pipeline.corpus import Corpus
from megatron_longrope.pipeline.extend import check_recipe, run_recipe
from megatron_longrope.pipeline.recipe import Recipe
from megatron_longrope.pipeline.run import Progress
from megatron_longrope.presets import model_path
from megatron_longrope.rope import RopeGeometry, Yarn
from megatron_longrope.runtime import start_runtime

WINDOW, ARRIVES, TARGET = 256, 512, 2048
GEOMETRY = RopeGeometry(base=10000.0, head_dim=64, original_length=WINDOW)
KINDS = ("llama3", "yarn", "longrope", "linear")
METHODS = (AS_IT_IS, "second-pi", "second-ntk", "second-yarn", "longrope")


def rope_settings(kind: str) -> dict[str, Any]:
    """Returns the keys of a config.json with which the model arrives at 512 tokens.

    The two sets of `longrope` are a slight stretch inside the window, and YaRN's curve with a ramp
    elsewhere beyond it.
    """
    own = {"original_max_position_embeddings": WINDOW}
    beyond = Yarn(scale=ARRIVES / WINDOW, beta_fast=8, beta_slow=0.5).factors(GEOMETRY).rescale
    rope: dict[str, dict[str, Any]] = {
        "llama3": {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **own},
        "yarn": {"factor": 2.0, **own},
        "longrope": {
            "short_factor": [1.0 + 0.002 * pair for pair in range(GEOMETRY.num_pairs)],
            "long_factor": list(beyond),
            "attention_factor": 1.06,
            **own,
        },
        "linear": {"factor": 2.0},
    }
    settings = {"rope_type": kind, **rope[kind]}
    return {
        # linear says how much it stretches, the others how far they reach
        "max_position_embeddings": WINDOW if kind == "linear" else ARRIVES,
        "rope_scaling": settings,
        "rope_parameters": settings | {"rope_theta": GEOMETRY.base},
    }


def arrive(kind: str, folder: Path) -> Path:
    """Returns a Hugging Face folder with the demonstration model under a scaling of this kind."""
    shutil.copytree(model_path("preset:demo"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | rope_settings(kind), indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def recipe_of(model: Path, search: dict[str, Any] | None = None) -> Recipe:
    """Returns the recipe that extends a model without training."""
    searcher = {"name": "hybrid", "ramp": {"max_rounds": 4}, "descent": {"passes": 6, "checks": 2}}
    values = {
        "name": model.name,
        "model": str(model),
        "corpus": {"standard_library": True, "judged_on": "development"},
        "extension": [
            {"length": TARGET, "search": search or {"num_documents": 3, "searcher": searcher}}
        ],
        "evaluation": {"lengths": [WINDOW, ARRIVES, TARGET], "num_documents": 3},
        "export": False,
    }
    return build_config(Recipe, values, model.name)


def extend(model: Path, run: Path, recipe: Recipe) -> tuple[list[PerplexityRow], Corpus]:
    """Runs the recipe; returns the rows that measure text from its start, and the documents."""
    with start_runtime(recipe.parallel, seed=recipe.seed) as runtime:
        run_recipe(recipe, run, runtime, Progress())
    corpus = check_recipe(recipe, run, 1).corpus
    rows = read_evaluations(run / "evals").perplexity
    return [row for row in rows if row.protocol == "first-token"], corpus


@torch.no_grad()
def by_transformers(model: Path, rows: Iterable[PerplexityRow], corpus: Corpus) -> float:
    """Returns the perplexity of transformers' model, as it arrives, on the text of the rows."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    documents = {document.name: document.tokens for document in corpus.held_out}
    nats = tokens = 0.0
    for row in rows:
        found = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", row.document)
        assert found is not None, row.document
        name, start, stop = found[1], int(found[2]), int(found[3])
        ids = torch.from_numpy(documents[name][start:stop].astype("int64"))
        logits = theirs(ids[None]).logits[0, :-1].double()
        nats += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        tokens += len(ids) - 1
    return math.exp(nats / tokens)


def as_it_arrives(rows: Iterable[PerplexityRow], length: int) -> list[PerplexityRow]:
    """Returns the rows of the base model under the factors it arrived with."""
    return [
        row
        for row in rows
        if (row.model, row.method, row.attention_factor, row.length)
        == ("base", AS_IT_IS, "own", length)
    ]


def main() -> None:
    """Extends a model of each kind and prints a line of perplexities for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    print(f"kind | as it arrives, ours over transformers' − 1 | {' | '.join(METHODS)}")
    for kind in options.kinds.split(","):
        model = arrive(kind, options.out / "models" / kind)
        rows, corpus = extend(model, options.out / kind, recipe_of(model))
        differences = []
        for length in (WINDOW, ARRIVES, TARGET):
            own = as_it_arrives(rows, length)
            ours = aggregate(own, lambda row: None)[None]
            differences.append(f"{ours / by_transformers(model, own, corpus) - 1:+.1e}")
        at_target = [row for row in rows if (row.model, row.length) == ("base", TARGET)]
        found = aggregate(at_target, lambda row: (row.method, row.attention_factor))
        cells = [
            " / ".join(
                f"{found[method, source]:.3f}"
                for source in ("own", "searched")
                if (method, source) in found
            )
            for method in METHODS
        ]
        print(f"{kind} | {', '.join(differences)} | {' | '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
