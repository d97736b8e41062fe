"""Key–value retrieval: a list of names and numbers, and at its end the question for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from megatron_longrope.evaluation.tasks.base import TASKS
from megatron_longrope.evaluation.tasks.retrieval import RetrievalSettings, RetrievalTask

if TYPE_CHECKING:
    from megatron_longrope.data import PasskeyDocument
    from megatron_longrope.data.passkey import Encoder


class KeyValueSettings(RetrievalSettings):
    """What is asked at the end of the list."""

    value_digits: PositiveInt = Field(default=4, description="Digits of a value.")
    questions: PositiveInt = Field(
        default=1, description="Asked at the end, each answered; the last answer counts."
    )


class KeyValue(RetrievalTask[KeyValueSettings]):
    """Count how often the value of one name in a list as long as the context is given, digit by
    digit.

    Every line but one is a distractor of the same form, and the line asked for stands anywhere.
    """

    name = "key-value"
    title = "Key–value retrieval"
    settings_kind = KeyValueSettings

    def document(
        self,
        tokenizer: Encoder,
        length: int,
        depth: float | None,
        seed: int,
        settings: KeyValueSettings,
        prefix: Sequence[int],
    ) -> PasskeyDocument:
        """Returns a list that fills `length` tokens, its questions included."""
        from megatron_longrope.data import key_value_document

        return key_value_document(
            tokenizer, length, seed, settings.questions, settings.value_digits, prefix
        )


TASKS.register(KeyValue.name, KeyValue())
