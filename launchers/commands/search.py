"""`longrope search`: one search of one model at one target length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from launchers.list_options import ListOptionsCommand
from launchers.options import LENGTH, engine_option, json_option, write_json
from megatron_longrope.config import format_length


@click.command(cls=ListOptionsCommand)
@click.option("--model", "model_path", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="A Hugging Face folder, a Megatron checkpoint or a run directory.")  # fmt: skip
@click.option("--text", "texts", multiple=True, required=True, metavar="FILE …", help="UTF-8, one document per file.")
@click.option("--target", required=True, type=LENGTH, metavar="LENGTH", help="Length to search for, in tokens.")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Gets factors/best.json, journals/, result.json; run again, it goes on.")  # fmt: skip
@click.option("--from-factors", type=click.Path(path_type=Path), metavar="FILE",
              help="Fine-tuned factors: search beyond them (second stage).")  # fmt: skip
@click.option("--population", type=click.IntRange(1), metavar="N", help="First generation  [default: the paper's, 64]")
@click.option("--offspring", type=click.IntRange(1), metavar="N", help="Mutants, and as many crossovers, per iteration"
              "  [default: 16]")  # fmt: skip
@click.option("--iterations", type=click.IntRange(0), metavar="N", help="Generations after the first  [default: 40]")
@click.option("--temperature", type=click.Choice(["searched", "fixed", "one"]), default="searched",
              help="Attention factor: searched from 1 to 1.3, fixed to √(1 + ln s/ln L), or one.")  # fmt: skip
@click.option(
    "--start-tokens", is_flag=True, help="Search n̂, the start positions left as they were; HF cannot carry it."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="Of weights.")
@click.option("--seed", type=click.IntRange(0), default=1, metavar="N", help="Of the search.")
@engine_option
@json_option
def command(out: Path, json_path: Path | None, **settings: Any) -> None:
    """Search the rescale factors, temperature included, that give the lowest perplexity on the documents.

    Under torchrun candidates are spread over the processes.
    """
    from launchers.factor_search import run_factor_search

    result = run_factor_search(out, **settings)
    if result is not None:
        click.echo(f"best perplexity {result['perplexity']:.4f} at {format_length(settings['target'])} tokens")
        click.echo(f"factors: {out / 'factors' / 'best.json'}")
        if json_path is not None:
            write_json(json_path, result)
