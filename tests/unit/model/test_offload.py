"""Activation offload beside recomputation: the same gradients to the bit, and only layer inputs are
moved."""

from __future__ import annotations

import pytest
import torch

from megatron_longrope.data import DocumentBatch
from megatron_longrope.errors import InputError
from megatron_longrope.model.forward import run_stage
from megatron_longrope.model.layers import offload as offload_module
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import our_model, random_documents, single_runtime, tiny_hf_model

runtime = pytest.fixture(single_runtime, scope="module")


def gradients(runtime: Runtime, **build: object) -> dict[str, torch.Tensor]:
    model = our_model(tiny_hf_model(), runtime, recompute="full", **build)
    batch = DocumentBatch.from_documents(random_documents(33, 20))
    (run_stage(model, model.stage, batch) * batch.loss_mask).sum().backward()
    return {
        name: parameter.grad
        for name, parameter in model.stage.named_parameters()
        if parameter.grad is not None
    }


def test_gradients_are_the_same_and_each_layers_input_is_away(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[bool, torch.Size]] = []
    pack = offload_module._Mover.pack

    def counted(self: object, tensor: torch.Tensor) -> object:
        kept = pack(self, tensor)  # type: ignore[arg-type]
        moved.append((not isinstance(kept, torch.Tensor), tensor.shape))
        if isinstance(kept, offload_module._Away):
            assert kept.host.data_ptr() != tensor.data_ptr()
        return kept

    expected = gradients(runtime)
    assert not moved
    monkeypatch.setattr(offload_module._Mover, "pack", counted)
    found = gradients(runtime, offload=True)
    assert set(found) == set(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
    away = [shape for is_away, shape in moved if is_away]
    assert len(away) >= 2 and set(away) == {torch.Size([53, 1, 64])}


def test_without_full_recomputation_it_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="recompute=full, not selective"):
        our_model(tiny_hf_model(), runtime, recompute="selective", offload=True)
