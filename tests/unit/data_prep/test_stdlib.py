"""The standard-library corpus: held-out modules are long, whole, and nowhere in the training
part."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from data_prep.stdlib_corpus import (
    DEVELOPMENT_MODULES,
    SEARCH_MODULES,
    CorpusSplit,
    read_stdlib,
    split,
)
from megatron_longrope.errors import InputError


@pytest.fixture(scope="module")
def corpus() -> CorpusSplit:
    return split()


def test_held_out_modules_are_the_files_themselves_and_long(corpus: CorpusSplit) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    for names, part in ((SEARCH_MODULES, corpus.search), (DEVELOPMENT_MODULES, corpus.development)):
        assert [document.name for document in part] == list(names)
        assert all(
            document.text == (root / document.name).read_text(encoding="utf-8") for document in part
        )
        assert all(len(document.text) > 3 * 20_000 for document in part)


def test_the_parts_share_hardly_a_function(corpus: CorpusSplit) -> None:
    """Ten lines from a `def` on that a held-out module and a training module have in common are
    counted."""

    def functions(text: str) -> set[str]:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return {
            "\n".join(lines[i : i + 10]) for i, line in enumerate(lines) if line.startswith("def ")
        }

    held_out = {
        function
        for document in corpus.search + corpus.development
        for function in functions(document.text)
    }
    shared = sum(len(functions(document.text) & held_out) for document in corpus.train)
    assert len(held_out) > 1000 and shared <= 3


def test_training_text_is_sources_and_documentation_in_a_fixed_order(corpus: CorpusSplit) -> None:
    names = [document.name for document in corpus.train]
    modules = [name for name in names if name.endswith(".py")]
    assert modules == sorted(modules) and len(modules) > 300 and len(set(names)) == len(names)
    assert any(name.startswith("pydoc_data/") for name in names)
    banned = {
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "site-packages",
        "dist-packages",
        "ensurepip",
        "turtledemo",
    }
    assert not any(banned & set(name.split("/")) for name in names)


def _library(folder: Path, extra: dict[str, str]) -> Path:
    held_out = {
        name: f"# {name}\n" + "".join(f"{name} line {i}\n" for i in range(200))
        for name in SEARCH_MODULES
    }
    held_out |= {
        name: "".join(f"{name} line {i}\n" for i in range(200)) for name in DEVELOPMENT_MODULES
    }
    for name, text in {**held_out, **extra}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_near_duplicates_of_held_out_modules_do_not_train(tmp_path: Path) -> None:
    own = "".join(f"own line {i}\n" for i in range(100))
    copy = "".join(f"    inspect.py line {i}\n" for i in range(50)) + own
    root = _library(
        tmp_path, {"copy.py": copy, "own.py": own, "test/own.py": own, "short.py": "x\n"}
    )
    (root / "latin.py").write_bytes(b"# \xe9\n" * 20)
    corpus = split(root)
    assert corpus.near_duplicates == ("copy.py",)
    assert [document.name for document in corpus.train] == ["own.py"]


def test_documentation_is_read_not_run(tmp_path: Path) -> None:
    root = _library(
        tmp_path, {"pydoc_data/topics.py": "# made by Sphinx\ntopics = {'b': 'B', 'a': r'A\\d'}\n"}
    )
    assert [(d.name, d.text) for d in read_stdlib(root)][-2:] == [
        ("pydoc_data/a", "A\\d"),
        ("pydoc_data/b", "B"),
    ]


def test_a_missing_held_out_module_is_named(tmp_path: Path) -> None:
    (_library(tmp_path, {}) / "inspect.py").unlink()
    with pytest.raises(InputError, match=r"missing: inspect\.py"):
        split(tmp_path)
