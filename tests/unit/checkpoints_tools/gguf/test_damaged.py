"""Damaged and hostile GGUF files: one line each, little memory, and nothing left behind."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from checkpoints_tools.gguf.model import opened_gguf
from launchers.main import main
from megatron_longrope.errors import EXIT_BAD_INPUT, InputError
from tests.support.formats.gguf_files import SHAPE, write_gguf
from tests.support.formats.hf_folders import random_weights

HUGE = 1 << 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path)
    return path.read_bytes()


def refused(tmp_path: Path, contents: bytes) -> str:
    """Returns the one line the file is refused with; whatever it says, reading it takes little
    memory."""
    path = tmp_path / "m.gguf"
    path.write_bytes(contents)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error, opened_gguf(path, tokenizer=False) as model:
            for name in model.files:
                model.tensor(name)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    line = str(error.value)
    assert len(line.splitlines()) == 1 and len(line) < 500, line
    return line


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, whole: bytes) -> None:
    """Within the header every 53rd byte, in the tensors every eighth of them, and the very last
    byte."""
    header = whole.index(b"output_norm.weight") + 200
    cuts = {*range(0, header, 53), *range(header, len(whole), len(whole) // 8), len(whole) - 1}
    for cut in sorted(cuts):
        assert any(
            word in refused(tmp_path, whole[:cut])
            for word in ("cut short", "not a GGUF", "says it holds")
        )


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def tensor(
    name: bytes,
    sizes: tuple[int, ...] = (4,),
    kind: int = 0,
    offset: int = 0,
    dims: int | None = None,
) -> bytes:
    count = len(sizes) if dims is None else dims
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, offset)


def file(
    keys: list[bytes],
    tensors: list[bytes],
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys + tensors) + bytes(256)


ARRAY = struct.Struct("<IQ")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "another version": (file([], [], version=1), "version 1"),
    "big-endian": (file([], [], version=3 << 24), "version"),
    "keys without end": (file([], [], num_keys=HUGE), "at most"),
    "tensors without end": (file([], [], num_tensors=HUGE), "at most"),
    "more keys than there are": (file([], [], num_keys=1 << 20), "is there twice"),
    "a key without end": (file([text(b"a", HUGE)], []), "header wants"),
    "a text without end": (file([key(b"a", 8, text(b"", (1 << 64) - 1))], []), "header wants"),
    "an array without end": (file([key(b"a", 9, ARRAY.pack(4, HUGE))], []), "at most"),
    "many large arrays": (
        file([key(b"%d" % i, 9, ARRAY.pack(0, 1 << 20)) for i in range(9)], []),
        "cut short|at most",
    ),
    "texts without end": (
        file([key(b"a", 9, ARRAY.pack(8, 1 << 21))], []),
        "header wants|cut short|at most",
    ),
    "an array of arrays": (
        file([key(b"a", 9, ARRAY.pack(9, 1) + ARRAY.pack(0, 1))], []),
        "array of type 9",
    ),
    "an unknown type": (file([key(b"a", 77, b"")], []), "type 77"),
    "no UTF-8": (file([key(b"a", 8, text(b"\xff\xfe"))], []), "UTF-8"),
    "a key twice": (file([key(b"a", 0, b"1")] * 2, []), "twice"),
    "an alignment of 3": (
        file([key(b"general.alignment", 4, struct.pack("<I", 3))], []),
        "power of two",
    ),
    "an alignment of 0": (file([key(b"general.alignment", 4, bytes(4))], []), "power of two"),
    "an alignment of text": (
        file([key(b"general.alignment", 8, text(b"x" * 300))], []),
        "power of two",
    ),
    "no dimensions": (file([], [tensor(b"t", ())]), "0 dimensions"),
    "many dimensions": (file([], [tensor(b"t", dims=1 << 31)]), "dimensions"),
    "a size of 0": (file([], [tensor(b"t", (4, 0))]), "cannot have sizes"),
    "sizes without end": (file([], [tensor(b"t", (1 << 63, 1 << 63))]), "cannot have sizes"),
    "a large tensor": (file([], [tensor(b"t", (1 << 39,))]), "cut short"),
    "an unknown block": (file([], [tensor(b"t", kind=999)]), "type 999"),
    "rows of half a block": (file([], [tensor(b"t", (33,), kind=8)]), "blocks of 32"),
    "far away": (file([], [tensor(b"t", offset=1 << 62)]), "cut short"),
    "not aligned": (file([], [tensor(b"t", offset=4)]), "not aligned"),
    "over another": (file([], [tensor(b"s", (16,)), tensor(b"t", offset=32)]), "over another"),
    "a tensor twice": (file([], [tensor(b"t"), tensor(b"t", offset=32)]), "twice"),
    "nothing": (b"", "not a GGUF"),
    "a pickle": (b"\x80\x04cos\nsystem\n", "not a GGUF"),
    "no keys": (file([], []), "general.architecture"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, name: str) -> None:
    contents, words = HOSTILE[name]
    assert any(word in refused(tmp_path, contents) for word in words.split("|"))


def changed_float(whole: bytes, name: str, value: float) -> bytes:
    """Returns the file with the first value of a float32 tensor changed."""
    first = random_weights(SHAPE)[name].flatten()[:3].numpy().tobytes()
    start = whole.index(first)
    return whole[:start] + np.float32(value).tobytes() + whole[start + 4 :]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, whole: bytes, value: float
) -> None:
    line = refused(tmp_path, changed_float(whole, "model.layers.1.mlp.up_proj.weight", value))
    assert "model.layers.1.mlp.up_proj.weight holds NaN or infinity" in line


SPOILED = {
    "cut": lambda b: b[:300],
    "renamed": lambda b: b.replace(b"output_norm.weight", b"../../../evil.wght"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_the_command_says_one_line(
    tmp_path: Path, whole: bytes, spoil: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "m.gguf").write_bytes(spoil(whole))
    words = ["convert", "import", str(tmp_path / "m.gguf"), str(tmp_path / "out"), "--no-tokenizer"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == EXIT_BAD_INPUT and len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
