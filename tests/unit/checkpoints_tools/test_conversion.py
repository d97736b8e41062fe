"""Hugging Face → Megatron → Hugging Face: every bit, every file, and the same numbers in
transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.folder import bits_equal, open_hf_folder
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.hf.writing import write_hf_folder
from checkpoints_tools.load_any import find_model, load_model
from checkpoints_tools.verify import all_equal, verify
from megatron_longrope.errors import InputError
from megatron_longrope.model import ModelShape, build_model, document_logits
from megatron_longrope.model.checkpoints.checkpoint import (
    load_weights,
    read_description,
    save_checkpoint,
)
from megatron_longrope.rope import FactorOrigin, FactorRange, FactorSet, RopeFactors
from megatron_longrope.runtime import Runtime
from tests.support.formats.hf_folders import CARRIED, SHAPE, random_hf_folder, random_weights
from tests.support.tiny_models import random_documents, single_runtime

WINDOW = SHAPE.context_length
TOKENS = np.arange(40) % SHAPE.vocab_size


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


def longrope_set(
    shape: ModelShape, *, start_tokens: int = 0, long_temperature: float = 1.25
) -> FactorSet:
    """Returns one set up to the window and another beyond it."""

    def factors(growth: float, temperature: float) -> RopeFactors:
        return RopeFactors(
            rescale=tuple(
                1 + growth * pair / shape.head_dim for pair in range(shape.head_dim // 2)
            ),
            start_tokens=start_tokens,
            attention_factor=temperature,
            base=shape.rope_base,
            head_dim=shape.head_dim,
            original_length=shape.context_length,
            target_length=4 * shape.context_length,
            origin=FactorOrigin(method="test"),
        )

    short = FactorRange(up_to=shape.context_length, factors=factors(0.5, 1.25))
    return FactorSet(
        ranges=(short, FactorRange(up_to=None, factors=factors(7.0, long_temperature)))
    )


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.bfloat16, {"tie_embeddings": True, "num_heads": 8, "num_kv_heads": 1}),
        (torch.float32, {"num_heads": 3, "num_kv_heads": 3, "head_dim": 4, "vocab_size": 256}),
        (torch.float16, {}),
    ],
)
def test_round_trip_keeps_every_bit_and_file(
    tmp_path: Path, runtime: Runtime, dtype: torch.dtype, changes: dict[str, object]
) -> None:
    shape = ModelShape.model_validate(SHAPE.model_dump() | changes)
    source = random_hf_folder(tmp_path / "hf", shape, dtype)
    import_hf(source, tmp_path / "megatron", runtime)
    done = export_hf(tmp_path / "megatron", tmp_path / "back")
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(tmp_path / "back" / "model.safetensors"),
    )
    assert before.keys() == after.keys() and done.num_tensors == len(after)
    assert all(bits_equal(before[name], after[name]) for name in before)
    for name in ("config.json", *CARRIED):
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name


def test_exported_longrope_gives_our_logits_in_transformers(
    tmp_path: Path, runtime: Runtime
) -> None:
    """Shorter and longer than the window, where the two factor sets differ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    random_hf_folder(tmp_path / "hf", seed=3)
    import_hf(tmp_path / "hf", tmp_path / "megatron", runtime)
    export_hf(tmp_path / "megatron", tmp_path / "extended", longrope_set(SHAPE))
    theirs = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path / "extended")).float().eval()
    theirs.load_state_dict(load_file(tmp_path / "extended" / "model.safetensors"))
    ours = load_model(tmp_path / "extended", runtime, angle_precision="hf").model
    plain = load_model(tmp_path / "hf", runtime, angle_precision="hf").model
    for document in random_documents(
        WINDOW - 7, WINDOW, WINDOW + 1, 3 * WINDOW, vocabulary=SHAPE.vocab_size
    ):
        with torch.no_grad():
            expected = theirs(torch.tensor(document)[None]).logits[0].numpy()
        np.testing.assert_allclose(document_logits(ours, document), expected, atol=1e-4, rtol=0)
        assert np.abs(document_logits(plain, document) - expected).max() > 1e-2


@pytest.mark.parametrize(
    ("field", "options"),
    [("start_tokens", {"start_tokens": 4}), ("attention_factor", {"long_temperature": 1.5})],
)
def test_what_hf_cannot_carry_is_refused(
    tmp_path: Path, runtime: Runtime, field: str, options: dict[str, float]
) -> None:
    import_hf(random_hf_folder(tmp_path / "hf"), tmp_path / "megatron", runtime)
    with pytest.raises(InputError, match=field):
        export_hf(tmp_path / "megatron", tmp_path / "out", longrope_set(SHAPE, **options))  # type: ignore[arg-type]
    assert not list(tmp_path.glob("out*"))


def test_a_trained_model_tells_its_factors_and_dtype(tmp_path: Path, runtime: Runtime) -> None:
    source = random_hf_folder(tmp_path / "hf", torch_dtype="bfloat16")
    model = load_model(source, runtime).model
    model.set_factors(longrope_set(SHAPE))
    save_checkpoint(model, tmp_path / "trained", iteration=7, training={"seed": 3}, hf_files=source)
    export_hf(tmp_path / "trained", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "float32" and config["bos_token_id"] == 1
    assert (
        config["rope_scaling"]["rope_type"] == config["rope_parameters"]["rope_type"] == "longrope"
    )
    description = read_description(tmp_path / "trained")
    assert description.iteration == 7 and description.training == {"seed": 3}
    assert description.factor_set == longrope_set(SHAPE)
    assert all_equal(verify(tmp_path / "trained", tmp_path / "out"))


def test_a_model_without_hf_files_exports(tmp_path: Path, runtime: Runtime) -> None:
    model = build_model(SHAPE, runtime, dtype=torch.bfloat16)
    save_checkpoint(model, tmp_path / "new")
    export_hf(tmp_path / "new", tmp_path / "out")
    assert ModelShape.from_hf(open_hf_folder(tmp_path / "out").config) == SHAPE


def test_weights_load_in_another_dtype(tmp_path: Path, runtime: Runtime) -> None:
    source = random_hf_folder(tmp_path / "hf", dtype=torch.bfloat16)
    import_hf(source, tmp_path / "megatron", runtime)
    from_hf, from_megatron = load_model(source, runtime), load_model(tmp_path / "megatron", runtime)
    assert next(from_megatron.model.stage.parameters()).dtype == torch.float32
    assert np.array_equal(
        document_logits(from_hf.model, TOKENS), document_logits(from_megatron.model, TOKENS)
    )
    assert (
        from_megatron.tokenizer_file is not None
        and from_megatron.tokenizer_file.name == "tokenizer.json"
    )


def test_verify_finds_one_changed_number(tmp_path: Path, runtime: Runtime) -> None:
    source, other = random_hf_folder(tmp_path / "hf"), random_hf_folder(tmp_path / "other")
    import_hf(source, tmp_path / "megatron", runtime)
    rows = verify(source, tmp_path / "megatron", logits=True, runtime=runtime)
    assert all_equal(rows) and rows[-1].difference == 0.0
    weights = random_weights(SHAPE)
    weights["model.layers.1.self_attn.k_proj.weight"][3, 5] += 0.5
    save_file(weights, other / "model.safetensors")
    differing = [row for row in verify(other, tmp_path / "megatron") if not row.equal]
    assert [row.name for row in differing] == ["model.layers.1.self_attn.k_proj.weight"]
    assert differing[0].difference == pytest.approx(0.5)


def test_verify_tells_factors_and_shapes_apart(tmp_path: Path) -> None:
    plain = random_hf_folder(tmp_path / "a")
    linear = random_hf_folder(tmp_path / "b", rope_scaling={"rope_type": "linear", "factor": 2.0})
    small = random_hf_folder(tmp_path / "c", SHAPE.model_copy(update={"num_layers": 1}))
    assert [row.name for row in verify(plain, linear) if not row.equal] == ["(rope factors)"]
    rows = verify(plain, small)
    assert not rows[0].equal and sum(row.b == "absent" for row in rows) == 9


def test_shards_and_their_index_are_read_back(tmp_path: Path) -> None:
    source = open_hf_folder(random_hf_folder(tmp_path / "hf"))
    write_hf_folder(
        tmp_path / "sharded",
        source.config,
        ((n, source.tensor(n)) for n in source.files),
        max_shard_bytes=20_000,
    )
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert all_equal(verify(tmp_path / "hf", tmp_path / "sharded"))


def test_a_checkpoint_replaces_the_one_before_it_and_nothing_else(
    tmp_path: Path, runtime: Runtime
) -> None:
    model = build_model(SHAPE, runtime)
    place = tmp_path / "here"
    (tmp_path / "here.partial").mkdir()
    (tmp_path / "here.partial" / "rubbish").write_text("of a killed run")
    for iteration in (1, 2):
        save_checkpoint(model, place, iteration=iteration)
    assert read_description(place).iteration == 2
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    place.rename(tmp_path / "here.replaced")  # as a kill between the two renames leaves it
    load_weights(model, place)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="left alone"):
        save_checkpoint(model, tmp_path / "mine")
    with pytest.raises(InputError, match="left alone"):
        export_hf(place, tmp_path / "mine")


def test_two_saves_write_the_same_bytes(tmp_path: Path, runtime: Runtime) -> None:
    model = build_model(SHAPE, runtime)
    for name in ("a", "b"):
        save_checkpoint(model, tmp_path / name)
    for file in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert (
            file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
        ), file.name


def test_folders_are_told_apart_by_contents(tmp_path: Path, runtime: Runtime) -> None:
    model = build_model(SHAPE, runtime)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    with pytest.raises(InputError, match="without checkpoints"):
        find_model(run)
    save_checkpoint(model, run / "checkpoints" / "z-first", iteration=9)
    save_checkpoint(model, run / "checkpoints" / "a-later", iteration=1)
    assert find_model(run) == ("megatron", run / "checkpoints" / "a-later")
    random_hf_folder(run / "export")
    (run / "result.json").write_text(json.dumps({"checkpoint": "export"}))
    assert find_model(run) == ("hf", run / "export")
    with pytest.raises(InputError, match="without config"):
        find_model(tmp_path)


def test_another_shape_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    save_checkpoint(build_model(SHAPE, runtime), tmp_path / "a")
    with pytest.raises(InputError, match="num_layers is 2"):
        load_weights(
            build_model(SHAPE.model_copy(update={"num_layers": 1}), runtime), tmp_path / "a"
        )
