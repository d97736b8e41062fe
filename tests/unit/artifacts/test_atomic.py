"""The one writer: whole or not at all, strict JSON, nothing left beside the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope.atomic import (
    finite_or_none,
    json_text,
    replacing,
    write_json_file,
    write_text_file,
)


def test_missing_folders_are_made_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json_file(path, {"λ": [1.0]})
    assert path.read_text(encoding="utf-8") == '{\n "\\u03bb": [\n  1.0\n ]\n}\n'
    assert os.listdir(path.parent) == ["b.json"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text_file(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        write_json_file(path, {"a": object()})
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_the_content_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "file", []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (done.append("sync"), sync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_text_file(path, "text")
    assert done == ["sync", "replace", "sync"]  # the file, its name, the folder that holds the name


@given(st.floats())
def test_floats_are_read_back_bit_for_bit_and_what_is_not_finite_is_null(value: float) -> None:
    (read,) = json.loads(json_text([value]), parse_constant=lambda word: pytest.fail(word))
    assert read == finite_or_none(value)
    assert (read is None) == (not math.isfinite(value))


def test_paths_and_numpy_become_plain_values() -> None:
    values = {"path": Path("a/b"), "scalar": np.float32(0.5), "array": np.array([1.5, math.inf])}
    assert json.loads(json_text(values)) == {"path": "a/b", "scalar": 0.5, "array": [1.5, None]}
