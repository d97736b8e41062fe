"""The `.json` beside `.bin` and `.idx`: what the tokens are, their sources, and checksums."""

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
    """The tokenizer that made the tokens."""

    name: str
    """Name of the tokenizer's folder."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class DocumentRecord(StrictConfig):
    """One source document of a dataset."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Checksum of its UTF-8 text; of a generated document, of its tokens as little-endian int64."""
    tokens: int = Field(gt=0)
    """Tokens of the whole document, before pieces shorter than `min_piece` were left out."""


class DatasetCounts(StrictConfig):
    """Sizes of a dataset."""

    rows: int = Field(gt=0)
    pieces: int = Field(gt=0)
    tokens: int = Field(gt=0)
    unused: int = Field(ge=0, default=0)
    """Space left in the rows, in tokens."""
    left_out: int = Field(ge=0, default=0)
    """Tokens of pieces shorter than `min_piece`, which are in no row."""
    left_out_pieces: int = Field(ge=0, default=0)
    """Number of these pieces."""


class DatasetManifest(StrictConfig):
    """The description of a dataset that lies beside it."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: Literal["packed", "documents"]
    """Whether a row holds pieces of several documents, or one whole document."""
    tokenizer: TokenizerIdentity
    vocab_size: int = Field(gt=0)
    sequence_length: Length | None
    """Most tokens of a packed row; None for whole documents."""
    min_piece: int = Field(ge=1, default=1)
    """Fewest tokens of a piece; shorter ones were left out."""
    counts: DatasetCounts
    documents: tuple[DocumentRecord, ...]
    bin_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    idx_sha256: str = Field(pattern="^[0-9a-f]{64}$")


def read_manifest(path: Path) -> DatasetManifest:
    """Returns the manifest in `path`.

    Raises InputError where it is missing, damaged or of another version.
    """
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
