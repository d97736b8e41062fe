"""Rows hold every token of the text, and are trained under the factors they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch

from data_prep.documents import TokenDocument
from megatron_longrope.data import PackedDataset, TextTokenizer
from megatron_longrope.pipeline.recipe import (
    RetrievalConfig,
    ShortInputs,
    TrainingDataConfig,
)
from megatron_longrope.pipeline.run import RunInputs
from megatron_longrope.pipeline.stages.combining import RunParts
from megatron_longrope.pipeline.stages.packing import build_training_set
from megatron_longrope.pipeline.stages.searching import Found
from megatron_longrope.pipeline.stages.training import training_factors
from megatron_longrope.rope import (
    FactorSet,
    NoScaling,
    OwnScaling,
    PositionInterpolation,
    RopeFactors,
    RopeGeometry,
)


def test_rows_hold_the_text_once_and_the_share_of_retrieval(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    documents = [
        TokenDocument(str(n), torch.arange(n * 100, n * 100 + 700).numpy() % 280, "0" * 64)
        for n in range(20)
    ]
    config = TrainingDataConfig(
        sequence_length=512,
        short_piece_share=0.3,
        retrieval=RetrievalConfig(share=0.25, min_length=200, max_length=512),
    )
    for max_piece, longest in ((None, 512), (256, 256)):
        build_training_set(
            tmp_path / str(longest),
            documents,
            tokenizer,
            config,
            window=256,
            max_piece=max_piece,
            seed=1,
        )
        dataset = PackedDataset(tmp_path / str(longest))
        pieces = [piece for row in range(dataset.num_rows) for piece in dataset.row(row)]
        assert max(map(len, pieces)) == longest
        total = sum(map(len, pieces))
        retrieval = sum(
            d.tokens
            for d in dataset.manifest.documents
            if d.name.startswith(("passkey", "key-value"))
        )
        assert abs(retrieval / total - 0.25) < 0.05
        assert total - retrieval == 20 * 700


@pytest.mark.parametrize(("short_inputs", "temperature"), [("pretrained", 1.0), ("unscaled", 1.2)])
def test_short_rows_may_be_trained_under_other_factors(
    short_inputs: ShortInputs, temperature: float
) -> None:
    geometry = RopeGeometry(base=10000.0, head_dim=8, original_length=64)
    tuned = (
        PositionInterpolation(scale=4)
        .factors(geometry)
        .model_copy(update={"attention_factor": 1.2})
    )
    own = OwnScaling(NoScaling().factor_set(geometry))
    assert training_factors(tuned, "extended", own).for_length(10) == tuned
    chosen = training_factors(tuned, short_inputs, own)
    assert chosen.for_length(65) == tuned
    short = chosen.for_length(64)
    assert short.rescale == (1.0,) * 4 and short.attention_factor == temperature


@pytest.mark.parametrize(("short_inputs", "temperature"), [("pretrained", 1.0), ("unscaled", 1.2)])
def test_the_extended_model_serves_short_inputs_as_they_were_trained(
    short_inputs: ShortInputs, temperature: float
) -> None:
    geometry = RopeGeometry(base=10000.0, head_dim=8, original_length=64)
    own = OwnScaling(NoScaling().factor_set(geometry))
    tuned, last, recovered = (
        PositionInterpolation(scale=scale)
        .factors(geometry)
        .model_copy(update={"attention_factor": factor})
        for scale, factor in ((4, 1.2), (16, 1.3), (1, 1.1))
    )
    trained = training_factors(tuned, short_inputs, own)

    def extended(steps: dict[int, RopeFactors], recoveries: dict[int, RopeFactors]) -> FactorSet:
        run = cast(RunInputs, _FoundFactors(own, {**steps, **recoveries}))
        found = tuple(Found(f"search-{length}", length) for length in steps)
        short = tuple(Found(f"recover-{length}", length) for length in recoveries)
        parts = RunParts("tuned", found[0], found[0], found, short, None, short_inputs)
        return parts.factor_set(run)

    # nothing recovered: all lengths are served as their rows were trained
    assert extended({256: tuned}, {}) == trained
    assert trained.for_length(64).attention_factor == temperature
    # a recovery shorter than the window serves its lengths alone
    both = extended({256: tuned}, {32: recovered})
    assert [entry.up_to for entry in both.ranges] == [32, 64, None]
    assert both.for_length(32) == recovered and both.for_length(33) == trained.for_length(33)
    # one up to the window, or beyond it, leaves no other short inputs
    for length in (64, 128):
        whole = extended({256: tuned}, {length: recovered})
        assert [entry.up_to for entry in whole.ranges] == [length, None]
    # further steps keep what the weights were trained under
    further = extended({256: tuned, 1024: last}, {})
    assert [entry.up_to for entry in further.ranges] == [64, 256, None]
    assert further.for_length(64) == trained.for_length(64)
    assert further.for_length(65) == tuned and further.for_length(257) == last


@dataclass(frozen=True)
class _FoundFactors:
    """What a run holds that joining factors needs."""

    own: OwnScaling
    by_length: dict[int, RopeFactors]

    def found(self, search: str, length: int) -> RopeFactors:
        """Returns the factors for a length."""
        return self.by_length[length]
