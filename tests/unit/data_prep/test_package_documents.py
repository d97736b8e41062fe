"""The test documents: those of a rule, whole, long, recorded, and nowhere in what is trained on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.choose_documents import choose
from data_prep.package_documents import (
    TEST_MODULES,
    missing_texts,
    other_texts,
    read_test_documents,
)
from data_prep.stdlib_corpus import split
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError
from megatron_longrope.presets import model_path

ROOT = Path(__file__).resolve().parents[3]
AS_RECORDED = all(metadata.version(each.package) == each.version for each in TEST_MODULES)


@pytest.fixture(scope="module")
def demo_tokenizer() -> TextTokenizer:
    return load_tokenizer(model_path("preset:demo"))


@pytest.mark.skipif(not AS_RECORDED, reason="packages are not those of constraints.txt")
def test_the_rule_chooses_what_is_recorded() -> None:
    assert tuple(choose()) == TEST_MODULES
    assert not other_texts()


def test_versions_are_those_of_the_constraints() -> None:
    pins = dict(
        re.findall(r"^([\w.-]+)==([\w.+-]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    assert {each.package: each.version for each in TEST_MODULES}.items() <= pins.items()
    assert len({each.package for each in TEST_MODULES}) == len(TEST_MODULES) == 8


def test_documents_are_the_files_and_reach_8k(demo_tokenizer: TextTokenizer) -> None:
    for module, document in zip(TEST_MODULES, read_test_documents(), strict=True):
        files = metadata.files(module.package) or []
        file = next(Path(str(each.locate())) for each in files if each.as_posix() == module.path)
        assert document.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert len(demo_tokenizer.encode_document(document.text)) > 8192


def test_no_function_of_theirs_is_in_the_standard_library() -> None:
    """Six lines from a `def` on are compared, a shorter window than the rule's."""

    def functions(text: str) -> set[str]:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return {
            "\n".join(lines[i : i + 6]) for i, line in enumerate(lines) if line.startswith("def ")
        }

    parts = split()
    known = {
        function
        for document in parts.train + parts.search + parts.development
        for function in functions(document.text)
    }
    tested = {each for document in read_test_documents() for each in functions(document.text)}
    assert len(tested) > 500 and not tested & known


def test_another_version_is_named_not_refused() -> None:
    first = replace(TEST_MODULES[0], version="1.0", sha256="0" * 64)
    installed = metadata.version(first.package)
    assert other_texts((first, *TEST_MODULES[1:]))[0] == (
        f"{first.path} of {first.package} {installed} (recorded: 1.0)"
    )


def test_missing_modules_are_left_out_while_enough_remain() -> None:
    """As with packaging up to 25, which has no ranges.py, or numpy 1.26."""
    there = read_test_documents()
    modules = list(TEST_MODULES)
    modules[1] = replace(modules[1], package="no-such-package")
    modules[4] = replace(modules[4], path="packaging/gone.py", version="25.0")
    left = read_test_documents(modules, at_least=6)
    assert left == [*there[:1], *there[2:4], *there[5:]]
    assert missing_texts(modules) == (
        f"{modules[1].path} of no-such-package {modules[1].version}",
        "packaging/gone.py of packaging 25.0",
    )
    assert not missing_texts()
    assert not [text for text in other_texts(modules) if "gone" in text]
    with pytest.raises(InputError, match=r"no-such-package is not installed"):
        read_test_documents(modules, at_least=7)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match=r"the package no-such-package is not installed"):
        read_test_documents([replace(TEST_MODULES[0], package="no-such-package")])
    with pytest.raises(InputError, match=r"gone\.py.*has no such module"):
        read_test_documents([replace(TEST_MODULES[0], path="click/gone.py")])
