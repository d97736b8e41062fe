"""torchrun's own parser leaves our options alone: argparse matches abbreviations of its options
among ours too."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from torch.distributed.run import get_args_parser

from launchers.command_table import COMMANDS
from launchers.jobs.torchrun import TorchrunOptions, torchrun_job
from launchers.main import main


def leaf_commands(
    command: click.Command, *names: str
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yields every subcommand that takes options of its own, with its words on the command line."""
    if not isinstance(command, click.Group):
        yield names, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from leaf_commands(inner, *names, name)


def lines() -> list[tuple[str, ...]]:
    """Returns a command line of ours for every option of every subcommand, `--help` included."""
    return [
        (*names, option, "value")
        for names, command in leaf_commands(main)
        for param in command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
        if isinstance(param, click.Option)
        for option in (*param.opts, *param.secondary_opts)
    ]


def test_every_command_is_looked_at() -> None:
    assert {line[0] for line in lines()} == set(COMMANDS)
    assert {"--starts-from", "--no-early-stopping", "-h"} <= {line[-2] for line in lines()}


def test_plain_torchrun_takes_every_option_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    refused = []
    for line in lines():
        try:
            parsed = get_args_parser().parse_args(
                ["--nproc-per-node", "2", "-m", "launchers.main", *line]
            )
        except SystemExit:
            refused.append(" ".join(line))
        else:
            assert (parsed.training_script, parsed.training_script_args) == (
                "launchers.main",
                list(line),
            )
    assert not refused, capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--log", "x"], ["--start"], ["--r=1"], ["--", "--nnodes", "9"], ["-m", "--no-python"]],
)
def test_the_line_of_our_launcher_leaves_any_word_alone(words: list[str]) -> None:
    job = torchrun_job(TorchrunOptions(nproc_per_node=2), ["search", *words])
    parsed = get_args_parser().parse_args(list(job.argv[3:]))
    assert (parsed.module, parsed.nproc_per_node, parsed.nnodes) == (True, "2", "1:1")
    assert (parsed.training_script, parsed.training_script_args) == (
        "launchers.main",
        ["search", *words],
    )
