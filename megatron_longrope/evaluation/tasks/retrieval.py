"""Tasks that generate documents and count how often the answer at their end is exactly right."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from megatron_longrope.artifacts.rows import EvaluationLabels, RetrievalRow, Row
from megatron_longrope.evaluation.tasks.base import Task, TaskInputs, TaskSettings

if TYPE_CHECKING:
    from megatron_longrope.data import PasskeyDocument
    from megatron_longrope.data.passkey import Encoder


class RetrievalSettings(TaskSettings):
    """The settings that all retrieval tasks have."""

    trials: PositiveInt = Field(default=10, description="Documents generated per length and depth.")
    seed: NonNegativeInt = Field(
        default=0, description="The same seed generates the same documents for every method."
    )


RetrievalSettingsT = TypeVar("RetrievalSettingsT", bound=RetrievalSettings)


class RetrievalTask(Task[RetrievalSettingsT]):
    """A task that generates documents of any length and counts exact matches of their answers.

    Documents depend on seed, length, depth and trial alone: every method and model gets the same
    ones. Whether an answer is right is seen in one pass, by teacher forcing; an exported folder
    generates its answers.
    """

    measures_exports = True

    @abstractmethod
    def document(
        self,
        tokenizer: Encoder,
        length: int,
        depth: float | None,
        seed: int,
        settings: RetrievalSettingsT,
        prefix: Sequence[int],
    ) -> PasskeyDocument:
        """Returns one document of exactly `length` tokens that ends with its answer.

        Args:
            tokenizer: Encodes the text.
            length: Tokens of the whole document.
            depth: Where in the context the answer is found: 0 first, 1 last; None in a task
                without depths.
            seed: What else the document depends on; each trial has its own.
            settings: The settings of the task.
            prefix: Token ids that the document begins with.

        Raises InputError where `length` is too short.
        """

    def depths(self, settings: RetrievalSettingsT) -> Sequence[float | None]:
        """Returns the depths to measure at; a single None for a task without depths."""
        return (None,)

    def tokens(self, num_documents: int, length: int, settings: RetrievalSettingsT) -> int:
        """Number of tokens in all documents that are generated at one length."""
        return length * settings.trials * len(self.depths(settings))

    def run(
        self,
        inputs: TaskInputs,
        length: int,
        settings: RetrievalSettingsT,
        labels: EvaluationLabels,
    ) -> list[Row]:
        """Returns one row per depth at `length` tokens, the same on every rank."""
        from megatron_longrope.evaluation.answers import answers_retrieved, trial_seed

        depths = self.depths(settings)
        documents = [
            self.document(
                inputs.encoder,
                length,
                depth,
                trial_seed(settings.seed, length, depth or 0.0, trial),
                settings,
                inputs.prefix,
            )
            for depth in depths
            for trial in range(settings.trials)
        ]
        correct = answers_retrieved(inputs.measured, documents, inputs.max_batch_tokens)
        by_depth = correct.reshape(len(depths), settings.trials)
        return [
            RetrievalRow(
                **asdict(labels),
                task=self.name,
                length=length,
                depth=depth,
                trials=settings.trials,
                correct=int(hits.sum()),
            )
            for depth, hits in zip(depths, by_depth, strict=True)
        ]
