"""`longrope eval ppl | passkey`: perplexity and passkey retrieval of a model under one or more
scaling methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launchers.evaluation_report import Progress, passkey_table, perplexity_table
from launchers.list_options import ListOptionsCommand
from launchers.options import (
    LENGTH,
    LENGTHS,
    check_json_folder,
    engine_option,
    json_option,
    layout_of,
    layout_options,
    write_json,
)
from megatron_longrope.config import parse_length
from megatron_longrope.errors import InputError
from megatron_longrope.rope.methods.uses import closed_form_methods

if TYPE_CHECKING:  # these import torch, which `--help` does without
    from checkpoints_tools.load_any import LoadedModel
    from data_prep.documents import TextDocument
    from megatron_longrope.data import TextTokenizer
    from megatron_longrope.evaluation import EvaluationDocument, SlidingWindow
    from megatron_longrope.rope import FactorSet
    from megatron_longrope.runtime import Runtime

CallableT = TypeVar("CallableT", bound=Callable[..., Any])
AS_IT_IS = "model"
"""The `--method` that keeps the factors the model came with."""


class DepthsType(click.ParamType):  # type: ignore[type-arg]
    """Depths between 0 (first) and 1 (last), separated by commas."""

    name = "depths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Returns the depths in the order given; raises InputError for a wrong one or one given
        twice."""
        if isinstance(value, tuple):
            return value
        try:
            depths = tuple(float(part) for part in str(value).split(","))
        except ValueError as error:
            raise InputError(
                "--depths", value, "numbers between 0 and 1, separated by commas"
            ) from error
        if not all(0 <= depth <= 1 for depth in depths) or len(set(depths)) < len(depths):
            raise InputError("--depths", value, "numbers between 0 and 1, none of them twice")
        return depths


@click.group()
def command() -> None:
    """Evaluate a model under its own factors or other scaling methods.

    Under torchrun, documents are spread over the copies of the model that fit the processes.
    """


def _model_options(function: CallableT) -> CallableT:
    """Adds what both evaluations take: the model, methods, precision, and how it is cut over
    processes."""
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
            help="In tokens: 2k,8k,16k.",
        ),
        click.option(
            "--method",
            "methods",
            multiple=True,
            default=(AS_IT_IS,),
            metavar="NAME[:SCALE][,KEY=VALUE…]",
            help=f"{', '.join(closed_form_methods())}, a published factor set, a factors JSON "
            "file, or model: as it is. Repeatable. Without SCALE: --target/window, else "
            "length/window.",
        ),
        click.option(
            "--target", type=LENGTH, metavar="LENGTH", help="Length in tokens that sets the scale."
        ),
        click.option(
            "--original-window",
            type=LENGTH,
            metavar="LENGTH",
            help="Instead of the config's, in tokens.",
        ),
        click.option(
            "--add-bos",
            is_flag=True,
            help="Begin documents with a BOS where the tokenizer adds none.",
        ),
        click.option(
            "--angle-precision",
            type=click.Choice(["float64", "hf"]),
            default="float64",
            help="hf repeats transformers' float32 angles.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float64"]),
            default="float32",
            help="Of weights and activations.",
        ),
        click.option(
            "--batch-tokens",
            type=click.IntRange(1),
            default=16384,
            metavar="TOKENS",
            help="Short documents share a forward pass up to this many.",
        ),
        layout_options,
        engine_option,
        json_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command("ppl", cls=ListOptionsCommand)
@click.option(
    "--text", "texts", multiple=True, metavar="FILE …", help="UTF-8 text, one document per file."
)
@click.option("--data", "dataset", metavar="PREFIX", help="A token dataset of whole documents.")
@click.option(
    "--sliding",
    metavar="WINDOW:STRIDE",
    help="In tokens; by default one pass from the first token.",
)
@click.option(
    "--bucket",
    type=LENGTH,
    metavar="LENGTH",
    help="Width of a position bucket in tokens; 1/16 of a length.",
)
@_model_options
def ppl(
    texts: tuple[str, ...],
    dataset: str | None,
    sliding: str | None,
    bucket: int | None,
    lengths: tuple[int, ...],
    methods: tuple[str, ...],
    json_path: Path | None,
    batch_tokens: int,
    **settings: Any,
) -> None:
    """Measure perplexity over the first tokens of documents.

    A length n means a document's first n tokens, n - 1 predictions; a shorter document is an error.
    """
    window = _parse_sliding(sliding)
    _check_request(texts, dataset, methods, json_path, settings)
    sources = _read_texts(texts)
    with _loaded(settings) as (runtime, loaded):
        from megatron_longrope.evaluation import (
            EvaluationLabels,
            check_documents,
            documents_sha256,
            measure_perplexity,
        )

        documents = _documents(loaded, sources, dataset, settings["add_bos"])
        check_documents(documents, lengths)
        contexts = {length: min(length, window.window) if window else length for length in lengths}
        runs = _factor_sets(loaded, methods, contexts, settings)
        progress = Progress(
            sum(length for _, length, _ in runs) * len(documents), shown=runtime.is_main
        )
        rows, positions = [], []
        for method, length, factor_set in runs:
            loaded.model.set_factors(factor_set)
            labels = EvaluationLabels(loaded.name, method)
            measured = measure_perplexity(
                loaded.model,
                documents,
                length,
                labels,
                sliding=window,
                bucket_tokens=bucket,
                max_batch_tokens=batch_tokens,
            )
            rows += [row.to_json() for row in measured.rows]
            positions += [row.to_json() for row in measured.positions]
            progress.advance(length * len(documents), f"{method} at {length} tokens")
        if runtime.is_main:
            perplexity_table(rows)
            if json_path is not None:
                write_json(
                    json_path,
                    {
                        "documents_sha256": documents_sha256(documents),
                        "rows": rows,
                        "positions": positions,
                    },
                )


@command.command("passkey")
@click.option(
    "--depths",
    type=DepthsType(),
    default="0,0.25,0.5,0.75,1",
    metavar="DEPTHS",
    help="0 first … 1 last.",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=10,
    metavar="N",
    help="Documents per length and depth.",
)
@click.option(
    "--key-digits", type=click.IntRange(1), default=5, metavar="N", help="Digits of the key."
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Of the documents.")
@_model_options
def passkey(
    depths: tuple[float, ...],
    trials: int,
    key_digits: int,
    seed: int,
    lengths: tuple[int, ...],
    methods: tuple[str, ...],
    json_path: Path | None,
    batch_tokens: int,
    **settings: Any,
) -> None:
    """Count how often a key hidden in filler text is named at the end, digit by digit."""
    _check_request(("(built)",), None, methods, json_path, settings)
    with _loaded(settings) as (runtime, loaded):
        from megatron_longrope.evaluation import EvaluationLabels, measure_passkey

        tokenizer = _tokenizer(loaded)
        prefix = [
            token
            for token in tokenizer.encode_document("", settings["add_bos"])[:1]
            if token == tokenizer.bos_id
        ]
        runs = _factor_sets(loaded, methods, {length: length for length in lengths}, settings)
        progress = Progress(
            sum(length for _, length, _ in runs) * len(depths) * trials, shown=runtime.is_main
        )
        rows = []
        for method, length, factor_set in runs:
            loaded.model.set_factors(factor_set)
            measured = measure_passkey(
                loaded.model,
                tokenizer,
                length,
                depths,
                trials,
                EvaluationLabels(loaded.name, method),
                seed=seed,
                key_digits=key_digits,
                prefix=prefix,
                max_batch_tokens=batch_tokens,
            )
            rows += [row.to_json() for row in measured]
            progress.advance(length * len(depths) * trials, f"{method} at {length} tokens")
        if runtime.is_main:
            passkey_table(rows)
            if json_path is not None:
                write_json(json_path, {"rows": rows})


@contextmanager
def _loaded(settings: dict[str, Any]) -> Iterator[tuple[Runtime, LoadedModel]]:
    """Starts the runtime and loads the model into it."""
    import torch

    from checkpoints_tools.load_any import load_model
    from megatron_longrope.model.engine.settings import BackendSettings
    from megatron_longrope.runtime import start_runtime

    with start_runtime(layout_of(settings)) as runtime:
        yield (
            runtime,
            load_model(
                settings["model_path"],
                runtime,
                dtype=getattr(torch, settings["dtype"]),
                angle_precision=settings["angle_precision"],
                backend=BackendSettings(engine=settings["engine"]),
            ),
        )


def _check_request(
    texts: tuple[str, ...],
    dataset: str | None,
    methods: tuple[str, ...],
    json_path: Path | None,
    settings: dict[str, Any],
) -> None:
    """Raises InputError for what is wrong whatever the model: before minutes go into loading it."""
    if bool(texts) == (dataset is not None):
        raise InputError(
            "--text", " ".join(texts) or "(nothing)", "give documents with either --text or --data"
        )
    if dataset is not None and settings["add_bos"]:
        raise InputError(
            "--add-bos", dataset, "a dataset's tokens are what they are; use it with --text"
        )
    if len(set(methods)) < len(methods):
        raise InputError("--method", " ".join(methods), "a method is given twice")
    check_json_folder(json_path)


def _parse_sliding(text: str | None) -> SlidingWindow | None:
    if text is None:
        return None
    window, colon, stride = text.partition(":")
    if not colon:
        raise InputError("--sliding", text, "is written WINDOW:STRIDE, as in 2k:512")
    from megatron_longrope.evaluation import SlidingWindow

    return SlidingWindow(parse_length(window, "--sliding"), parse_length(stride, "--sliding"))


def _read_texts(paths: tuple[str, ...]) -> list[TextDocument]:
    from data_prep.readers import read_text_files

    return list(read_text_files(paths))


def _documents(
    loaded: LoadedModel, sources: list[TextDocument], dataset: str | None, add_bos: bool
) -> list[EvaluationDocument]:
    from megatron_longrope.evaluation import EvaluationDocument

    if dataset is not None:
        from megatron_longrope.data import PackedDataset

        sha256 = _tokenizer(loaded).identity.sha256 if loaded.tokenizer_file else None
        data = PackedDataset(
            dataset, vocab_size=loaded.model.shape.vocab_size, tokenizer_sha256=sha256
        )
        return [
            EvaluationDocument(name, data.document(i)) for i, name in enumerate(data.document_names)
        ]
    encoded = _tokenizer(loaded).encode_documents([source.text for source in sources], add_bos)
    return [
        EvaluationDocument(source.name, tokens)
        for source, tokens in zip(sources, encoded, strict=True)
    ]


def _tokenizer(loaded: LoadedModel) -> TextTokenizer:
    from megatron_longrope.data import load_tokenizer

    if loaded.tokenizer_file is None:
        raise InputError("--model", loaded.name, "it has no tokenizer.json to encode text with")
    return load_tokenizer(loaded.tokenizer_file)


def _factor_sets(
    loaded: LoadedModel,
    methods: tuple[str, ...],
    contexts: dict[int, int],
    settings: dict[str, Any],
) -> list[tuple[str, int, FactorSet]]:
    """Returns (method, length, factors) of every run; `contexts` says how much a pass sees at each
    length."""
    from megatron_longrope.rope import method_from_text

    geometry = loaded.model.geometry
    if settings["original_window"] is not None:
        geometry = geometry.model_copy(update={"original_length": settings["original_window"]})
    own, target = loaded.model.factor_set, settings["target"]
    return [
        (
            method,
            length,
            own if method == AS_IT_IS else method_from_text(method, geometry, context, target),
        )
        for method in methods
        for length, context in contexts.items()
    ]
