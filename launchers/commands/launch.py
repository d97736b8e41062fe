"""`longrope launch`: prints how a subcommand starts under torchrun or Slurm, or starts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from launchers.job import Job
from launchers.options import json_option, write_json

_PASSED_ON = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what both launchers take: `--submit`, `--json`, and the arguments to start."""
    command = click.argument(
        "arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- LONGROPE_ARGS…"
    )(command)
    command = json_option(command)
    return click.option(
        "--submit", is_flag=True, help="Start it; without this it is only printed."
    )(command)


@click.group()
def command() -> None:
    """Start a longrope command with torchrun or Slurm.

    Prints what it will run; --submit runs it. The command's own arguments follow a --, such as:

    \b
        longrope launch torchrun --nproc-per-node 8 -- extend recipe.yaml --run-dir runs/256k
    """


@command.command(context_settings=_PASSED_ON)
@click.option(
    "--nproc-per-node",
    type=int,
    help="Processes on each machine.  [default: one per GPU, 1 without GPUs]",
)
@click.option(
    "--nnodes", type=int, default=1, help="Machines; start the same line on each of them."
)
@click.option(
    "--rdzv-endpoint",
    metavar="HOST:PORT",
    help="Where several machines meet: one of them, and a free port.",
)
@click.option(
    "--rdzv-id", default="longrope", help="Name of the meeting, the same on each machine."
)
@_shared
def torchrun(
    arguments: tuple[str, ...],
    submit: bool,
    json_path: Path | None,
    nproc_per_node: int | None,
    **options: Any,
) -> None:
    """Processes of one machine, or of several that each run this line."""
    from launchers.torchrun import TorchrunOptions, torchrun_job

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
    help="Time limit of one run; requeued runs go on.",
)
@click.option("--nodes", type=int, default=1, help="Nodes, with one torchrun each.")
@click.option("--gpus-per-node", type=int, default=8, help="GPUs on each node, 0 for none.")
@click.option("--nproc-per-node", type=int, help="Processes on each node.  [default: one per GPU]")
@click.option("--cpus-per-task", type=int, default=16, help="CPU cores on each node.")
@click.option("--job-name", default="longrope", help="Name of the job.")
@click.option("--partition", help="Slurm partition.  [default: the cluster's]")
@click.option("--account", help="Slurm account.  [default: yours]")
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Existing folder of NAME-JOB.out.",
)
@click.option(
    "--setup", type=click.Path(path_type=Path), help="Shell file to source first (module load …)."
)
@click.option(
    "--stop-before",
    type=int,
    default=300,
    help="Seconds before the limit when workers save and stop.",
)
@click.option(
    "--max-requeues", type=int, default=20, help="How often an interrupted job is queued again."
)
@_shared
def slurm(arguments: tuple[str, ...], submit: bool, json_path: Path | None, **options: Any) -> None:
    """A Slurm job: a complete batch script. With --submit sbatch gets it at once."""
    from launchers import slurm as launcher

    working_dir = Path.cwd()
    script = launcher.slurm_script(launcher.SlurmOptions(**options), arguments, working_dir)
    click.echo(script, nl=False)
    job_id = launcher.submit(script) if submit else None
    if job_id is not None:
        click.echo(f"submitted job {job_id}", err=True)
    if json_path is not None:
        write_json(json_path, {"script": script, "submitted": submit, "job_id": job_id})


def _start(job: Job, submit: bool, json_path: Path | None) -> None:
    """Prints the job and, where asked to, becomes it; from there its exit code is the job's own."""
    click.echo(job.shell_line(), err=submit)
    if json_path is not None:
        write_json(
            json_path,
            {"argv": list(job.argv), "environment": dict(job.environment), "submitted": submit},
        )
    if submit:
        job.replace_process()


def _gpu_count() -> int:
    """Returns the GPUs of this machine, 1 where it has none."""
    import torch

    return max(1, torch.cuda.device_count())
