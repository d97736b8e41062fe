"""Tokenizers from a `tokenizer.json`; they give the same token ids as transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from megatron_longrope.data.manifest import TokenizerIdentity, file_sha256
from megatron_longrope.errors import InputError


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and its identity.

    Which special tokens it adds by itself is written in its `tokenizer.json`. As in transformers,
    `add_bos_token` of a `tokenizer_config.json` changes nothing beside a `tokenizer.json`.
    """

    backend: Tokenizer
    identity: TokenizerIdentity
    vocab_size: int
    """Highest token id, added tokens included, + 1."""
    bos_id: int | None = None
    """Id of the token for the beginning of a text; None: there is none."""
    eos_id: int | None = None
    """Id of the token for the end of a text; None: there is none."""

    def encode(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """Returns the token ids of a text, [tokens] int64.

        With the special tokens that the tokenizer adds by itself, or without any.
        """
        return np.array(
            self.backend.encode(text, add_special_tokens=add_special_tokens).ids, dtype=np.int64
        )

    def encode_documents(self, texts: Sequence[str], add_bos: bool = False) -> list[np.ndarray]:
        """Returns the token ids of whole documents, each [tokens] int64.

        `add_bos` puts a BOS first where the tokenizer did not. Texts are encoded on all cores.
        Raises InputError where a BOS is asked of a tokenizer that has none.
        """
        if add_bos and self.bos_id is None:
            raise InputError("--add-bos", self.identity.name, "this tokenizer names no bos_token")
        encodings = self.backend.encode_batch_fast(list(texts))
        documents = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if add_bos:
            bos = np.array([self.bos_id], dtype=np.int64)
            documents = [
                d if len(d) and d[0] == bos[0] else np.concatenate((bos, d)) for d in documents
            ]
        return documents

    def encode_document(self, text: str, add_bos: bool = False) -> np.ndarray:
        """Returns one whole document as `encode_documents` does, [tokens] int64."""
        return self.encode_documents([text], add_bos)[0]

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of token ids [tokens], special tokens included."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=False))


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Returns the tokenizer in a folder, or in a `tokenizer.json` itself.

    No code from the folder is ever run. Raises InputError where there is no tokenizer, or where it
    cannot be read.

    >>> from megatron_longrope.presets import model_path
    >>> tokenizer = load_tokenizer(model_path("preset:demo"))
    >>> tokenizer.decode(tokenizer.encode("import math"))
    'import math'
    """
    place = Path(path)
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise InputError("tokenizer", path, "no tokenizer.json there")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every kind of malformed file
        raise InputError(
            "tokenizer", file, f"cannot be read: {str(error).splitlines()[0]}"
        ) from error
    # A tokenizer.json may have limits of a model's training in it.
    backend.no_truncation()
    backend.no_padding()
    config = _read_config(file.with_name("tokenizer_config.json"))
    return TextTokenizer(
        backend=backend,
        identity=TokenizerIdentity(
            name=file.resolve().parent.name or file.name, sha256=file_sha256(file)
        ),
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
        bos_id=_token_id(backend, config.get("bos_token")),
        eos_id=_token_id(backend, config.get("eos_token")),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("tokenizer", path, f"not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError("tokenizer", path, "not a JSON object")
    return values


def _token_id(backend: Tokenizer, token: str | dict[str, Any] | None) -> int | None:
    """Returns the id of a token given as text or, as in older configs, as {"content": text}."""
    text = token.get("content") if isinstance(token, dict) else token
    return backend.token_to_id(text) if text else None
