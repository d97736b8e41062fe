"""The one place where a model is made: layer specifications, megatron-core's config, the chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import silu

from megatron_longrope.errors import InputError
from megatron_longrope.model.attention.core import DocumentAttention
from megatron_longrope.model.attention.flash import FlashDocumentAttention
from megatron_longrope.model.engine.choice import Backend, resolve_backend
from megatron_longrope.model.engine.settings import BackendSettings, Purpose, Recompute
from megatron_longrope.model.gpt import LongRopeGPT
from megatron_longrope.model.layers.lean_layer import LeanLayer
from megatron_longrope.model.layers.norm import RMSNorm
from megatron_longrope.model.layers.offload import offload_inputs_of
from megatron_longrope.model.layers.swiglu import swiglu_mlp
from megatron_longrope.model.longrope_model import LongRopeModel
from megatron_longrope.model.shape import ModelShape
from megatron_longrope.rope import AnglePrecision, FactorSet, NoScaling, RopeGeometry
from megatron_longrope.runtime import ParallelLayout, Runtime
from megatron_longrope.runtime.te_environment import switches_kept


def check_shape(layout: ParallelLayout, shape: ModelShape) -> None:
    """Raises InputError for a model that the layout cannot cut."""
    layout.check_model(
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        ffn_hidden_size=shape.ffn_hidden_size,
    )
    if layout.context_parallel > 1 and shape.attention_windows:
        rule = (
            "sliding windows are not cut by context parallelism: import with --sliding-window off"
        )
        raise InputError("context_parallel", layout.context_parallel, rule)


def build_model(
    shape: ModelShape,
    runtime: Runtime,
    *,
    dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    initialize: bool = True,
    angle_precision: AnglePrecision = "float64",
    offload: bool = False,
    backend: BackendSettings | None = None,
    purpose: Purpose = "training",
    sequence_length: int | None = None,
) -> LongRopeModel:
    """Returns this process's share of a new model, on its device, with unscaled RoPE.

    Raises InputError where the layout cannot cut this shape, for offload without full
    recomputation, and where backend, layout, shape and machine do not go together.

    Args:
        shape: Sizes and options of the model.
        runtime: This process's device, process groups and layout.
        dtype: Of the weights.
        recompute: Which activations the backward pass computes again.
        initialize: Whether weights are drawn at random; False leaves them for a checkpoint to fill.
        angle_precision: How rotary angles are computed.
        offload: Whether inputs of recomputed layers wait in host memory.
        backend: What is asked of the engine; by default whatever serves on this machine.
        purpose: What the engine is checked for; a model built for training can score too.
        sequence_length: Tokens of the longest row over all processes, where known already.
    """
    if offload and recompute != "full":
        raise InputError(
            "offload",
            offload,
            f"moves the inputs of recomputed layers: recompute=full, not {recompute}",
        )
    layout = runtime.layout
    check_shape(layout, shape)
    resolved = resolve_backend(
        backend or BackendSettings(),
        shape,
        layout,
        dtype=dtype,
        recompute=recompute,
        purpose=purpose,
        sliding_window=bool(shape.attention_windows),
        sequence_length=sequence_length,
    )
    config = transformer_config(
        shape,
        layout,
        resolved,
        dtype=dtype,
        recompute=recompute,
        initialize=initialize,
        on_cpu=runtime.device.type == "cpu",
    )
    with switches_kept():  # building changes environment variables that choose attention kernels
        chunks = [
            _build_chunk(shape, runtime, resolved, config, number)
            for number in range(layout.virtual_pipeline)
        ]
    resolved.prepare()
    for chunk in chunks:
        chunk.to(runtime.device)
        if offload:
            offload_inputs_of(chunk.decoder, shape.hidden_size)
    return LongRopeModel(shape, runtime, chunks, _unscaled(shape), resolved, angle_precision)


def _build_chunk(
    shape: ModelShape, runtime: Runtime, backend: Backend, config: TransformerConfig, number: int
) -> LongRopeGPT:
    """Returns chunk `number` of this process.

    The model's first chunk has the embedding, its last one the output layer.
    """
    layout = runtime.layout
    return LongRopeGPT(
        config=config,
        transformer_layer_spec=block_spec(
            shape, _layers_of_chunk(shape, runtime, number), backend, runtime.groups.tp
        ),
        vocab_size=shape.padded_vocab_size,
        max_sequence_length=shape.context_length,
        pre_process=runtime.is_first_stage and number == 0,
        post_process=runtime.is_last_stage and number == layout.virtual_pipeline - 1,
        share_embeddings_and_output_weights=shape.tie_embeddings,
        position_embedding_type="rope",
        pg_collection=runtime.groups,
        vp_stage=number if layout.is_interleaved else None,
        real_vocab_size=shape.vocab_size,
    )


def block_spec(
    shape: ModelShape, layers: range, backend: Backend, tp_group: dist.ProcessGroup
) -> TransformerBlockSubmodules:
    """Returns megatron-core's specification of `layers`, which count from 0.

    It is Transformer Engine's, or megatron-core's local one, with our parts in their places.
    """
    if backend.engine == "transformer-engine":
        from megatron_longrope.model.engine.transformer_engine import FINAL_NORM

        return TransformerBlockSubmodules(
            layer_specs=[_te_layer(shape, layer, backend) for layer in layers],
            layer_norm=FINAL_NORM,
        )
    return TransformerBlockSubmodules(
        layer_specs=[_local_layer(shape, layer, backend, tp_group) for layer in layers],
        layer_norm=RMSNorm,
    )


def _te_layer(shape: ModelShape, layer: int, backend: Backend) -> ModuleSpec:
    # Not at the top: the module below needs Transformer Engine to be installed.
    from megatron_longrope.model.engine.transformer_engine import te_layer_spec

    settings = backend.settings
    return te_layer_spec(
        fused_rope=settings.fused_rope,
        is_lean=settings.fp8 == "off",
        qk_norm=shape.family.qk_norm,
        window=shape.window(layer),
        is_rotated=layer not in shape.rope_free_layers,
    )


def _local_layer(
    shape: ModelShape, layer: int, backend: Backend, tp_group: dist.ProcessGroup
) -> ModuleSpec:
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=shape.family.qk_norm)
    spec.module = LeanLayer
    spec.submodules.input_layernorm = RMSNorm
    spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.mlp = swiglu_mlp(spec.submodules.mlp.submodules, tp_group)
    attention = spec.submodules.self_attention.submodules
    if shape.family.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    kind = FlashDocumentAttention if backend.engine == "flash-attn" else DocumentAttention
    window, is_rotated = shape.window(layer), layer not in shape.rope_free_layers
    attention.core_attention = partial(kind, window=window, is_rotated=is_rotated)
    return spec


def _layers_of_chunk(shape: ModelShape, runtime: Runtime, number: int) -> range:
    """Returns the layers, counted from 0, of this process's chunk `number`.

    Chunk c of the model lies on pipeline rank c mod pipeline_parallel.
    """
    num_layers = shape.num_layers // runtime.layout.model_chunks
    first = (number * runtime.layout.pipeline_parallel + runtime.groups.pp.rank()) * num_layers
    return range(first, first + num_layers)


def transformer_config(
    shape: ModelShape,
    layout: ParallelLayout,
    backend: Backend,
    *,
    dtype: torch.dtype,
    recompute: Recompute,
    initialize: bool,
    on_cpu: bool,
) -> TransformerConfig:
    """Returns megatron-core's config of a model.

    Args:
        shape: Sizes and options of the model.
        layout: How the model is spread over processes.
        backend: The engine, checked.
        dtype: Of the weights, and of what travels between pipeline stages.
        recompute: Which activations the backward pass computes again.
        initialize: Whether weights are drawn at random.
        on_cpu: Whether they are drawn on the CPU.
    """
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        gated_linear_unit=True,
        activation_func=silu,
        add_bias_linear=False,
        add_qkv_bias=shape.family.qkv_bias,
        qk_layernorm=shape.family.qk_norm,
        no_rope_freq=_skipped_rotations(shape),
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method_std=shape.initializer_range,
        tensor_model_parallel_size=layout.tensor_parallel,
        sequence_parallel=layout.sequence_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline
        if layout.is_interleaved
        else None,
        # The interleaved schedule sends activations one way around the ring of stages and gradients
        # the other way. Between two ranks both directions meet in the same pair: sent in one batch,
        # one message would be taken for the other.
        overlap_p2p_comm=layout.is_interleaved,
        batch_p2p_comm=not layout.is_interleaved,
        context_parallel_size=layout.context_parallel,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=False,
        # Batches differ in length, so pipeline stages tell each other the shape of what they send.
        variable_seq_lengths=True,
        # There are no experts here, but the default of this field refuses variable lengths.
        moe_token_dispatcher_type="alltoall",
        # Losses are sums over tokens, divided once by the tokens of all ranks (schedule.py).
        calculate_per_token_loss=True,
        use_cpu_initialization=on_cpu,
        perform_initialization=initialize,
        bias_activation_fusion=True,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        **backend.config_settings(layout),
        **_recompute_settings(recompute),
    )


def _skipped_rotations(shape: ModelShape) -> list[int] | None:
    """Returns megatron-core's list with a 1 for each layer that does not rotate, 0 for others.

    None: all layers rotate.
    """
    return (
        [int(layer in shape.rope_free_layers) for layer in range(shape.num_layers)]
        if shape.rope_free_layers
        else None
    )


def _recompute_settings(recompute: Recompute) -> dict[str, Any]:
    """Returns megatron-core's settings: full recomputes whole layers, selective attention only."""
    if recompute == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    return {"recompute_granularity": "selective"} if recompute == "selective" else {}


def _unscaled(shape: ModelShape) -> FactorSet:
    geometry = RopeGeometry(
        base=shape.rope_base, head_dim=shape.head_dim, original_length=shape.context_length
    )
    return FactorSet.single(NoScaling().factors(geometry))
