"""Who may import whom: the table of the design, held by reading the imports of every file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = "megatron_longrope"
PACKAGES = (LIBRARY, "launchers", "data_prep", "checkpoints_tools")

FREE = {"errors", "config", "version", "artifacts", "registry", "atomic"}
_BELOW_PIPELINE = {
    "model",
    "rope",
    "runtime",
    "search",
    "data",
    "training",
    "evaluation",
    "report",
    "data_prep",
} | {
    "checkpoints_tools",
    "presets",
}
# Room → the rooms it may import besides itself and the free ones. "search.types" is that one
# module.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "registry": set(),
    "atomic": set(),
    "config": set(),
    "artifacts": set(),
    "rope": set(),
    "search": set(),
    "runtime": set(),
    "data": set(),
    "report": set(),
    "presets": set(),
    "model": {
        "rope",
        "runtime",
        "data",
    },  # data: the batch type that both sides of a forward pass share
    "evaluation": {"model", "data", "rope", "runtime", "search.types"},
    "training": {"model", "data", "runtime"},
    "data_prep": {"data"},
    "checkpoints_tools": {"model", "rope", "runtime"},
    "pipeline": _BELOW_PIPELINE,
    "facade": _BELOW_PIPELINE
    | {"pipeline"},  # megatron_longrope/__init__.py and what stands beside it
    "launchers": _BELOW_PIPELINE | {"pipeline", "facade", "presets"},
}
MEGATRON_ROOMS = {"runtime", "model", "data", "training", "checkpoints_tools"}
MEGATRON_PACKAGES = {"megatron", "transformer_engine"}
# Rooms that keep to a few packages from outside. The standard library is free, pydantic and what it
# brings for configs.
ONLY_OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "registry": set(),
    "atomic": set(),
    "config": {"pydantic", "ruamel", "typing_extensions"},
    "artifacts": {"numpy", "pydantic", "typing_extensions"},
    "search": {"cmaes", "numpy", "pydantic", "typing_extensions"},
    "rope": {"torch", "pydantic", "typing_extensions"},
}
NEVER_OUTSIDE: dict[str, set[str]] = {
    "report": {"torch", "transformers", "megatron", "transformer_engine"}
}
ENVIRONMENT_ROOMS = {"runtime", "launchers"}


def room_of(module: str) -> str:
    """Returns the room of a module of ours, by its dotted name."""
    top, _, rest = module.partition(".")
    if top != LIBRARY:
        return top
    inner = rest.partition(".")[0]
    return inner if inner in MAY_IMPORT else "facade"


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of every import, inside functions too, relative ones resolved
    against `module`.

    `from a import b` yields `a.b` where b is a module of ours, else `a`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join(
                    [*package[: len(package) - node.level + 1], *([base] if base else [])]
                )
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if _is_module(full) else base
        elif isinstance(node, ast.Call) and _is_import_call(node):
            yield node.lineno, str(node.args[0].value)  # type: ignore[attr-defined]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Returns one line for each import or environment access in `source` that the rules forbid to
    `module`."""
    tree = ast.parse(source)
    found = []
    for line, name in imported_modules(tree, module, is_package):
        reason = _forbidden(room_of(module), name)
        if reason:
            found.append(f"{module}:{line} imports {name}: {reason}")
    if room_of(module) not in ENVIRONMENT_ROOMS:
        found += [f"{module}:{line} touches the environment" for line in _environment_lines(tree)]
    return found


def _forbidden(room: str, name: str) -> str | None:
    """Returns why `room` may not import `name`, None where it may."""
    top = name.partition(".")[0]
    if top in PACKAGES:
        target = room_of(name)
        if target in {room} | FREE:
            return None
        if target == "launchers":
            return "nothing imports launchers"
        allowed = MAY_IMPORT[room]
        if target in allowed or name.startswith(
            tuple(f"{LIBRARY}.{entry}" for entry in allowed if "." in entry)
        ):
            return None
        return f"{room} may import {', '.join(sorted(allowed)) or 'no other room'}"
    if top in MEGATRON_PACKAGES and room not in MEGATRON_ROOMS:
        return f"megatron-core and Transformer Engine stay in {', '.join(sorted(MEGATRON_ROOMS))}"
    if top in NEVER_OUTSIDE.get(room, set()):
        return f"{room} does without it"
    if room in ONLY_OUTSIDE and not _is_standard(top) and top not in ONLY_OUTSIDE[room]:
        return f"{room} keeps to {', '.join(sorted(ONLY_OUTSIDE[room])) or 'the standard library'}"
    return None


def _is_standard(top: str) -> bool:
    return top in sys.stdlib_module_names or top == "__future__"


def _is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return dotted.partition(".")[0] in PACKAGES and (
        path.is_dir() or path.with_suffix(".py").is_file()
    )


def _is_import_call(node: ast.Call) -> bool:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    literal = (
        bool(node.args)
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )
    return name in {"import_module", "__import__", "find_spec"} and literal


def _environment_lines(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in {"environ", "getenv", "environb", "putenv"}
    ]


def our_files() -> list[Path]:
    """Returns every Python file of the four packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_every_file_keeps_the_import_rules() -> None:
    found: list[str] = []
    for path in our_files():
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(path.read_text(encoding="utf-8"), module, is_package)
    assert not found, "\n".join(found)


def test_every_room_has_a_rule() -> None:
    folders = {
        path.name
        for path in (ROOT / LIBRARY).iterdir()
        if path.is_dir() and not path.name.startswith("_")
    }
    assert folders <= set(MAY_IMPORT), f"rooms without a rule: {folders - set(MAY_IMPORT)}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("megatron_longrope.rope.angles", "from megatron_longrope.model import shape"),
        ("megatron_longrope.rope.angles", "import megatron_longrope.runtime.layout"),
        ("megatron_longrope.rope.angles", "from ..search import types"),
        ("megatron_longrope.rope.angles", "import numpy"),
        ("megatron_longrope.search.loop", "import torch"),
        ("megatron_longrope.search.loop", "def later():\n    from torch import nn"),
        ("megatron_longrope.evaluation.perplexity", "from megatron_longrope import training"),
        (
            "megatron_longrope.evaluation.perplexity",
            "from megatron_longrope.training import trainer",
        ),
        (
            "megatron_longrope.evaluation.perplexity",
            "from megatron_longrope.search.loop import run_search",
        ),
        (
            "megatron_longrope.evaluation.perplexity",
            "from megatron_longrope.search.searchers import evolution",
        ),
        (
            "megatron_longrope.training.trainer",
            "from megatron_longrope.evaluation import perplexity",
        ),
        (
            "megatron_longrope.training.trainer",
            "import importlib\nimportlib.import_module('megatron_longrope.rope')",
        ),
        ("megatron_longrope.pipeline.stages", "from megatron.core import parallel_state"),
        ("megatron_longrope.pipeline.stages", "import launchers.options"),
        ("megatron_longrope.evaluation.needle", "import transformer_engine.pytorch as te"),
        ("megatron_longrope.report.page", "import torch"),
        ("megatron_longrope.report.page", "from megatron_longrope.rope import factors"),
        ("megatron_longrope.config.base", "import os\nvalue = os.environ['X']"),
        ("megatron_longrope.model.gpt", "import os\nvalue = os.getenv('X')"),
        ("data_prep.packing", "from megatron_longrope.model import shape"),
        ("checkpoints_tools.importer", "from megatron_longrope.data import packed"),
        ("megatron_longrope.extend", "from launchers import main"),
    ],
)
def test_a_forbidden_import_is_caught(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "megatron_longrope.rope.angles",
            "import torch\nfrom megatron_longrope.errors import InputError",
        ),
        (
            "megatron_longrope.rope.angles",
            "from . import factors\nfrom .factors import RopeFactors",
        ),
        (
            "megatron_longrope.search.loop",
            "import json\nimport numpy as np\nfrom megatron_longrope.config import Length",
        ),
        (
            "megatron_longrope.evaluation.objective",
            "from megatron_longrope.search.types import Candidate",
        ),
        ("megatron_longrope.model.gpt", "from megatron.core import parallel_state"),
        ("megatron_longrope.runtime.runtime", "import os\nrank = os.environ.get('RANK')"),
        ("megatron_longrope.extend", "from megatron_longrope.pipeline import stages"),
        (
            "launchers.commands.eval",
            "from megatron_longrope.evaluation import perplexity\nfrom launchers.options import "
            "LENGTH",
        ),
        (
            "checkpoints_tools.importer",
            "import megatron.core\nfrom megatron_longrope.model.shape import ModelShape",
        ),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_resolve_from_a_package_too() -> None:
    source = "from .loop import run_search"
    modules = [
        name
        for _, name in imported_modules(
            ast.parse(source), "megatron_longrope.search", is_package=True
        )
    ]
    assert modules == ["megatron_longrope.search.loop"]
