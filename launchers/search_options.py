"""Options of `longrope search`, checked before torch is imported and a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click

from launchers.list_options import ListOptionsCommand
from megatron_longrope.config import build_config
from megatron_longrope.errors import InputError
from megatron_longrope.rope.methods.uses import stops_pairs
from megatron_longrope.search import (
    DEFAULT_SEARCHER,
    SEARCHERS,
    RoundSearcher,
    SearcherChoice,
    SettingOption,
    merge_settings,
)

Searchers = tuple[type[RoundSearcher[Any]], ...]
_BEFORE = "space"
"""The name of the option before which the searchers' own options are listed."""


class SearchCommand(ListOptionsCommand):
    """The command `longrope search`, with the options that the registered searchers declare."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns the command's own options, with those of the searchers among them."""
        own = super().get_params(ctx)
        place = next(i for i, param in enumerate(own) if param.name == _BEFORE)
        return [*own[:place], *_searcher_params(tuple(SEARCHERS.values())), *own[place:]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, then one line per searcher."""
        super().format_options(ctx, formatter)
        with formatter.section("Searchers"):
            formatter.write_dl([(name, kind.summary) for name, kind in SEARCHERS.items()])


@cache
def _searcher_params(searchers: Searchers) -> tuple[click.Option, ...]:
    """Returns `--searcher`, and every option that a searcher declares."""
    choice = click.Option(
        ["--searcher"],
        type=click.Choice([kind.name for kind in searchers]),
        default=DEFAULT_SEARCHER,
        help="The search algorithm; all of them are listed below.",
    )
    return (choice, *(_setting_param(flag, searchers) for flag in _declared(searchers)))


def _setting_param(flag: str, searchers: Searchers) -> click.Option:
    """Returns the option `flag`, with help in the words of every searcher that declares it."""
    meanings: dict[str, list[str]] = {}
    least = []
    for kind in searchers:
        for option in kind.options:
            if option.flag == flag:
                meanings.setdefault(option.help, []).append(kind.name)
                least.append(option.at_least)
    text = "; ".join(f"for {', '.join(names)}: {help}" for help, names in meanings.items())
    return click.Option(
        [flag], type=click.IntRange(min(least)), metavar="N", help=text[:1].upper() + text[1:]
    )


def _declared(searchers: Iterable[type[RoundSearcher[Any]]]) -> dict[str, SettingOption]:
    """Returns the options that the given searchers declare, by flag."""
    return {option.flag: option for kind in searchers for option in kind.options}


def check_search_request(out: Path, settings: Mapping[str, Any]) -> None:
    """Raises InputError for options that are wrong for any model."""
    _check_out(out)
    if settings["critical_pair"] is not None and settings["space"] != "longrope2":
        raise InputError(
            "--critical-pair", settings["critical_pair"], "belongs to --space longrope2"
        )
    standing = [name for name in settings["starts"] if stops_pairs(name)]
    if standing and settings["space"] != "open":
        rule = "slows pairs to a standstill, which belongs to --space open"
        raise InputError("--starts-from", standing[0], rule)
    if settings["offload"] and settings["recompute"] != "full":
        raise InputError("--offload", settings["recompute"], "belongs to --recompute full")
    choice = build_config(SearcherChoice, searcher_section(settings), "longrope search")
    if settings["angle_precision"] == "hf" and choice.needs_gradients(settings["target"]):
        rule = f"has no gradients, which searcher {choice.name} needs: float64, or another searcher"
        raise InputError("--angle-precision", "hf", rule)


def _check_out(out: Path) -> None:
    """Raises InputError where the folder `out` cannot be made or written to."""
    existing = next(
        path for path in (out.absolute(), *out.absolute().parents) if os.path.exists(path)
    )
    if not existing.is_dir():
        raise InputError("--out", out, f"{existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError("--out", out, f"{existing} may not be written to")


def searcher_section(settings: Mapping[str, Any]) -> dict[str, object]:
    """Returns the searcher asked for, in the form of a recipe's `searcher:` section.

    Raises InputError for options that only other searchers have.
    """
    kind = SEARCHERS[settings["searcher"]]
    own = _declared([kind])
    given = {
        flag: settings[option.key]
        for flag, option in _declared(SEARCHERS.values()).items()
        if settings[option.key] is not None
    }
    for flag in given:
        if flag not in own:
            raise InputError("--searcher", kind.name, f"has no {flag}")
    section: dict[str, object] = {"name": kind.name}
    if given:  # one setting given must not reset the others, whose defaults depend on the length
        section |= kind.default_settings(settings["target"]).model_dump(exclude_unset=True)
    for flag, value in given.items():
        section = merge_settings(section, own[flag].to_settings(value))
    return section
