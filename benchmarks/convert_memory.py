"""Measures the memory that converting and comparing a 70-billion-parameter Llama takes.

    python benchmarks/convert_memory.py --folder /some/disk --layers 1

The model has a hidden size of 8192, an MLP of 28672, 64 query and 8 key heads, a vocabulary of
128256, and LAYERS of the 80 layers. Its HF folder holds files of zeros that take no disk. It is
imported, exported again and verified both ways, each in a process of its own. A conversion makes
one file after the other (a layer of the checkpoint or a shard of the folder), a block of rows at a
time. So more layers take more time and disk (twice 4.2 GB, and twice 1.7 GB for each layer) but
not more memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.convert_throughput import run_apart
from checkpoints_tools.common.tensor_file import plan_file
from checkpoints_tools.common.weight_map import hf_sizes
from checkpoints_tools.hf.writing import shard_names, write_safetensors_index, write_settings
from megatron_longrope.model import ModelShape
from megatron_longrope.rope import NoScaling, RopeGeometry, hf_rope_config

BOUND_BYTES = 24 << 30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk with room"
    )
    parser.add_argument("--layers", type=int, default=1, help="of 80")
    parser.add_argument("--processes", type=int, default=1, help="of a conversion")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        rows = _measure(Path(scratch), options.layers, options.processes)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))
    sys.exit(0 if all(row["peak_bytes"] <= BOUND_BYTES for row in rows) else 1)


def _measure(folder: Path, layers: int, processes: int) -> list[dict[str, object]]:
    num_bytes = _make_model(folder / "hf", layers)
    print(f"{num_bytes / 1e9:.2f} GB of bfloat16, {layers} of 80 layers", flush=True)
    steps = (
        ("import", "hf", "megatron"),
        ("export", "megatron", "back"),
        ("verify", "hf", "megatron"),
        ("verify", "hf", "back"),
    )
    rows = []
    for work, source, target in steps:
        done = run_apart(work, folder / source, folder / target, processes)
        rows.append(
            {
                "work": work,
                "source": source,
                "target": target,
                "layers": layers,
                "processes": processes,
                "bytes": num_bytes,
                **done,
            }
        )
        print(
            f"{work} {source} {target}: peak {done['peak_bytes'] / 1e9:.2f} GB, "
            f"{done['seconds']:.0f} s",
            flush=True,
        )
    return rows


def _make_model(folder: Path, layers: int) -> int:
    """Writes an HF folder, a file per layer and one for the rest; returns the weights' bytes."""
    shape = ModelShape(
        num_layers=layers,
        hidden_size=8192,
        ffn_hidden_size=28672,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        context_length=8192,
        rope_base=500000.0,
    )
    geometry = RopeGeometry(
        base=shape.rope_base, head_dim=shape.head_dim, original_length=shape.context_length
    )
    config = (
        shape.to_hf() | hf_rope_config(NoScaling().factors(geometry)) | {"torch_dtype": "bfloat16"}
    )
    sizes = hf_sizes(shape)
    prefixes = [f"model.layers.{layer}." for layer in range(layers)]
    shards = [[name for name in sizes if name.startswith(prefix)] for prefix in prefixes]
    shards.append([name for name in sizes if not name.startswith("model.layers.")])
    folder.mkdir()
    write_settings(folder, config, None)
    for file, names in zip(shard_names(len(shards)), shards, strict=True):
        head, places = plan_file({name: (torch.bfloat16, sizes[name]) for name in names})
        (folder / file).write_bytes(head)
        os.truncate(folder / file, max(place.start + place.num_bytes for place in places.values()))
    total = sum(math.prod(size) for size in sizes.values()) * torch.bfloat16.itemsize
    write_safetensors_index(folder, shards, total)
    return total


if __name__ == "__main__":
    main()
