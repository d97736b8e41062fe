"""Every damaged input is refused with one line, and nothing is left or changed anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.folder import open_hf_folder
from checkpoints_tools.hf.importing import import_hf
from checkpoints_tools.hf.writing import write_hf_folder
from launchers.main import main
from megatron_longrope.errors import EXIT_BAD_INPUT, InputError
from tests.support.formats.damages import hf_damages, megatron_damages
from tests.support.formats.hf_folders import random_hf_folder

HF, MEGATRON = hf_damages(), megatron_damages()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sharded HF folder and its import."""
    base = tmp_path_factory.mktemp("whole")
    single = open_hf_folder(random_hf_folder(base / "single"))
    write_hf_folder(
        base / "hf",
        single.config,
        ((name, single.tensor(name)) for name in single.files),
        max_shard_bytes=20_000,
    )
    import_hf(base / "hf", base / "megatron")
    return base


def test_there_are_a_hundred() -> None:
    assert len(HF) + len(MEGATRON) >= 100


@pytest.mark.parametrize("name", HF)
def test_a_damaged_folder_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "hf", tmp_path / "hf")
    HF[name](tmp_path / "hf")
    before = contents(tmp_path)
    with pytest.raises(InputError) as caught:
        import_hf(tmp_path / "hf", tmp_path / "out" / "target")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    shutil.rmtree(tmp_path / "out", ignore_errors=True) if not any(
        (tmp_path / "out").glob("*")
    ) else None
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", MEGATRON)
def test_a_damaged_checkpoint_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "megatron", tmp_path / "megatron")
    MEGATRON[name](tmp_path / "megatron")
    before = contents(tmp_path)
    with pytest.raises(InputError) as caught:
        export_hf(tmp_path / "megatron", tmp_path / "out" / "target")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    shutil.rmtree(tmp_path / "out", ignore_errors=True) if not any(
        (tmp_path / "out").glob("*")
    ) else None
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns everything below `folder` with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "name", ["inf in model.norm.weight", "index leads to '../../x.safetensors'", "shard 0 missing"]
)
def test_the_command_says_one_line(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "hf", tmp_path / "hf")
    HF[name](tmp_path / "hf")
    result = CliRunner().invoke(
        main, ["convert", "import", str(tmp_path / "hf"), str(tmp_path / "target")]
    )
    refusal = [
        line for line in result.output.splitlines() if " of " not in line or "GB" not in line
    ]
    assert result.exit_code == EXIT_BAD_INPUT and len(refusal) == 1, result.output
    assert not list(tmp_path.glob("target*"))
