"""What of a factor set Hugging Face's format carries, and what a run says of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.hf.static import export_static
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.evaluating import extended_factor_set
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.stages.exporting import export_factor_set
from megatron_longrope.rope import FactorRange, FactorSet
from megatron_longrope.runtime import Runtime
from tests.support.factor_sets import made_factors
from tests.support.formats.hf_folders import SHAPE, random_hf_folder
from tests.support.tiny_models import single_runtime

WINDOW = SHAPE.context_length
runtime = pytest.fixture(single_runtime, scope="module")


def test_the_target_is_exported_always() -> None:
    short = made_factors(256, temperature=1.2, growth=0.1)
    whole = extended_factor_set(
        [made_factors(2048, temperature=1.1), made_factors(8192, temperature=1.2, growth=9)],
        [(256, short)],
    )
    carried, left_behind = export_factor_set(whole, 256)
    assert [entry.up_to for entry in carried.ranges] == [256, None]
    assert carried.for_length(100) == short
    assert carried.for_length(9000) == carried.for_length(1000) == whole.for_length(9000)
    (text,) = left_behind
    assert "inputs of 257 to 2k tokens get the factors for 8k" in text and "1.1" in text


def test_a_short_set_of_another_attention_factor_is_left_behind() -> None:
    whole = extended_factor_set(
        [made_factors(8192, temperature=1.2)], [(256, made_factors(256, temperature=1.0))]
    )
    carried, left_behind = export_factor_set(whole, 256)
    assert carried == FactorSet.single(whole.for_length(9000))
    (text,) = left_behind
    assert text.startswith("inputs of 1 to 256 tokens get the factors for 8k")


def test_sets_change_at_the_pretrained_window() -> None:
    """A model that arrives scaled recovers lengths beyond the window that its λ count from."""
    recovered = made_factors(1024, growth=0.5)
    whole = extended_factor_set([made_factors(8192)], [(1024, recovered)])
    carried, (text,) = export_factor_set(whole, 256)
    assert carried.for_length(256) == recovered and carried.for_length(1024) != recovered
    assert text.startswith("inputs of 257 to 1k tokens get the factors for 8k")


def test_each_recovered_length_but_the_windows_own_is_left_behind() -> None:
    whole = extended_factor_set(
        [made_factors(8192)],
        [(128, made_factors(128, growth=0.05)), (256, made_factors(256, growth=0.1))],
    )
    carried, (text,) = export_factor_set(whole, 256)
    assert carried.for_length(128) == whole.for_length(256) and "1 to 128 tokens" in text


def test_a_set_that_fits_the_format_is_carried_whole() -> None:
    whole = extended_factor_set([made_factors(8192)], [(256, made_factors(256, growth=0.1))])
    assert export_factor_set(whole, 256) == (
        FactorSet(
            ranges=(
                FactorRange(up_to=256, factors=whole.for_length(256)),
                FactorRange(up_to=None, factors=whole.for_length(8192)),
            )
        ),
        [],
    )


def test_a_static_export_is_the_long_set_for_every_length(tmp_path: Path, runtime: Runtime) -> None:
    from transformers import AutoModelForCausalLM

    geometry = {
        "original_length": WINDOW,
        "base": SHAPE.rope_base,
        "head_dim": SHAPE.head_dim,
    }
    pairs = SHAPE.head_dim // 2
    long = made_factors(4 * WINDOW, temperature=1.25).model_copy(
        update=geometry | {"rescale": tuple(1.0 + 2.5 * pair for pair in range(pairs))}
    )
    short = long.model_copy(update={"rescale": (1.5,) * pairs, "target_length": WINDOW})
    factors = FactorSet(
        ranges=(FactorRange(up_to=WINDOW, factors=short), FactorRange(up_to=None, factors=long))
    )
    import_hf(random_hf_folder(tmp_path / "hf", seed=3), tmp_path / "megatron", runtime)
    export_hf(tmp_path / "megatron", tmp_path / "export", factors)
    for _ in range(2):  # the second time replaces the first
        left_out = export_static(
            tmp_path / "export", tmp_path / "export-static", tmp_path / "megatron", factors
        )
    assert len(left_out) == 1
    both, static = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for name in ("export", "export-static")
    )
    ids = torch.arange(2 * WINDOW)[None] % SHAPE.vocab_size
    with torch.no_grad():
        assert torch.equal(both(ids).logits, static(ids).logits)
        inside = ids[:, :WINDOW]
        assert not torch.allclose(both(inside).logits, static(inside).logits, atol=1e-3)
    said = json.loads((tmp_path / "export-static" / "config.json").read_text())
    rope = said.get("rope_parameters") or said["rope_scaling"]
    assert rope["short_factor"] == rope["long_factor"] == list(long.rescale)
    assert rope["attention_factor"] == rope["long_mscale"] == rope["short_mscale"] == 1.25
    weights = "model.safetensors"
    assert (tmp_path / "export" / weights).samefile(tmp_path / "export-static" / weights)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, runtime: Runtime) -> None:
    import_hf(random_hf_folder(tmp_path / "hf", seed=3), tmp_path / "megatron", runtime)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        export_static(
            tmp_path / "hf",
            tmp_path / "mine",
            tmp_path / "megatron",
            FactorSet.single(made_factors(2048)),
        )
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_the_export_is_measured_where_all_else_is() -> None:
    config = build_config(EvaluationConfig, {"lengths": [256, 8192]})
    assert config.exported_lengths == (256, 8192)
    some = build_config(EvaluationConfig, {"lengths": [256, 8192], "exported": {"lengths": [256]}})
    assert some.exported_lengths == (256,)
    tasks = {"lengths": [256], "tasks": {"passkey": {"lengths": [256, 3072]}}}
    config = build_config(EvaluationConfig, tasks)
    assert config.exported_task_lengths("passkey") == (256, 3072)
    config = build_config(EvaluationConfig, {**tasks, "exported": {"lengths": [256]}})
    assert config.exported_task_lengths("passkey") == (256,)
    config = build_config(EvaluationConfig, {**tasks, "exported": {"tasks": False}})
    assert config.exported_task_lengths("passkey") == ()
    with pytest.raises(InputError, match=r"512 is none of the lengths"):
        build_config(EvaluationConfig, {"lengths": [256], "exported": {"lengths": [512]}})
