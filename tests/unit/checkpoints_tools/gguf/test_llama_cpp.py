"""The real llama.cpp, where `llama-cpp-python` is installed (docs/serving.md): same tokens, same
continuations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from benchmarks.llama_cpp_parity import compare, same_tokens, tokens_of
from checkpoints_tools.gguf.exporting import export_gguf
from checkpoints_tools.gguf.tokenizer import tokenizer_from_gguf, tokenizer_to_gguf
from checkpoints_tools.hf.exporting import export_hf
from checkpoints_tools.hf.importing import import_hf
from megatron_longrope.presets import MODELS
from megatron_longrope.rope import FactorRange, FactorSet, RopeGeometry, Yarn
from megatron_longrope.runtime import Runtime
from tests.support.tiny_models import single_runtime

pytest.importorskip("llama_cpp")
WINDOW = 256
TEXT = Path(np.__file__).with_name("version.py").parent / "_utils" / "_inspect.py"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    yield from single_runtime()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime) -> tuple[Path, Path]:
    """The demonstration model at eight times its window, as GGUF and as HF folder."""
    path = tmp_path_factory.mktemp("llama_cpp")
    geometry = RopeGeometry(base=10000.0, head_dim=64, original_length=WINDOW)
    long, short = (Yarn(scale=s, attention_factor=1.15).factors(geometry) for s in (8.0, 1.5))
    factors = FactorSet(
        ranges=(FactorRange(up_to=WINDOW, factors=short), FactorRange(up_to=None, factors=long))
    )
    import_hf(MODELS / "demo", path / "megatron", runtime)
    export_hf(path / "megatron", path / "hf", factors)
    export_gguf(path / "megatron", path / "m.gguf", factors)
    return path / "m.gguf", path / "hf"


def test_it_cuts_text_as_the_tokenizer_does(exported: tuple[Path, Path]) -> None:
    assert same_tokens(*exported, TEXT)


@pytest.mark.parametrize("prompt", [100, 400])
def test_it_goes_on_as_transformers_does(exported: tuple[Path, Path], prompt: int) -> None:
    """Inside the window with the short set, beyond it with the long one; 16 greedy tokens each."""
    row = compare(*exported, tokens_of(exported[1], TEXT)[:prompt], 16, WINDOW)
    assert row["equal"] == 16 and float(str(row["logits"])) < 0.05, row
    if prompt < WINDOW:
        assert float(str(row["logits with the long set"])) > 1.0


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_the_other_ways_to_cut_text(tmp_path: Path, runtime: Runtime, pre: str) -> None:
    """The demonstration vocabulary, cut by the other names' rules; an Italian-Greek-Chinese mixture
    besides code."""
    source = Path(shutil.copytree(MODELS / "demo", tmp_path / "hf"))
    keys = tokenizer_to_gguf(source, 2048) | {"tokenizer.ggml.pre": pre}
    tokenizer_from_gguf(keys, source, Path("keys"))
    (tmp_path / "text").write_text(
        TEXT.read_text() + "\n\nperché così?  ΑΒΓ'LL 漢字 1234567\t\r\n  don't\u00a0I'M ½ é\n"
    )
    import_hf(source, tmp_path / "megatron", runtime)
    export_gguf(tmp_path / "megatron", tmp_path / "m.gguf")
    assert GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    assert same_tokens(tmp_path / "m.gguf", source, tmp_path / "text")


def test_a_file_without_tokenizer_takes_token_ids(tmp_path: Path, runtime: Runtime) -> None:
    import_hf(MODELS / "demo", tmp_path / "megatron", runtime)
    export_gguf(tmp_path / "megatron", tmp_path / "m.gguf", tokenizer=False)
    export_hf(tmp_path / "megatron", tmp_path / "hf")
    assert (
        compare(tmp_path / "m.gguf", tmp_path / "hf", list(range(2, 60)), 4, WINDOW)["equal"] == 4
    )
