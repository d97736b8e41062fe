"""The examples in docstrings run as they are written, with a tiny model and dataset at hand."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.documents import TokenDocument
from data_prep.writing import write_packed
from megatron_longrope.data import PackedDataset, TokenizerIdentity
from megatron_longrope.runtime import start_runtime
from tests.support.tiny_models import our_model, random_documents, tiny_hf_model

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("megatron_longrope", "launchers", "data_prep", "checkpoints_tools")


def modules_with_examples() -> list[str]:
    """Returns the dotted names of all modules that hold a `>>>`."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
        if ">>> " in path.read_text(encoding="utf-8")
    ]


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What an example may use without making it: `model`, `documents`, `dataset`, `folder`."""
    folder = tmp_path_factory.mktemp("examples")
    rows = [TokenDocument.generated(str(i), np.arange(1, 17, dtype=np.int64)) for i in range(64)]
    write_packed(folder / "set", rows, 16, TokenizerIdentity(name="tiny", sha256="ab" * 32), 300)
    with start_runtime(threads=1) as runtime:
        yield {
            "model": our_model(tiny_hf_model(), runtime),
            "documents": random_documents(96, 80),
            "dataset": PackedDataset(folder / "set"),
            "folder": folder,
        }


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_run(name: str, at_hand: dict[str, Any]) -> None:
    ran = doctest.testmod(
        importlib.import_module(name), extraglobs=at_hand, optionflags=doctest.ELLIPSIS
    )
    assert ran.attempted and not ran.failed
