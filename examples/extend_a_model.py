"""Extends a Hugging Face model to a longer context window, from Python.

    python examples/extend_a_model.py path/to/hf-model books/*.txt --target 32k

Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse

from megatron_longrope import Progress, extend_context
from megatron_longrope.config import parse_length


def main() -> None:
    parser = argparse.ArgumentParser(description="Extend a model's context window.")
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("texts", nargs="+", help="UTF-8 text files, one document per file")
    parser.add_argument(
        "--target", type=parse_length, default="32k", help="tokens the model shall reach"
    )
    parser.add_argument("--run-dir", default="runs/extended", help="where everything is kept")
    parser.add_argument("--steps", type=int, default=400, help="of fine-tuning")
    arguments = parser.parse_args()

    result = extend_context(
        arguments.model,
        arguments.texts,
        arguments.target,
        run_dir=arguments.run_dir,
        # Any key of the recipe, megatron_longrope/presets/recipes/progressive.yaml.
        settings={
            "extension.0.fine_tune.training.steps": arguments.steps,
            "extension.0.fine_tune.training.warmup_steps": arguments.steps // 20,
            "extension.0.fine_tune.training.global_batch_size": 16,
        },
        progress=Progress(stage=print),
    )

    print("report:", result.report)
    print("numbers:", result.result_file)
    print("Hugging Face checkpoint:", result.hugging_face)
    print("Megatron checkpoint:", result.megatron)

    # A model has several sets of factors, each for a range of input lengths.
    factors = result.factor_set.for_length(arguments.target)
    print(f"attention factor at {arguments.target} tokens: {factors.attention_factor:.4f}")
    print(f"rescale factors at {arguments.target} tokens:")
    print(" ".join(f"{rescale:.4f}" for rescale in factors.rescale))


# Converting weights may start processes that import this file: these must not begin a second run.
if __name__ == "__main__":
    main()
