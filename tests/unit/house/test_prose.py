"""How the code reads: whole sentences, arguments explained, one name for one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("megatron_longrope", "launchers", "data_prep", "checkpoints_tools")
MAX_FILES_IN_A_FOLDER = 15
MAX_PARAMETERS_UNEXPLAINED = 4
FRAGMENTS = ("Of ", "As ", "And ", "In this", "By θ", "Because ", "Told ", "From where ", "Same ")
"""Beginnings of docstrings that were no sentences: "Of these, how many have been told."."""
DICTATED = {"forward", "backward", "__init__", "main"}
"""Functions whose parameters torch or click dictates."""
OLD_WORDS = re.compile(
    r"\bbar [BCDS]\d\b|\bB[1-8]\b(?!\w)|rows_per_step\b(?!\")|clip_gradient\b(?!\")"
)
PASS_KEY = re.compile(r"pass[ -]keys?", re.IGNORECASE)
SAID_TO_THE_MODEL = re.compile(r"[Tt]he pass key is|is the pass key|[Ww]hat is the pass key")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files() -> list[Path]:
    """Returns every Python file of the four packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def definitions() -> Iterator[tuple[str, ast.Module | Definition]]:
    """Yields every module, class and function with the place it stands at."""
    for path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module):
                yield str(path.relative_to(ROOT)), node
            elif isinstance(node, Definition):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def summary(node: ast.Module | Definition) -> str:
    """Returns the first paragraph of a docstring in one line; empty where there is none."""
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def test_a_docstring_begins_with_a_whole_sentence() -> None:
    wrong = [
        f"{place}: {text}"
        for place, node in definitions()
        if (text := summary(node))
        and (text[-1] not in ".:!?…" or text.startswith(FRAGMENTS) or text[0].islower())
    ]
    assert not wrong, "\n".join(wrong)


def unexplained(node: ast.FunctionDef) -> int:
    """Returns how many parameters a public function has where they are too many and unexplained."""
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    count = len([name for name in names if name not in ("self", "cls")])
    is_public = not node.name.startswith("_") and node.name not in DICTATED
    is_command = any("command" in ast.unparse(each) for each in node.decorator_list)
    is_explained = "Args:" in (ast.get_docstring(node) or "")
    crowded = count > MAX_PARAMETERS_UNEXPLAINED
    return count if is_public and crowded and not (is_command or is_explained) else 0


def test_many_parameters_are_explained() -> None:
    wrong = [
        f"{place} ({unexplained(node)})"
        for place, node in definitions()
        if isinstance(node, ast.FunctionDef) and unexplained(node)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_public_module_class_and_function_says_what_it_is() -> None:
    wrong = [
        place
        for place, node in definitions()
        if not summary(node)
        and isinstance(node, ast.Module | ast.ClassDef)
        and not getattr(node, "name", "module").startswith("_")
    ]
    assert not wrong, "\n".join(wrong)


def test_one_name_stands_for_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in files():
        if path.parent.name == "commands":  # click's functions are named by what a person types
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    twice = {
        name: found for name, found in places.items() if len(found) > 1 and name not in DICTATED
    }
    assert not twice, "\n".join(f"{name}: {', '.join(found)}" for name, found in twice.items())


def test_no_folder_holds_more_than_one_looks_over() -> None:
    counts: dict[str, int] = defaultdict(int)
    for path in files():
        counts[str(path.parent.relative_to(ROOT))] += 1
    crowded = {name: count for name, count in counts.items() if count > MAX_FILES_IN_A_FOLDER}
    assert not crowded


def test_the_words_are_the_fields() -> None:
    wrong = []
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            spelled = PASS_KEY.search(line) and not SAID_TO_THE_MODEL.search(line)
            if spelled or OLD_WORDS.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_lines_are_formatted_by_the_formatter() -> None:
    skips = [
        f"{path.relative_to(ROOT)}"
        for path in files()
        if re.search(r"#\s*fmt:\s*(skip|off)", path.read_text(encoding="utf-8"))
    ]
    assert not skips, "only tables of numbers may ask for it"
