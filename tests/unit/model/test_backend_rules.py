"""The matrix of backends: each refusal has a case that meets it and no other first, and what should
work is allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longrope.errors import InputError
from megatron_longrope.model.engine.choice import resolve_backend, token_multiple
from megatron_longrope.model.engine.rules import RULES, Rule, check_combination, matrix_table
from megatron_longrope.model.engine.settings import BackendSettings, Combination
from megatron_longrope.runtime import ParallelLayout
from megatron_longrope.runtime.gpu_stack import GpuStack, choose_engine
from tests.support.gpu_stacks import A100, B200, H100, LLAMA_8B, RTX5090, SMALL, V100

DOCS = Path(__file__).resolve().parents[3] / "docs" / "gpu.md"
NO_GPU = GpuStack()
NO_TE = replace(H100, transformer_engine=None, transformer_engine_absence="not installed")
NOTHING = replace(NO_TE, flash_attn=None)
BARE_5090 = replace(RTX5090, flash_attn=None)


def combination(engine: str = "transformer-engine", **changes: Any) -> Combination:
    """A Llama-3-8B on Transformer Engine; fields of settings, layout and combination mixed by
    name."""
    layout = {
        name: changes.pop(name) for name in list(changes) if name in ParallelLayout.model_fields
    }
    settings = {
        name: changes.pop(name) for name in list(changes) if name in BackendSettings.model_fields
    }
    shape = changes.pop("shape", LLAMA_8B)
    return Combination(
        BackendSettings(**settings), engine, shape, ParallelLayout(**layout), **changes
    )  # type: ignore[arg-type]


def shaped(**changes: Any) -> Any:
    return LLAMA_8B.model_copy(update=changes)


# Setting and case of a rule → what it refuses, and the field that what it refuses differs from an
# allowed one in.
REFUSED: dict[str, tuple[Combination, GpuStack]] = {
    "transformer-engine or flash-attn without a CUDA device": (combination(), NO_GPU),
    "transformer-engine where it is absent": (combination(), NO_TE),
    "flash-attn where it is absent": (combination("flash-attn"), NOTHING),
    "transformer-engine or flash-attn with anything but bfloat16": (
        combination(dtype=torch.float32),
        H100,
    ),
    "transformer-engine or flash-attn above 256, or no multiple of 8": (
        combination(shape=shaped(head_dim=260)),
        H100,
    ),
    "transformer-engine or flash-attn below sm80": (combination("flash-attn"), V100),
    "transformer-engine from sm120 on without flash-attn": (combination(), BARE_5090),
    "flash-attn with context_parallel above 1": (
        combination("flash-attn", context_parallel=2),
        H100,
    ),
    "given without transformer-engine": (
        combination("torch", context_parallel=2, cp_comm_type="p2p"),
        H100,
    ),
    "given with context_parallel=1": (combination(cp_comm_type="p2p"), H100),
    "above 1 without cp_comm_type=a2a+p2p": (
        combination(context_parallel=4, context_parallel_a2a=2),
        H100,
    ),
    "1 or context_parallel itself, with a2a+p2p": (
        combination(context_parallel=4, cp_comm_type="a2a+p2p", packed=False),
        H100,
    ),
    "a2a where K/V heads per tensor-parallel process are no multiple of context_parallel": (
        combination(tensor_parallel=4, context_parallel=4, cp_comm_type="a2a"),
        H100,
    ),
    "a2a+p2p where K/V heads per tensor-parallel process are no multiple of context_parallel_a2a": (
        combination(
            tensor_parallel=8,
            context_parallel=4,
            context_parallel_a2a=2,
            cp_comm_type="a2a+p2p",
            packed=False,
        ),
        H100,
    ),
    "all_gather or a2a+p2p with packed rows": (
        combination(context_parallel=2, cp_comm_type="all_gather"),
        H100,
    ),
    "a2a with packed rows under Transformer Engine 2.9": (
        combination(context_parallel=2, cp_comm_type="a2a"),
        A100,
    ),
    "p2p or a2a+p2p with sliding-window attention": (
        combination(context_parallel=2, sliding_window=True),
        H100,
    ),
    "without transformer-engine": (combination("torch", fp8="tensorwise"), H100),
    "fp8 below sm89": (combination(fp8="tensorwise"), A100),
    "blockwise below sm90 or before CUDA 12.9": (
        combination(fp8="blockwise"),
        replace(H100, cuda="12.8"),
    ),
    "mxfp8 outside sm100 to sm119": (combination(fp8="mxfp8"), RTX5090),
    "where a matrix of this model, cut by tensor_parallel, is no multiple of 16 wide (blockwise "
    "128, mxfp8 32)": (
        combination(fp8="blockwise", shape=SMALL),
        H100,
    ),
    "scoring, unless fp8_scoring is set": (combination(fp8="tensorwise", purpose="scoring"), H100),
    "scoring with delayed scaling": (
        combination(fp8="delayed", purpose="scoring", fp8_scoring=True),
        H100,
    ),
    "without fp8": (combination(fp8_attention=True, packed=False), H100),
    "false without fp8_attention": (combination(fp8_attention_backward=False), H100),
    "with blockwise or mxfp8": (
        combination(fp8="blockwise", fp8_attention=True, packed=False),
        H100,
    ),
    "with tensorwise scaling below sm100": (
        combination(fp8="tensorwise", fp8_attention=True, packed=False),
        H100,
    ),
    "below sm90 or from sm120 on": (
        combination(fp8="delayed", fp8_attention=True, packed=False),
        RTX5090,
    ),
    "before cuDNN 9.7 (tensorwise: 9.14), and with 9.10.0": (
        combination(fp8="delayed", fp8_attention=True, packed=False),
        replace(H100, cudnn=(9, 10, 0)),
    ),
    "head_dim no multiple of 16, or on Hopper not 128 in training and above 256 in scoring, on "
    "Blackwell above 128": (
        combination(fp8="delayed", fp8_attention=True, packed=False, shape=shaped(head_dim=64)),
        H100,
    ),
    "with packed rows": (combination(fp8="delayed", fp8_attention=True), H100),
    "with cp_comm_type=all_gather": (
        combination(
            fp8="delayed",
            fp8_attention=True,
            packed=False,
            context_parallel=2,
            cp_comm_type="all_gather",
        ),
        H100,
    ),
    "with sliding-window attention": (
        combination(fp8="delayed", fp8_attention=True, packed=False, sliding_window=True),
        H100,
    ),
    "given with transformer-engine": (
        combination(context_parallel=2, context_exchange="ring"),
        H100,
    ),
    "fused_rope with 2³¹ values or more per process in the fused query, key and value": (
        combination(fused_rope=True, sequence_length=349526),
        H100,
    ),
    "fused_rope without transformer-engine": (combination("torch", fused_rope=True), H100),
    "selective with fp8_attention": (
        combination(fp8="delayed", fp8_attention=True, packed=False, recompute="selective"),
        H100,
    ),
}

ALLOWED: list[tuple[Combination, GpuStack]] = [
    (combination("torch", dtype=torch.float32), NO_GPU),
    (combination("torch", context_parallel=4), NOTHING),
    (combination("flash-attn", sliding_window=True), NO_TE),
    (combination(tensor_parallel=4, sequence_parallel=True, context_parallel=2), H100),
    (combination(context_parallel=8, cp_comm_type="a2a", sliding_window=True), H100),
    (
        combination(
            context_parallel=4, cp_comm_type="all_gather", packed=False, sliding_window=True
        ),
        A100,
    ),
    (
        combination(
            context_parallel=16, context_parallel_a2a=8, cp_comm_type="a2a+p2p", packed=False
        ),
        H100,
    ),
    (combination(fused_rope=True, sequence_length=349525), H100),
    (combination(fused_rope=True, sequence_length=2 * 349525, context_parallel=2), H100),
    (combination(fused_rope=True, sequence_length=2 * 349525, tensor_parallel=2), H100),
    (combination(fp8="tensorwise", context_parallel=2, recompute="full"), H100),
    (combination(fp8="blockwise", recompute="selective"), H100),
    (combination(fp8="mxfp8"), B200),
    (
        combination(
            fp8="delayed",
            fp8_attention=True,
            fp8_attention_backward=False,
            packed=False,
            context_parallel=2,
            recompute="full",
        ),
        H100,
    ),
    (combination(fp8="tensorwise", fp8_attention=True, packed=False), B200),
    (combination(fp8="tensorwise", purpose="scoring", fp8_scoring=True), H100),
    (combination(fp8="blockwise", purpose="scoring", fp8_scoring=True, context_parallel=8), H100),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.setting}: {rule.case}")
def test_each_rule_refuses_in_one_line(rule: Rule) -> None:
    wanted, stack = REFUSED[rule.case]
    first = next(found for found in RULES if found.refuses(wanted, stack))
    assert first is rule
    with pytest.raises(InputError) as refusal:
        check_combination(wanted, stack)
    text = str(refusal.value)
    assert (
        text.startswith(f"{rule.setting}=")
        and rule.why in text
        and rule.case in text
        and "\n" not in text
    )


def test_no_case_is_left_over_and_no_two_rules_share_one() -> None:
    assert sorted(rule.case for rule in RULES) == sorted(REFUSED)


@pytest.mark.parametrize(("wanted", "stack"), ALLOWED)
def test_what_should_work_is_allowed(wanted: Combination, stack: GpuStack) -> None:
    check_combination(wanted, stack)


def test_scoring_in_fp8_attention_is_not_to_be_had_on_hopper() -> None:
    """Delayed scaling cannot score, and tensorwise scaling has no attention kernel there."""
    for fp8 in ("delayed", "tensorwise", "blockwise", "mxfp8"):
        wanted = combination(
            fp8=fp8, fp8_attention=True, packed=False, purpose="scoring", fp8_scoring=True
        )
        with pytest.raises(InputError):
            check_combination(wanted, H100)


@pytest.mark.parametrize(
    ("stack", "asked", "engine", "said"),
    [
        (NO_GPU, {}, "torch", "no CUDA device"),
        (H100, {}, "transformer-engine", "2.11.0"),
        (H100, {"dtype": torch.float32}, "torch", "float32"),
        (H100, {"head_dim": 20}, "torch", "head_dim=20"),
        (NO_TE, {}, "flash-attn", "not installed; flash-attn 2.8.3"),
        (NO_TE, {"context_parallel": 2}, "torch", "context_parallel=1 only"),
        (NOTHING, {}, "torch", "flash-attn: not installed"),
        (V100, {}, "torch", "sm70"),
        (BARE_5090, {}, "torch", "no kernel for packed documents"),
    ],
)
def test_auto(stack: GpuStack, asked: dict[str, Any], engine: str, said: str) -> None:
    choice = choose_engine(stack, **asked)
    assert choice.engine == engine and said in choice.reason


@pytest.mark.parametrize(
    "stack", [NO_GPU, H100, A100, B200, RTX5090, V100, NO_TE, NOTHING, BARE_5090]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [LLAMA_8B, SMALL, shaped(head_dim=20), shaped(head_dim=512)])
def test_auto_never_chooses_what_the_matrix_refuses(
    stack: GpuStack, dtype: torch.dtype, shape: Any
) -> None:
    for context_parallel in (1, 2):
        layout = ParallelLayout(context_parallel=context_parallel)
        assert (
            resolve_backend(
                BackendSettings(), shape, layout, dtype=dtype, stack=stack
            ).token_multiple
            == 1
        )


def test_tokens_of_an_fp8_batch() -> None:
    """Every process of sequence and context parallelism quantizes whole blocks, and zigzag halves
    stay whole."""
    assert token_multiple("off", ParallelLayout(context_parallel=4)) == 1
    assert token_multiple("tensorwise", ParallelLayout()) == 16
    assert token_multiple("tensorwise", ParallelLayout(tensor_parallel=4)) == 16
    assert (
        token_multiple("blockwise", ParallelLayout(tensor_parallel=4, sequence_parallel=True))
        == 512
    )
    layout = ParallelLayout(tensor_parallel=2, sequence_parallel=True, context_parallel=4)
    assert token_multiple("mxfp8", layout) == 32 * 2 * 4 and 256 % layout.sequence_divisor == 0


def test_the_documented_matrix_is_this_one() -> None:
    assert matrix_table() in DOCS.read_text(encoding="utf-8")
