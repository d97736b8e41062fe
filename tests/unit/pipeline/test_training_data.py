"""Rows hold every token of the text, and are trained under the factors they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_prep.documents import TokenDocument
from megatron_longrope.data import PackedDataset, TextTokenizer
from megatron_longrope.pipeline.recipe import (
    RetrievalConfig,
    ShortInputs,
    TrainingDataConfig,
)
from megatron_longrope.pipeline.stages.packing import build_training_set
from megatron_longrope.pipeline.stages.training import training_factors
from megatron_longrope.rope import (
    NoScaling,
    OwnScaling,
    PositionInterpolation,
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
