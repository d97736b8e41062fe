"""Named ways to damage a Hugging Face folder or a Megatron checkpoint."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], object]
INDEX = "model.safetensors.index.json"
_HEADER_LENGTHS = (0, 1, 2**20, 100_000_001, 2**40, 2**63, 2**64 - 1)
_HOSTILE_FILES = (
    "../../x.safetensors",
    "/etc/x.safetensors",
    "sub/x.safetensors",
    "..",
    "",
    None,
    7,
    "x.safetensors\0",
    "x.bin",
    "-x.safetensors",
    "..\\x.safetensors",
)
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
_NO_SIZES = (None, "many", 0, -3, 1.5, True, 10**15)
_ROPES: dict[str, Any] = {
    "unknown type": {"rope_type": "mystery"},
    "unknown key": {"rope_type": "linear", "factor": 2.0, "twist": 1},
    "no factor": {"rope_type": "linear"},
    "factor below 1": {"rope_type": "linear", "factor": 0.5},
    "factor is text": {"rope_type": "linear", "factor": "2"},
    "infinite factor": {"rope_type": "linear", "factor": 1e999},
    "short list": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4},
    "negative in list": {
        "rope_type": "longrope",
        "short_factor": [-1.0] * 4,
        "long_factor": [1.0] * 4,
    },
    "text in list": {"rope_type": "longrope", "short_factor": ["1"] * 4, "long_factor": [1.0] * 4},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "no mapping": [1, 2],
    "follows the input": {"rope_type": "dynamic", "factor": 2.0},
    "per layer": {"sliding_attention": {"rope_type": "x"}},
}


def edit_config(folder: Path, **changes: object) -> None:
    """Changes keys of config.json; the value None removes a key."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )


def edit_weights(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> None:
    """Changes one tensor in whichever file holds it; removes it where `change` returns None."""
    file = next(file for file in sorted(folder.glob("*.safetensors")) if name in load_file(file))
    weights = load_file(file)
    weights[name] = change(weights[name].clone())  # type: ignore[assignment]
    save_file(
        {key: value.contiguous() for key, value in weights.items() if value is not None}, file
    )


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the JSON header of the first weight file and leaves the data as it is."""
    file = sorted(folder.glob("*.safetensors"))[0]
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the JSON index of the weight files."""
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(change(index) or index))


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def _set(entry: dict[str, Any], key: str, value: object) -> None:
    entry[key] = value


def _cut(file: Path, keep: float) -> None:
    size = file.stat().st_size
    os.truncate(file, int(size * keep) if keep < 1 else int(keep))


def _poke(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


def _shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number]


def hf_damages() -> dict[str, Damage]:
    """Returns damages, by name, to a sharded float32 folder of `hf_folders.SHAPE`."""
    some: dict[str, Damage] = {
        "no config": lambda d: (d / "config.json").unlink(),
        "half a config": lambda d: _cut(d / "config.json", 0.5),
        "config is a list": lambda d: (d / "config.json").write_text("[]"),
        "deep config": lambda d: (d / "config.json").write_text("[" * 100_000),
        "config is no text": lambda d: (d / "config.json").write_bytes(b"\xff\xfe{}"),
        "no index": lambda d: (d / INDEX).unlink(),
        "half an index": lambda d: _cut(d / INDEX, 0.5),
        "index without map": lambda d: edit_index(d, lambda index: {"metadata": {}}),
        "index with a list": lambda d: edit_index(d, lambda index: {"weight_map": []}),
        "index with an empty map": lambda d: edit_index(d, lambda index: {"weight_map": {}}),
        "index lacks a tensor": lambda d: edit_index(
            d, lambda index: index["weight_map"].pop("model.norm.weight")
        ),
        "index invents a tensor": lambda d: edit_index(
            d, lambda i: _set(i["weight_map"], "x", _shard(d, 0).name)
        ),
        "index swaps a file": lambda d: edit_index(
            d,
            lambda i: _set(
                i["weight_map"], "lm_head.weight", i["weight_map"]["model.embed_tokens.weight"]
            ),
        ),
        "garbage after the end": lambda d: _shard(d, 1).write_bytes(
            _shard(d, 1).read_bytes() + b"\0" * 64
        ),
        "header is no JSON": lambda d: _shard(d, 0).write_bytes(
            (16).to_bytes(8, "little") + b"?" * 4096
        ),
        "header is a list": lambda d: edit_header(d, lambda header: [header]),
        "header without dtype": lambda d: edit_header(
            d, lambda header: _first(header).pop("dtype") and None
        ),
        "header without shape": lambda d: edit_header(
            d, lambda header: (_first(header).pop("shape"), None)[1]
        ),
        "unsupported dtype": lambda d: edit_header(
            d, lambda header: _set(_first(header), "dtype", "F8_E4M3")
        ),
        "unheard dtype": lambda d: edit_header(
            d, lambda header: _set(_first(header), "dtype", "Q9")
        ),
        "negative offset": lambda d: edit_header(
            d, lambda header: _set(_first(header), "data_offsets", [-8, 8])
        ),
        "offset beyond": lambda d: edit_header(
            d, lambda header: _set(_first(header), "data_offsets", [0, 2**50])
        ),
        "offsets turned": lambda d: edit_header(
            d, lambda header: _first(header)["data_offsets"].reverse()
        ),
        "huge shape": lambda d: edit_header(
            d, lambda header: _set(_first(header), "shape", [2**40, 2**40])
        ),
        "negative shape": lambda d: edit_header(
            d, lambda header: _set(_first(header), "shape", [-1, 24])
        ),
        "overlap": _overlap,
        "unknown tensor": lambda d: edit_index(
            _with_extra(d), lambda i: _set(i["weight_map"], "model.extra.weight", _shard(d, 0).name)
        ),
        "tied but different": lambda d: edit_config(d, tie_word_embeddings=True),
        "integers": lambda d: edit_weights(d, "model.norm.weight", lambda t: t.to(torch.int32)),
        "mixed dtypes": lambda d: edit_weights(d, "model.norm.weight", lambda t: t.bfloat16()),
        "a scalar": lambda d: edit_weights(d, "model.norm.weight", lambda t: t[0]),
        "fewer layers": lambda d: edit_config(d, num_hidden_layers=1),
        "more layers": lambda d: edit_config(d, num_hidden_layers=3),
        "generations disagree": lambda d: edit_config(
            d,
            rope_scaling={"rope_type": "linear", "factor": 2.0},
            rope_parameters={"rope_type": "linear", "factor": 3.0},
        ),
        "pickles only": _only_pickles,
    }
    some |= {
        f"header length {n}": lambda d, n=n: _shard(d, 0).write_bytes(
            n.to_bytes(8, "little") + b"{}"
        )
        for n in _HEADER_LENGTHS
    }  # type: ignore[misc]
    some |= {
        f"shard {n} cut at {keep}": lambda d, n=n, keep=keep: _cut(_shard(d, n), keep)
        for n in (0, 2)
        for keep in (0, 7, 9, 0.5, 0.999)
    }  # type: ignore[misc]
    some |= {f"shard {n} missing": lambda d, n=n: _shard(d, n).unlink() for n in range(3)}  # type: ignore[misc]
    some |= {
        f"index leads to {file!r}": lambda d, file=file: edit_index(
            d, lambda index: _set(index["weight_map"], "model.norm.weight", file)
        )
        for file in _HOSTILE_FILES
    }  # type: ignore[misc]
    some |= {
        f"{key}={value}": lambda d, key=key, value=value: edit_config(d, **{key: value})
        for key in _SIZES
        for value in _NO_SIZES
        if (key, value) != (_SIZES[-1], 10**15)
    }  # type: ignore[misc]
    some |= {
        f"rope: {name}": lambda d, rope=rope: edit_config(d, rope_scaling=rope)
        for name, rope in _ROPES.items()
    }  # type: ignore[misc]
    some |= {
        f"{value} in {name}": lambda d, name=name, value=value: edit_weights(d, name, _poke(value))
        for value in (float("nan"), float("inf"), -float("inf"))
        for name in (
            "model.embed_tokens.weight",
            "model.layers.1.self_attn.k_proj.weight",
            "model.norm.weight",
        )
    }  # type: ignore[misc]
    some |= {
        f"{name} of another size": lambda d, name=name: edit_weights(d, name, lambda t: t[:-1])
        for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight")
    }  # type: ignore[misc]
    some |= {
        f"without {name}": lambda d, name=name: edit_weights(d, name, lambda t: None)
        for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight")
    }  # type: ignore[misc]
    return some


def _overlap(folder: Path) -> None:
    """Makes two weights of one size claim the same bytes."""
    key, value = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "kv")
    weights: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
        file.unlink()
    (folder / INDEX).unlink()
    save_file(weights, folder / "model.safetensors")
    edit_header(
        folder, lambda header: _set(header[value], "data_offsets", header[key]["data_offsets"])
    )


def _with_extra(folder: Path) -> Path:
    file = _shard(folder, 0)
    save_file(load_file(file) | {"model.extra.weight": torch.ones(3)}, file)
    return folder


def _only_pickles(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def edit_metadata(checkpoint: Path, change: Callable[[Any], object]) -> None:
    """Changes the `.metadata` of a Megatron checkpoint."""
    path = checkpoint / "weights" / ".metadata"
    metadata = pickle.loads(path.read_bytes())  # noqa: S301
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def _entry(metadata: Any, name: str) -> Any:
    return metadata.state_dict_metadata[name]


def _retype(metadata: Any, name: str, dtype: torch.dtype) -> None:
    _entry(metadata, name).properties.dtype = dtype


_FC2 = "decoder.layers.mlp.linear_fc2.weight"


def _fill(file: Path, byte: bytes) -> None:
    file.write_bytes(byte * file.stat().st_size)


def megatron_damages() -> dict[str, Damage]:
    """Returns damages, by name, to an imported checkpoint of `hf_folders.SHAPE`."""
    some: dict[str, Damage] = {
        "a tensor less": lambda d: edit_metadata(d, lambda m: m.state_dict_metadata.pop(_FC2)),
        "a tensor more": lambda d: edit_metadata(
            d,
            lambda m: _set(
                m.state_dict_metadata,
                "decoder.layers.x.bias",
                _entry(m, "decoder.final_layernorm.weight"),
            ),
        ),
        "another dtype": lambda d: edit_metadata(d, lambda m: _retype(m, _FC2, torch.int16)),
        "chunk less": lambda d: edit_metadata(d, lambda m: _entry(m, _FC2).chunks.pop()),
        "chunk twice": lambda d: edit_metadata(
            d, lambda m: _entry(m, _FC2).chunks.append(_entry(m, _FC2).chunks[0])
        ),
        "another size": lambda d: edit_metadata(
            d, lambda m: setattr(_entry(m, _FC2), "size", torch.Size([2, 24, 41]))
        ),
        "data is zeros": lambda d: _fill(d / "weights" / "__1_0.distcp", b"\0"),
        "data is noise": lambda d: _fill(d / "weights" / "__2_0.distcp", b"\x93"),
        "data of another layer": lambda d: edit_metadata(d, _swap_places),
        "config of another model": lambda d: edit_config(d / "hf", num_attention_heads=3),
        "config damaged": lambda d: _cut(d / "hf" / "config.json", 0.5),
        "another version": lambda d: _edit_description(d, version=99),
        "another format": lambda d: _edit_description(d, format="x"),
        "unknown key": lambda d: _edit_description(d, extra=1),
        "another dtype said": lambda d: _edit_description(d, dtype="float16"),
        "unknown dtype said": lambda d: _edit_description(d, dtype="int3"),
        "no shape": lambda d: _edit_description(d, shape=None),
        "no factors": lambda d: _edit_description(d, factor_set={"version": 1}),
    }
    files = ("longrope.json", "weights/.metadata", "weights/__0_0.distcp", "weights/__2_0.distcp")
    some |= {f"{name} missing": lambda d, name=name: (d / name).unlink() for name in files}  # type: ignore[misc]
    some |= {
        f"{name} cut at {keep}": lambda d, name=name, keep=keep: _cut(d / name, keep)
        for name in files
        for keep in (0, 0.3, 0.9)
    }  # type: ignore[misc]
    return some


def _swap_places(metadata: Any) -> None:
    """Makes the metadata point one tensor's chunk at the bytes of another tensor."""
    places = metadata.storage_data
    first = next(index for index in places if index.fqn == _FC2)
    other = next(index for index in places if index.fqn == "embedding.word_embeddings.weight")
    places[first] = places[other]


def _edit_description(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "longrope.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
