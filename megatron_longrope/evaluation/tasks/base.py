"""What an evaluation task is: its name, its settings, and rows from a model at a length.

`longrope eval`, recipes, a run's checks and its report take tasks from the registry here and know
none by name. A command line lists tasks before torch is imported, so a task imports it in `run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field

from megatron_longrope.artifacts.results import EvaluationRows
from megatron_longrope.artifacts.rows import EvaluationLabels, Row
from megatron_longrope.artifacts.summaries import Check
from megatron_longrope.config import Length, StrictConfig
from megatron_longrope.errors import InputError
from megatron_longrope.registry import Registry

if TYPE_CHECKING:  # these import torch
    from megatron_longrope.data.passkey import Encoder
    from megatron_longrope.evaluation.documents import EvaluationDocument
    from megatron_longrope.evaluation.exported import ExportedModel
    from megatron_longrope.model import LongRopeModel

DEFAULT_BATCH_TOKENS = 16384
"""Short documents share a forward pass up to this many tokens."""


class TaskSettings(StrictConfig):
    """The settings that every task has in a recipe.

    The fields that a task adds become options of its `longrope eval` command: name, type, default,
    and the field's description as help.
    """

    lengths: tuple[Length, ...] = Field(
        default=(), description="Lengths in tokens; by default those of the whole evaluation."
    )


SettingsT = TypeVar("SettingsT", bound=TaskSettings)


@dataclass(frozen=True)
class TaskInputs:
    """What tasks measure with."""

    measured: LongRopeModel | ExportedModel
    """What is measured: a model with the factors to measure in force, or an exported folder."""
    tokenizer: Encoder | None
    """The model's tokenizer; None where it has none."""
    documents: Sequence[EvaluationDocument] = ()
    """Whole documents, for tasks that need them."""
    prefix: Sequence[int] = ()
    """Token ids that generated documents begin with, such as a BOS."""
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS
    """Short documents share a forward pass up to this many tokens."""

    @property
    def model(self) -> LongRopeModel:
        """The model, with the factors to measure in force.

        Raises InputError for an exported folder, which only tasks that say so measure.
        """
        from megatron_longrope.model import LongRopeModel

        if not isinstance(self.measured, LongRopeModel):
            raise InputError("evaluation.exported", "export", "this task does not measure exports")
        return self.measured

    @property
    def encoder(self) -> Encoder:
        """The tokenizer; raises InputError for a model that has none."""
        if self.tokenizer is None:
            raise InputError("model", "(no tokenizer.json)", "this task encodes text of its own")
        return self.tokenizer


class Task(ABC, Generic[SettingsT]):
    """One kind of evaluation; the docstring of a task is the help of its command."""

    name: ClassVar[str]
    """The task's name in recipes and rows, and of its file of rows in a run: evals/NAME.json."""
    title: ClassVar[str]
    """The heading of a table of its rows."""
    needs_documents: ClassVar[bool] = False
    """Whether the task is given documents; if not, it generates its own."""
    in_every_run: ClassVar[bool] = False
    """Whether every run measures this at all its lengths, so that recipes do not list it."""
    measures_exports: ClassVar[bool] = False
    """Whether `run` takes an exported folder that transformers reads, beside our own model."""

    @property
    @abstractmethod
    def settings_kind(self) -> type[SettingsT]:
        """The class of the task's settings."""

    @property
    def command(self) -> str:
        """The task's name after `longrope eval`."""
        return self.name

    @abstractmethod
    def run(
        self, inputs: TaskInputs, length: int, settings: SettingsT, labels: EvaluationLabels
    ) -> list[Row]:
        """Returns rows of the model under the factors in force, in contexts of `length` tokens.

        All ranks come here together and return the same. Raises InputError where the documents, or
        what would have to be generated, do not fit the length.
        """

    def check(self, inputs: TaskInputs, lengths: Sequence[int]) -> None:
        """Raises InputError for inputs that cannot be measured at `lengths`, before any work."""

    def tokens(self, num_documents: int, length: int, settings: SettingsT) -> int:
        """Number of tokens that `run` sends through the model, for progress and plans."""
        return length * max(1, num_documents)

    def context(self, length: int, settings: SettingsT) -> int:
        """Number of tokens that one forward pass sees at `length`.

        A scaling method that is given neither a scale nor a target is scaled to it.
        """
        return length

    def checks(self, rows: EvaluationRows, window: int) -> list[Check]:
        """Returns the checks that this task contributes to a run, from the rows of all tasks.

        `window` is the context length of the pretrained model in tokens.
        """
        return []


TASKS: Registry[Task[Any]] = Registry("evaluation task")
