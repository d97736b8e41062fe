"""Options and parameter types that several subcommands share, and the writer of `--json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from megatron_longrope import atomic
from megatron_longrope.config import parse_length
from megatron_longrope.errors import InputError

if TYPE_CHECKING:  # imports torch, which `--help` does without
    from megatron_longrope.runtime import ParallelLayout

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


class LengthType(click.ParamType):  # type: ignore[type-arg]
    """A length in tokens: 262144, 256k or 2M."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the length in tokens; raises InputError that names the option."""
        return parse_length(value, _option_name(param))


class LengthsType(click.ParamType):  # type: ignore[type-arg]
    """Lengths in tokens, separated by commas: 2k,8k,16k."""

    name = "lengths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Returns the lengths in tokens, in the order given.

        Raises InputError for a wrong length or one that is given twice.
        """
        if isinstance(value, tuple):
            return value
        lengths = tuple(parse_length(part, _option_name(param)) for part in str(value).split(","))
        if len(set(lengths)) < len(lengths):
            raise InputError(_option_name(param), value, "a length is given twice")
        return lengths


class NameType(click.ParamType):  # type: ignore[type-arg]
    """One of the names that a registry holds when the command runs, plug-ins included."""

    name = "name"

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self.names = names

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Returns the names in the form in which `--help` shows choices."""
        return f"[{'|'.join(self.names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the name; raises InputError that lists the known ones."""
        if value not in self.names():
            raise InputError(_option_name(param), value, f"one of {', '.join(self.names())}")
        return str(value)


LENGTH = LengthType()
LENGTHS = LengthsType()


def json_option(command: CallableT) -> CallableT:
    """Adds `--json FILE`, passed as `json_path: Path | None`; `write_json` writes the file.

    A folder that does not exist is refused before the command begins.
    """
    return click.option(
        "--json",
        "json_path",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        metavar="FILE",
        callback=_checked_json_path,
        help="Also write the result as JSON to this file.",
    )(command)


def _checked_json_path(
    ctx: click.Context, param: click.Parameter, path: Path | None
) -> Path | None:
    check_json_folder(path)
    return path


def engine_option(command: CallableT) -> CallableT:
    """Adds `--engine NAME`, passed as `engine: str`."""
    return click.option(
        "--engine",
        type=click.Choice(["auto", "transformer-engine", "flash-attn", "torch"]),
        default="auto",
        help="Library that computes layers and attention; longrope doctor says what auto is "
        "on this machine.",
    )(command)


def layout_options(command: CallableT) -> CallableT:
    """Adds the options that say how a model is cut over processes; `layout_of` reads them."""
    options = (
        click.option(
            "--tensor-parallel",
            type=click.IntRange(1),
            default=1,
            metavar="N",
            help="Processes over which each matrix is cut.",
        ),
        click.option(
            "--pipeline-parallel",
            type=click.IntRange(1),
            default=1,
            metavar="N",
            help="Processes over which the layers are divided.",
        ),
        click.option(
            "--virtual-pipeline",
            type=click.IntRange(1),
            default=1,
            metavar="N",
            help="Runs of layers on each pipeline process, interleaved with those of the others.",
        ),
        click.option(
            "--context-parallel",
            type=click.IntRange(1),
            default=1,
            metavar="N",
            help="Processes over which each document is cut.",
        ),
        click.option(
            "--sequence-parallel",
            is_flag=True,
            help="Cut norms and residuals over the tensor-parallel processes, to save memory.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def layout_of(settings: Mapping[str, Any]) -> ParallelLayout:
    """Returns the layout that the options of `layout_options` ask for."""
    from megatron_longrope.runtime import ParallelLayout

    return ParallelLayout(
        tensor_parallel=settings["tensor_parallel"],
        pipeline_parallel=settings["pipeline_parallel"],
        virtual_pipeline=settings["virtual_pipeline"],
        context_parallel=settings["context_parallel"],
        sequence_parallel=settings["sequence_parallel"],
    )


def set_option(command: CallableT) -> CallableT:
    """Adds `--set key.sub=value`, which may be repeated, passed as `overrides: tuple[str, ...]`."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY.SUB=VALUE",
        help="Override one key of the recipe, such as evaluation.num_documents=2; the value is "
        "read as YAML. May be repeated.",
    )(command)


def check_json_folder(path: Path | None) -> None:
    """Raises InputError where the folder of `path` does not exist.

    Called before the work begins, so that hours of it are not lost for want of a folder.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError("--json", path, "its folder does not exist")


def write_json(path: Path, payload: Mapping[str, Any]) -> None:
    """Writes the result of a command to the file that `--json` names, whole or not at all.

    Raises InputError where the folder does not exist or cannot be written to.
    """
    check_json_folder(path)
    try:
        atomic.write_json_file(path, payload)
    except OSError as error:
        raise InputError("--json", path, f"cannot be written: {error.strerror}") from error


def _option_name(param: click.Parameter | None) -> str:
    if param is None:
        return "length"
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
