"""Our Transformer Engine code against the real package, where it is installed: it needs no GPU to
be imported.

Its modules refuse to be made where CUDA is absent; told that it is there, they are made on the CPU.
Nothing is run.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints_tools.common.weight_map import rule_of
from megatron_longrope.model import LongRopeModel, build_model
from megatron_longrope.model.checkpoints.checkpoint import load_weights, save_checkpoint
from megatron_longrope.model.engine import choice as backend
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.runtime import Runtime
from megatron_longrope.training.optimizer import is_attention
from tests.support.fake_engines import FakeTeAttention
from tests.support.gpu_stacks import H100, SMALL
from tests.support.tiny_models import single_runtime

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None,
    reason="Transformer Engine is not installed",
)
TE = BackendSettings(engine="transformer-engine")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "gpu_stack", lambda: H100)


def te_model(runtime: Runtime, settings: BackendSettings = TE, **changes: Any) -> LongRopeModel:
    torch.manual_seed(1)
    return build_model(
        SMALL.model_copy(update=changes), runtime, dtype=torch.bfloat16, backend=settings
    )


def parameters_of(function: Any) -> list[tuple[str, Any]]:
    return [(name, p.default) for name, p in inspect.signature(function).parameters.items()]


def test_the_stand_in_has_the_signatures_of_megatrons_wrapper() -> None:
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    for name in ("__init__", "forward"):
        assert parameters_of(getattr(FakeTeAttention, name)) == parameters_of(
            getattr(TEDotProductAttention, name)
        )


def test_every_kernel_reads_its_scale_from_the_attribute_we_set(
    runtime: Runtime, pretended_gpu: None
) -> None:
    model = te_model(runtime)
    attention = model.stage.decoder.layers[0].self_attention.core_attention
    attention.set_softmax_scale(0.375)
    kernels = dict(attention.attention.named_children())
    assert {"flash_attention", "fused_attention", "unfused_attention"} <= kernels.keys()
    for name in ("flash_attention", "fused_attention", "unfused_attention"):
        assert kernels[name].softmax_scale == 0.375
        source = inspect.getsource(type(kernels[name]).forward)
        assert "self.softmax_scale" in source and "1.0 / math.sqrt" not in source


def test_the_window_is_the_attribute_transformer_engine_falls_back_on() -> None:
    from transformer_engine.pytorch import DotProductAttention

    assert "window_size = self.window_size" in inspect.getsource(DotProductAttention.forward)


def test_the_fused_rotation_takes_rows_and_a_table() -> None:
    from megatron.core.extensions.transformer_engine import fused_apply_rotary_pos_emb
    from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

    assert [name for name, _ in parameters_of(fused_apply_rotary_pos_emb)][:2] == ["t", "freqs"]
    assert dict(parameters_of(apply_rotary_pos_emb))["tensor_format"] == "sbhd"


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_each_recipe_becomes_transformer_engines_own(recipe: str, runtime: Runtime) -> None:
    from megatron.core.fp8_utils import get_fp8_recipe

    from megatron_longrope.model.builder import transformer_config

    by_tensor = recipe in ("delayed", "tensorwise")
    settings = BackendSettings(engine="transformer-engine", fp8=recipe, fp8_attention=by_tensor)  # type: ignore[arg-type]
    chosen = backend.Backend("transformer-engine", "", settings)
    config = transformer_config(
        SMALL,
        runtime.layout,
        chosen,
        dtype=torch.bfloat16,
        recompute="none",
        initialize=False,
        on_cpu=True,
    )
    made = get_fp8_recipe(config)
    kinds = {
        "delayed": "delayed",
        "tensorwise": "float8_current_scaling",
        "blockwise": "float8_block_scaling",
        "mxfp8": "mxfp8",
    }
    assert [name for name in kinds if getattr(made, kinds[name])()] == [recipe]
    assert made.fp8_dpa == settings.fp8_attention and not made.fp8_mha


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_a_rule_and_every_rule_a_parameter(
    tied: bool, runtime: Runtime, pretended_gpu: None
) -> None:
    model = te_model(runtime, tie_embeddings=tied)
    found = [rule_of(name, model.shape) for name, _ in model.stage.named_parameters()]
    expected = [
        rule.at(layer).stored if rule.is_per_layer else rule.stored
        for rule in model.shape.family.rules(tied=model.shape.tie_embeddings)
        for layer in (range(model.shape.num_layers) if rule.is_per_layer else [0])
    ]
    assert sorted(rule.stored for rule in found) == sorted(expected)
    assert all(
        name in (rule.stored, rule.megatron)
        for (name, _), rule in zip(model.stage.named_parameters(), found, strict=True)
    )


def test_training_attention_alone_means_the_same_weights(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = build_model(SMALL, runtime, dtype=torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(backend, "gpu_stack", lambda: H100)
        theirs = te_model(runtime)
    trained = [
        {
            rule_of(name, SMALL).stored
            for name, _ in model.stage.named_parameters()
            if is_attention(name)
        }
        for model in (ours, theirs)
    ]
    assert trained[0] == trained[1] and len(trained[0]) == 2 * SMALL.num_layers


def test_checkpoints_of_both_specifications_are_the_same(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by megatron-core's layers and read by Transformer Engine's, and the other way round:
    bit for bit."""
    torch.manual_seed(7)
    ours = build_model(SMALL, runtime, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in ours.stage.parameters():
            parameter.normal_()
    expected = {rule_of(name, SMALL).stored: p.clone() for name, p in ours.stage.named_parameters()}
    save_checkpoint(ours, tmp_path / "ours")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(backend, "gpu_stack", lambda: H100)
        theirs = te_model(runtime)
    load_weights(theirs, tmp_path / "ours")
    for name, parameter in theirs.stage.named_parameters():
        assert torch.equal(parameter, expected[rule_of(name, SMALL).stored]), name
    save_checkpoint(theirs, tmp_path / "theirs")
    with torch.no_grad():
        for parameter in ours.stage.parameters():
            parameter.zero_()
    load_weights(ours, tmp_path / "theirs")
    for name, parameter in ours.stage.named_parameters():
        assert torch.equal(parameter, expected[rule_of(name, SMALL).stored]), name
    assert list((tmp_path / "theirs" / "weights").rglob("*")), "nothing was written"
