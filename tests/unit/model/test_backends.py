"""Attention by other packages' kernels, stood in for: same scores and gradients as ours, under
changing factors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from megatron_longrope.data.batches import DocumentBatch
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import PerplexityObjective
from megatron_longrope.model import LongRopeModel, build_model, score_documents
from megatron_longrope.model.attention.flash import FlashDocumentAttention
from megatron_longrope.model.attention.transformer_engine import TeDocumentAttention
from megatron_longrope.model.engine.choice import Backend, resolve_backend
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.model.factor_gradient import score_with_gradient
from megatron_longrope.rope import FactorOrigin, FactorSet, RopeFactors
from megatron_longrope.runtime import ParallelLayout, Runtime, te_environment
from tests.support.fake_engines import FakeTeAttention, exact_attention, fake_flash_attn_varlen_func
from tests.support.gpu_stacks import H100, LLAMA_8B
from tests.support.tiny_models import our_model, random_documents, single_runtime, tiny_hf_model

PACKED = (23, 64, 5)
ALONE = (41,)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


def flash_attention(**kwargs: Any) -> nn.Module:
    return FlashDocumentAttention(kernel=fake_flash_attn_varlen_func, **kwargs)


def te_attention(**kwargs: Any) -> nn.Module:
    return TeDocumentAttention(build_attention=FakeTeAttention, **kwargs)


ENGINES = pytest.mark.parametrize("attention", [te_attention, flash_attention])


def with_attention(
    model: LongRopeModel, attention: Callable[..., nn.Module], **options: Any
) -> LongRopeModel:
    """Puts another core attention in every layer, built as megatron-core builds it."""
    for layer in model.stage.decoder.layers:
        own = layer.self_attention
        own.core_attention = attention(
            config=own.config,
            layer_number=own.layer_number,
            attn_mask_type=own.attn_mask_type,
            attention_type=own.attention_type,
            cp_comm_type=None,
            softmax_scale=None,
            pg_collection=own.pg_collection,
            **options,
        )
    return model


def factors(model: LongRopeModel, scale: float, start: int, temperature: float) -> FactorSet:
    shape = model.shape
    pairs = shape.head_dim // 2
    return FactorSet.single(
        RopeFactors(
            rescale=tuple(np.linspace(1, scale, pairs).tolist()),
            start_tokens=start,
            attention_factor=temperature,
            original_length=shape.context_length,
            target_length=int(shape.context_length * 8),
            base=shape.rope_base,
            head_dim=shape.head_dim,
            origin=FactorOrigin(method="test"),
        )
    )


@ENGINES
@pytest.mark.parametrize("lengths", [PACKED, ALONE])
def test_scores_and_factor_gradients_equal_ours(
    attention: Callable[..., nn.Module], lengths: tuple[int, ...], runtime: Runtime
) -> None:
    hf, documents = tiny_hf_model(), random_documents(*lengths)
    ours = our_model(hf, runtime, angle_precision="float64")
    theirs = with_attention(our_model(hf, runtime, angle_precision="float64"), attention)
    weights = [np.ones(len(document) - 1) for document in documents]
    for model in (ours, theirs):
        model.set_factors(factors(model, 4.0, 3, 1.2))
    for a, b in zip(
        score_documents(ours, documents), score_documents(theirs, documents), strict=True
    ):
        assert np.abs(a.nll - b.nll).max() < 2e-5
    _, expected = score_with_gradient(ours, documents, weights)
    _, found = score_with_gradient(theirs, documents, weights)
    assert np.allclose(found.rescale, expected.rescale, rtol=1e-3, atol=1e-4)
    assert found.attention_factor == pytest.approx(expected.attention_factor, rel=1e-3, abs=1e-4)


@ENGINES
def test_a_candidate_scores_the_same_after_another_one(
    attention: Callable[..., nn.Module], runtime: Runtime
) -> None:
    """λ, n̂ and temperature are those of the batch: nothing of a candidate outlives it."""
    model = with_attention(our_model(tiny_hf_model(), runtime), attention)
    documents = random_documents(*PACKED)
    first, other = factors(model, 3.0, 0, 1.0), factors(model, 8.0, 4, 1.3)

    def nats(candidate: FactorSet) -> np.ndarray:
        model.set_factors(candidate)
        return np.concatenate([score.nll for score in score_documents(model, documents)])

    before, between, after = nats(first), nats(other), nats(first)
    assert np.array_equal(before, after)
    assert np.abs(before - between).max() > 1e-3


def test_te_gets_rows_for_one_document_and_boundaries_for_several(runtime: Runtime) -> None:
    model = with_attention(our_model(tiny_hf_model(), runtime), te_attention)
    kernel = model.stage.decoder.layers[0].self_attention.core_attention.attention
    score_documents(model, random_documents(*ALONE))
    assert kernel.last_call[0].shape == (41, 1, 4, 16) and kernel.last_call[1] is None
    score_documents(model, random_documents(*PACKED))
    query, pack = kernel.last_call
    assert query.shape == (92, 4, 16)
    assert pack.cu_seqlens_q.tolist() == pack.cu_seqlens_kv.tolist() == [0, 23, 87, 92]
    assert pack.max_seqlen_q == pack.max_seqlen_kv == 64 and pack.qkv_format == "thd"
    assert pack.cu_seqlens_q_padded is None and pack.cp_group is None


def test_under_context_parallelism_te_gets_padded_boundaries_that_cost_no_comparison(
    runtime: Runtime,
) -> None:
    model = our_model(tiny_hf_model(), runtime)
    attention = (
        with_attention(model, te_attention).stage.decoder.layers[0].self_attention.core_attention
    )
    attention.context_parallel = 2
    score_documents(model, random_documents(*PACKED))
    pack = attention.attention.last_call[1]
    assert (
        pack.cu_seqlens_q_padded is pack.cu_seqlens_q
        and pack.cu_seqlens_kv_padded is pack.cu_seqlens_kv
    )


@ENGINES
def test_windows_and_layers_without_rope(
    attention: Callable[..., nn.Module], runtime: Runtime
) -> None:
    """A window of w tokens counts the query's own; a layer that is not rotated has no
    temperature."""
    model = our_model(tiny_hf_model(), runtime)
    own = model.stage.decoder.layers[0].self_attention
    built = attention(
        config=own.config,
        layer_number=1,
        attn_mask_type=own.attn_mask_type,
        attention_type="self",
        pg_collection=own.pg_collection,
        window=5,
        is_rotated=False,
    )
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(30, heads, 16, generator=generator) for heads in (4, 2, 2))
    from megatron_longrope.model.attention.packed import packed_params

    batch = DocumentBatch.from_documents([np.arange(18), np.arange(12)])
    packed = packed_params(batch, factors(model, 4.0, 0, 1.3), "float64", torch.device("cpu"))
    found = built(query, key, value, None, packed_seq_params=packed)
    expected = exact_attention(query, key, value, (0, 18, 30), 0.25, left=4).flatten(1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_fused_rotation_gets_our_table_row_by_row(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TE's kernel in sbhd format turns row s by row s of the table: with ours that is packed
    documents and n̂ alike."""
    from megatron_longrope.model.attention import transformer_engine as module

    calls = []

    def kernel(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        calls.append((x.shape, angles.shape))
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()

    monkeypatch.setattr(module, "_fused_rotation", lambda: kernel)
    plain = with_attention(our_model(tiny_hf_model(), runtime), te_attention)
    fused = with_attention(our_model(tiny_hf_model(), runtime), te_attention, fused_rope=True)
    documents = random_documents(*PACKED)
    for model in (plain, fused):
        model.set_factors(factors(model, 4.0, 3, 1.2))
    for a, b in zip(
        score_documents(plain, documents), score_documents(fused, documents), strict=True
    ):
        assert np.abs(a.nll - b.nll).max() < 2e-5
    assert calls[:2] == [((92, 1, 4, 16), (92, 1, 1, 16)), ((92, 1, 2, 16), (92, 1, 1, 16))]


@pytest.mark.parametrize("lengths", [PACKED, ALONE])
def test_filling_a_batch_up_for_fp8_changes_no_score(
    lengths: tuple[int, ...], runtime: Runtime
) -> None:
    model = our_model(tiny_hf_model(), runtime)
    documents = random_documents(*lengths)
    expected = score_documents(model, documents)
    seen = []
    model.backend = replace(model.backend, token_multiple=128)
    check = Backend.check_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Backend, "check_batch", lambda self, batch: (seen.append(batch), check(self, batch))[1]
        )
        found = score_documents(model, documents)
    assert [int(batch.cu_seqlens[-1]) for batch in seen] == [128]
    assert seen[0].num_documents == (1 if len(lengths) == 1 else len(lengths) + 1)
    for a, b in zip(expected, found, strict=True):
        assert np.abs(a.nll - b.nll).max() < 1e-5 and np.array_equal(a.correct, b.correct)


def batch_of(*lengths: int) -> DocumentBatch:
    return DocumentBatch.from_documents([np.ones(length, dtype=np.int64) for length in lengths])


def test_batches_that_do_not_fit_the_engine_are_refused() -> None:
    def backend(**settings: Any) -> Backend:
        return resolve_backend(
            BackendSettings(engine="transformer-engine", **settings),
            LLAMA_8B,
            ParallelLayout(),
            dtype=torch.bfloat16,
            stack=H100,
        )

    backend(fp8="tensorwise").check_batch(batch_of(20, 12))
    with pytest.raises(InputError, match=r"sequence_length=30: .*multiple of 16"):
        backend(fp8="tensorwise").check_batch(batch_of(20, 10))
    backend(packed=False).check_batch(batch_of(20))
    with pytest.raises(InputError, match="packed=False: a row holds 2 documents"):
        backend(packed=False).check_batch(batch_of(20, 10))
    limited = backend(fused_rope=True)
    assert limited.max_tokens == 349525  # ⌊(2³¹ − 1) / (48 heads · 128)⌋
    with pytest.raises(InputError, match="fused_rope takes at most 10 tokens"):
        replace(limited, max_tokens=10).check_batch(batch_of(11))


def test_what_goes_into_megatrons_config() -> None:
    def values(layout: ParallelLayout, **settings: Any) -> dict[str, Any]:
        asked = BackendSettings(engine="transformer-engine", **settings)
        return resolve_backend(
            asked, LLAMA_8B, layout, dtype=torch.bfloat16, stack=H100
        ).config_settings(layout)

    one, four = ParallelLayout(), ParallelLayout(context_parallel=4)
    assert values(one) == {}
    assert values(four) == {"cp_comm_type": "p2p"}
    assert values(four, cp_comm_type="a2a") == {"cp_comm_type": "a2a"}
    fp8 = {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_dot_product_attention": True}
    assert values(one, fp8="delayed", fp8_attention=True, packed=False) == fp8
    by_block = {"fp8": "e4m3", "fp8_recipe": "blockwise", "fp8_dot_product_attention": False}
    assert values(one, fp8="blockwise") == by_block


def test_settings_for_scoring_leave_fp8_out_unless_told_otherwise() -> None:
    fp8 = BackendSettings(
        fp8="delayed", fp8_attention=True, fp8_attention_backward=False, packed=False
    )
    assert fp8.for_scoring() == BackendSettings(packed=False)
    told = BackendSettings(fp8="tensorwise", fp8_scoring=True)
    assert told.for_scoring() is told


def test_a_search_in_fp8_is_refused_unless_its_ranking_was_shown(runtime: Runtime) -> None:
    model = our_model(tiny_hf_model(), runtime)
    documents = random_documents(32)
    for shown in (False, True):
        settings = BackendSettings(fp8="tensorwise", fp8_scoring=shown)
        model.backend = replace(model.backend, settings=settings)
        if shown:
            assert PerplexityObjective(model, documents, target_length=32).model is model
        else:
            with pytest.raises(InputError, match="fp8=tensorwise: may reorder candidates"):
                PerplexityObjective(model, documents, target_length=32)


def test_without_a_gpu_the_model_is_built_with_torch_and_others_are_refused(
    runtime: Runtime,
) -> None:
    model = our_model(tiny_hf_model(), runtime)
    assert (model.backend.engine, model.backend.reason) == ("torch", "no CUDA device")
    for engine in ("transformer-engine", "flash-attn"):
        with pytest.raises(InputError, match=f"engine={engine}: needs a CUDA device"):
            build_model(
                model.shape, runtime, dtype=torch.bfloat16, backend=BackendSettings(engine=engine)
            )


def test_environment_of_transformer_engine(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NVTE_UNFUSED_ATTN", "NVTE_FUSED_ATTN", "NVTE_FP8_DPA_BWD"):
        monkeypatch.setenv(name, "")  # so that it is put back at the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(te_environment, "_ours", set())
    monkeypatch.setenv("NVTE_FLASH_ATTN", "0")
    te_environment.prepare_transformer_engine(fp8_attention_backward=None)
    assert os.environ["NVTE_UNFUSED_ATTN"] == "0" and "NVTE_FP8_DPA_BWD" not in os.environ
    our_model(
        tiny_hf_model(), runtime
    )  # megatron-core turns all switches on, and would refuse to find one off
    assert os.environ["NVTE_UNFUSED_ATTN"] == "0" and os.environ["NVTE_FLASH_ATTN"] == "0"
    assert "NVTE_FUSED_ATTN" not in os.environ
    te_environment.prepare_transformer_engine(fp8_attention_backward=False)
    te_environment.prepare_transformer_engine(fp8_attention_backward=True)
    assert os.environ["NVTE_FP8_DPA_BWD"] == "1"
    monkeypatch.setattr(te_environment, "_ours", set())
    monkeypatch.setenv("NVTE_FP8_DPA_BWD", "1")
    te_environment.prepare_transformer_engine(fp8_attention_backward=None)
    with pytest.raises(InputError, match="NVTE_FP8_DPA_BWD=1: unset it"):
        te_environment.prepare_transformer_engine(fp8_attention_backward=False)
