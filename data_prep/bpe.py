"""Trains byte-level BPE tokenizers in which every digit is a token of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_longrope.atomic import write_text_file
from megatron_longrope.data import TextTokenizer, load_tokenizer
from megatron_longrope.errors import InputError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
_SMALLEST = len(SPECIAL_TOKENS) + 256


def train_bpe(texts: Iterable[str], vocab_size: int, directory: str | Path) -> TextTokenizer:
    """Trains a tokenizer with `vocab_size` entries on `texts`, saves it and returns it.

    Entries 0 and 1 are `<|endoftext|>` (BOS and EOS, added only on demand) and `<|padding|>`, then
    come the 256 bytes, then merges. The same texts in the same order give the same files. Raises
    InputError where `vocab_size` is below 258, or the texts hold too few pairs for so many merges.

    >>> tokenizer = train_bpe(["a rose is a rose is a rose"], 264, folder / "bpe")
    >>> tokenizer.vocab_size
    264
    """
    if vocab_size < _SMALLEST:
        raise InputError(
            "vocab_size", vocab_size, f"a byte-level tokenizer has {_SMALLEST} entries or more"
        )
    tokenizer = Tokenizer(models.BPE())
    split_digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split_digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        rule = f"the texts hold pairs for {tokenizer.get_vocab_size()} entries only"
        raise InputError("vocab_size", vocab_size, rule)
    return _save(tokenizer, Path(directory))


def _save(tokenizer: Tokenizer, directory: Path) -> TextTokenizer:
    """Writes the three tokenizer files that transformers reads, each whole or not at all."""
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PADDING}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
        **special,
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
    for name, content in files.items():
        write_text_file(directory / name, content)
    return load_tokenizer(directory)
