"""What a model arrives with: read from every kind of config, and never taken for unscaled."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_longrope.errors import InputError
from megatron_longrope.rope import NoScaling, OwnScaling, RopeGeometry
from tests.support.factor_sets import made_factors

WINDOW = 256
PAIRS = 32
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": WINDOW,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": WINDOW}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.001 * pair for pair in range(PAIRS)],
    "long_factor": [1.0 + 0.1 * pair for pair in range(PAIRS)],
    "original_max_position_embeddings": WINDOW,
    "attention_factor": 1.1,
}


def config(rope: dict[str, Any] | None, max_length: int) -> dict[str, Any]:
    return {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "rope_theta": 10000.0,
        "rope_scaling": rope,
        "max_position_embeddings": max_length,
    }


@pytest.mark.parametrize(
    ("rope", "max_length", "window"),
    [
        (LLAMA3, 1024, 1024),  # longer than factor times the original, as Meta's is
        (YARN, 512, 512),
        (YARN, 256, 512),  # as Qwen's documentation has it
        (LONGROPE, 1024, 1024),
        ({"rope_type": "linear", "factor": 2.0}, 256, 512),
    ],
    ids=["llama3", "yarn", "yarn, short", "longrope", "linear"],
)
def test_its_window_is_what_it_was_made_for(
    rope: dict[str, Any], max_length: int, window: int
) -> None:
    own = OwnScaling.from_hf(config(rope, max_length))
    assert own.is_scaled and own.window == window and own.label == "model"
    assert own.geometry == RopeGeometry(base=10000.0, head_dim=64, original_length=WINDOW)
    tuned = own.tuned
    assert tuned is not None and tuned.target_length == window
    assert tuned.rescale == own.for_length(window).rescale and max(tuned.rescale) > 1


def test_a_model_without_scaling_builds_on_nothing() -> None:
    own = OwnScaling.from_hf(config(None, WINDOW))
    assert not own.is_scaled and own.tuned is None and own.short_ranges == ()
    assert (own.window, own.label) == (WINDOW, "none")
    assert own.factor_set == NoScaling().factor_set(own.geometry)


def test_two_sets_stay_two() -> None:
    own = OwnScaling.from_hf(config(LONGROPE, 1024))
    assert [entry.up_to for entry in own.short_ranges] == [WINDOW]
    assert own.describe() == "longrope, 2 sets by input length"
    beyond = made_factors(4096)
    both = own.up_to_window(beyond)
    assert [entry.up_to for entry in both.ranges] == [WINDOW, 1024, None]
    assert both.for_length(200) == own.for_length(200)
    assert both.for_length(1024) == own.for_length(1024) and both.for_length(1025) == beyond


def test_dynamic_ntk_has_no_factors_to_build_on() -> None:
    with pytest.raises(InputError, match=r"rope_type=dynamic: .*--dynamic-at N"):
        OwnScaling.from_hf(config({"rope_type": "dynamic", "factor": 2.0}, WINDOW))
