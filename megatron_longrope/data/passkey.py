"""Documents of an exact number of tokens with a fact hidden in them and a question at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from megatron_longrope.errors import InputError

CLASSIC_SENTENCES = (
    "The grass is green. ",
    "The sky is blue. ",
    "The sun is yellow. ",
    "Here we go. ",
    "There and back again. ",
)
_NAMES = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "sigma",
)


class Encoder(Protocol):
    """Anything that turns text into token ids.

    TextTokenizer does, and so do `tokenizers.Tokenizer` and the tokenizers of transformers.
    """

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Any:
        """Returns the token ids of `text`, or an object that has them in `ids`."""
        ...


@dataclass(frozen=True)
class Filler:
    """Text without the key, as sentences that are repeated as often as needed."""

    tokens: np.ndarray
    """Tokens of all sentences, [total] int64."""
    starts: np.ndarray
    """Start of each sentence in `tokens`, then the total, [sentences + 1]."""

    def take(self, length: int, sentence: int) -> np.ndarray:
        """Returns `length` tokens from the start of `sentence` on, round and round."""
        return np.resize(
            np.roll(self.tokens, -int(self.starts[sentence % self.num_sentences])), length
        )

    def sentence_at(self, depth: float, length: int, sentence: int) -> int:
        """Returns the start of the sentence at `depth` (0 to 1) of what `take` returns.

        That is the last start at or before token `depth · length`; depth 1 is the very end.
        """
        if depth == 1:
            return length
        rounds, place = divmod(int(depth * length), len(self.tokens))
        starts = np.sort(
            (self.starts[:-1] - self.starts[sentence % self.num_sentences]) % len(self.tokens)
        )
        return rounds * len(self.tokens) + int(
            starts[np.searchsorted(starts, place, side="right") - 1]
        )

    @property
    def num_sentences(self) -> int:
        """Number of sentences."""
        return len(self.starts) - 1


@dataclass(frozen=True)
class PasskeyDocument:
    """A document whose last tokens are the answer to a question about it."""

    tokens: np.ndarray
    """Tokens of the document, answer included, [length] int64."""
    answer_start: int
    """Position of the answer's first token."""
    answer_length: int
    """Number of the answer's tokens."""
    key: str
    """The answer as text."""

    @property
    def answer(self) -> np.ndarray:
        """Tokens of the answer."""
        return self.tokens[self.answer_start :]


def classic_filler(tokenizer: Encoder) -> Filler:
    """Returns the sentences about grass, sky and sun in which passkeys are usually hidden."""
    return text_filler(tokenizer, CLASSIC_SENTENCES)


def text_filler(tokenizer: Encoder, lines: Iterable[str]) -> Filler:
    """Returns lines of text, each with its line end, as filler; a line counts as a sentence.

    Raises InputError where they hold no token.
    """
    pieces = [piece for piece in (_ids(tokenizer, line) for line in lines) if len(piece)]
    if not pieces:
        raise InputError("filler", "(empty)", "the filler needs at least one line with text")
    return Filler(
        np.concatenate(pieces), np.concatenate(([0], np.cumsum([len(piece) for piece in pieces])))
    )


def passkey_document(
    tokenizer: Encoder,
    length: int,
    depth: float,
    seed: int,
    filler: Filler | None = None,
    key_digits: int = 5,
    prefix: Sequence[int] = (),
) -> PasskeyDocument:
    """Returns a document with a passkey hidden in it, and the question for it at the end.

    The answer, the document's last tokens, is what the tokenizer adds for the key after "The pass
    key is". Raises InputError where `length` is too short for statement and question.

    Args:
        tokenizer: Makes the tokens.
        length: Exact number of tokens of the document; the filler is cut to fit.
        depth: Where the statement stands: 0 first, 1 right before the question, between them at
            the start of a sentence of the filler.
        seed: Fixes the key and the sentence with which the filler starts.
        filler: Text around the statement; by default the classic sentences.
        key_digits: Number of digits of the key.
        prefix: Tokens before everything else, such as a BOS.
    """
    if not 0 <= depth <= 1:
        raise InputError("depth", depth, "must be between 0 (first) and 1 (last)")
    if key_digits < 1:
        raise InputError("key_digits", key_digits, "must be 1 or more")
    random = np.random.default_rng(seed)
    key = "".join(
        str(digit) for digit in (random.integers(1, 10), *random.integers(0, 10, key_digits - 1))
    )
    statement = _ids(tokenizer, f"The pass key is {key}. Remember it. {key} is the pass key.\n")
    question, answer = question_and_answer(
        tokenizer, "\nWhat is the pass key? The pass key is", key
    )
    room = length - len(prefix) - len(statement) - len(question) - len(answer)
    if room < 0:
        raise InputError(
            "length", length, f"too short for a passkey: needs {length - room} tokens or more"
        )
    filler = filler or classic_filler(tokenizer)
    first = int(random.integers(filler.num_sentences))
    text, cut = filler.take(room, first), filler.sentence_at(depth, room, first)
    tokens = np.concatenate(
        (np.array(prefix, dtype=np.int64), text[:cut], statement, text[cut:], question, answer)
    )
    return PasskeyDocument(tokens, length - len(answer), len(answer), key)


def key_value_document(
    tokenizer: Encoder,
    length: int,
    seed: int,
    num_questions: int = 1,
    value_digits: int = 4,
    prefix: Sequence[int] = (),
) -> PasskeyDocument:
    """Returns a list of lines like "alpha-7 = 4821", then questions like "alpha-7 ? 4821".

    No name stands twice, and only the list's first line may be cut; no question asks for that one.
    The document's answer is the last question's. Raises InputError where `length` is too short for
    the questions.

    Args:
        tokenizer: Makes the tokens.
        length: Exact number of tokens of the document.
        seed: Fixes names, values and their order.
        num_questions: Number of questions; all but the last have their answers in the text.
        value_digits: Number of digits of a value.
        prefix: Tokens before everything else, such as a BOS.
    """
    if num_questions < 1 or value_digits < 1:
        raise InputError(
            "num_questions, value_digits", (num_questions, value_digits), "must be 1 or more"
        )
    random = np.random.default_rng(seed)
    names = (
        f"{_NAMES[i % len(_NAMES)]}-{i // len(_NAMES)}"
        for i in random.permutation(max(1000, length))
    )
    pairs = (
        (name, "".join(str(digit) for digit in random.integers(0, 10, value_digits)))
        for name in names
    )
    asked = [next(pairs) for _ in range(num_questions)]
    questions = [question_and_answer(tokenizer, f"{name} ?", value) for name, value in asked]
    newline = _ids(tokenizer, "\n")
    ending = [part for question in questions for part in (newline, *question)][1:]
    lines = [_ids(tokenizer, f"{name} = {value}\n") for name, value in asked]
    room = length - len(prefix) - sum(map(len, ending))
    missing = room - sum(map(len, lines))
    if missing < 0:
        raise InputError(
            "length",
            length,
            f"too short for {num_questions} questions: needs {length - missing} tokens",
        )
    first = np.zeros(0, dtype=np.int64)
    while missing > 0:
        line = _ids(tokenizer, "{} = {}\n".format(*next(pairs)))
        missing -= len(line)
        if missing > 0:
            lines.append(line)
        else:
            first = line[-missing:]
    order = random.permutation(len(lines))
    parts = (np.array(prefix, dtype=np.int64), first, *(lines[i] for i in order), *ending)
    answer = questions[-1][1]
    return PasskeyDocument(np.concatenate(parts), length - len(answer), len(answer), asked[-1][1])


def question_and_answer(
    tokenizer: Encoder, prompt: str, answer: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of `prompt`, a space and `answer`, cut where the answer begins.

    They are encoded together, as a model would meet them: the space belongs to the prompt where the
    tokenizer gives it a token of its own, and to the answer where it joins the answer's first one.
    """
    whole, before = _ids(tokenizer, f"{prompt} {answer}"), _ids(tokenizer, f"{prompt} ")
    shared = min(len(before), len(whole) - 1)
    differs = np.flatnonzero(whole[:shared] != before[:shared])
    cut = int(differs[0]) if len(differs) else shared
    return whole[:cut], whole[cut:]


def _ids(tokenizer: Encoder, text: str) -> np.ndarray:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return np.array(getattr(encoded, "ids", encoded), dtype=np.int64)
