"""`longrope launch`: prints how a command starts under torchrun or Slurm, or starts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from launchers.jobs.job import Job
from launchers.options import json_option, write_json

_PASSED_ON = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both launchers take: `--submit`, `--json`, and the command to start."""
    command = click.argument(
        "arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- LONGROPE_ARGS…"
    )(command)
    command = json_option(command)
    return click.option(
        "--submit", is_flag=True, help="Start it now; without this it is only printed."
    )(command)


@click.group()
def command() -> None:
    """Start a longrope command in many processes, with torchrun or as a Slurm job.

    Prints what it would run; with --submit it runs it. The command to start follows a --, such as:

    \b
        longrope launch torchrun --nproc-per-node 8 -- extend recipe.yaml --run-dir runs/256k
    """


@command.command(context_settings=_PASSED_ON)
@click.option(
    "--nproc-per-node",
    type=int,
    help="Processes on each machine  [default: one per GPU, 1 without GPUs]",
)
@click.option(
    "--nnodes", type=int, default=1, help="Machines; start the same command line on each of them."
)
@click.option(
    "--rdzv-endpoint",
    metavar="HOST:PORT",
    help="Where several machines find each other: the name of one of them, and a free port on it.",
)
@click.option("--rdzv-id", default="longrope", help="Name of this job, the same on each machine.")
@_shared
def torchrun(
    arguments: tuple[str, ...],
    submit: bool,
    json_path: Path | None,
    nproc_per_node: int | None,
    **options: Any,
) -> None:
    """Start a command with torchrun, on this machine or on several that each run the same line."""
    from launchers.jobs.torchrun import TorchrunOptions, torchrun_job

    processes = _gpu_count() if nproc_per_node is None else nproc_per_node
    _start(
        torchrun_job(TorchrunOptions(nproc_per_node=processes, **options), arguments),
        submit,
        json_path,
    )


@command.command(context_settings=_PASSED_ON)
@click.option(
    "--time",
    required=True,
    metavar="[D-]HH:MM:SS",
    help="Time limit of one run. A job that reaches it saves, is queued again and goes on.",
)
@click.option("--nodes", type=int, default=1, help="Nodes; each runs one torchrun.")
@click.option("--gpus-per-node", type=int, default=8, help="GPUs on each node; 0 for none.")
@click.option("--nproc-per-node", type=int, help="Processes on each node  [default: one per GPU]")
@click.option("--cpus-per-task", type=int, default=16, help="CPU cores on each node.")
@click.option("--job-name", default="longrope", help="Name of the job.")
@click.option("--partition", help="Slurm partition  [default: the cluster's]")
@click.option("--account", help="Slurm account  [default: yours]")
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Existing folder that gets the output, NAME-JOB.out.",
)
@click.option(
    "--setup",
    type=click.Path(path_type=Path),
    help="Shell file that the job sources first (module load …).",
)
@click.option(
    "--stop-before",
    type=int,
    default=300,
    help="Seconds before the time limit at which processes are asked to save and stop.",
)
@click.option(
    "--max-requeues", type=int, default=20, help="How often an interrupted job is queued again."
)
@_shared
def slurm(arguments: tuple[str, ...], submit: bool, json_path: Path | None, **options: Any) -> None:
    """Print a complete Slurm batch script for a command; with --submit, hand it to sbatch."""
    from launchers.jobs import slurm as launcher

    working_dir = Path.cwd()
    script = launcher.slurm_script(launcher.SlurmOptions(**options), arguments, working_dir)
    click.echo(script, nl=False)
    job_id = launcher.submit(script) if submit else None
    if job_id is not None:
        click.echo(f"submitted job {job_id}", err=True)
    if json_path is not None:
        write_json(json_path, {"script": script, "submitted": submit, "job_id": job_id})


def _start(job: Job, submit: bool, json_path: Path | None) -> None:
    """Prints the job and, if asked to, becomes it, so that the exit code is the job's own."""
    click.echo(job.shell_line(), err=submit)
    if json_path is not None:
        write_json(
            json_path,
            {"argv": list(job.argv), "environment": dict(job.environment), "submitted": submit},
        )
    if submit:
        job.replace_process()


def _gpu_count() -> int:
    """Returns the number of GPUs of this machine, 1 where it has none."""
    import torch

    return max(1, torch.cuda.device_count())
