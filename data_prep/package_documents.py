"""Documents that only test: one long module of each of eight packages this project requires.

They judge what is published and nothing else; recipes are compared on the standard library's
development modules. The rule that chose them looks at no figure (`benchmarks/choose_documents.py`
applies it). Of the packages in `dependencies` of pyproject.toml, in alphabetical order, the first
eight that have a module of

- 80,000 to 200,000 bytes, and nothing called "test" on its path,
- code by hand: literals at the top level make up less than half of it (no table), and its first 20
  lines do not say it was generated,
- under 2 % of windows of eight lines in common with the standard library's documents, which is
  where training documents come from,

and of each package the longest such module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from data_prep.documents import TextDocument
from megatron_longrope.errors import InputError


@dataclass(frozen=True)
class PackageModule:
    """A module of an installed package, as it was in one version of it."""

    package: str
    version: str
    """The version of constraints.txt that published figures are for."""
    path: str
    """Where the module is below the folder of installed packages."""
    sha256: str
    """SHA-256 of the module in that version."""


TEST_MODULES = (
    PackageModule(
        "click",
        "8.5.1",
        "click/core.py",
        "fac4d7719a062666ae082f3bd2522e680c74e72deae4c4e6915644d924e2b8d8",
    ),
    PackageModule(
        "matplotlib",
        "3.11.2",
        "matplotlib/axes/_base.py",
        "ceff4d2fa9bd99eb1451a27812bef343902384dd592a9b8482f31b2eac55f36b",
    ),
    PackageModule(
        "megatron-core",
        "0.16.1",
        "megatron/core/distributed/fsdp/src/megatron_fsdp/param_and_grad_buffer.py",
        "b8917b2ec79860a0cb092b55511bea8e02bbf06b4d8c9262b61e15d419b20fcf",
    ),
    PackageModule(
        "numpy",
        "2.3.5",
        "numpy/lib/_function_base_impl.py",
        "0191b2376f44730e0b46e5354cd51c3c2edc5473bdc9ee1b27d15023b9ff1b07",
    ),
    PackageModule(
        "packaging",
        "26.3",
        "packaging/ranges.py",
        "b4781ce913e5dff9e07906f20585c54c3028e1f7ff56341828e79d522ddbfab6",
    ),
    PackageModule(
        "psutil",
        "7.2.2",
        "psutil/__init__.py",
        "d138a5786b163b56ba86ea0b2d5589dfca37e1bcdf8de1057fe1e933d6ab808a",
    ),
    PackageModule(
        "pydantic",
        "2.14.3",
        "pydantic/_internal/_generate_schema.py",
        "9d48aa7744d224bbb90f42cf44284ea51dd1c5a0f1be5666f4ec40e935ac58eb",
    ),
    PackageModule(
        "rich",
        "15.0.0",
        "rich/console.py",
        "4533fc66963623a2a21447b501d6f51f8cfee7e14775178093a5e6eb61dc135a",
    ),
)
"""What the rule chose, in its order."""


def read_test_documents(
    modules: Sequence[PackageModule] = TEST_MODULES, at_least: int | None = None
) -> list[TextDocument]:
    """Returns the text of modules in order, found without importing their packages.

    Modules that the installed packages do not have, as other versions may not, are left out as long
    as `at_least` remain; by default all are needed. Raises InputError where fewer are there.
    """
    documents, missing = _found(modules)
    needed = len(modules) if at_least is None else at_least
    if missing and len(documents) < needed:
        raise missing[0]
    return list(documents.values())


def missing_texts(modules: Sequence[PackageModule] = TEST_MODULES) -> tuple[str, ...]:
    """Returns a few words on each module that is not on this machine."""
    documents, _ = _found(modules)
    return tuple(
        f"{module.path} of {module.package} {module.version}"
        for module in modules
        if module not in documents
    )


def other_texts(modules: Sequence[PackageModule] = TEST_MODULES) -> tuple[str, ...]:
    """Returns a few words on each module that is not the recorded text, e.g. of another version."""
    documents, _ = _found(modules)
    return tuple(
        f"{module.path} of {module.package} {metadata.version(module.package)} "
        f"(recorded: {module.version})"
        for module, document in documents.items()
        if document.sha256 != module.sha256
    )


def _found(
    modules: Sequence[PackageModule],
) -> tuple[dict[PackageModule, TextDocument], list[InputError]]:
    """Returns the documents of the modules that are there, and why the others are not."""
    documents, missing = {}, []
    for module in modules:
        try:
            documents[module] = TextDocument(module.path, _read(module))
        except InputError as error:
            missing.append(error)
    return documents, missing


def _read(module: PackageModule) -> str:
    try:
        distribution = metadata.distribution(module.package)
    except metadata.PackageNotFoundError:
        raise InputError(
            "test documents", module.path, f"the package {module.package} is not installed"
        ) from None
    try:
        return Path(str(distribution.locate_file(module.path))).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            "test documents",
            module.path,
            f"{module.package} {distribution.version} has no such module in UTF-8; constraints.txt "
            f"pins {module.version}, and with corpus.judged_on=development none is read",
        ) from None
