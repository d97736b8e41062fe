"""Streaming conversions: killed at any step and run again, by one process or two, in blocks of any
size."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints_tools.common import units
from checkpoints_tools.hf import importing
from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.load_any import find_model
from checkpoints_tools.verify import all_equal, verify
from megatron_longrope.errors import InputError
from megatron_longrope.model import build_model
from megatron_longrope.model.checkpoints.checkpoint import read_description, weights_folder
from megatron_longrope.runtime import Runtime
from tests.support.formats.hf_folders import SHAPE, random_hf_folder
from tests.support.tiny_models import single_runtime

Convert = Callable[[Path, Path], object]
SHARD_BYTES = 20_000


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Convert, Path, Path]]:
    """For each direction: the conversion, what it reads, and what it makes when nothing disturbs
    it."""
    base = tmp_path_factory.mktemp("sources")
    random_hf_folder(base / "hf", dtype=torch.bfloat16)
    import_hf(base / "hf", base / "megatron")
    export_hf(base / "megatron", base / "back", max_shard_bytes=SHARD_BYTES)
    return {
        "import": (import_hf, base / "hf", base / "megatron"),
        "export": (_export, base / "megatron", base / "back"),
    }


def _export(source: Path, target: Path) -> object:
    return export_hf(source, target, max_shard_bytes=SHARD_BYTES)


def digests(folder: Path) -> dict[str, str]:
    """Returns every file below `folder` with a digest of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def run_and_die(convert: Convert, source: Path, target: Path, step: int) -> bool:
    """Converts in a process that is killed before its step-th change of the disk; returns whether
    it came to that."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(step)
            convert(source, target)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _die_at(step: int) -> None:
    count = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for module, name in [
        (os, "replace"),
        (os, "fsync"),
        (os, "pwrite"),
        (os, "rename"),
        (os, "mkdir"),
        (os, "unlink"),
        (os, "rmdir"),
        (torch, "save"),
        (shutil, "copyfile"),
    ]:
        setattr(module, name, counted(getattr(module, name)))


@pytest.mark.parametrize("direction", ["import", "export"])
def test_killed_at_any_step_the_next_run_ends_with_the_same_bytes(
    tmp_path: Path, sources: dict[str, tuple[Convert, Path, Path]], direction: str
) -> None:
    convert, source, undisturbed = sources[direction]
    expected = digests(undisturbed)
    draw, step, kills = random.Random(7), 1, 0
    while run_and_die(convert, source, tmp_path / "target", step):
        kills += 1
        if (tmp_path / "target").exists():
            assert digests(tmp_path / "target") == expected
        if kills % 3 == 0:  # else the next kill meets what this one left
            convert(source, tmp_path / "target")
            assert digests(tmp_path / "target") == expected
            assert [path.name for path in tmp_path.iterdir()] == ["target"]
            shutil.rmtree(tmp_path / "target")
        step += draw.randint(1, 4)
    assert kills >= 10
    assert digests(tmp_path / "target") == expected


def test_a_partial_folder_does_not_look_like_a_model(
    tmp_path: Path, sources: dict[str, tuple[Convert, Path, Path]]
) -> None:
    for convert, source, _ in sources.values():
        for step in (5, 12, 20):
            shutil.rmtree(tmp_path / "target.partial", ignore_errors=True)
            assert run_and_die(convert, source, tmp_path / "target", step)
            with pytest.raises(InputError):
                find_model(tmp_path / "target.partial")


def test_what_is_done_is_not_done_again(
    tmp_path: Path, sources: dict[str, tuple[Convert, Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, source, undisturbed = sources["import"]
    made: list[int] = []
    make = units._make

    def stop_at_the_third(partial: Path, number: int, *rest: object) -> units.Record:
        made.append(number)
        if len(made) == 3:
            raise KeyboardInterrupt
        return make(partial, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(units, "_make", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "target")
    convert(source, tmp_path / "target")
    assert made == [0, 1, 2, 2, 3]
    assert digests(tmp_path / "target") == digests(undisturbed)


def test_a_changed_source_starts_over(
    tmp_path: Path, sources: dict[str, tuple[Convert, Path, Path]]
) -> None:
    _, source, _ = sources["import"]
    mine = Path(shutil.copytree(source, tmp_path / "hf"))
    assert run_and_die(import_hf, mine, tmp_path / "target", 25)
    shutil.rmtree(mine)
    random_hf_folder(mine, dtype=torch.bfloat16, seed=1)
    import_hf(mine, tmp_path / "target")
    assert all_equal(verify(mine, tmp_path / "target"))


def test_a_second_run_at_the_same_time_is_refused(
    tmp_path: Path, sources: dict[str, tuple[Convert, Path, Path]]
) -> None:
    convert, source, _ = sources["import"]
    refused: list[str] = []

    def again(done: int, total: int) -> None:
        with pytest.raises(InputError, match="another conversion") as caught:
            convert(source, tmp_path / "target")
        refused.append(str(caught.value))

    import_hf(source, tmp_path / "target", progress=again)
    assert refused and all_equal(verify(source, tmp_path / "target"))


@pytest.mark.timeout(400)
def test_two_processes_write_what_one_does(
    tmp_path: Path, sources: dict[str, tuple[Convert, Path, Path]]
) -> None:
    _, hf, megatron = sources["import"]
    _, _, back = sources["export"]
    seen: list[tuple[int, int]] = []
    import_hf(
        hf,
        tmp_path / "megatron",
        processes=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    export_hf(megatron, tmp_path / "back", processes=2, max_shard_bytes=SHARD_BYTES)
    assert digests(tmp_path / "megatron") == digests(megatron) and digests(
        tmp_path / "back"
    ) == digests(back)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == seen[
        -1
    ][1]


@pytest.mark.parametrize("block_bytes", [1, 100, 1000])
def test_blocks_of_any_size_hold_the_same_weights(
    tmp_path: Path,
    sources: dict[str, tuple[Convert, Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
    block_bytes: int,
) -> None:
    _, hf, _ = sources["import"]
    monkeypatch.setattr(importing, "CHUNK_BYTES", block_bytes)
    import_hf(hf, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "back")
    assert all_equal(verify(hf, tmp_path / "megatron")) and all_equal(verify(hf, tmp_path / "back"))


def test_megatron_core_itself_loads_it(
    sources: dict[str, tuple[Convert, Path, Path]], runtime: Runtime
) -> None:
    """With its own strategies, every key it asks for, layers' extra states included."""
    from megatron.core import dist_checkpointing

    _, _, megatron = sources["import"]
    model = build_model(
        read_description(megatron).shape, runtime, dtype=torch.bfloat16, initialize=False
    )
    state = {"model": model.stage.sharded_state_dict()}
    loaded = dist_checkpointing.load(
        state, str(weights_folder(megatron)), strict="raise_unexpected"
    )["model"]
    expected = dist_checkpointing.load_tensors_metadata(str(weights_folder(megatron)))
    assert {value.key for value in expected.values()} >= {
        "decoder.layers.mlp.linear_fc1.weight",
        "output_layer.weight",
    }
    model.stage.load_state_dict(loaded)
    norm = model.stage.decoder.final_layernorm.weight
    assert torch.isfinite(norm).all() and float(norm.float().std()) > 0.1


def test_metadata_is_what_torch_would_read(sources: dict[str, tuple[Convert, Path, Path]]) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    _, _, megatron = sources["import"]
    metadata = FileSystemReader(weights_folder(megatron)).read_metadata()
    assert metadata.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"].size == (
        SHAPE.num_layers,
        2 * SHAPE.ffn_hidden_size,
        SHAPE.hidden_size,
    )
    assert pickle.dumps(metadata) and np.all(
        [info.length > 0 for info in metadata.storage_data.values()]
    )
