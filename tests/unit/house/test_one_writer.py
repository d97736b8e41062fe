"""Files are replaced by `megatron_longrope.atomic` alone; what is written otherwise is listed."""

from __future__ import annotations

import ast

from tests.unit.house.test_import_rules import ROOT, our_files

ELSEWHERE = {
    "megatron_longrope/artifacts/journal.py": "appended to, line by line",
    "megatron_longrope/model/checkpoints/checkpoint.py": "folders, renamed as a whole",
    "checkpoints_tools/common/units.py": "streamed tensor files, resumed unit by unit",
    "checkpoints_tools/gguf/exporting.py": "a streamed tensor file",
}
THE_WRITER = "megatron_longrope/atomic.py"


def replaces_or_syncs(source: str) -> bool:
    """Whether a file calls `os.replace`, `Path.replace` (of one argument) or `os.fsync`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
            of_a_path = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
            if (of_os and node.func.attr in {"replace", "fsync"}) or of_a_path:
                return True
    return False


def test_files_are_replaced_in_one_way() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in our_files()
        if replaces_or_syncs(path.read_text(encoding="utf-8"))
    }
    assert found == {THE_WRITER, *ELSEWHERE}
