"""Compares the speed of a conversion with `cp` of the same files, and measures its memory.

    python benchmarks/convert_throughput.py --folder /some/disk --gigabytes 8 --json throughput.json

Makes a sharded Llama checkpoint of random bfloat16 weights in FOLDER, then, ROUNDS times: copies it
with `cp`, imports it, copies the import, exports it. Every copy ends with an fsync of each file, as
every conversion does. Rates are bytes of weights per second; the source is read once before each
measurement, so all start with the same cache. A conversion runs in a process of its own, whose peak
memory the system reports. All files are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.common.weight_map import hf_sizes
from checkpoints_tools.hf.writing import write_hf_folder
from megatron_longrope.model import ModelShape
from megatron_longrope.rope import NoScaling, RopeGeometry, hf_rope_config

_CONVERT = """
import json, resource, sys, time
from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.verify import all_equal, verify

def compare(a, b, processes):
    assert all_equal(verify(a, b))

work, source, target, processes = sys.argv[1:]
if __name__ == "__main__":
    started = time.perf_counter()
    kinds = {"import": import_hf, "export": export_hf, "verify": compare}
    kinds[work](source, target, processes=int(processes))
    seconds = time.perf_counter() - started
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in both)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak * 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure"
    )
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of weights")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="of a conversion")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    needed, free = 5 * options.gigabytes * 1e9, shutil.disk_usage(options.folder).free
    if needed > free:
        sys.exit(
            f"--folder={options.folder}: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
        )
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        rows = _measure(Path(scratch), options.gigabytes, options.rounds, options.processes)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1))


def _measure(folder: Path, gigabytes: float, rounds: int, processes: int) -> list[dict[str, Any]]:
    # in a process of its own: Linux counts a parent's peak memory as its children's
    with get_context("spawn").Pool(1) as pool:
        num_bytes = pool.apply(_make_model, (folder / "hf", gigabytes))
    print(
        f"{num_bytes / 1e9:.2f} GB in {len(list((folder / 'hf').glob('*.safetensors')))} shards",
        flush=True,
    )
    rows = []
    for number in range(rounds):
        for direction, source, target in (
            ("import", "hf", "megatron"),
            ("export", "megatron", "back"),
        ):
            copied = _copy(folder / source, folder / "copy")
            converted = run_apart(direction, folder / source, folder / target, processes)
            rate, copy_rate = num_bytes / converted["seconds"], num_bytes / copied
            row = {
                "round": number,
                "direction": direction,
                "processes": processes,
                "bytes": num_bytes,
                "bytes_per_second": rate,
                "cp_bytes_per_second": copy_rate,
                "ratio": rate / copy_rate,
                "peak_bytes": converted["peak_bytes"],
            }
            rows.append(row)
            print(
                f"{direction}: {rate / 1e6:.0f} MB/s, cp {copy_rate / 1e6:.0f} MB/s, ratio "
                f"{row['ratio']:.2f}, "
                f"peak {converted['peak_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
        with get_context("spawn").Pool(1) as pool:
            pool.apply(_compare, (folder / "hf", folder / "back"))
        for target in ("megatron", "back"):
            shutil.rmtree(folder / target)
    return rows


def _make_model(folder: Path, gigabytes: float) -> int:
    """Writes a model as wide as Llama-3.1-8B, with as many layers as the size asks for."""
    layer = 2 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336)
    ends = 2 * 2 * 128256 * 4096
    shape = ModelShape(
        num_layers=max(1, round((gigabytes * 1e9 - ends) / layer)),
        hidden_size=4096,
        ffn_hidden_size=14336,
        num_heads=32,
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
    noise = torch.randn(1 << 24).bfloat16()

    def weight(name: str, sizes: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(sizes).numel()
        return noise.roll(hash(name) % 997).repeat(-(-count // noise.numel()))[:count].view(sizes)

    tensors = ((name, weight(name, sizes)) for name, sizes in hf_sizes(shape).items())
    return write_hf_folder(folder, config, tensors, max_shard_bytes=1 << 30)


def _copy(source: Path, target: Path) -> float:
    """Returns the seconds that `cp -r` and an fsync of every file take."""
    _warm(source)
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for file in (path for path in target.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def run_apart(work: str, source: Path, target: Path, processes: int = 1) -> dict[str, float]:
    """Returns seconds and peak memory (bytes) of an import, export or verify in its own process."""
    _warm(source)
    script = target.with_name("convert.py")
    script.write_text(_CONVERT)
    command = [sys.executable, script, work, source, target, str(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _warm(source: Path) -> None:
    """Waits until earlier writes are on disk, then reads all files into the cache."""
    os.sync()
    buffer = bytearray(1 << 24)
    for file in (path for path in source.rglob("*") if path.is_file()):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _compare(a: Path, b: Path) -> None:
    """Checks that the exported folder has the tensors of the first one in every bit."""
    from checkpoints_tools.hf.folder import bits_equal, open_hf_folder

    left, right = open_hf_folder(a), open_hf_folder(b)
    assert left.files.keys() == right.files.keys()
    assert all(bits_equal(left.tensor(name), right.tensor(name)) for name in left.files)
    print("there and back: every bit equal", flush=True)


if __name__ == "__main__":
    main()
