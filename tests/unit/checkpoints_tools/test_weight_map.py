"""The weight table: both directions give each other's inverse, and shares put together give the
whole."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_tools.common.weight_map import (
    bound_rules,
    hf_sizes,
    rule_of,
    tensor_parallel_share,
    to_hf,
    to_megatron,
)
from checkpoints_tools.gguf.names import unpermuted
from checkpoints_tools.hf.folder import bits_equal
from megatron_longrope.model import ModelShape
from tests.support.llama_sizes import DTYPES, shapes


@given(shape=shapes(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_there_and_back_keeps_every_bit(shape: ModelShape, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, _, rule in bound_rules(shape):
        tensors = {
            n: torch.randn(s, generator=generator).to(dtype)
            for n, s in rule.hf_sizes(shape).items()
        }
        back = to_hf(rule, to_megatron(rule, list(tensors.values()), shape), shape)
        assert list(back) == list(tensors)
        assert all(bits_equal(back[name], tensor) for name, tensor in tensors.items())


@given(shape=shapes(), size=st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None)
def test_shares_of_all_ranks_hold_every_number_once(shape: ModelShape, size: int) -> None:
    if shape.num_kv_heads % size or shape.ffn_hidden_size % size or shape.num_heads % size:
        return
    for _, _, rule in bound_rules(shape):
        sizes = rule.hf_sizes(shape).values()
        tensors = [torch.randperm(torch.Size(s).numel()).reshape(s) + 1 for s in sizes]
        whole = to_megatron(rule, tensors, shape)
        shares = [tensor_parallel_share(rule, whole, rank, size) for rank in range(size)]
        if rule.kind == "plain":
            assert all(torch.equal(share, whole) for share in shares)
            continue
        assert sum(share.numel() for share in shares) == whole.numel()
        together = torch.cat([share.flatten() for share in shares])
        assert torch.equal(together.sort().values, whole.flatten().sort().values)


def test_qkv_rows_are_grouped_as_megatron_wants_them() -> None:
    shape = ModelShape(
        num_layers=1,
        hidden_size=1,
        ffn_hidden_size=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=2,
        vocab_size=5,
        context_length=8,
    )
    rule = next(rule for _, _, rule in bound_rules(shape) if rule.kind == "qkv")
    q, k, v = (
        torch.arange(n, dtype=torch.float32)[:, None] + start
        for n, start in ((8, 0), (4, 100), (4, 200))
    )
    assert to_megatron(rule, [q, k, v], shape).flatten().tolist() == [
        0,
        1,
        2,
        3,
        100,
        101,
        200,
        201,
        4,
        5,
        6,
        7,
        102,
        103,
        202,
        203,
    ]


@given(shape=shapes())
@settings(max_examples=5, deadline=None)
def test_names_are_those_of_transformers(shape: ModelShape) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    # transformers wants hidden_size to be a multiple of the heads, though head_dim is said
    shape = shape.model_copy(update={"hidden_size": 4 * shape.num_heads})
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape.to_hf()))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert hf_sizes(shape) == theirs


def test_the_last_stage_of_a_tied_model_takes_the_embedding() -> None:
    tied = ModelShape(
        num_layers=4,
        hidden_size=8,
        ffn_hidden_size=8,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        vocab_size=5,
        context_length=8,
        tie_embeddings=True,
    )
    assert rule_of("output_layer.weight", tied).hf == ("model.embed_tokens.weight",)
    assert rule_of("output_layer.weight", tied.model_copy(update={"tie_embeddings": False})).hf == (
        "lm_head.weight",
    )
    assert rule_of("decoder.layers.3.mlp.linear_fc2.weight", tied).hf == (
        "model.layers.3.mlp.down_proj.weight",
    )


def test_layers_come_in_order() -> None:
    shape = ModelShape(
        num_layers=3,
        hidden_size=8,
        ffn_hidden_size=8,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        vocab_size=5,
        context_length=8,
    )
    assert [layer for layer, _ in groupby(layer for _, layer, _ in bound_rules(shape))] == [
        None,
        0,
        1,
        2,
        None,
    ]


@pytest.mark.parametrize("heads", [1, 3])
def test_gguf_rows_are_put_back(heads: int) -> None:
    """llama.cpp's converter permutes as below; its inverse gives the rows back."""
    rows = torch.arange(heads * 8 * 2).reshape(heads * 8, 2)
    permuted = rows.reshape(heads, 2, 4, 2).swapaxes(1, 2).reshape(rows.shape)
    assert torch.equal(unpermuted(permuted, heads), rows)
