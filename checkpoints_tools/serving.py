"""Which factors of a set an export carries for each serving engine, and under which config keys.

docs/serving.md says what each engine does with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from checkpoints_tools.gguf.header import shortest
from megatron_longrope.config import format_length
from megatron_longrope.errors import InputError
from megatron_longrope.model.architectures import family_of
from megatron_longrope.rope import FactorRange, FactorSet, RopeFactors

ServingTarget = Literal["transformers", "static", "gguf"]
"""The kind of engine an export is made for.

transformers: two factor sets, chosen by the length of the input. static: one set, for engines that
choose once. gguf: a file for llama.cpp that holds both sets.
"""


def serving_set(
    factor_set: FactorSet, target: ServingTarget, length: int | None
) -> tuple[FactorSet, list[str]]:
    """Returns the factors to export for inputs of up to `length` tokens, and texts on what is lost.

    `static` keeps the one range that serves `length` (by default the longest). The other targets
    keep two: the range that serves the original window, and the one that serves `length` for
    everything beyond. Without `length` they keep the factor set as it is, and the export refuses
    what its format cannot carry. Raises InputError for a `length` inside the window.
    """
    window = factor_set.geometry.original_length
    if target == "static":
        chosen = factor_set.for_length(length or factor_set.target_length)
        served = max(length or chosen.target_length, window)
        single = FactorSet.single(chosen.model_copy(update={"target_length": served}))
        return single, _left_out(factor_set, [chosen])
    if length is None:
        return factor_set, []
    if length <= window:
        rule = f"the window is {format_length(window)}: one set serves it, --serve static"
        raise InputError("--length", format_length(length), rule)
    short = factor_set.for_length(window)
    long = factor_set.for_length(length).model_copy(update={"target_length": length})
    ranges = (FactorRange(up_to=window, factors=short), FactorRange(up_to=None, factors=long))
    return FactorSet(ranges=ranges), _left_out(factor_set, [short, factor_set.for_length(length)])


def with_engine_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json with the attention factor also under vLLM's and SGLang's names for it.

    Where `short_mscale` and `long_mscale` are missing, both engines compute an attention factor
    from the lengths and ignore `attention_factor`. transformers warns of the two keys and goes on.
    """
    said = dict(config)
    for key in ("rope_scaling", "rope_parameters"):
        settings = said.get(key)
        if settings and settings.get("rope_type") == "longrope":
            factor = settings["attention_factor"]
            said[key] = settings | {"short_mscale": factor, "long_mscale": factor}
    return said


def engine_notes(hf_dir: Path) -> list[str]:
    """Returns texts on how engines may treat an exported folder against its config.json.

    For example, tokenizer_config.json is carried unchanged, and vLLM takes its `model_max_length`
    for a limit on the input length.
    """
    config = json.loads((hf_dir / "config.json").read_text(encoding="utf-8"))
    return family_of(config).serving_notes(config) + _tokenizer_note(
        hf_dir / "tokenizer_config.json", config["max_position_embeddings"]
    )


def _tokenizer_note(file: Path, longest: int) -> list[str]:
    if not file.is_file():
        return []
    try:
        limit = json.loads(file.read_text(encoding="utf-8")).get("model_max_length")
    except (ValueError, AttributeError):  # carried as it is, like every other file
        return [f"{file.name} holds no JSON object"]
    if not isinstance(limit, int | float) or limit >= longest:
        return []
    return [
        f"{file.name} says model_max_length {limit:g}: vLLM serves no longer inputs, and these "
        f"factors {longest}"
    ]


def rounding_note(factor_set: FactorSet) -> list[str]:
    """Returns a text on how much λ and t change as GGUF's float32; nothing where they do not."""
    values = [
        value
        for entry in factor_set.ranges
        for value in (*entry.factors.rescale, entry.factors.attention_factor)
    ]
    largest = max(abs(shortest(np.float32(value)) - value) / value for value in values)
    return (
        [f"factors are float32 in GGUF: off by up to {largest:.1g} of their value"]
        if largest
        else []
    )


def end_token_note(hf_files: Path) -> list[str]:
    """Returns a text where a folder has several end-of-text tokens: a GGUF file names only one."""
    for name in ("generation_config.json", "config.json"):
        try:
            tokens = json.loads((hf_files / name).read_text(encoding="utf-8"))["eos_token_id"]
        except (OSError, ValueError, LookupError, TypeError):  # no such file, or no such key
            continue
        if isinstance(tokens, list) and len(tokens) > 1:
            return [
                f"{name} ends texts at tokens {', '.join(map(str, tokens))}; a GGUF file names "
                "one, the tokenizer's"
            ]
    return []


def _left_out(factor_set: FactorSet, kept: list[RopeFactors]) -> list[str]:
    return [
        "the factors for inputs of up to "
        f"{format_length(entry.up_to or entry.factors.target_length)} tokens "
        f"(attention factor {entry.factors.attention_factor:g})"
        for entry in factor_set.ranges
        if entry.factors not in kept
    ]
