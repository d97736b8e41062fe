"""The files of a Hugging Face folder that travel with the weights through every conversion.

They are copied byte for byte: config, tokenizer, chat templates, licences.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

HF_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
)
TEMPLATES_FOLDER = "additional_chat_templates"
"""Folder in which transformers keeps further chat templates, one `.jinja` file each."""
_PATTERNS = ("tokenizer.model.v*", "*.tiktoken", f"{TEMPLATES_FOLDER}/*.jinja")


def carried_files(folder: Path) -> list[str]:
    """Returns the files of a folder that travel, as paths relative to it."""
    named = [name for name in HF_FILES if (folder / name).is_file()]
    matched = (
        path for pattern in _PATTERNS for path in sorted(folder.glob(pattern)) if path.is_file()
    )
    return named + [path.relative_to(folder).as_posix() for path in matched]


def copy_carried(source: Path, target: Path, *, leave: Iterable[str] = ()) -> None:
    """Copies the files that travel into the folder `target`, except those named in `leave`."""
    for name in carried_files(source):
        if name not in leave:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


def holds_only_templates(folder: Path) -> bool:
    """Returns whether a folder is that of chat templates and all files in it travel."""
    if folder.name != TEMPLATES_FOLDER or not folder.is_dir():
        return False
    carried = carried_files(folder.parent)
    return all(f"{folder.name}/{path.name}" in carried for path in folder.iterdir())


def stays_behind(folder: Path, read: Iterable[str]) -> tuple[str, ...]:
    """Returns the names in a folder that a conversion leaves behind; folders end in a slash.

    `read` names the files of weights, which were read. Hidden files are not listed: git and
    download tools make them. Code (`modeling_….py`) is left behind too: what a config's `auto_map`
    names is never run here.
    """
    known = {*read, *carried_files(folder)}
    others = [
        path
        for path in sorted(folder.iterdir())
        if path.name not in known and not path.name.startswith(".")
    ]
    return tuple(
        f"{path.name}/" if path.is_dir() else path.name
        for path in others
        if not holds_only_templates(path)
    )
