"""`longrope factors list | show | methods`: published factor sets, factor files and methods."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from launchers.options import json_option, write_json
from launchers.printing.tables import print_table, tsv_option, write_tsv
from megatron_longrope.config import format_length
from megatron_longrope.rope import (
    METHODS,
    PublishedSet,
    RopeFactors,
    RopeMethod,
    published_factors,
    published_sets,
    resolve_factors,
)


@click.group()
def command() -> None:
    """Show published rescale factors, a factors file, or the scaling methods."""


@command.command("list")
@tsv_option
@json_option
def list_command(tsv: str | None, json_path: Path | None) -> None:
    """List all published factor sets, with lengths in tokens, range of λ, and source."""
    rows = [_summary(entry, published_factors(entry.name)) for entry in published_sets()]
    if tsv is not None:
        write_tsv(tsv, rows)
    if tsv != "-":
        _print_list(rows)
    if json_path is not None:
        write_json(json_path, {"rows": rows})


@command.command("show")
@click.argument("name_or_file")
@json_option
def show_command(name_or_file: str, json_path: Path | None) -> None:
    """Show λ and wavelength of every rotary pair in one factor set.

    NAME_OR_FILE is the name of a published set or a factors JSON file. Wavelengths are in tokens.
    """
    ranges = [
        {"up_to": entry.up_to, **_details(entry.factors)}
        for entry in resolve_factors(name_or_file, "NAME_OR_FILE").ranges
    ]
    for entry in ranges:
        _print_range(name_or_file, entry)
    if json_path is not None:
        write_json(json_path, {"name": name_or_file, "ranges": ranges})


@command.command("methods")
@json_option
def methods_command(json_path: Path | None) -> None:
    """List all scaling methods, with their settings and uses.

    Settings are written --method NAME:SCALE,KEY=VALUE; rope_type is a method's name in Hugging Face
    configs.
    """
    rows = [_method_summary(kind) for kind in METHODS.values()]
    table = Table("name", "settings", "rope_type", "serves as", box=box.SIMPLE_HEAD)
    for row in rows:
        settings, uses = ", ".join(row["settings"]), ", ".join(row["uses"])
        table.add_row(row["name"], settings, row["rope_type"] or "-", uses or "-")
    print_table(table)
    if json_path is not None:
        write_json(json_path, {"rows": rows})


def _print_list(rows: list[dict[str, Any]]) -> None:
    """Prints the table of published sets, and their sources in full."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("name", "model", "fine-tuned", "target"):
        table.add_column(
            heading, no_wrap=True, justify="left" if heading in ("name", "model") else "right"
        )
    for heading in ("min λ", "max λ", "monotone"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("source", no_wrap=True)
    for row in rows:
        lengths = (format_length(row["fine_tuned_length"]), format_length(row["target_length"]))
        spread = (
            f"{row['min_rescale']:g}",
            f"{row['max_rescale']:g}",
            "yes" if row["is_monotone"] else "no",
        )
        table.add_row(row["name"], row["model"], *lengths, *spread, _short_source(row["source"]))
    print_table(table)
    for source in dict.fromkeys(row["source"] for row in rows):
        click.echo(f"{_short_source(source)}: {source}")


def _method_summary(kind: type[RopeMethod]) -> dict[str, Any]:
    """Returns what a method says about itself as JSON values."""
    served = {
        "--method": kind.is_closed_form,
        "baseline": kind.is_baseline,
        "search start": kind.starts_searches,
        "second interpolation": kind.goes_on_tuned,
    }
    return {
        "name": kind.name,
        "settings": list(kind.model_fields),
        "rope_type": kind.hf.name if kind.hf is not None else None,
        "uses": [use for use, serves in served.items() if serves],
    }


def _short_source(source: str) -> str:
    """Returns owner/repository of a source that begins with `github.com/owner/repository, …`."""
    return source.partition(",")[0].removeprefix("github.com/")


def _summary(entry: PublishedSet, factors: RopeFactors) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": factors.origin.model,
        "fine_tuned_length": entry.fine_tuned_length,
        "target_length": factors.target_length,
        "min_rescale": min(factors.rescale),
        "max_rescale": max(factors.rescale),
        "is_monotone": factors.is_monotone,
        "attention_factor": factors.attention_factor,
        "source": factors.origin.source,
    }


def _details(factors: RopeFactors) -> dict[str, Any]:
    """Returns factors as JSON values, with λ and the wavelengths in tokens pair by pair."""
    pairs = []
    for pair, rescale in enumerate(factors.rescale):
        wavelength = 2 * math.pi * factors.base ** (2 * pair / factors.head_dim)
        pairs.append(
            {
                "pair": pair,
                "rescale": rescale,
                "wavelength": wavelength,
                "rescaled_wavelength": wavelength * rescale,
            }
        )
    about = factors.model_dump(mode="json", exclude={"rescale", "hf_inverse_frequencies"})
    return {**about, "is_monotone": factors.is_monotone, "pairs": pairs}


def _print_range(name: str, entry: dict[str, Any]) -> None:
    where = (
        "every length"
        if entry["up_to"] is None
        else f"up to {format_length(entry['up_to'])} tokens"
    )
    origin = {key: value for key, value in entry["origin"].items() if value is not None}
    lengths = f"{format_length(entry['original_length'])} → {format_length(entry['target_length'])}"
    click.echo(f"{click.style(name, bold=True)} ({where}): {lengths} tokens")
    click.echo(
        f"base {entry['base']:g}, head_dim {entry['head_dim']}, attention factor "
        f"{entry['attention_factor']:.6g}, "
        f"start tokens {entry['start_tokens']}, monotone {'yes' if entry['is_monotone'] else 'no'}"
    )
    for key, value in origin.items():
        click.echo(f"{key}: {value}")
    table = Table()
    for heading in (
        "pair",
        "λ",
        "wavelength (tokens)",
        "after rescaling (tokens)",
        "turns in the original window",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in entry["pairs"]:
        wavelengths = (f"{row['wavelength']:.1f}", f"{row['rescaled_wavelength']:.1f}")
        turns = entry["original_length"] / row["wavelength"]
        table.add_row(str(row["pair"]), f"{row['rescale']:.6g}", *wavelengths, f"{turns:.3g}")
    print_table(table)
