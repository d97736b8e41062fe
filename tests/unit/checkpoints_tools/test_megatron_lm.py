"""Checkpoints as Megatron-LM leaves them: arguments in common.pt, optimizer state beside the
weights, iter_ folders."""

from __future__ import annotations

import argparse
import enum
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.folder import open_hf_folder
from checkpoints_tools.load_any import load_model
from megatron_longrope.errors import InputError
from megatron_longrope.model import LongRopeModel, ModelShape, build_model, document_logits
from megatron_longrope.model.checkpoints.checkpoint import read_description, save_checkpoint
from megatron_longrope.model.checkpoints.torch_dist import save_sharded
from megatron_longrope.rope import Llama3
from megatron_longrope.runtime import Runtime
from tests.support.formats.hf_folders import SHAPE
from tests.support.tiny_models import random_documents, single_runtime

QWEN = SHAPE.model_copy(update={"architecture": "qwen2", "vocab_size": 256})


class Backend(enum.Enum):
    """Megatron-LM's arguments hold enums of its own."""

    auto = 1


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


def arguments(shape: ModelShape, **changes: Any) -> argparse.Namespace:
    """Returns what Megatron-LM's argument parser makes of its own options for such a model."""
    values: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_heads,
        "group_query_attention": True,
        "num_query_groups": shape.num_kv_heads,
        "kv_channels": shape.head_dim,
        "max_position_embeddings": shape.context_length,
        "vocab_size": None,
        "padded_vocab_size": 256,
        "position_embedding_type": "rope",
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "swiglu": True,
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-5,
        "add_bias_linear": False,
        "untie_embeddings_and_output_weights": True,
        "params_dtype": torch.bfloat16,
        "attention_backend": Backend.auto,
        "add_qkv_bias": shape.family.qkv_bias,
        "hidden_dropout": 0.1,
        "window_size": None,
        "num_experts": None,
    }
    return argparse.Namespace(**values | changes)


def write(model: LongRopeModel, root: Path, iteration: int = 100, **changes: Any) -> Path:
    """Writes a model as Megatron-LM does; returns the folder of all iterations."""
    from megatron.core.dist_checkpointing.mapping import (
        ShardedTensor,
    )  # not before our CPU platform is installed

    folder = root / f"iter_{iteration:07d}"
    folder.mkdir(parents=True)
    (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    moment = torch.zeros(7)
    state = {
        "model": model.stage.sharded_state_dict(),
        "optimizer": ShardedTensor.from_rank_offsets(
            "optimizer.state.exp_avg.decoder.final_layernorm.weight", moment
        ),
        "args": arguments(model.shape, **changes),
        "iteration": iteration,
        "checkpoint_version": 3.0,
    }
    save_sharded(state, folder)
    return root


@pytest.mark.parametrize("shape", [SHAPE.model_copy(update={"vocab_size": 256}), QWEN])
def test_it_loads_and_exports_as_its_own_model_does(
    tmp_path: Path, runtime: Runtime, shape: ModelShape
) -> None:
    from transformers import AutoModelForCausalLM

    model = build_model(shape, runtime)
    with torch.no_grad():
        for parameter in model.stage.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    root = write(model, tmp_path / "lm")
    (document,) = random_documents(40, vocabulary=200)
    expected = document_logits(model, document)
    loaded = load_model(root, runtime).model
    assert loaded.shape == shape and read_description(root).iteration == 100
    assert np.array_equal(document_logits(loaded, document), expected)
    assert np.array_equal(
        document_logits(load_model(root / "iter_0000100", runtime).model, document), expected
    )
    export_hf(root, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = theirs(torch.tensor(document)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_llama3_scaling_and_the_real_vocabulary_are_carried(
    tmp_path: Path, runtime: Runtime
) -> None:
    shape = SHAPE.model_copy(update={"context_length": 8192})
    root = write(
        build_model(shape, runtime),
        tmp_path / "lm",
        use_rope_scaling=True,
        rope_scaling_factor=4.0,
        vocab_size=SHAPE.vocab_size,
        max_position_embeddings=32768,
    )
    description = read_description(root)
    assert description.shape == shape
    method = Llama3(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
    geometry = description.factor_set.geometry
    assert description.factor_set.for_length(9000).rescale == method.factors(geometry).rescale
    export_hf(root, tmp_path / "hf")
    assert open_hf_folder(tmp_path / "hf").header("lm_head.weight")[0] == (
        SHAPE.vocab_size,
        SHAPE.hidden_size,
    )


def test_a_folder_of_megatron_lm_is_never_replaced(tmp_path: Path, runtime: Runtime) -> None:
    model = build_model(QWEN, runtime)
    root = write(model, tmp_path / "lm")
    with pytest.raises(InputError, match="left alone"):
        save_checkpoint(model, root)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"normalization": "LayerNorm"}, "normalization"),
        ({"swiglu": False}, "swiglu"),
        ({"num_experts": 8}, "num_experts"),
        ({"rotary_percent": 0.5}, "rotary_percent"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"qk_layernorm": True}, "add_qkv_bias"),
        ({"position_embedding_type": "yarn"}, "position_embedding_type"),
        ({"rotary_seq_len_interpolation_factor": 2}, "interpolation"),
        ({"hidden_size": None}, "hidden_size"),
        ({"window_size": "x"}, "window_size"),
        ({"vocab_size": 10**6}, "vocab_size"),
        ({"num_layers": Backend.auto}, "num_layers"),
    ],
)
def test_arguments_of_other_models_are_refused(
    tmp_path: Path, runtime: Runtime, changes: dict[str, object], field: str
) -> None:
    root = write(build_model(QWEN, runtime), tmp_path / "lm", **changes)
    with pytest.raises(InputError, match=field) as caught:
        read_description(root)
    assert "\n" not in str(caught.value)


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_hostile_arguments_do_not_run(tmp_path: Path, runtime: Runtime) -> None:
    root = write(build_model(QWEN, runtime), tmp_path / "lm")
    common = root / "iter_0000100" / "common.pt"
    torch.save({"args": arguments(QWEN, extra=Payload(tmp_path / "ran")), "iteration": 100}, common)
    assert read_description(root).shape == QWEN
    torch.save({"args": Payload(tmp_path / "ran")}, common)
    with pytest.raises(InputError, match="no arguments"):
        read_description(root)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("said", ["../../etc", "-1", "1e3", "", "101", "release"])
def test_a_latest_iteration_that_leads_astray_is_refused(
    tmp_path: Path, runtime: Runtime, said: str
) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "latest_checkpointed_iteration.txt").write_text(said)
    with pytest.raises(InputError, match="latest_checkpointed"):
        read_description(tmp_path / "lm")
