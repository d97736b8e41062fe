"""The options of `longrope search`: what they ask of a search, and sizes of another searcher refused."""

from __future__ import annotations

from typing import Any

import click
import pytest

from launchers.commands.search import command
from launchers.factor_search import search_config
from megatron_longrope.errors import InputError


def options(*arguments: str) -> dict[str, Any]:
    needed = ["--model", "m", "--text", "a.txt", "--target", "2k", "--out", "o"]
    context: click.Context = command.make_context("search", [*needed, *arguments])
    return context.params


@pytest.mark.parametrize(
    ("arguments", "searcher", "sizes"),
    [
        ([], "hybrid", {}),
        (["--ramp-rounds", "2", "--passes", "0"], "hybrid", {"ramp": {"max_rounds": 2}, "cycles": 0}),
        (["--ramp-rounds", "0", "--passes", "6"], "hybrid", {"ramp": {"max_rounds": 0}, "descent": {"passes": 6}}),
        (["--searcher", "gradient", "--passes", "6"], "gradient", {"passes": 6}),
    ],
)
def test_sizes_reach_their_searcher(arguments: list[str], searcher: str, sizes: dict[str, Any]) -> None:
    config = search_config(options(*arguments), 3)
    assert config.searcher == searcher and config.num_documents == 3
    assert getattr(config, searcher).model_dump(exclude_unset=True) == sizes


def test_starts_may_be_repeated_and_are_all_by_default() -> None:
    assert search_config(options("--starts-from", "yarn", "--starts-from", "pi"), 1).starts == ("yarn", "pi")
    assert search_config(options(), 1).starts == ("pi", "ntk", "yarn")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--searcher", "evolution", "--passes", "3"], "has no --passes"),
        (["--searcher", "gradient", "--ramp-rounds", "3"], "has no --ramp-rounds"),
        (["--searcher", "hybrid", "--population", "3"], "has no --population"),
        (["--searcher", "gradient", "--passes", "0"], "passes"),
    ],
)
def test_sizes_of_another_searcher_are_refused(arguments: list[str], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        search_config(options(*arguments), 1)
