"""Perplexity of documents, from the first token on or through a sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from megatron_longrope.artifacts.rows import EvaluationLabels, Row
from megatron_longrope.config import Length
from megatron_longrope.evaluation.sliding_window import SlidingWindow
from megatron_longrope.evaluation.tasks.base import TASKS, Task, TaskInputs, TaskSettings

if TYPE_CHECKING:
    from megatron_longrope.evaluation.documents import EvaluationDocument


class PerplexitySettings(TaskSettings):
    """The settings of perplexity."""

    sliding: str | None = Field(
        default=None,
        description="Read documents through a sliding window, written in tokens as WINDOW:STRIDE "
        "(2k:512). By default one pass from the first token.",
    )
    bucket: Length | None = Field(
        default=None,
        description="Width in tokens of the position buckets that --json lists; by default 1/16 of "
        "a length.",
    )

    @field_validator("sliding")
    @classmethod
    def _is_a_window(cls, text: str | None) -> str | None:
        if text is not None:
            SlidingWindow.parse(text)
        return text

    @property
    def sliding_window(self) -> SlidingWindow | None:
        """The window that `sliding` describes; None where documents are read in one pass."""
        return None if self.sliding is None else SlidingWindow.parse(self.sliding)


class Perplexity(Task[PerplexitySettings]):
    """Measure perplexity over the first tokens of documents.

    A length n means the first n tokens of each document, which are n - 1 predictions; a document
    with fewer tokens is an error. Sums over all documents are divided once: exp(nats / tokens).
    """

    name = "perplexity"
    title = "Perplexity"
    needs_documents = True
    in_every_run = True
    settings_kind = PerplexitySettings

    @property
    def command(self) -> str:
        """The task's name after `longrope eval`: ppl."""
        return "ppl"

    def check(self, documents: Sequence[EvaluationDocument], lengths: Sequence[int]) -> None:
        """Raises InputError unless every document has its own name and reaches all lengths."""
        from megatron_longrope.evaluation.documents import check_documents

        check_documents(documents, lengths)

    def context(self, length: int, settings: PerplexitySettings) -> int:
        """Number of tokens that one forward pass sees, at most those of the sliding window."""
        window = settings.sliding_window
        return length if window is None else min(length, window.window)

    def run(
        self,
        inputs: TaskInputs,
        length: int,
        settings: PerplexitySettings,
        labels: EvaluationLabels,
    ) -> list[Row]:
        """Returns one row per document, and one per position bucket over all documents."""
        from megatron_longrope.evaluation.perplexity import measure_perplexity

        measured = measure_perplexity(
            inputs.model,
            inputs.documents,
            length,
            labels,
            sliding=settings.sliding_window,
            bucket_tokens=settings.bucket,
            max_batch_tokens=inputs.max_batch_tokens,
        )
        return [*measured.rows, *measured.positions]


TASKS.register(Perplexity.name, Perplexity())
