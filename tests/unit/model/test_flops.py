"""Operations in closed form, against those that torch counts while a pass is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.counted_flops import flop_counter
from megatron_longrope.model import score_documents, score_with_gradient
from megatron_longrope.model.architectures import ARCHITECTURES
from megatron_longrope.model.engine.settings import Recompute
from megatron_longrope.model.flops import PassFlops, mean_reach
from megatron_longrope.runtime import Runtime
from megatron_longrope.training.config import Trainable
from tests.distributed.test_layout_matrix import documents, train_step
from tests.support.tiny_models import our_model, random_documents, single_runtime, tiny_hf_model
from tests.support.tiny_run import SHAPE

runtime = pytest.fixture(single_runtime, scope="module")
LENGTHS = (700, 40, 130)
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"num_hidden_layers": 3},
    "untied": {"tie_word_embeddings": False, "intermediate_size": 160},
}


def test_a_forward_pass_is_booked_as_counted(runtime: Runtime) -> None:
    for config in MODELS.values():
        model = our_model(tiny_hf_model(**config), runtime, scaled=False)
        with flop_counter() as counted:
            score_documents(model, random_documents(*LENGTHS))
        booked = sum(model.shape.forward_flops(length) for length in LENGTHS)
        assert booked == pytest.approx(counted.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_a_gradient_of_the_factors_is_booked_as_counted(
    recompute: Recompute, name: str, runtime: Runtime
) -> None:
    model = our_model(
        tiny_hf_model(**MODELS[name]),
        runtime,
        angle_precision="float64",
        scaled=False,
        recompute=recompute,
    )
    with flop_counter() as counted:
        score_with_gradient(
            model, random_documents(*LENGTHS), [np.ones(length - 1) for length in LENGTHS]
        )
    booked = sum(
        PassFlops(model.shape, length).with_backward("factors", recompute) for length in LENGTHS
    )
    assert booked == pytest.approx(counted.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("trainable", ["all", "attention"])
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_training_is_booked_as_counted(
    recompute: Recompute, trainable: Trainable, runtime: Runtime
) -> None:
    for config in MODELS.values():
        model = our_model(tiny_hf_model(**config), runtime, recompute=recompute)
        with flop_counter() as counted:
            train_step(model, True, trainable)
        booked = sum(
            PassFlops(model.shape, len(text)).with_backward(trainable, recompute)
            for row in documents(True)
            for text in row
        )
        assert booked == pytest.approx(counted.get_total_flops(), rel=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_matrices_of_every_family_are_those_of_its_weight_table(name: str) -> None:
    shape = SHAPE.model_copy(update={"num_layers": 3, "architecture": name})
    matrices = sum(
        (shape.num_layers if rule.is_per_layer else 1) * math.prod(sizes)
        for rule in shape.family.rules(tied=False)
        for sizes in rule.hf_sizes(shape).values()
        if len(sizes) == 2
    )
    embedding = shape.vocab_size * shape.hidden_size
    flops = PassFlops(shape, 1)
    attention = sum(layer.attention for layer in flops.layers)
    assert flops.forward - attention == 2 * (matrices - embedding)


def test_layers_before_the_first_rotation_have_no_backward_pass() -> None:
    shape = SHAPE.model_copy(update={"num_layers": 4})
    late = shape.model_copy(update={"rope_free_layers": (0, 1)})
    flops, (layer, *_) = PassFlops(shape, 100), PassFlops(shape, 100).layers
    backward = layer.qkv + layer.projection + layer.mlp + 2.5 * layer.attention
    of = [PassFlops(each, 100).with_backward("factors", "none") for each in (shape, late)]
    assert of[0] - of[1] == pytest.approx(2 * backward)
    full = [PassFlops(each, 100).with_backward("factors", "full") for each in (shape, late)]
    assert full[0] == full[1] == pytest.approx(of[0] + layer.qkv + 4 * sum(layer))
    assert flops.forward == PassFlops(late, 100).forward


def test_a_window_bounds_what_is_attended_to() -> None:
    for length, window in ((10, 3), (10, 10), (10, 50), (1, None), (7, None)):
        seen = [min(query, window or length) for query in range(1, length + 1)]
        assert mean_reach(length, window) == pytest.approx(sum(seen) / length)
