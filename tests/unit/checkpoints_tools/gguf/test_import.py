"""GGUF files written by the `gguf` package → Megatron checkpoints: weights, scaling, tokenizer, and
what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from tokenizers import Tokenizer

from checkpoints_tools.gguf.importing import import_gguf
from checkpoints_tools.gguf.model import opened_gguf
from checkpoints_tools.gguf.names import permuted, unpermuted
from checkpoints_tools.gguf.tokenizer import tokenizer_from_gguf, tokenizer_to_gguf
from checkpoints_tools.verify import all_equal, verify
from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.checkpoint import read_description
from megatron_longrope.presets import MODELS
from megatron_longrope.rope import Llama3, RopeGeometry, Yarn, factor_set_from_hf
from megatron_longrope.runtime import Runtime
from tests.support.formats.gguf_files import SHAPE, write_gguf
from tests.support.tiny_models import single_runtime

KINDS = GGMLQuantizationType
DEMO = MODELS / "demo"
PAIRS = SHAPE.head_dim // 2


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_1])
def test_every_weight_is_what_the_file_says(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    weights = write_gguf(tmp_path / "m.gguf", kind)
    with opened_gguf(tmp_path / "m.gguf", tokenizer=False) as model:
        assert model.dtype == torch.float32  # F16 and BF16 too: these norms need 32 bits
        assert (
            model.check_weights({n: tuple(w.shape) for n, w in weights.items()}, tied_to={})
            == torch.float32
        )
        for name, weight in weights.items():
            expected = weight.numpy()
            if weight.dim() > 1 and kind != KINDS.F32:
                expected = dequantize(quantize(expected, kind), kind)
            assert np.array_equal(model.tensor(name).numpy(), expected), name


@pytest.mark.parametrize(
    "name", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", "input_layernorm"]
)
def test_rows_are_those_of_the_whole(tmp_path: Path, name: str) -> None:
    write_gguf(tmp_path / "m.gguf", KINDS.Q8_0)
    with opened_gguf(tmp_path / "m.gguf", tokenizer=False) as model:
        whole = model.tensor(f"model.layers.1.{name}.weight")
        for first, count in ((0, 1), (3, 7), (15, 2), (13, len(whole) - 13)):
            part = torch.empty(count, *whole.shape[1:])
            model.read_rows(f"model.layers.1.{name}.weight", first, part)
            assert torch.equal(part, whole[first : first + count])


def test_half_precision_is_kept_where_all_fits(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "m.gguf", KINDS.BF16, rounded=True)
    with opened_gguf(tmp_path / "m.gguf", tokenizer=False) as model:
        assert model.config["torch_dtype"] == "bfloat16"
        assert all(
            torch.equal(model.tensor(name), weight.bfloat16()) for name, weight in weights.items()
        )


def test_a_file_becomes_a_checkpoint(tmp_path: Path, runtime: Runtime) -> None:
    write_gguf(tmp_path / "m.gguf", KINDS.Q8_0)
    done = import_gguf(tmp_path / "m.gguf", tmp_path / "megatron", runtime, tokenizer=False)
    assert done.dtype == "float32" and done.num_tensors == 21
    assert read_description(tmp_path / "megatron").shape == SHAPE
    rows = verify(tmp_path / "m.gguf", tmp_path / "megatron", logits=True, runtime=runtime)
    assert all_equal(rows) and len(rows) == 24


def test_rows_go_there_and_back() -> None:
    rows = torch.arange(48.0).reshape(24, 2)
    assert torch.equal(unpermuted(permuted(rows, 3), 3), rows)
    assert permuted(rows, 3)[:4, 0].tolist() == [0, 8, 2, 10]


def scaled(tmp_path: Path, keys: dict[str, Any], **extra: list[float]) -> Any:
    tensors = {f"{name}.weight": np.array(values, np.float32) for name, values in extra.items()}
    write_gguf(tmp_path / "m.gguf", keys=keys, extra=tensors)
    with opened_gguf(tmp_path / "m.gguf", tokenizer=False) as model:
        return factor_set_from_hf(model.config)


def test_scaling_is_read(tmp_path: Path) -> None:
    assert scaled(tmp_path, {}).for_length(64).is_identity
    assert scaled(tmp_path, {"rope.scaling.type": "none"}).for_length(64).is_identity
    linear = scaled(tmp_path, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert set(linear.for_length(64).rescale) == {4.0}
    long, short = [1.37 + i for i in range(PAIRS)], [1.0 + 0.01 * i for i in range(PAIRS)]
    keys = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": 16,
        "rope.scaling.attn_factor": 1.19,
    }
    factors = scaled(tmp_path, keys, rope_factors_long=long, rope_factors_short=short)
    assert factors.for_length(16).rescale == tuple(round(value, 2) for value in short)
    assert factors.for_length(17).rescale == tuple(round(value, 2) for value in long)
    assert (
        factors.for_length(17).attention_factor == 1.19 and factors.geometry.original_length == 16
    )


def test_scaling_of_others_is_read(tmp_path: Path) -> None:
    """YaRN by llama.cpp's keys, and Llama 3.1's, which its converter stores as a tensor of λ."""
    geometry = RopeGeometry(base=10000.0, head_dim=16, original_length=16)
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
    }
    yarn, expected = scaled(tmp_path, keys).for_length(64), Yarn(scale=4.0).factors(geometry)
    assert yarn.rescale == expected.rescale and yarn.attention_factor == expected.attention_factor
    llama3 = Llama3(factor=8.0).factors(geometry)
    read = scaled(tmp_path, {}, rope_freqs=list(llama3.rescale)).for_length(64)
    np.testing.assert_allclose(read.rescale, llama3.rescale, rtol=1e-6)
    assert read.attention_factor == 1.0


LONG = {"rope.scaling.type": "longrope"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({".general.architecture": "qwen2"}, "llama is supported"),
        ({".split.count": 3}, "merge them first"),
        ({"block_count": None}, "positive whole number"),
        ({"block_count": 3}, "weights are missing"),
        ({"block_count": 1}, "unknown weights"),
        ({"attention.sliding_window": 32}, "does not know"),
        ({"expert_count": 8}, "does not know"),
        ({"attention.value_length": 8}, "length of a head"),
        ({"attention.layer_norm_rms_epsilon": math.nan}, "positive number"),
        ({"rope.freq_base": -1.0}, "positive number"),
        ({"feed_forward_length": 97}, "has sizes"),
        (LONG, "needs the tensors"),
        ({"rope.scaling.type": "wide"}, "one of none"),
        (
            {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
            "not known for scaling type none",
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.yarn_log_multiplier": 0.1,
            },
            "not known",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(
    tmp_path: Path, runtime: Runtime, keys: dict[str, Any], words: str
) -> None:
    write_gguf(tmp_path / "m.gguf", keys=keys)
    with pytest.raises(InputError, match=words) as error:
        import_gguf(tmp_path / "m.gguf", tmp_path / "out", runtime, tokenizer=False)
    assert len(str(error.value).splitlines()) == 1 and not list(tmp_path.glob("out*"))


def test_values_that_are_no_numbers_are_refused(tmp_path: Path, runtime: Runtime) -> None:
    factors = {"rope_factors_long": [1.0] * (PAIRS - 1), "rope_factors_short": [1.0] * PAIRS}
    with pytest.raises(InputError, match="long_factor"):
        scaled(tmp_path, LONG, **factors)
    with pytest.raises(InputError, match="does not go with it"):
        scaled(tmp_path, {}, rope_factors_long=[1.0] * PAIRS)
    with pytest.raises(InputError, match=r"finite|long"):
        scaled(
            tmp_path, LONG, rope_factors_long=[math.nan] * PAIRS, rope_factors_short=[1.0] * PAIRS
        )


TEXTS = [
    "def f(x):\n\treturn x*12345  # naïve\n",
    "It's  30°C — don't   go.",
    "<|endoftext|>🤖 ΑΒΓ 漢字 \r\n\n 007",
]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe"])
def test_a_tokenizer_goes_there_and_back(tmp_path: Path, pre: str) -> None:
    vocabulary = Tokenizer.from_file(str(DEMO / "tokenizer.json")).get_vocab_size()
    keys = tokenizer_to_gguf(DEMO, vocabulary + 3)
    assert keys["tokenizer.ggml.pre"] == "smollm" and keys["tokenizer.ggml.token_type"][-3:] == [
        5,
        5,
        5,
    ]
    keys |= {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": pre == "llama-bpe"}
    tokenizer_from_gguf(keys, tmp_path, Path("file"))
    assert tokenizer_to_gguf(tmp_path, vocabulary + 3) == keys
    if pre == "smollm":
        ours, theirs = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (tmp_path, DEMO))
        assert all(ours.encode(text).ids == theirs.encode(text).ids for text in TEXTS)
        assert all(
            ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
            for text in TEXTS
        )
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["bos_token"] == "<|endoftext|>" and settings["pad_token"] == "<|padding|>"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["model"].update(type="Unigram", unk_id=0, vocab=[["a", 0.0]]), "Unigram"),
        (lambda t: t["model"].update(byte_fallback=True), "sentencepiece"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "normalizes"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "none of gpt-2"),
        (lambda t: t["model"].update(ignore_merges=True), "none of gpt-2"),
        (lambda t: t["added_tokens"][0].update(lstrip=True), "spaces around"),
        (lambda t: t.pop("model"), "damaged"),
    ],
)
def test_a_tokenizer_llama_cpp_would_not_repeat_is_refused(
    tmp_path: Path, change: Any, words: str
) -> None:
    values = json.loads((DEMO / "tokenizer.json").read_text())
    change(values)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=words):
        tokenizer_to_gguf(tmp_path, 2048)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "llama"},
        {"pre": "qwen2"},
        {"merges": ["zz zz"]},
        {"token_type": [1]},
        {"tokens": None},
        {"bos_token_id": 1 << 31},
        {"token_type": [6] * 2048},
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    whole = tokenizer_to_gguf(DEMO, 2048) | {f"tokenizer.ggml.{k}": v for k, v in keys.items()}
    with pytest.raises(InputError, match="tokenizer"):
        tokenizer_from_gguf(whole, tmp_path, Path("file"))
