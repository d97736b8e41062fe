"""`longrope search`: one search of one model for one target length."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from launchers.list_options import NumberOr
from launchers.options import (
    LENGTH,
    NameType,
    engine_option,
    json_option,
    layout_options,
    write_json,
)
from launchers.printing.progress import loss_words
from launchers.search_options import SearchCommand, check_search_request
from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.artifacts.summaries import BaselineMargin, HeldOutMargins, SearchSummary
from megatron_longrope.config import format_length
from megatron_longrope.rope.methods.uses import default_search_starts, search_starts
from megatron_longrope.search.types import SpaceName


@click.command(cls=SearchCommand)
@click.option(
    "--model",
    "model_path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A Hugging Face folder, a Megatron checkpoint or a run directory.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    metavar="FILE …",
    help="Text files in UTF-8, one document each, of the target length or longer; files, folders "
    "or patterns.",
)
@click.option(
    "--held-out",
    "held_out",
    multiple=True,
    metavar="FILE …",
    help="Texts not to search on, given as for --text; the margins over the baselines are measured "
    "on them too.",
)
@click.option(
    "--target",
    required=True,
    type=LENGTH,
    metavar="LENGTH",
    help="Length in tokens to search for, such as 32k; beyond the model's window.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory that keeps everything: factors/best.json, journals/, result.json and a plot of "
    "all searchers run in it.",
)
@click.option(
    "--from-factors",
    metavar="NAME|FILE",
    help="Factors that the model was fine-tuned under, a published set or a file, to search beyond "
    "them (second search). Without it a model that arrives with scaling of its own is searched "
    "beyond that.",
)
@click.option(
    "--starts-from",
    "starts",
    multiple=True,
    type=NameType(search_starts),
    help="Scaling method that the search starts from; may be repeated  "
    f"[default: {', '.join(default_search_starts())}]",
)
@click.option(
    "--space",
    type=click.Choice(get_args(SpaceName)),
    default="longrope",
    help="Bounds of λ, with s = target / window. longrope: from 1 to 1.25·s. longrope2: from s "
    "to 2s from the critical pair on, a closed form below it. open: from 1 to where pairs stand "
    "still, as --starts-from cope needs it.",
)
@click.option(
    "--critical-pair",
    type=click.IntRange(1),
    metavar="N",
    help="For longrope2: number of the critical pair, from 0  [default: by theory]",
)
@click.option(
    "--early-stopping/--no-early-stopping",
    default=True,
    help="Stop scoring a candidate that is hopeless after some of the documents.",
)
@click.option(
    "--ladder",
    multiple=True,
    type=LENGTH,
    metavar="LENGTH",
    help="For early stopping: score candidates at this shorter length first, and the hopeless ones "
    "there only; may be repeated, in ascending order.",
)
@click.option(
    "--last-fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    metavar="F",
    help="Count only the predictions on this last part of each document.",
)
@click.option(
    "--retrieval-documents",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Also score the answers of N generated passkey documents of the target length, with half "
    "the weight of the text.",
)
@click.option(
    "--attention-factor",
    type=NumberOr("searched", "fixed", "one"),
    default="searched",
    help="Attention factor t (cos and sin times t). searched: with λ, from 1 to 1.3 or more. "
    "fixed: √(1 + ln s / ln L). one: 1. NUMBER: that.",
)
@click.option(
    "--start-tokens",
    is_flag=True,
    help="Also search n̂, the number of first positions that are not rescaled. Hugging Face configs "
    "cannot carry it.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Number format of the weights.",
)
@click.option(
    "--recompute",
    type=click.Choice(["none", "selective", "full"]),
    default="none",
    help="For gradients: compute attention (selective) or whole layers (full) again in the "
    "backward pass instead of keeping what they made.",
)
@click.option(
    "--offload",
    is_flag=True,
    help="With --recompute full: keep each layer's input in host memory between the passes.",
)
@click.option(
    "--angle-precision",
    type=click.Choice(["float64", "hf"]),
    default="float64",
    help="hf repeats transformers' float32 angles, and has no gradients.",
)
@click.option("--seed", type=click.IntRange(0), default=1, metavar="N", help="Seed of the search.")
@layout_options
@engine_option
@json_option
def command(out: Path, json_path: Path | None, **settings: Any) -> None:
    """Search the rescale factors and the attention factor with the lowest perplexity.

    At the end it prints the best perplexity on the documents, how much worse every other scaling
    method is, and what the search cost. Interrupted, the same command goes on from its journal.
    Under torchrun (longrope launch), candidates are shared among the copies of the model.
    """
    check_search_request(out, settings)
    from launchers.factor_search import run_factor_search

    found = run_factor_search(out, **settings)
    if found is None:
        return
    summary, plot = found
    length = format_length(settings["target"])
    loss = loss_words(summary.perplexity, summary.score, summary.parts)
    click.echo(f"best {loss} at {length} tokens; other methods, and by how much they exceed it:")
    for row in summary.baselines:
        click.echo(_margin_line(row))
    if summary.held_out is not None:
        _say_held_out(summary.held_out)
    click.echo(_cost_line(summary))
    if summary.baselines_cost is not None:
        click.echo(_baselines_cost_line(summary.baselines_cost))
    if summary.held_out is not None:
        click.echo(_baselines_cost_line(summary.held_out.cost, "held-out documents"))
    click.echo(f"factors: {summary.factors}")
    click.echo(f"plot: {plot}")
    if json_path is not None:
        write_json(json_path, {**summary.model_dump(), "plot": plot})


def _margin_line(row: BaselineMargin) -> str:
    """Returns one line: a baseline's perplexity, and by how much it exceeds the best one's."""
    name = f"{row.method} ({row.attention_factor} attention factor)"
    if row.value is None or row.ratio is None:
        return f"  {name:<42} no finite {'perplexity' if not row.parts else 'score'}"
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"  [{row.low - 1:+.2%}, {row.high - 1:+.2%}]"
    parts = f"  ({', '.join(part.words for part in row.parts)})" if row.parts else ""
    return f"  {name:<42} {row.value:>10.4f}  {row.ratio - 1:+.2%}{interval}{parts}"


def _say_held_out(held_out: HeldOutMargins) -> None:
    """Prints the margins over the baselines on the held-out documents."""
    names = ", ".join(held_out.documents)
    perplexity = "not finite" if held_out.perplexity is None else f"{held_out.perplexity:.4f}"
    click.echo(f"held out ({names}): perplexity {perplexity}")
    for row in held_out.baselines:
        click.echo(_margin_line(row))


def _baselines_cost_line(cost: SearchCost, what: str = "baselines") -> str:
    return (
        f"      {cost.evaluations} more for the {what}, {cost.flops:.3g} FLOP, {cost.seconds:.0f} s"
    )


def _cost_line(summary: SearchSummary) -> str:
    recovered = f", {summary.recovered} of them from the journal" if summary.recovered else ""
    return (
        f"cost: {summary.evaluations} evaluations ({summary.stopped_early} stopped "
        f"early{recovered}), as much as "
        f"{summary.forward_equivalents:.1f} of all documents: {summary.tokens:,} tokens forward, "
        f"{summary.backward_tokens:,} backward, {summary.flops:.3g} FLOP, "
        f"{summary.seconds:.0f} s"
    )
