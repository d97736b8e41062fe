"""A corpus that is on every machine: the source text and language reference of Python itself.

Recipes are compared on its development modules, so these have judged many; what is published is
measured on documents of `data_prep.package_documents`, which have judged none.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.documents import TextDocument
from data_prep.shingles import DUPLICATE_SHARE, shared_windows, windows_of
from megatron_longrope.errors import InputError

SEARCH_MODULES = (
    "argparse.py",
    "difflib.py",
    "http/cookiejar.py",
    "subprocess.py",
    "tarfile.py",
    "typing.py",
    "unittest/mock.py",
)
"""Modules held out of training for the factor search.

They are long (74 kB or more) and in every CPython from 3.10 to 3.13.
"""

DEVELOPMENT_MODULES = (
    "doctest.py",
    "enum.py",
    "inspect.py",
    "ipaddress.py",
    "logging/__init__.py",
    "mailbox.py",
    "pickletools.py",
    "urllib/request.py",
)
"""Modules held out of training and search to compare recipes on, as long and as common."""

_LEFT_OUT_FOLDERS = frozenset(
    (
        "__pycache__",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    )
)
_GENERATED = ("encodings/", "_sysconfigdata", "config-", "pydoc_data/")
"""Beginnings of paths of generated files: character tables, and settings of one build of Python."""


@dataclass(frozen=True)
class CorpusSplit:
    """The corpus in three parts that share no document."""

    train: list[TextDocument]
    search: list[TextDocument]
    development: list[TextDocument]
    near_duplicates: tuple[str, ...]
    """Names of documents left out of training because they resemble a held-out one."""


def stdlib_folder() -> Path:
    """Returns the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_stdlib(folder: Path | None = None) -> list[TextDocument]:
    """Returns all modules in order of their names, then the chapters of the language reference.

    Left out are tests, bundled tools, installed packages, generated tables, files under ten lines
    and files that are not UTF-8.
    """
    root = folder or stdlib_folder()
    documents = [
        TextDocument(name, text) for name, text in _modules(root) if text.count("\n") >= 10
    ]
    return documents + _topics(root / "pydoc_data" / "topics.py")


def split(folder: Path | None = None) -> CorpusSplit:
    """Returns the corpus split into training, search and development documents.

    A document shares windows of eight lines with the held-out modules; where they are 2 % or more
    of its own, it is left out of training. Raises InputError where a held-out module is missing.
    """
    documents = read_stdlib(folder)
    by_name = {document.name: document for document in documents}
    missing = [name for name in SEARCH_MODULES + DEVELOPMENT_MODULES if name not in by_name]
    if missing:
        root = folder or stdlib_folder()
        raise InputError(
            "standard library", root, f"held-out modules are missing: {', '.join(missing)}"
        )
    search = [by_name[name] for name in SEARCH_MODULES]
    development = [by_name[name] for name in DEVELOPMENT_MODULES]
    held_out = {window for document in search + development for window in windows_of(document.text)}
    names = {document.name for document in search + development}
    rest = [document for document in documents if document.name not in names]
    near = {
        document.name
        for document in rest
        if shared_windows(document.text, held_out) >= DUPLICATE_SHARE
    }
    train = [document for document in rest if document.name not in near]
    return CorpusSplit(train, search, development, tuple(sorted(near)))


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for name in names:
        if _LEFT_OUT_FOLDERS.isdisjoint(name.split("/")) and not name.startswith(_GENERATED):
            try:
                yield name, (root / name).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def _topics(path: Path) -> list[TextDocument]:
    """Returns the chapters in `topics.py`, a dictionary literal that is parsed, not imported."""
    if not path.is_file():
        return []
    values = [
        node.value for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.Assign)
    ]
    topics: dict[str, str] = ast.literal_eval(values[0]) if values else {}
    return [TextDocument(f"pydoc_data/{name}", topics[name]) for name in sorted(topics)]
