"""The `.json` beside `.bin` and `.idx`: what the tokens are, where they came from, and their
checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from megatron_longrope.config import Length, StrictConfig, build_config
from megatron_longrope.errors import InputError

FORMAT_VERSION: Literal[1] = 1
_CHUNK_BYTES = 1 << 20


class TokenizerIdentity(StrictConfig):
    """Which tokenizer made the tokens: its folder's name and the sha256 of its `tokenizer.json`."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class DocumentRecord(StrictConfig):
    """One source document; `sha256` is of its UTF-8 text, for a generated one of its tokens as
    little-endian int64.

    `tokens` counts what the tokenizer made of it, before pieces shorter than `min_piece` were left
    out.
    """

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tokens: int = Field(gt=0)


class DatasetCounts(StrictConfig):
    """Sizes in tokens unless named otherwise; `unused` is row space without tokens, `left_out`
    short pieces."""

    rows: int = Field(gt=0)
    pieces: int = Field(gt=0)
    tokens: int = Field(gt=0)
    unused: int = Field(ge=0, default=0)
    left_out: int = Field(ge=0, default=0)
    left_out_pieces: int = Field(ge=0, default=0)


class DatasetManifest(StrictConfig):
    """What a dataset says of itself. `sequence_length` stands for kind "packed" only."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: Literal["packed", "documents"]
    tokenizer: TokenizerIdentity
    vocab_size: int = Field(gt=0)
    sequence_length: Length | None
    min_piece: int = Field(ge=1, default=1)
    counts: DatasetCounts
    documents: tuple[DocumentRecord, ...]
    bin_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    idx_sha256: str = Field(pattern="^[0-9a-f]{64}$")


def read_manifest(path: Path) -> DatasetManifest:
    """Returns the manifest in `path`; raises InputError where it is missing, not JSON or not of
    this version."""
    if not path.is_file():
        raise InputError(
            "dataset",
            path,
            "no such manifest: the dataset is absent or its writing was interrupted",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("dataset", path, f"the manifest is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError("dataset", path, "the manifest is not a JSON object")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            "dataset",
            path,
            f"manifest version {version}; this program reads version {FORMAT_VERSION}",
        )
    manifest = build_config(DatasetManifest, values, str(path))
    if (manifest.kind == "packed") != (manifest.sequence_length is not None):
        raise InputError(
            "dataset",
            path,
            "a packed dataset has a sequence_length, one of whole documents has none",
        )
    return manifest


def file_sha256(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
