"""Checkpoints → GGUF: read back by the `gguf` package, and computed with as llama.cpp does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from checkpoints_tools.gguf.exporting import export_gguf
from checkpoints_tools.gguf.importing import import_gguf
from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.serving import serving_set
from checkpoints_tools.verify import all_equal, counts, verify
from launchers.main import main
from megatron_longrope.errors import EXIT_BAD_INPUT, InputError
from megatron_longrope.model import build_model
from megatron_longrope.model.checkpoints.checkpoint import read_description, save_checkpoint
from megatron_longrope.presets import MODELS
from megatron_longrope.rope import (
    FactorOrigin,
    FactorRange,
    FactorSet,
    RopeFactors,
    factor_set_from_hf,
    write_factors,
)
from megatron_longrope.runtime import Runtime
from tests.support.formats.gguf_files import gguf_name, llama_cpp_rows
from tests.support.formats.gguf_oracle import LlamaCpp
from tests.support.formats.hf_folders import SHAPE, random_hf_folder, random_weights
from tests.support.tiny_models import random_documents, single_runtime

WINDOW, PAIRS = SHAPE.context_length, SHAPE.head_dim // 2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime) -> Path:
    """A bfloat16 model with the demonstration model's tokenizer, 48 tokens more than it needs."""
    path = tmp_path_factory.mktemp("export")
    source = random_hf_folder(
        path / "hf", SHAPE.model_copy(update={"vocab_size": 2096}), torch.bfloat16
    )
    for name in TOKENIZER_FILES:
        shutil.copyfile(MODELS / "demo" / name, source / name)
    import_hf(source, path / "megatron", runtime)
    return path / "megatron"


def factors(
    growth: float, target: int, temperature: float = 1.25, start_tokens: int = 0
) -> RopeFactors:
    rescale = tuple(round(1 + growth * pair, 2) for pair in range(PAIRS))
    return RopeFactors(
        rescale=rescale,
        start_tokens=start_tokens,
        attention_factor=temperature,
        original_length=WINDOW,
        target_length=target,
        base=SHAPE.rope_base,
        head_dim=SHAPE.head_dim,
        origin=FactorOrigin(method="test"),
    )


def ranges(*entries: tuple[int | None, RopeFactors]) -> FactorSet:
    return FactorSet(
        ranges=tuple(FactorRange(up_to=limit, factors=entry) for limit, entry in entries)
    )


SHORT, LONG = factors(0.07, WINDOW), factors(1.37, 4 * WINDOW)
TWO = ranges((WINDOW, SHORT), (None, LONG))
STANDING = ranges(
    (WINDOW, SHORT),
    (None, LONG.model_copy(update={"rescale": (*LONG.rescale[:-2], 4321.09, 1e6)})),
)
"""Factors of a search in an open space: the last pair stands still."""
THREE = ranges((WINDOW, SHORT), (2 * WINDOW, factors(0.5, 2 * WINDOW)), (None, LONG))


def test_another_reader_finds_our_factors_weights_and_keys(
    tmp_path: Path, checkpoint: Path
) -> None:
    done = export_gguf(checkpoint, tmp_path / "m.gguf", TWO)
    reader = GGUFReader(tmp_path / "m.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert keys["general.architecture"] == "llama" and keys["llama.rope.scaling.type"] == "longrope"
    assert (
        keys["llama.rope.scaling.original_context_length"] == WINDOW
        and keys["llama.context_length"] == 4 * WINDOW
    )
    assert (
        keys["llama.rope.scaling.attn_factor"] == 1.25 and "llama.rope.scaling.factor" not in keys
    )
    for name, expected in (("long", LONG), ("short", SHORT)):
        stored = tensors[f"rope_factors_{name}.weight"].data
        assert stored.dtype == np.float32 and np.array_equal(stored, np.float32(expected.rescale))
    weights = random_weights(SHAPE.model_copy(update={"vocab_size": 2096}), torch.bfloat16)
    assert len(tensors) == len(weights) + 2 == done.num_tensors
    for name, weight in weights.items():
        stored = tensors[gguf_name(name)]
        expected = llama_cpp_rows(name, weight.float().numpy(), SHAPE)
        if weight.dim() > 1:
            assert stored.tensor_type.name == "BF16"
            raw = np.ascontiguousarray(stored.data).view(np.uint16).astype(np.uint32) << 16
            assert np.array_equal(raw.view(np.float32), expected), name
        else:
            assert stored.tensor_type.name == "F32" and np.array_equal(stored.data, expected), name
    assert keys["tokenizer.ggml.pre"] == "smollm" and len(keys["tokenizer.ggml.tokens"]) == 2096


def test_it_comes_back_bit_for_bit(tmp_path: Path, checkpoint: Path, runtime: Runtime) -> None:
    """Factors too: λ in steps of 0.01 survive the float32 they are stored in."""
    export_hf(checkpoint, tmp_path / "hf", TWO)
    export_gguf(checkpoint, tmp_path / "m.gguf", TWO)
    rows = verify(tmp_path / "hf", tmp_path / "m.gguf")
    assert all_equal(rows), [row for row in rows if not row.equal]
    import_gguf(tmp_path / "m.gguf", tmp_path / "again", runtime)
    assert all_equal(verify(tmp_path / "again", tmp_path / "hf"))
    assert read_description(tmp_path / "again").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("length", "given"),
    [
        *((length, TWO) for length in (WINDOW - 3, WINDOW, WINDOW + 1, 3 * WINDOW)),
        (3 * WINDOW, STANDING),
    ],
)
def test_llama_cpp_and_transformers_compute_the_same(
    tmp_path: Path, runtime: Runtime, length: int, given: FactorSet
) -> None:
    """Where the context allocated is the prompt's length, both choose the same set; and the set
    matters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import_hf(random_hf_folder(tmp_path / "hf", seed=3), tmp_path / "megatron", runtime)
    export_hf(tmp_path / "megatron", tmp_path / "extended", given)
    export_gguf(tmp_path / "megatron", tmp_path / "m.gguf", given, tokenizer=False)
    theirs = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path / "extended")).float().eval()
    theirs.load_state_dict(load_file(tmp_path / "extended" / "model.safetensors"))
    (document,) = random_documents(length, vocabulary=SHAPE.vocab_size)
    with torch.no_grad():
        expected = theirs(torch.tensor(document)[None]).logits[0].numpy()
    np.testing.assert_allclose(
        LlamaCpp(tmp_path / "m.gguf", length).logits(document), expected, atol=1e-4, rtol=0
    )
    other = LlamaCpp(tmp_path / "m.gguf", 4 * WINDOW if length <= WINDOW else WINDOW)
    assert np.abs(other.logits(document) - expected).max() > 1e-2


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (ranges((None, factors(1.0, 4 * WINDOW, start_tokens=4))), "start_tokens"),
        (THREE, "ranges"),
        (ranges((WINDOW, factors(0.1, WINDOW, 1.0)), (None, LONG)), "attention_factor"),
        (ranges((2 * WINDOW, SHORT), (None, LONG)), "up_to"),
        (ranges((None, LONG.model_copy(update={"base": 5e5}))), "made for base 500000"),
    ],
)
@pytest.mark.parametrize("serve", ["gguf", "transformers"])
def test_what_a_target_cannot_carry_is_one_line(
    tmp_path: Path, checkpoint: Path, given: FactorSet, field: str, serve: str
) -> None:
    result = export(tmp_path, checkpoint, given, "--serve", serve)
    assert result.exit_code == EXIT_BAD_INPUT and len(result.stderr.splitlines()) == 1
    assert field in result.stderr and sorted(path.name for path in tmp_path.iterdir()) == [
        "factors.json"
    ]


def export(tmp_path: Path, checkpoint: Path, given: FactorSet, *words: str) -> Result:
    write_factors(tmp_path / "factors.json", given)
    target = tmp_path / ("out.gguf" if "gguf" in words else "out")
    line = [
        "convert",
        "export",
        str(checkpoint),
        str(target),
        "--factors",
        str(tmp_path / "factors.json"),
        *words,
    ]
    return CliRunner().invoke(main, line)


def test_one_set_for_engines_that_choose_once(tmp_path: Path, checkpoint: Path) -> None:
    """vLLM and SGLang read the temperature as short_mscale and long_mscale; transformers goes on
    without them."""
    from transformers import LlamaConfig

    result = export(tmp_path, checkpoint, THREE, "--serve", "static", "--length", str(2 * WINDOW))
    assert result.exit_code == 0 and result.output.count("left out") == 2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for settings in (config["rope_scaling"], config["rope_parameters"]):
        assert (
            settings["short_factor"]
            == settings["long_factor"]
            == list(factors(0.5, WINDOW).rescale)
        )
        assert (
            settings["short_mscale"]
            == settings["long_mscale"]
            == settings["attention_factor"]
            == 1.25
        )
    assert config["max_position_embeddings"] == 2 * WINDOW
    assert config["original_max_position_embeddings"] == WINDOW
    read = factor_set_from_hf(config)
    assert {read.for_length(n).rescale for n in (1, WINDOW, 2 * WINDOW)} == {
        factors(0.5, WINDOW).rescale
    }
    assert LlamaConfig.from_pretrained(tmp_path / "out").rope_parameters["attention_factor"] == 1.25
    config["rope_scaling"]["long_mscale"] = config["rope_parameters"]["long_mscale"] = 1.0
    with pytest.raises(InputError, match="long_mscale"):
        factor_set_from_hf(config)


@pytest.mark.parametrize("serve", ["transformers", "gguf"])
def test_a_length_chooses_among_many_sets(tmp_path: Path, checkpoint: Path, serve: str) -> None:
    result = export(tmp_path, checkpoint, THREE, "--serve", serve, "--length", str(2 * WINDOW))
    assert (
        result.exit_code == 0
        and "left out: the factors for inputs of up to 256 tokens" in result.output
    )
    assert (
        export(tmp_path, checkpoint, THREE, "--serve", serve, "--length", str(WINDOW)).exit_code
        == EXIT_BAD_INPUT
    )


def test_the_set_chosen() -> None:
    chosen, left_out = serving_set(THREE, "static", None)
    assert [entry.factors for entry in chosen.ranges] == [LONG] and len(left_out) == 2
    assert serving_set(THREE, "static", WINDOW)[0].for_length(1).rescale == SHORT.rescale
    two, _ = serving_set(THREE, "gguf", 2 * WINDOW)
    assert [entry.up_to for entry in two.ranges] == [WINDOW, None]
    assert two.for_length(9 * WINDOW).rescale == factors(0.5, WINDOW).rescale
    assert serving_set(TWO, "transformers", None) == (TWO, [])


def test_a_model_without_scaling_says_so(tmp_path: Path, checkpoint: Path) -> None:
    export_gguf(checkpoint, tmp_path / "m.gguf")
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert fields["llama.rope.scaling.type"].contents() == "none"
    assert fields["llama.context_length"].contents() == WINDOW
    assert all_equal(verify(checkpoint, tmp_path / "m.gguf"))


def test_nothing_foreign_is_overwritten(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("out", "thesis.gguf"):
        (tmp_path / name).write_text("thesis")
        with pytest.raises(InputError, match="hf_dir"):
            export_gguf(checkpoint, tmp_path / name)
        assert (tmp_path / name).read_text() == "thesis"
    export_gguf(checkpoint, tmp_path / "m.gguf")
    export_gguf(checkpoint, tmp_path / "m.gguf", TWO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out", "thesis.gguf"]


def test_weights_that_are_no_numbers_are_not_exported(tmp_path: Path, runtime: Runtime) -> None:
    model = build_model(SHAPE, runtime)
    with torch.no_grad():
        next(model.stage.parameters())[3, 5] = torch.nan
    save_checkpoint(model, tmp_path / "megatron")
    with pytest.raises(InputError, match="holds NaN"):
        export_gguf(tmp_path / "megatron", tmp_path / "m.gguf", tokenizer=False)
    assert [path.name for path in tmp_path.iterdir()] == ["megatron"]


def test_a_tokenizer_of_another_kind_is_left_out_on_request(
    tmp_path: Path, runtime: Runtime
) -> None:
    import_hf(random_hf_folder(tmp_path / "hf"), tmp_path / "megatron", runtime)
    with pytest.raises(InputError, match="--no-tokenizer"):
        export_gguf(tmp_path / "megatron", tmp_path / "m.gguf")
    export_gguf(tmp_path / "megatron", tmp_path / "m.gguf", tokenizer=False)
    assert GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.model"].contents() == "none"


def verified(*words: Any) -> Result:
    return CliRunner().invoke(main, ["convert", "verify", *map(str, words)])


def test_verify_tells_formats_apart_and_their_differences(
    tmp_path: Path, checkpoint: Path, runtime: Runtime
) -> None:
    export_gguf(checkpoint, tmp_path / "m.gguf")
    export_hf(checkpoint, tmp_path / "hf")
    rows = verify(tmp_path / "hf", tmp_path / "m.gguf", logits=True, tokens=80, runtime=runtime)
    assert counts(rows) == {"equal": 24, "other dtype": 0, "differs": 0, "missing": 0}
    assert rows[-1].a == "80 tokens × 2096"
    same = verified(tmp_path / "hf", tmp_path / "m.gguf")
    assert same.exit_code == 0 and "equal: 23 rows, 23 equal" in same.output
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    weights["lm_head.weight"][5, 7] += 1
    missing = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "hf" / "model.safetensors")
    other = verified(tmp_path / "hf", tmp_path / "m.gguf", "--json", tmp_path / "v.json")
    values = json.loads((tmp_path / "v.json").read_text())
    verdicts = {row["name"]: row["verdict"] for row in values["rows"] if not row["equal"]}
    assert (
        other.exit_code == 1
        and missing.numel()
        and verdicts
        == {
            "model.norm.weight": "other dtype",
            "lm_head.weight": "differs",
            "model.layers.1.mlp.up_proj.weight": "missing",
        }
    )


@pytest.mark.parametrize(
    "words", [("nothing", "nothing"), ("v.json", "v.json"), ("m.gguf", "m.gguf", "--tokens", "9")]
)
def test_verify_of_no_model_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "v.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    result = verified(
        *(tmp_path / word if "." in word or word == "nothing" else word for word in words)
    )
    assert result.exit_code == EXIT_BAD_INPUT and len(result.stderr.splitlines()) == 1
