"""Options of `longrope eval`, and the model, documents and factors that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launchers.options import (
    LENGTH,
    LENGTHS,
    engine_option,
    json_option,
    layout_of,
    layout_options,
)
from launchers.printing.tables import tsv_option
from launchers.typed_names import typed_names
from megatron_longrope.artifacts.rows import AS_IT_IS, UNSCALED
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation.tasks.base import DEFAULT_BATCH_TOKENS
from megatron_longrope.rope.methods.uses import closed_form_methods

if TYPE_CHECKING:  # these import torch, which `--help` does without
    from checkpoints_tools.load_any import LoadedModel, ModelFolder
    from data_prep.documents import TextDocument
    from megatron_longrope.data import TextTokenizer
    from megatron_longrope.evaluation import EvaluationDocument
    from megatron_longrope.rope import FactorSet
    from megatron_longrope.runtime import Runtime

CallableT = TypeVar("CallableT", bound=Callable[..., Any])
Values = Mapping[str, Any]
"""The parameters of a command, by name."""


def document_options(function: CallableT) -> CallableT:
    """Adds the options that say where documents come from, for tasks that need documents."""
    options = (
        click.option(
            "--text",
            "texts",
            multiple=True,
            metavar="FILE …",
            help="Text files in UTF-8, one document each; files, folders or patterns.",
        ),
        click.option(
            "--data",
            "dataset",
            metavar="PREFIX",
            help="A dataset that `longrope data pack --whole-documents` wrote, instead of --text.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def model_options(function: CallableT) -> CallableT:
    """Adds the options of every task: model, methods, lengths, precision, and layout."""
    options = (
        click.option(
            "--model",
            "model_path",
            required=True,
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="A Hugging Face folder, a Megatron checkpoint or a run directory.",
        ),
        click.option(
            "--lengths",
            required=True,
            type=LENGTHS,
            metavar="LENGTHS",
            help="Lengths to measure at, in tokens, such as 2k,8k,16k.",
        ),
        click.option(
            "--method",
            "methods",
            multiple=True,
            default=(AS_IT_IS,),
            metavar="NAME[:SCALE][,KEY=VALUE…]",
            help=f"Factors to measure under: {', '.join(closed_form_methods())}, the name of a "
            f"published set (longrope factors list), a factors JSON file, or {AS_IT_IS}: those the "
            f"model has. {UNSCALED}: no scaling at all, even where the model has its own. May be "
            "repeated. SCALE is by default --target over the window, else each length over the "
            "window.",
        ),
        click.option(
            "--target",
            type=LENGTH,
            metavar="LENGTH",
            help="Length in tokens that --method scales to.",
        ),
        click.option(
            "--original-window",
            type=LENGTH,
            metavar="LENGTH",
            help="Pretrained window in tokens that --method scales from  [default: the model's]",
        ),
        click.option(
            "--add-bos",
            is_flag=True,
            help="Begin each document with a BOS token where the tokenizer adds none.",
        ),
        click.option(
            "--angle-precision",
            type=click.Choice(["float64", "hf"]),
            default="float64",
            help="How rotation angles are computed; hf: in float32 as transformers does, error "
            "included.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float64"]),
            default="float32",
            help="Number format of weights and activations.",
        ),
        click.option(
            "--batch-tokens",
            type=click.IntRange(1),
            default=DEFAULT_BATCH_TOKENS,
            metavar="TOKENS",
            help="Short documents share a forward pass up to this many tokens; fewer take less "
            "memory.",
        ),
        layout_options,
        engine_option,
        tsv_option,
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def check_evaluation_request(values: Values, *, needs_documents: bool) -> None:
    """Raises InputError for options that are wrong for any model, before one is loaded."""
    methods: tuple[str, ...] = values["methods"]
    if needs_documents:
        texts, dataset = values["texts"], values["dataset"]
        if bool(texts) == (dataset is not None):
            rule = "give documents with either --text or --data"
            raise InputError("--text", " ".join(texts) or "(nothing)", rule)
        if dataset is not None and values["add_bos"]:
            rule = "a dataset's tokens are what they are; use it with --text"
            raise InputError("--add-bos", dataset, rule)
    if len(set(methods)) < len(methods):
        raise InputError("--method", " ".join(methods), "a method is given twice")


@contextmanager
def loaded_model(values: Values) -> Iterator[tuple[Runtime, LoadedModel]]:
    """Starts the runtime and loads the model into it."""
    import torch

    from checkpoints_tools.load_any import load_model
    from megatron_longrope.model.engine.settings import BackendSettings
    from megatron_longrope.runtime import start_runtime

    with start_runtime(layout_of(values)) as runtime:
        yield (
            runtime,
            load_model(
                values["model_path"],
                runtime,
                dtype=getattr(torch, values["dtype"]),
                angle_precision=values["angle_precision"],
                backend=BackendSettings(engine=values["engine"]),
            ),
        )


def model_folder(values: Values) -> ModelFolder:
    """Returns the model without its weights; raises InputError for a path that leads to none."""
    from checkpoints_tools.load_any import open_model

    with typed_names():
        return open_model(values["model_path"])


def tokenizer_of(folder: ModelFolder) -> TextTokenizer:
    """Returns the model's tokenizer; raises InputError where it has none."""
    from megatron_longrope.data import load_tokenizer

    if folder.tokenizer_file is None:
        raise InputError("--model", folder.name, "it has no tokenizer.json to encode text with")
    return load_tokenizer(folder.tokenizer_file)


def read_texts(paths: Sequence[str]) -> list[TextDocument]:
    """Returns what files, folders and patterns hold, each file as a document.

    Raises InputError for a path that names no file.
    """
    from data_prep.readers import find_text_files, read_text_files

    return list(read_text_files(find_text_files(paths)))


def encoded_documents(
    folder: ModelFolder, texts: Sequence[TextDocument], dataset: str | None, add_bos: bool
) -> list[EvaluationDocument]:
    """Returns the documents of `dataset`, or else `texts` as the model's tokenizer encodes them."""
    from megatron_longrope.evaluation import EvaluationDocument

    if dataset is not None:
        from megatron_longrope.data import PackedDataset

        sha256 = tokenizer_of(folder).identity.sha256 if folder.tokenizer_file else None
        data = PackedDataset(dataset, vocab_size=folder.shape.vocab_size, tokenizer_sha256=sha256)
        return [
            EvaluationDocument(name, data.document(i)) for i, name in enumerate(data.document_names)
        ]
    encoded = tokenizer_of(folder).encode_documents([text.text for text in texts], add_bos)
    return [
        EvaluationDocument(text.name, tokens) for text, tokens in zip(texts, encoded, strict=True)
    ]


def factor_sets(
    folder: ModelFolder, contexts: Mapping[int, int], values: Values
) -> list[tuple[str, int, FactorSet]]:
    """Returns (method, length, factors) of every measurement asked for.

    `contexts` maps each length to the tokens that one forward pass sees at it.
    """
    from megatron_longrope.pipeline.run import geometry_of
    from megatron_longrope.rope import method_from_text

    geometry = geometry_of(folder.shape)
    if values["original_window"] is not None:
        geometry = geometry.model_copy(update={"original_length": values["original_window"]})
    own, target = folder.own.factor_set, values["target"]
    return [
        (
            method,
            length,
            own if method == AS_IT_IS else method_from_text(method, geometry, context, target),
        )
        for method in values["methods"]
        for length, context in contexts.items()
    ]
