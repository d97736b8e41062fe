"""Key–value retrieval: a list of names with numbers, and at its end a question about one name."""

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
    """The settings of key–value retrieval."""

    value_digits: PositiveInt = Field(default=4, description="Digits of each value in the list.")
    questions: PositiveInt = Field(
        default=1,
        description="Questions at the end of a document. All but the last are followed by their "
        "answers; the last answer is what counts.",
    )


class KeyValue(RetrievalTask[KeyValueSettings]):
    """Count how often a model finds one value in a list that fills the context.

    Every line of the list names a value; the question at the end asks for one of them, which stands
    anywhere. All digits must be right. Documents are generated with the model's tokenizer.
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
        """Returns a list that, with its questions, fills `length` tokens.

        Args:
            tokenizer: Encodes the text.
            length: Tokens of the whole document.
            depth: Unused: the line asked for stands anywhere.
            seed: What names, values and the line asked for depend on.
            settings: The number of questions, and the digits of a value.
            prefix: Token ids that the document begins with.
        """
        from megatron_longrope.data import key_value_document

        return key_value_document(
            tokenizer, length, seed, settings.questions, settings.value_digits, prefix
        )


TASKS.register(KeyValue.name, KeyValue())
