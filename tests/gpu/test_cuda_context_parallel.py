"""On several CUDA devices: Transformer Engine's ways of context parallelism give one process's
losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_longrope.errors import InputError
from megatron_longrope.model import build_model
from megatron_longrope.model.engine.settings import BackendSettings
from megatron_longrope.runtime import ParallelLayout, start_runtime
from tests.support.gpu_engines import (
    BF16_GRADIENTS,
    SHAPE,
    batch_for,
    candidate,
    fill_weights,
    gradients,
    training_pass,
)
from tests.support.spawn import run_distributed

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
PACKED = (700, 129, 1, 500)
ALONE = (1330,)


def passed(layout: ParallelLayout, settings: BackendSettings, lengths: tuple[int, ...]) -> Any:
    """Runs on each rank: returns its share's nats and norms of the gradients summed over the ranks,
    or a refusal."""
    with start_runtime(layout) as runtime:
        try:
            model = build_model(
                SHAPE, runtime, dtype=torch.bfloat16, initialize=False, backend=settings
            )
        except InputError as refusal:
            return str(refusal)
        fill_weights(model)
        model.set_factors(candidate(6.0, 4, 1.15))
        loss = torch.tensor(training_pass(model, batch_for(model, *lengths)), device=runtime.device)
        found = gradients(model)
        for tensor in (loss, *found.values()):
            torch.distributed.all_reduce(tensor, group=runtime.groups.cp)
        return float(loss), {name: gradient.cpu() for name, gradient in found.items()}


@pytest.mark.parametrize(
    ("ranks", "inner", "kind", "lengths"),
    [
        (2, 1, "p2p", PACKED),
        (2, 1, "p2p", ALONE),
        (2, 1, "a2a", PACKED),
        (2, 1, "a2a", ALONE),
        (2, 1, "all_gather", ALONE),
        (4, 1, "p2p", PACKED),
        (4, 2, "a2a+p2p", ALONE),
    ],
)
def test_context_parallelism_changes_nothing(
    ranks: int, inner: int, kind: Any, lengths: tuple[int, ...]
) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} CUDA devices")
    layout = ParallelLayout(context_parallel=ranks, context_parallel_a2a=inner)
    settings = BackendSettings(
        engine="transformer-engine", cp_comm_type=kind, packed=lengths == PACKED
    )
    results = run_distributed(ranks, passed, layout, settings, lengths, timeout=600, on_cuda=True)
    if isinstance(results[0], str):
        pytest.skip(results[0])
    one = settings.model_copy(update={"cp_comm_type": "auto"})
    ((expected_loss, expected),) = run_distributed(
        1, passed, ParallelLayout(), one, lengths, timeout=600, on_cuda=True
    )
    loss, found = results[0]
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < BF16_GRADIENTS * gradient.norm(), name
