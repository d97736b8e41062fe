"""Random Llama models of transformers for unit tests, and our models with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_longrope.model import LongRopeModel, ModelShape, build_model
from megatron_longrope.rope import AnglePrecision, factor_set_from_hf
from megatron_longrope.runtime import Runtime

WINDOW = 64
VOCABULARY = 203  # no multiple of 128: the embedding is padded on our side


def tiny_hf_model(seed: int = 0, **config: Any) -> Any:
    """Returns a random float32 LlamaForCausalLM in eval mode.

    Its weights are enlarged, so that attention is not uniform.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": WINDOW,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(settings | config))).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(6)
    return model


class HfWeights(NamedTuple):
    """Config and weights of a transformers model, for processes that do not import transformers."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, hf_model: Any) -> HfWeights:
        """Returns the config and weights of a transformers model; HfWeights are returned as is."""
        if isinstance(hf_model, HfWeights):
            return hf_model
        return cls(
            hf_model.config.to_dict(),
            {name: t.clone() for name, t in hf_model.state_dict().items()},
        )


def our_model(
    hf_model: Any,
    runtime: Runtime,
    *,
    angle_precision: AnglePrecision = "hf",
    dtype: torch.dtype = torch.float32,
    scaled: bool = True,
    **build: Any,
) -> LongRopeModel:
    """Returns our model with the weights of a transformers model.

    Args:
        hf_model: the transformers model, or HfWeights.
        runtime: the running processes and their layout.
        angle_precision: arithmetic of the RoPE angles.
        dtype: the weights are cast to it.
        scaled: whether the factors of the model's config are in force.
        build: further arguments of `build_model`.
    """
    config, weights = HfWeights.of(hf_model)
    model = build_model(
        ModelShape.from_hf(config), runtime, angle_precision=angle_precision, dtype=dtype, **build
    )
    tensors = stage_tensors(model, weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.shape == tensors[name].shape, name
            parameter.copy_(tensors[name])
    if scaled:
        model.set_factors(factor_set_from_hf(config))
    return model


def stage_tensors(model: LongRopeModel, hf: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns this process's part of HF tensors for each of its parameters, by parameter name.

    The tensors are weights, or gradients by the same names.
    """
    return {name: _local_tensor(model, name, hf) for name, _ in model.named_parameters()}


def _local_tensor(model: LongRopeModel, name: str, hf: Mapping[str, Tensor]) -> Tensor:
    size, rank = model.runtime.groups.tp.size(), model.runtime.groups.tp.rank()

    def share(whole: Tensor, dim: int = 0) -> Tensor:
        return whole.chunk(size, dim)[rank]

    if name.startswith(("embedding", "output_layer")):
        tied = model.shape.tie_embeddings or name.startswith("embedding")
        return share(
            _padded(hf["model.embed_tokens.weight" if tied else "lm_head.weight"], model.shape)
        )
    if name == "decoder.final_layernorm.weight":
        return hf["model.norm.weight"]
    of = f"model.layers.{name.split('.')[2]}."
    if "linear_qkv" in name:
        return share(_grouped_qkv(hf, of, model.shape))
    if "linear_proj" in name:
        return share(hf[of + "self_attn.o_proj.weight"], 1)
    if "linear_fc1" in name:
        return torch.cat(
            [share(hf[of + "mlp.gate_proj.weight"]), share(hf[of + "mlp.up_proj.weight"])]
        )
    if "linear_fc2" in name:
        return share(hf[of + "mlp.down_proj.weight"], 1)
    return hf[
        of
        + (
            "input_layernorm.weight"
            if "input_layernorm" in name
            else "post_attention_layernorm.weight"
        )
    ]


def _grouped_qkv(hf: Mapping[str, Tensor], of: str, shape: ModelShape) -> Tensor:
    """Returns rows in Megatron's order: [q … q, k, v] for each group that shares a key head."""
    parts = [
        hf[f"{of}self_attn.{kind}_proj.weight"].reshape(shape.num_kv_heads, -1, shape.hidden_size)
        for kind in "qkv"
    ]
    return torch.cat(parts, dim=1).reshape(-1, shape.hidden_size)


def _padded(weight: Tensor, shape: ModelShape) -> Tensor:
    return torch.cat(
        [weight, weight.new_zeros(shape.padded_vocab_size - len(weight), weight.shape[1])]
    )


def random_documents(
    *lengths: int, seed: int = 0, vocabulary: int = VOCABULARY
) -> list[np.ndarray]:
    """Returns a document of random tokens for each length."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocabulary, length) for length in lengths]


def single_runtime(threads: int = 1) -> Iterator[Runtime]:
    """Yields a runtime in which this process is the whole run; the body of fixtures."""
    from megatron_longrope.runtime import start_runtime

    before = torch.get_num_threads()
    with start_runtime(threads=threads) as runtime:
        yield runtime
    torch.set_num_threads(before)
