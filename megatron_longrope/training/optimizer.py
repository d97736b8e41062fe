"""Data parallelism and the distributed optimizer of megatron-core, around a model's chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_longrope.model import LongRopeModel
from megatron_longrope.training.config import TrainingConfig

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
"""The format of the optimizer's state in checkpoints, one that loads under any layout.

Each weight's state is whole in it. Where no format is named megatron-core takes a deprecated one.
"""


def wrap_for_training(
    model: LongRopeModel, config: TrainingConfig
) -> tuple[list[DistributedDataParallel], MegatronOptimizer]:
    """Returns the chunks wrapped for data parallelism, and one optimizer for all of them."""
    # First, because both the wrapper and the optimizer look at requires_grad when they are made.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(config.trainable == "all" or is_attention(name))
    groups = model.runtime.groups
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True
    )
    wrapped = [
        DistributedDataParallel(model.config, ddp_config, chunk, pg_collection=groups)
        for chunk in model.chunks
    ]
    optimizer = get_megatron_optimizer(
        _optimizer_config(model, config),
        wrapped,
        use_gloo_process_groups=False,
        pg_collection=groups,
    )
    # The schedules call it after the last backward pass. With calculate_per_token_loss it divides
    # the summed gradients by the tokens of all ranks; without it nothing would.
    model.config.finalize_model_grads_func = finalize_model_grads
    model.config.grad_scale_func = optimizer.scale_loss
    _initialize_torch_adam(optimizer)
    return wrapped, optimizer


def is_attention(parameter: str) -> bool:
    """Returns whether a parameter is one of attention's: its projections, norms of q and k.

    The norm before attention is not, although Transformer Engine has it in the projection.

    >>> is_attention("decoder.layers.0.self_attention.linear_qkv.weight")
    True
    >>> is_attention("decoder.layers.0.self_attention.linear_qkv.layer_norm_weight")
    False
    """
    return ".self_attention." in parameter and not parameter.endswith(".layer_norm_weight")


def set_rates(optimizer: MegatronOptimizer, config: TrainingConfig, rate: float) -> None:
    """Sets the learning rate and the weight decay of every parameter group.

    megatron-core gives its group of norms and biases the full weight decay beside a multiplier
    `wd_mult` of 0. The product is taken by megatron-core's scheduler, which is not used here.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = config.weight_decay * (
            1.0 if config.decay_norms else group["wd_mult"]
        )


@torch.no_grad()
def update_weights(optimizer: MegatronOptimizer) -> float:
    """Clips the gradients and updates the weights; returns the gradients' norm before clipping,
    the same on every rank.

    Where that norm is not a finite number above 0, neither weights nor the optimizer's state
    change. These are the parts of megatron-core's own `step`, which computes the norm too but does
    not look at it: clipping by a norm of NaN makes all weights NaN.
    """
    optimizer.prepare_grads()  # never finds an overflow: that takes a loss scale, which FP16 has
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm) or norm == 0:
        return norm
    for part in _parts(optimizer):
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(
                parameters,
                max_norm=part.config.clip_grad,
                total_norm=norm,
                use_decoupled_grad=part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
            )
    optimizer.step_with_ready_grads()
    return norm


def load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Loads the optimizer's state from a checkpoint.

    megatron-core gives every parameter the same tensor as its step counter. torch's Adam advances a
    counter in place, and would advance that one once per parameter in every step: so each
    parameter gets a copy of its own.
    """
    optimizer.load_state_dict(state)
    for part in _parts(optimizer):
        for values in part.optimizer.state.values():
            if "step" in values:
                values["step"] = values["step"].clone()


def _optimizer_config(model: LongRopeModel, config: TrainingConfig) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad,
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=True,
    )


def _initialize_torch_adam(optimizer: MegatronOptimizer) -> None:
    """Gives torch's Adam the state that it would make at its first step.

    Where neither Transformer Engine nor Apex is installed, megatron-core falls back to torch's
    Adam. But it saves and loads it as it does theirs: as if the state existed before the first
    step, and had no `step` per parameter.
    """
    for part in _parts(optimizer):
        if not isinstance(part.optimizer, torch.optim.Optimizer) or not type(
            part.optimizer
        ).__module__.startswith("torch.optim"):
            continue
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                part.optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        part._set_main_param_and_optimizer_states = _keeping_step(part)


def _keeping_step(part: Any) -> Any:
    """Returns the part's loader of one parameter's state, changed so that `step` is kept.

    megatron-core's loader expects a value for every entry of the state and finds none for `step`.
    The entry that load_state_dict has set before is handed to it.
    """
    load = part._set_main_param_and_optimizer_states

    def load_keeping_step(
        model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]
    ) -> None:
        group, order = part.model_param_group_index_map[model_param]
        main = part.optimizer.param_groups[group]["params"][order]
        load(model_param, {**tensors, "step": part.optimizer.state[main]["step"]})

    return load_keeping_step


def _parts(optimizer: Any) -> Iterator[Any]:
    """Yields the optimizers that a chained one is made of, or the one itself."""
    yield from getattr(optimizer, "chained_optimizers", [optimizer])
