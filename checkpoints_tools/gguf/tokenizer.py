"""Converts byte-level BPE tokenizers between Hugging Face's tokenizer.json and GGUF's keys.

GGUF stores tokens, merges and token types. How a text is split before merging is stored as a name
only (`tokenizer.ggml.pre`), out of a fixed list in llama.cpp. A tokenizer can be carried if it
splits texts as one of these names stands for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from megatron_longrope.errors import InputError

TOKENIZER_FILE, SETTINGS_FILE, TEMPLATE_FILE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_KEY = "tokenizer.ggml."


class _Splitting(NamedTuple):
    """What a tokenizer with one of llama.cpp's names for splitting does."""

    pre_tokenizer: Any
    """The pre-tokenizer of the `tokenizers` package that splits a text the same way."""
    ignore_merges: bool = False
    """Whether a piece that is a token itself is taken whole, whatever the merges are."""
    adds_bos: bool = False
    """Whether llama.cpp adds a start token where the file has no add_bos_token."""


def _steps(*steps: PreTokenizer) -> PreTokenizer:
    return pre_tokenizers.Sequence(list(steps))


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
_BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_SPLITTINGS = {
    "gpt-2": _Splitting(_BYTES),
    "smollm": _Splitting(_steps(pre_tokenizers.Digits(individual_digits=True), _BYTES)),
    "llama-bpe": _Splitting(
        _steps(pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"), _BYTES_ONLY),
        ignore_merges=True,
        adds_bos=True,
    ),
}


def tokenizer_to_gguf(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Returns GGUF's keys of the tokenizer in an HF folder, padded to `vocab_size` tokens.

    Raises InputError for a tokenizer that does what llama.cpp would not repeat, and names it.
    """
    values = _read_json(folder / TOKENIZER_FILE)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # tokenizers raises bare ones
        raise _refused(folder, f"damaged: {error}") from error
    pre = _name_of(values, folder)
    tokens, kinds = _tokens(tokenizer, values, vocab_size, folder)
    merges = [
        merge if isinstance(merge, list) else merge.split(" ")
        for merge in values["model"]["merges"]
    ]
    if any(len(merge) != 2 or " " in "".join(merge) for merge in merges):
        raise _refused(folder, "a merge holds a space")
    keys: dict[str, Any] = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds}
    keys |= {"merges": [" ".join(merge) for merge in merges], "add_space_prefix": False}
    keys |= _special_ids(folder, tokenizer) | _added_around(tokenizer, folder)
    template = _chat_template(folder)
    found = {f"{_KEY}{key}": value for key, value in keys.items()}
    return found | ({"tokenizer.chat_template": template} if template else {})


def tokenizer_from_gguf(metadata: Mapping[str, Any], folder: Path, source: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json to `folder`, made from a GGUF file's keys.

    Raises InputError, which names `source`, for a tokenizer that cannot be made from them.
    """
    kind, pre = metadata.get(f"{_KEY}model"), metadata.get(f"{_KEY}pre")
    pre = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}.get(str(pre), pre)
    if kind != "gpt2" or pre not in _SPLITTINGS:
        known = ", ".join(sorted(_SPLITTINGS))
        raise _refused(
            source,
            f"kind {kind!r}, splitting {pre!r}; built again are gpt2 tokenizers split as {known}",
        )
    tokens, merges, kinds = (
        _texts(metadata, key, source) for key in ("tokens", "merges", "token_type")
    )
    if len(kinds) != len(tokens) or set(kinds) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
        raise _refused(
            source, "its token types are not one per token, or of kinds no BPE tokenizer has"
        )
    tokenizer = _built(_SPLITTINGS[pre], tokens, kinds, merges, source)
    ids = {
        name: _index(metadata, f"{key}_token_id", len(tokens), source)
        for name, key in _SPECIAL.items()
    }
    named = {name: tokens[index] for name, index in ids.items() if index is not None}
    if metadata.get(f"{_KEY}add_bos_token", _SPLITTINGS[pre].adds_bos):
        _add_bos(tokenizer, named.get("bos_token"), ids["bos_token"], source)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    settings |= {
        "model_max_length": metadata.get("llama.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _built(
    splitting: _Splitting, tokens: list[str], kinds: list[int], merges: list[str], source: Path
) -> Tokenizer:
    vocabulary = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != UNUSED
    }
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    try:
        model = BPE(vocab=vocabulary, merges=pairs, ignore_merges=splitting.ignore_merges)
    except Exception as error:  # tokenizers raises bare ones
        raise _refused(source, f"its tokens and merges do not fit together: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitting.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for kind, add in (
        (CONTROL, tokenizer.add_special_tokens),
        (USER_DEFINED, tokenizer.add_tokens),
    ):
        named = [token for token, number in zip(tokens, kinds, strict=True) if number == kind]
        add([AddedToken(token, special=kind == CONTROL, normalized=False) for token in named])
    return tokenizer


def _add_bos(tokenizer: Tokenizer, bos: str | None, index: int | None, source: Path) -> None:
    if bos is None or index is None:
        raise _refused(source, "it adds a start token and does not say which")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, index)]
    )


def _name_of(values: Mapping[str, Any], folder: Path) -> str:
    """Returns llama.cpp's name for the way in which a tokenizer.json splits texts.

    Raises InputError where there is none, or where the tokenizer does more than split and merge.
    """
    model = values.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = (
            "a sentencepiece-like BPE"
            if model.get("byte_fallback")
            else f"a {model.get('type')} model"
        )
        raise _refused(folder, f"{kind}; byte-level BPE is carried")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(folder, f"its model has {key}")
    if values.get("normalizer") is not None:
        raise _refused(folder, "it normalizes text, and llama.cpp does not")
    if any(
        token.get(flag)
        for token in values.get("added_tokens", [])
        for flag in ("lstrip", "rstrip", "single_word")
    ):
        raise _refused(
            folder, "an added token takes spaces around it (lstrip, rstrip or single_word)"
        )
    does = (_plain(values.get("pre_tokenizer")), bool(model.get("ignore_merges")))
    for name, splitting in _SPLITTINGS.items():
        if does == (
            _plain(json.loads(splitting.pre_tokenizer.__getstate__())),
            splitting.ignore_merges,
        ):
            return name
    known = ", ".join(sorted(_SPLITTINGS))
    raise _refused(
        folder, f"it cuts text in a way that is none of {known}, as llama.cpp calls them"
    )


def _plain(step: Any) -> Any:
    """Returns a pre-tokenizer's settings without `trim_offsets`, which does not change tokens."""
    if not isinstance(step, dict):
        return step
    rest = {key: value for key, value in step.items() if key != "trim_offsets"}
    if "pretokenizers" in rest:
        rest["pretokenizers"] = [_plain(inner) for inner in rest["pretokenizers"]]
    return rest


def _tokens(
    tokenizer: Tokenizer, values: Mapping[str, Any], vocab_size: int, folder: Path
) -> tuple[list[str], list[int]]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    by_id = {index: token for token, index in vocabulary.items()}
    if by_id and max(by_id) >= vocab_size:
        raise _refused(folder, f"it has token {max(by_id)}, and the model {vocab_size} rows")
    added = {
        entry["id"]: CONTROL if entry["special"] else USER_DEFINED
        for entry in values.get("added_tokens", [])
    }
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    kinds = [added.get(index, NORMAL if index in by_id else UNUSED) for index in range(vocab_size)]
    if len(set(tokens)) < vocab_size:
        raise _refused(folder, "two of its tokens have the same text")
    return tokens, kinds


def _special_ids(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    file = folder / SETTINGS_FILE
    settings = _read_json(file) if file.is_file() else {}
    ids = {}
    for name, key in _SPECIAL.items():
        said = settings.get(name)
        text = said.get("content") if isinstance(said, dict) else said
        index = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if index is not None:
            ids[f"{key}_token_id"] = index
    return ids


def _added_around(tokenizer: Tokenizer, folder: Path) -> dict[str, bool]:
    """Returns the keys for what the tokenizer adds around a text, found by encoding one.

    Raises InputError where that is more than one start token.
    """
    whole, bare = (tokenizer.encode("a", add_special_tokens=adding).ids for adding in (True, False))
    before = whole[: len(whole) - len(bare)]
    if whole[len(before) :] != bare or len(before) > 1:
        raise _refused(folder, "it adds more than one start token to a text")
    return {"add_bos_token": bool(before), "add_eos_token": False}


def _chat_template(folder: Path) -> Any:
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    file = folder / SETTINGS_FILE
    return _read_json(file).get("chat_template") if file.is_file() else None


def _texts(metadata: Mapping[str, Any], key: str, source: Path) -> list[Any]:
    values = metadata.get(f"{_KEY}{key}")
    wanted = int if key == "token_type" else str
    if not isinstance(values, list) or not all(isinstance(value, wanted) for value in values):
        raise _refused(source, f"it has no list {_KEY}{key}")
    return values


def _index(metadata: Mapping[str, Any], key: str, num_tokens: int, source: Path) -> int | None:
    index = metadata.get(f"{_KEY}{key}")
    if index is not None and (not isinstance(index, int) or not 0 <= index < num_tokens):
        raise _refused(source, f"its {key} is {index!r} of {num_tokens}")
    return index


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _refused(file.parent, f"there is no {file.name}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(file, f"no whole JSON file: {error}") from error
    if not isinstance(values, dict):
        raise _refused(file, "no JSON object")
    return values


def _refused(where: Path, why: str) -> InputError:
    return InputError("tokenizer", where, f"cannot be carried: {why}. --no-tokenizer leaves it out")
