"""Token datasets, batches made of them, and generated documents whose answers are known."""

from megatron_longrope.data.batches import DocumentBatch, PackedBatches
from megatron_longrope.data.manifest import DatasetManifest, TokenizerIdentity
from megatron_longrope.data.packed import PackedDataset
from megatron_longrope.data.passkey import (
    Filler,
    PasskeyDocument,
    classic_filler,
    key_value_document,
    passkey_document,
    question_and_answer,
    text_filler,
)
from megatron_longrope.data.tokenizer import TextTokenizer, load_tokenizer

__all__ = [
    "DatasetManifest",
    "DocumentBatch",
    "Filler",
    "PackedBatches",
    "PackedDataset",
    "PasskeyDocument",
    "TextTokenizer",
    "TokenizerIdentity",
    "classic_filler",
    "key_value_document",
    "load_tokenizer",
    "passkey_document",
    "question_and_answer",
    "text_filler",
]
