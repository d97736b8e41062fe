"""Compares a RoPE scaling method of one's own with YaRN, by perplexity on a text.

Run it as: python examples/new_method.py path/to/hf-model book.txt --length 16k
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from checkpoints_tools.load_any import load_model
from megatron_longrope.artifacts.rows import EvaluationLabels
from megatron_longrope.config import parse_length
from megatron_longrope.data import load_tokenizer
from megatron_longrope.evaluation import EvaluationDocument, measure_perplexity
from megatron_longrope.rope import METHODS, RopeFactors, RopeGeometry, RopeMethod, method_from_text
from megatron_longrope.runtime import start_runtime


class Step(RopeMethod):
    """Pairs that turn `turns` times or more in the window are kept, the others interpolated."""

    name: ClassVar[str] = "step"
    scale: float = Field(ge=1)  # s = length / window
    turns: float = Field(default=1.0, gt=0)

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        # Pair i turns by base^(-2i/head_dim) radians per token.
        pairs, window = range(geometry.num_pairs), geometry.original_length
        angles = [window * geometry.base ** (-2 * i / geometry.head_dim) for i in pairs]
        rescale = tuple(1.0 if a >= 2 * math.pi * self.turns else self.scale for a in angles)
        return self.make_factors(geometry, rescale, round(self.scale * window))


METHODS.register(Step.name, Step)  # now it serves wherever a method is named


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a new method with YaRN.")
    parser.add_argument("model", help="a Hugging Face folder with its tokenizer")
    parser.add_argument("text", type=Path, help="a text file that holds so many tokens")
    parser.add_argument("--length", type=parse_length, default="16k", help="in tokens")
    arguments = parser.parse_args()
    tokens = load_tokenizer(arguments.model).encode_document(arguments.text.read_text("utf-8"))
    documents = [EvaluationDocument(arguments.text.name, tokens)]
    with start_runtime() as runtime:
        model = load_model(arguments.model, runtime).model
        for method in ("none", "yarn", "step", "step,turns=4"):  # as after `--method`
            model.set_factors(method_from_text(method, model.geometry, arguments.length))
            labels = EvaluationLabels(arguments.model, method)
            (row,) = measure_perplexity(model, documents, arguments.length, labels).rows
            print(f"{method:<16}{row.perplexity:10.4f}")


if __name__ == "__main__":
    main()
