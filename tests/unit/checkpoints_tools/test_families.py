"""Every family: transformers → Megatron → transformers bit for bit, and the same logits from our
model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.folder import bits_equal, open_hf_folder
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import load_model
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape, document_logits
from megatron_longrope.model.architectures import ARCHITECTURES, with_rope_said
from megatron_longrope.rope import factor_set_from_hf
from megatron_longrope.runtime import Runtime
from tests.support.formats.hf_families import (
    FAMILIES,
    LENGTH,
    family_document,
    family_logits,
    random_config,
    save_family,
)
from tests.support.formats.hf_folders import random_hf_folder
from tests.support.tiny_models import single_runtime

SEEDS = range(4)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_and_the_same_logits(
    tmp_path: Path, runtime: Runtime, family: str, seed: int
) -> None:
    theirs = save_family(tmp_path / "hf", family, seed)
    import_hf(tmp_path / "hf", tmp_path / "megatron", runtime)
    export_hf(tmp_path / "megatron", tmp_path / "back")
    before, after = open_hf_folder(tmp_path / "hf"), open_hf_folder(tmp_path / "back")
    assert before.files.keys() == after.files.keys() and before.config == after.config
    assert all(bits_equal(before.tensor(name), after.tensor(name)) for name in before.files)
    document = family_document(theirs)
    assert len(document) == LENGTH
    ours = load_model(tmp_path / "megatron", runtime, angle_precision="hf").model
    np.testing.assert_allclose(
        document_logits(ours, document), family_logits(theirs, document), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_of_ours_is_read_by_transformers_as_meant(family: str) -> None:
    from transformers import CONFIG_MAPPING

    for seed in range(6):
        theirs = random_config(family, seed)
        shape = ModelShape.from_hf(theirs.to_dict())
        again = CONFIG_MAPPING[family](
            **shape.to_hf()
            | {
                "rope_parameters": theirs.rope_parameters,
                "max_position_embeddings": theirs.max_position_embeddings,
                "original_max_position_embeddings": 256,
            }
        )
        assert ModelShape.from_hf(again.to_dict()) == shape
        for key in (
            "sliding_window",
            "layer_types",
            "no_rope_layers",
            "head_dim",
            "tie_word_embeddings",
        ):
            assert getattr(again, key, None) == getattr(theirs, key, None), key


def test_a_window_is_not_dropped_silently(tmp_path: Path, runtime: Runtime) -> None:
    """The window changes the numbers; switched off by name it is gone from model and config."""
    seed = next(seed for seed in range(40) if random_config("mistral", seed).sliding_window == 5)
    theirs = save_family(tmp_path / "hf", "mistral", seed)
    shape = ModelShape.from_hf(open_hf_folder(tmp_path / "hf").config)
    assert shape.attention_windows == (5,) * 4
    assert (
        ModelShape.from_hf({**theirs.config.to_dict(), "sliding_window": None}).attention_windows
        == ()
    )
    without = {
        key: value for key, value in theirs.config.to_dict().items() if key != "sliding_window"
    }
    assert ModelShape.from_hf(without).attention_windows == (4096,) * 4  # transformers' default


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_windows_switched_off_are_off_in_model_and_export(
    tmp_path: Path, runtime: Runtime, family: str
) -> None:
    from transformers import AutoModelForCausalLM

    seed = next(seed for seed in range(40) if random_config(family, seed).sliding_window == 5)
    theirs = save_family(tmp_path / "hf", family, seed)
    import_hf(tmp_path / "hf", tmp_path / "megatron", keep_windows=False)
    export_hf(tmp_path / "megatron", tmp_path / "back")
    config = open_hf_folder(tmp_path / "back").config
    assert config["sliding_window"] is None and ModelShape.from_hf(config).attention_windows == ()
    document = family_document(theirs, 100)
    ours = document_logits(
        load_model(tmp_path / "megatron", runtime, angle_precision="hf").model, document
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).eval()
    np.testing.assert_allclose(ours, family_logits(again, document), atol=1e-4, rtol=0)
    assert np.abs(ours - family_logits(theirs, document)).max() > 1e-2


def test_dynamic_is_carried_at_one_length_or_not_at_all(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(InputError, match="follow the input"):
        import_hf(source, tmp_path / "megatron")
    assert not list(tmp_path.glob("megatron*"))
    import_hf(source, tmp_path / "megatron", dynamic_length=200)
    export_hf(tmp_path / "megatron", tmp_path / "back")
    config = open_hf_folder(tmp_path / "back").config
    factors = factor_set_from_hf(config).for_length(200)
    assert config["rope_scaling"]["rope_type"] == "longrope"
    assert (
        factors.rescale
        == factor_set_from_hf(open_hf_folder(source).config, 200).for_length(200).rescale
    )
    assert max(factors.rescale) > 2


REFUSED = {
    "llama": [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"attention_dropout": 0.1},
        {"quantization_config": {"bits": 4}},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": True},
        {"num_key_value_heads": 7},
        {"rms_norm_eps": "small"},
        {"tie_word_embeddings": 1},
    ],
    "mistral": [
        {"sliding_window": -1},
        {"sliding_window": "4k"},
        {"layer_types": ["full_attention"] * 4},
        {"num_key_value_heads": None},
    ],
    "qwen2": [
        {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 4},
        {"layer_types": ["chunked"] * 4},
        {"max_window_layers": None},
    ],
    "qwen3": [{"attention_bias": True}, {"head_dim": None}],
    "phi3": [
        {"partial_rotary_factor": 0.75},
        {"resid_pdrop": 0.1},
        {"rope_parameters": {"rope_type": "yarn"}},
    ],
    "seed_oss": [
        {"attention_bias": False},
        {"attention_out_bias": True},
        {"mlp_bias": True},
        {"head_dim": None},
        {"num_key_value_heads": None},
    ],
    "smollm3": [
        {"no_rope_layers": [1]},
        {"no_rope_layers": [1, 1, 2, 0]},
        {"no_rope_layers": None, "no_rope_layer_interval": 0},
        {"mlp_bias": True},
    ],
}


@pytest.mark.parametrize(
    ("family", "changes"), [(f, c) for f, several in REFUSED.items() for c in several]
)
def test_what_our_model_cannot_do_is_refused_by_name(
    family: str, changes: dict[str, object]
) -> None:
    config = random_config(family, 0).to_dict() | changes
    with pytest.raises(InputError) as caught:
        ModelShape.from_hf(config)
    assert "\n" not in str(caught.value) and any(
        key in str(caught.value) for key in (*changes, "rope_type")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_rotary_base_is_what_transformers_takes(family: str) -> None:
    """SmolLM3's is not, so that its config must say it."""
    from transformers import CONFIG_MAPPING

    config = random_config(family, 0).to_dict() | {"rope_scaling": None, "rope_theta": None}
    del config["rope_parameters"]
    if ARCHITECTURES[family].rope_base is None:
        with pytest.raises(InputError, match="rope_theta"):
            ModelShape.from_hf(config)
        return
    theirs = CONFIG_MAPPING[family]().rope_parameters["rope_theta"]
    assert ModelShape.from_hf(config).rope_base == theirs


def test_every_family_registered_is_tried_here() -> None:
    assert set(FAMILIES) == set(ARCHITECTURES)


def test_two_names_of_phi3s_scaling_must_agree() -> None:
    config = random_config("phi3", 0).to_dict() | {"rope_theta": 10000.0}
    config["rope_parameters"] = {"rope_type": "su", "type": "yarn"}
    with pytest.raises(InputError, match="rope_type"):
        factor_set_from_hf(with_rope_said(config))


def test_seed_oss_is_read_with_transformers_default_dropout() -> None:
    """transformers' default of 0.1 acts in training only; a config of ours switches it off."""
    config = random_config("seed_oss", 0).to_dict()
    assert config["attention_dropout"] == config["residual_dropout"] == 0.1
    written = ModelShape.from_hf(config).to_hf()
    assert written["attention_dropout"] == written["residual_dropout"] == 0.0


def test_phi3s_first_name_for_longrope_is_read() -> None:
    config = random_config("phi3", 0).to_dict()
    lists = {
        "short_factor": [1.0] * (config["head_dim"] // 2),
        "long_factor": [2.0] * (config["head_dim"] // 2),
    }
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    old |= {
        "rope_scaling": {"type": "su", **lists},
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 256,
    }
    factors = factor_set_from_hf(with_rope_said(old))
    assert ModelShape.from_hf(old).context_length == 256
    assert factors.for_length(257).rescale == tuple(lists["long_factor"])
    assert factors.for_length(257).attention_factor == pytest.approx(
        (1 + np.log(4) / np.log(256)) ** 0.5
    )
