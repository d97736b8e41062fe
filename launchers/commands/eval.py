"""`longrope eval TASK`: measures one task under one or more scaling methods."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from launchers.evaluation_inputs import (
    Values,
    check_evaluation_request,
    document_options,
    encoded_documents,
    factor_sets,
    loaded_model,
    model_folder,
    model_options,
    read_texts,
    tokenizer_of,
)
from launchers.list_options import ListOptionsCommand
from launchers.options import write_json
from launchers.printing.evaluation_report import TokenProgress, print_tables, table_rows
from launchers.printing.tables import write_tsv
from launchers.setting_options import setting_options, settings_of
from megatron_longrope.artifacts.rows import EvaluationLabels, Row
from megatron_longrope.evaluation.tasks import TASKS, Task, TaskInputs, TaskSettings

if TYPE_CHECKING:  # these import torch, which `--help` does without
    from collections.abc import Sequence

    from checkpoints_tools.load_any import ModelFolder
    from data_prep.documents import TextDocument
    from megatron_longrope.data import TextTokenizer
    from megatron_longrope.evaluation import EvaluationDocument


class EvaluationGroup(click.Group):
    """A group with one subcommand per task in the registry, each made when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names that tasks have on the command line."""
        return [task.command for task in TASKS.values()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Returns the command of the task called `name`; None for an unknown name."""
        return next((_command(task) for task in TASKS.values() if task.command == name), None)


@click.group(cls=EvaluationGroup)
def command() -> None:
    """Measure a model under its own factors, or under other scaling methods.

    Prints a table of methods by lengths; --json writes the rows it is made of. Under torchrun
    (longrope launch), documents are shared among the copies of the model.
    """


def _command(task: Task[Any]) -> click.Command:
    """Returns the command of one task.

    Its options are the task's own settings, where documents come from if the task needs some, and
    those that all tasks take.
    """

    def run(**values: Any) -> None:
        _evaluate(task, values)

    function = model_options(run)
    if task.needs_documents:
        function = document_options(function)
    made = click.command(task.command, cls=ListOptionsCommand, help=inspect.getdoc(type(task)))(
        function
    )
    made.params[:0] = setting_options(task.settings_kind, leave_out=TaskSettings.model_fields)
    return made


def _evaluate(task: Task[Any], values: Values) -> None:
    """Measures every method at every length; the main rank prints tables and writes the rows."""
    settings = settings_of(task.settings_kind, values)
    check_evaluation_request(values, needs_documents=task.needs_documents)
    texts = read_texts(values["texts"]) if task.needs_documents else []
    folder = model_folder(values)
    documents, tokenizer, prefix = _material(task, folder, texts, values)
    task.check(documents, settings.lengths)
    if tokenizer is not None:
        task.check_lengths(tokenizer, prefix, settings.lengths, settings)
    contexts = {length: task.context(length, settings) for length in settings.lengths}
    runs = factor_sets(folder, contexts, values)
    costs = {length: task.tokens(len(documents), length, settings) for length in settings.lengths}
    with loaded_model(values) as (runtime, loaded):
        inputs = TaskInputs(loaded.model, tokenizer, documents, prefix, values["batch_tokens"])
        progress = TokenProgress(sum(costs[length] for _, length, _ in runs), shown=runtime.is_main)
        rows: list[Row] = []
        for method, length, factor_set in runs:
            loaded.model.set_factors(factor_set)
            rows += task.run(inputs, length, settings, EvaluationLabels(loaded.name, method))
            progress.advance(costs[length], f"{method} at {length} tokens")
        if runtime.is_main:
            if values["tsv"] is not None:
                write_tsv(values["tsv"], table_rows(rows))
            if values["tsv"] != "-":
                print_tables(rows)
            if values["json_path"] is not None:
                write_json(values["json_path"], _payload(rows, inputs))


def _material(
    task: Task[Any], folder: ModelFolder, texts: list[TextDocument], values: Values
) -> tuple[list[EvaluationDocument], TextTokenizer | None, Sequence[int]]:
    """Returns documents, tokenizer and the token ids that generated documents begin with.

    Raises InputError where a task that generates documents has no tokenizer.
    """
    documents: list[EvaluationDocument] = []
    if task.needs_documents:
        documents = encoded_documents(folder, texts, values["dataset"], values["add_bos"])
        tokenizer = tokenizer_of(folder) if folder.tokenizer_file else None
    else:
        tokenizer = tokenizer_of(folder)
    return documents, tokenizer, tokenizer.document_prefix(values["add_bos"]) if tokenizer else ()


def _payload(rows: list[Row], inputs: TaskInputs) -> dict[str, Any]:
    """Returns the rows as JSON: under "rows", or the key of their kind where it has one."""
    lists: dict[str, list[dict[str, Any]]] = {"rows": []}
    for row in rows:
        lists.setdefault(row.FILE or "rows", []).append(row.to_json())
    if not inputs.documents:
        return {**lists}
    from megatron_longrope.evaluation import documents_sha256

    return {"documents_sha256": documents_sha256(inputs.documents), **lists}
