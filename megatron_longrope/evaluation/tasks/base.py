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
    from megatron_longrope.model import LongRopeModel

DEFAULT_BATCH_TOKENS = 16384
"""Short documents share a forward pass up to this many tokens."""


class TaskSettings(StrictConfig):
    """What every task can be told in a recipe.

    The fields that a task adds become options of its `longrope eval` command: name, type, default,
    and the field's description as help.
    """

    lengths: tuple[Length, ...] = Field(
        default=(), description="In tokens; by default those of the whole evaluation."
    )


SettingsT = TypeVar("SettingsT", bound=TaskSettings)


@dataclass(frozen=True)
class TaskInputs:
    """What tasks measure with: a model with the factors in force, its tokenizer where it has one,
    whole documents for tasks that need them, and `prefix`, ids before generated text (a BOS)."""

    model: LongRopeModel
    tokenizer: Encoder | None
    documents: Sequence[EvaluationDocument] = ()
    prefix: Sequence[int] = ()
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS

    @property
    def encoder(self) -> Encoder:
        """The tokenizer; raises InputError for a model that has none."""
        if self.tokenizer is None:
            raise InputError("model", "(no tokenizer.json)", "this task encodes text of its own")
        return self.tokenizer


class Task(ABC, Generic[SettingsT]):
    """One kind of evaluation; the docstring of a task is the help of its command."""

    name: ClassVar[str]
    """In recipes, in rows, and of the evals file: evals/NAME.json."""
    title: ClassVar[str]
    """Above a table of its rows."""
    needs_documents: ClassVar[bool] = False
    """Whether it is given documents; if not, it generates its own."""
    in_every_run: ClassVar[bool] = False
    """Whether a run measures this at all its lengths anyway, so that recipes do not list it."""

    @property
    @abstractmethod
    def settings_kind(self) -> type[SettingsT]:
        """The class of its settings."""

    @property
    def command(self) -> str:
        """Its name after `longrope eval`."""
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
        """Number of tokens that one forward pass sees, which scales methods given no factor."""
        return length

    def checks(self, rows: EvaluationRows, window: int) -> list[Check]:
        """Returns the checks that this task contributes to a run, from the rows of all tasks;
        `window` is that of the pretrained model, in tokens."""
        return []


TASKS: Registry[Task[Any]] = Registry("evaluation task")
