"""The part of a recipe that says what is measured at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, PositiveInt, SerializeAsAny, field_validator, model_validator

from megatron_longrope.config import Length, StrictConfig, build_config, format_length
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.tasks import TASKS, TaskSettings
from megatron_longrope.rope.methods.uses import SecondInterpolation, default_second_interpolations


class ExportedConfig(StrictConfig):
    """What is measured of the exported folder, through transformers alone.

    Every data-parallel group loads the whole model on each of its devices, so that lengths and
    models are limited by what one device holds.
    """

    lengths: tuple[Length, ...] = ()
    """Lengths in tokens, of those of the whole evaluation; by default all of them."""
    tasks: bool = True
    """Whether the tasks of the evaluation are measured as well, with generated answers."""


class EvaluationConfig(StrictConfig):
    """What is measured at the end."""

    lengths: tuple[Length, ...]
    """Lengths of perplexity in tokens, the target length among them."""
    num_documents: PositiveInt = 3
    """Number of held-out documents measured on; all, where there are fewer."""
    tasks: dict[str, SerializeAsAny[TaskSettings]] = Field(default_factory=dict)
    """Beside perplexity, by name: what is measured before and after, each with its settings."""
    exported: ExportedConfig | None = ExportedConfig()
    """The exported folder, read by transformers; `null`: it is not measured."""
    sliding_stride: PositiveInt | None = None
    """Of the pretrained model inside its own window, over the same documents; by default a quarter
    of the window."""
    second_interpolations: tuple[SecondInterpolation, ...] = Field(
        default_factory=default_second_interpolations
    )
    """Shown beside the last search on a fine-tuned model, each with its own temperature and with
    the searched one."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _settings_of_each_task(cls, tasks: object) -> object:
        if not isinstance(tasks, Mapping):
            raise ValueError("names of tasks, each with its settings")
        return {name: _task_settings(str(name), values) for name, values in tasks.items()}

    @model_validator(mode="after")
    def _exported_where_others_are(self) -> EvaluationConfig:
        others = [length for length in self.exported_lengths if length not in self.lengths]
        if others:
            raise ValueError(
                f"exported.lengths: {format_length(others[0])} is none of the lengths that "
                "everything else is measured at"
            )
        return self

    def task_lengths(self, name: str) -> tuple[int, ...]:
        """Returns the lengths in tokens at which a task is measured."""
        return self.tasks[name].lengths or self.lengths

    def exported_task_lengths(self, name: str) -> tuple[int, ...]:
        """Returns the lengths in tokens at which a task is measured on the exported folder."""
        if self.exported is None or not self.exported.tasks:
            return ()
        only = self.exported.lengths
        return tuple(n for n in self.task_lengths(name) if not only or n in only)

    @property
    def exported_lengths(self) -> tuple[int, ...]:
        """The lengths in tokens at which the exported folder is measured."""
        return (self.exported.lengths if self.exported else ()) or self.lengths


def _task_settings(name: str, values: object) -> TaskSettings:
    """Returns the settings of one task; raises InputError for an unknown task or wrong settings."""
    task, place = TASKS[name], f"evaluation.tasks.{name}"
    if task.in_every_run:
        raise InputError(place, name, "every run measures this, at evaluation.lengths")
    if isinstance(values, TaskSettings):
        values = values.model_dump()
    if not isinstance(values, Mapping):
        raise InputError(place, values, "the settings of a task, such as {lengths: [2k, 8k]}")
    settings: TaskSettings = build_config(task.settings_kind, values, place)
    return settings
