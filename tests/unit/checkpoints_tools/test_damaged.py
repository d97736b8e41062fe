"""Damaged and hostile checkpoints: one line each, exit code 2, and nothing of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import MetadataIndex

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.load_any import load_model
from launchers.main import main
from megatron_longrope.errors import EXIT_BAD_INPUT, InputError
from megatron_longrope.model import LongRopeModel, build_model
from megatron_longrope.model.checkpoints.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from megatron_longrope.runtime import Runtime
from tests.support.formats.hf_folders import SHAPE, random_hf_folder
from tests.support.tiny_models import single_runtime


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime) -> tuple[LongRopeModel, Path]:
    """A model and its checkpoint, with an object stored between the tensors."""
    model = build_model(SHAPE, runtime)
    path = tmp_path_factory.mktemp("whole") / "checkpoint"
    save_checkpoint(model, path, extra_sharded={"note": note("kept")})
    return model, path


@pytest.fixture
def copy(whole: tuple[LongRopeModel, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[1], tmp_path / "checkpoint"))


def note(value: object) -> Any:
    from megatron.core.dist_checkpointing.mapping import (
        ShardedObject,
    )  # after our runtime, which prepares for it

    return ShardedObject("note", value, (1,), (0,))


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_an_object_between_the_tensors_comes_back(whole: tuple[LongRopeModel, Path]) -> None:
    model, path = whole
    assert load_checkpoint(model, path, {"note": note(None)})[1] == {"note": "kept"}


def test_a_hostile_metadata_file_does_not_run(
    copy: Path, whole: tuple[LongRopeModel, Path], tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    (copy / "weights" / ".metadata").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(InputError, match=r"refused.*(posix|nt)\.system"):
        load_weights(whole[0], copy)
    result = CliRunner().invoke(main, ["convert", "export", str(copy), str(tmp_path / "out")])
    assert result.exit_code == EXIT_BAD_INPUT
    assert "system" in result.output and len(result.output.splitlines()) == 1
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_no_second_metadata_file_is_tried(
    copy: Path, whole: tuple[LongRopeModel, Path], tmp_path: Path
) -> None:
    """torch falls back to one file per rank where the common one cannot be read."""
    marker = tmp_path / "ran"
    (copy / "weights" / "__0.metadata").write_bytes(pickle.dumps(Payload(marker)))
    (copy / "weights" / ".metadata").write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        load_weights(whole[0], copy)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["os\nsystem", "builtins\neval", "torch\nload", "torch.serialization\nos.system"]
)
def test_names_outside_the_list_are_refused(
    copy: Path, whole: tuple[LongRopeModel, Path], name: str
) -> None:
    (copy / "weights" / ".metadata").write_bytes(f"c{name}\n.".encode())
    with pytest.raises(InputError, match=name.replace("\n", r"\.")):
        load_weights(whole[0], copy)


def test_a_hostile_common_file_does_not_run(
    copy: Path, whole: tuple[LongRopeModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    torch.save({"optimizer": Payload(marker)}, copy / "weights" / "common.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(InputError, match=r"refused.*(posix|nt)\.system"):
        load_weights(whole[0], copy)
    assert not marker.exists()


def test_a_hostile_object_between_the_tensors_does_not_run(
    copy: Path, whole: tuple[LongRopeModel, Path], tmp_path: Path
) -> None:
    marker = tmp_path / "ran"

    def point_to_payload(metadata: Any) -> None:
        place = metadata.storage_data[MetadataIndex("note/shard_0_1")]
        file = copy / "weights" / place.relative_path
        place.offset = file.stat().st_size
        with file.open("ab") as stream:
            torch.save([Payload(marker)], stream)
        place.length = file.stat().st_size - place.offset

    edit_metadata(copy, point_to_payload)
    with pytest.raises(InputError, match=r"refused.*(posix|nt)\.system"):
        load_checkpoint(whole[0], copy, {"note": note(None)})
    assert not marker.exists()


def edit_metadata(checkpoint: Path, change: Callable[[Any], None]) -> None:
    path = checkpoint / "weights" / ".metadata"
    metadata = pickle.loads(path.read_bytes())  # noqa: S301
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def _escape(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).relative_path = "../../secret.distcp"


def _huge(metadata: Any) -> None:
    entry = metadata.state_dict_metadata["decoder.final_layernorm.weight"]
    entry.size = torch.Size([1 << 50])
    entry.chunks[0].sizes = torch.Size([1 << 50])


def _far(metadata: Any) -> None:
    next(iter(metadata.storage_data.values())).offset = 1 << 60


def _nothing(metadata: Any) -> None:
    metadata.storage_data = None


def _missing(metadata: Any) -> None:
    del metadata.state_dict_metadata["decoder.final_layernorm.weight"]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_escape, "no data file of this folder"),
        (_huge, "not there"),
        (_far, "cut short"),
        (_nothing, "damaged"),
        (_missing, "final_layernorm"),
    ],
)
def test_metadata_that_lies_is_refused(
    copy: Path,
    whole: tuple[LongRopeModel, Path],
    tmp_path: Path,
    change: Callable[[Any], None],
    rule: str,
) -> None:
    edit_metadata(copy, change)
    for read in (lambda: load_weights(whole[0], copy), lambda: export_hf(copy, tmp_path / "out")):
        with pytest.raises(InputError, match=rule) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "longrope.json",
        "weights/.metadata",
        "weights/common.pt",
        "weights/metadata.json",
        "weights/__0_0.distcp",
    ],
)
@pytest.mark.parametrize("keep", [None, 0, 0.5, 0.99])
def test_missing_and_truncated_files_are_refused(
    copy: Path, whole: tuple[LongRopeModel, Path], name: str, keep: float | None
) -> None:
    file = copy / name
    raw = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(InputError) as caught:
        load_weights(whole[0], copy)
    assert "\n" not in str(caught.value)


HF_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "without config"),
    "half a config": (lambda d: (d / "config.json").write_text('{"model_'), "not a whole JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
    "architecture": (lambda d: edit_config(d, model_type="gpt2"), "model_type=gpt2"),
    "rope type": (
        lambda d: edit_config(d, rope_scaling={"rope_type": "mystery"}),
        "rope_type=mystery",
    ),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "neither a Hugging Face folder|without weights",
    ),
    "truncated": (lambda d: os.truncate(d / "model.safetensors", 5000), "damaged or cut short"),
    "absurd header": (
        lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
        "damaged",
    ),
    "sizes": (lambda d: edit_config(d, intermediate_size=44), "its config says"),
    "missing": (
        lambda d: edit_config(d, num_hidden_layers=3),
        "weights are missing: model.layers.2",
    ),
    "unknown": (lambda d: edit_config(d, num_hidden_layers=1), "unknown weights: model.layers.1"),
    "NaN": (lambda d: edit_weight(d, torch.full((24,), float("nan"))), "NaN"),
    "mixed dtypes": (lambda d: edit_weight(d, torch.ones(24).bfloat16()), "mixed dtypes"),
    "escaping index": (
        lambda d: index(d, "../../x.safetensors"),
        "no safetensors file of this folder",
    ),
    "absolute index": (
        lambda d: index(d, "/etc/x.safetensors"),
        "no safetensors file of this folder",
    ),
    "missing shard": (lambda d: index(d, "model-00002-of-00002.safetensors"), "is missing"),
    "tied but different": (
        lambda d: edit_config(d, tie_word_embeddings=True),
        "tie_word_embeddings",
    ),
}


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_weight(folder: Path, value: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.norm.weight": value}, folder / "model.safetensors")


def index(folder: Path, shard: str) -> None:
    """Leaves one shard, and an index that says where the weight it lacks is."""
    first, whole = folder / "model-00001-of-00002.safetensors", folder / "model.safetensors"
    held = {
        name: weight for name, weight in load_file(whole).items() if name != "model.norm.weight"
    }
    save_file(held, first)
    whole.unlink()
    weight_map = {"weight_map": dict.fromkeys(held, first.name) | {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))


@pytest.mark.parametrize("damage", HF_DAMAGES)
def test_damaged_hf_folders_are_refused(tmp_path: Path, runtime: Runtime, damage: str) -> None:
    folder = random_hf_folder(tmp_path / "hf")
    change, rule = HF_DAMAGES[damage]
    change(folder)
    with pytest.raises(InputError, match=rule) as caught:
        load_model(folder, runtime)
    assert "\n" not in str(caught.value)


def test_pickled_hf_weights_are_never_read(tmp_path: Path, runtime: Runtime) -> None:
    folder = random_hf_folder(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "ran"), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickles, which are never read"):
        load_model(folder, runtime)
    assert not (tmp_path / "ran").exists()
