"""What travels beside the weights, what stays behind and is said, and targets that are there
already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.folder import open_hf_folder
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.hf.writing import write_hf_folder
from checkpoints_tools.serving import end_token_note, engine_notes
from megatron_longrope.errors import InputError
from megatron_longrope.model.checkpoints.checkpoint import (
    CheckpointDescription,
    read_description,
    write_description,
)
from megatron_longrope.rope import (
    FactorSet,
    NoScaling,
    PositionInterpolation,
    RopeGeometry,
    Yarn,
    hf_rope_config,
)
from megatron_longrope.rope.methods import RopeMethod
from tests.support.formats.hf_folders import SHAPE, random_hf_folder

GEOMETRY = RopeGeometry(
    base=SHAPE.rope_base, head_dim=SHAPE.head_dim, original_length=SHAPE.context_length
)
TRAVEL = (
    "tokenizer.model.v3",
    "tekken.json",
    "qwen.tiktoken",
    "spiece.model",
    "vocab.txt",
    "USE_POLICY.md",
    "additional_chat_templates/tool_use.jinja",
    "additional_chat_templates/rag.jinja",
)
STAY = ("README.md", "configuration_phi3.py", "consolidated.safetensors", "original/params.json")


def put(folder: Path, *names: str) -> None:
    """Writes each file, its name inside."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)


def test_tokenizers_templates_and_licences_travel_and_the_rest_is_named(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf")
    put(source, *TRAVEL, *STAY, ".gitattributes", ".cache/x")
    done = import_hf(source, tmp_path / "megatron")
    assert done.stayed_behind == (
        "README.md",
        "configuration_phi3.py",
        "consolidated.safetensors",
        "original/",
    )
    assert export_hf(tmp_path / "megatron", tmp_path / "back").stayed_behind == ()
    back = {
        path.relative_to(tmp_path / "back").as_posix()
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    }
    assert back >= set(TRAVEL) and not back & {*STAY, ".gitattributes", ".cache/x"}
    assert all((tmp_path / "back" / name).read_text() == name for name in TRAVEL)
    export_hf(
        tmp_path / "megatron", tmp_path / "back"
    )  # an export is known as one, its templates included
    put(tmp_path / "back", "additional_chat_templates/mine.txt")
    with pytest.raises(InputError, match="additional_chat_templates"):
        export_hf(tmp_path / "megatron", tmp_path / "back")


def test_a_changed_template_is_another_source(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf")
    put(source, "additional_chat_templates/rag.jinja")
    before = open_hf_folder(source).fingerprint()
    (source / "additional_chat_templates" / "rag.jinja").write_text("another text")
    assert open_hf_folder(source).fingerprint() != before


def test_two_sets_of_weights_in_one_folder_are_refused(tmp_path: Path) -> None:
    """transformers reads the single file, an index suggests the shards: nobody says which is the
    model."""
    source = open_hf_folder(random_hf_folder(tmp_path / "hf"))
    weights = [(name, source.tensor(name)) for name in source.files]
    write_hf_folder(tmp_path / "two", source.config, weights, max_shard_bytes=20_000)
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "two" / "model.safetensors")
    with pytest.raises(InputError, match="has both"):
        open_hf_folder(tmp_path / "two")


@pytest.mark.parametrize("keys", [("torch_dtype",), ("dtype",), ("dtype", "torch_dtype")])
def test_every_dtype_key_tells_the_dtype_of_a_trained_model(
    tmp_path: Path, keys: tuple[str, ...]
) -> None:
    source = random_hf_folder(tmp_path / "hf", dtype=torch.float32)
    config = json.loads((source / "config.json").read_text())
    del config["torch_dtype"]
    (source / "config.json").write_text(json.dumps(config | dict.fromkeys(keys, "bfloat16")))
    import_hf(source, tmp_path / "megatron")
    trained = read_description(tmp_path / "megatron").model_copy(update={"iteration": 3})
    write_description(tmp_path / "megatron", CheckpointDescription.model_validate(trained))
    export_hf(tmp_path / "megatron", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: said.get(key) for key in ("dtype", "torch_dtype") if key in said} == dict.fromkeys(
        keys, "float32"
    )


def test_factors_of_another_window_are_refused(tmp_path: Path) -> None:
    import_hf(random_hf_folder(tmp_path / "hf"), tmp_path / "megatron")
    other = GEOMETRY.model_copy(update={"original_length": 2 * GEOMETRY.original_length})
    with pytest.raises(InputError, match="original_length"):
        export_hf(
            tmp_path / "megatron",
            tmp_path / "out",
            FactorSet.single(Yarn(scale=4.0).factors(other)),
        )
    assert not (tmp_path / "out").exists()


def test_a_length_for_factors_that_do_not_follow_it_is_refused(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf")
    with pytest.raises(InputError, match="dynamic_length"):
        import_hf(source, tmp_path / "megatron", dynamic_length=128)


def test_what_is_there_is_kept_where_asked(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf")
    (tmp_path / "megatron").mkdir()
    import_hf(source, tmp_path / "megatron", replace=False)  # an empty folder is nothing
    for convert, target in ((import_hf, "megatron"), (export_hf, "hf")):
        start = source if convert is import_hf else tmp_path / "megatron"
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(InputError, match="--replace"):
            convert(start, tmp_path / target, replace=False)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_parents_made_for_a_refused_conversion_go_too(tmp_path: Path) -> None:
    source = random_hf_folder(tmp_path / "hf")
    file = source / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    file.write_bytes(raw)
    (tmp_path / "kept").mkdir()
    with pytest.raises(InputError, match="NaN"):
        import_hf(source, tmp_path / "kept" / "new" / "newer" / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "kept"] and not list(
        (tmp_path / "kept").iterdir()
    )


HALVED = PositionInterpolation(scale=2.0)


@pytest.mark.parametrize(
    ("family", "method", "said"),
    [("phi3", HALVED, True), ("phi3", NoScaling(), False), ("llama", HALVED, False)],
)
def test_transformers_4_and_phi3_is_said(
    tmp_path: Path, family: str, method: RopeMethod, said: bool
) -> None:
    """Its Phi3Config (4.57: `_rope_scaling_validation`) takes exactly `type`, `short_factor` and
    `long_factor`."""
    config = {"model_type": family, **hf_rope_config(method.factor_set(GEOMETRY))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert any("transformers 4" in note for note in engine_notes(tmp_path)) == said


def test_end_tokens_a_gguf_file_cannot_name_are_said(tmp_path: Path) -> None:
    """Llama 3's chat models end at two or three."""
    assert end_token_note(tmp_path) == []
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 2]}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert "config.json ends texts at tokens 1, 2" in end_token_note(tmp_path)[0]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [128001, 128009]}')
    assert (
        "generation_config.json ends texts at tokens 128001, 128009" in end_token_note(tmp_path)[0]
    )
