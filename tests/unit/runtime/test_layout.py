"""Every divisibility is checked in one place and says its numbers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longrope.errors import InputError
from megatron_longrope.runtime import ParallelLayout, Runtime, cpu_platform
from tests.support.tiny_models import single_runtime

MODEL = {"num_layers": 4, "num_heads": 6, "num_kv_heads": 2, "ffn_hidden_size": 96}
runtime = pytest.fixture(scope="module")(single_runtime)


def interleaved(pipeline: int, virtual: int) -> ParallelLayout:
    return ParallelLayout(pipeline_parallel=pipeline, virtual_pipeline=virtual)


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (
            lambda: ParallelLayout(tensor_parallel=4).data_parallel(6),
            "processes=6: must be divisible",
        ),
        (lambda: ParallelLayout(pipeline_parallel=3).check_model(**MODEL), "num_layers=4"),
        (
            lambda: interleaved(2, 4).check_model(**MODEL),
            "num_layers=4: must be .* pipeline_parallel·virtual_pipeline=8",
        ),
        (
            lambda: interleaved(1, 2).data_parallel(2),
            "virtual_pipeline=2: needs pipeline_parallel above 1, got 1",
        ),
        (
            lambda: interleaved(4, 2).check_batch(12, 3, 2),
            r"global_batch_size=12: .*virtual_pipeline=2 .*=24",
        ),
        (lambda: ParallelLayout(tensor_parallel=4).check_model(**MODEL), "num_heads=6"),
        (lambda: ParallelLayout(tensor_parallel=3).check_model(**MODEL), "num_kv_heads=2"),
        (
            lambda: ParallelLayout(sequence_parallel=True).check_model(**MODEL),
            "tensor_parallel above 1",
        ),
        (lambda: ParallelLayout(context_parallel=4).check_sequence(131070), "divisible by 8"),
        (lambda: ParallelLayout().check_batch(10, 3, 2), "global_batch_size=10"),
    ],
)
def test_what_does_not_divide_is_named(check: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check()


def test_interleaved_stages_that_fit_are_accepted() -> None:
    layout = interleaved(2, 2)
    layout.check_model(**MODEL)
    assert layout.data_parallel(4) == 2 and layout.model_parallel == 2 and layout.model_chunks == 4
    assert layout.check_batch(24, 3, 2) == 4 and layout.micro_batch_divisor == 2


def test_a_schedule_without_interleaving_takes_any_number_of_micro_batches() -> None:
    assert ParallelLayout(pipeline_parallel=4).check_batch(6, 3, 2) == 1


@settings(deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4]),
    cp=st.sampled_from([1, 2, 4]),
    sp=st.booleans(),
    multiple=st.integers(1, 5),
)
def test_sequences_it_accepts_can_be_cut(tp: int, cp: int, sp: bool, multiple: int) -> None:
    layout = ParallelLayout(tensor_parallel=tp, context_parallel=cp, sequence_parallel=sp)
    length = layout.sequence_divisor * multiple
    layout.check_sequence(length)
    chunks = 2 * cp if cp > 1 else 1
    assert length % chunks == 0 and (not sp or (length // cp) % tp == 0)


def test_the_platform_answers_what_the_pinned_megatron_core_asks(runtime: Runtime) -> None:
    from megatron.core.optimizer.grad_scaler import ConstantGradScaler
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    assert version("megatron-core").startswith("0.16.")
    if torch.cuda.is_available():
        assert not cpu_platform.install()
        return
    assert cpu_platform.install() and runtime.device == torch.device("cpu")
    assert torch.zeros(2, device="cuda", pin_memory=True).device.type == "cpu"
    assert (
        torch.zeros(2).type() == "torch.cuda.FloatTensor"
        and torch.zeros(2).cuda().device.type == "cpu"
    )
    assert ConstantGradScaler(2.0).scale.device.type == "cpu"
    before = torch.get_rng_state()
    with get_cuda_rng_tracker().fork():
        forked = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    with get_cuda_rng_tracker().fork():
        assert not torch.equal(forked, torch.rand(3))


def test_one_process_alone_is_a_whole_run(runtime: Runtime) -> None:
    assert (runtime.rank, runtime.world_size, runtime.data_parallel_size) == (0, 1, 1)
    assert runtime.is_main and runtime.is_first_stage and runtime.is_last_stage
    assert runtime.gather("x") == ["x"] and runtime.broadcast({"a": 1}) == {"a": 1}
