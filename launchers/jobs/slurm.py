"""Writes a Slurm batch script that runs one `longrope` command, and requeues itself.

The script starts one torchrun per node. Before its time limit the command saves and stops, and the
job is queued again until the command is done.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.jobs.job import check_arguments, check_positive, max_connections
from launchers.jobs.torchrun import elastic_argv
from megatron_longrope.errors import (
    EXIT_RESUMABLE,
    InputError,
    LongRopeError,
    MissingDependencyError,
)

_NAME = re.compile(r"[A-Za-z0-9._,-]+")
_DIRECTIVE_PATH = re.compile(r"[^\s\"'\\%]+")
_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True)
class SlurmOptions:
    """What a job asks of Slurm; each node has one task, which is a torchrun."""

    time: str
    """Time limit of one run, HH:MM:SS or D-HH:MM:SS."""
    nodes: int = 1
    gpus_per_node: int = 8
    nproc_per_node: int | None = None
    cpus_per_task: int = 16
    job_name: str = "longrope"
    partition: str | None = None
    account: str | None = None
    log_dir: Path = Path()
    setup: Path | None = None
    stop_before: int = 300
    """Seconds before the time limit at which the workers are asked to save and stop."""
    max_requeues: int = 20


def slurm_script(options: SlurmOptions, arguments: Sequence[str], working_dir: Path) -> str:
    """Returns the batch script; raises InputError for options or arguments that cannot work."""
    _check(options)
    nproc = options.nproc_per_node or options.gpus_per_node
    if nproc < 1:
        raise InputError(
            "--nproc-per-node", nproc, "without GPUs (--gpus-per-node 0) give it, at least 1"
        )
    command = check_arguments(arguments, options.nodes * nproc)
    setup = f"source {shlex.quote(str(options.setup.resolve()))}\n" if options.setup else ""
    return _TEMPLATE.format(
        directives="\n".join(f"#SBATCH --{directive}" for directive in _directives(options)),
        working_dir=shlex.quote(str(working_dir)),
        setup=setup,
        max_connections=shlex.quote(max_connections()),
        threads=max(1, options.cpus_per_task // nproc),
        nodes=options.nodes,
        cpus=options.cpus_per_task,
        agent=shlex.join(elastic_argv(nproc, ())[:3]),
        workers=shlex.join([*elastic_argv(nproc, ())[3:], *command]),
        resumable=EXIT_RESUMABLE,
        max_requeues=options.max_requeues,
    )


def submit(script: str) -> str:
    """Hands `script` to sbatch and returns the number of the job.

    Raises LongRopeError with sbatch's own words where it refuses the script.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise MissingDependencyError("sbatch is not installed; see `longrope doctor`") from error
    if done.returncode != 0:
        raise LongRopeError(f"sbatch refused the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def time_limit_seconds(text: str) -> int:
    """Returns the seconds of a Slurm time limit; raises InputError for any other text.

    >>> time_limit_seconds("1-00:30:00")
    88200
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise InputError("--time", text, "written HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _check(options: SlurmOptions) -> None:
    """Raises InputError for options that Slurm would refuse or misread.

    Names and paths go into #SBATCH lines, where no quoting is safe.
    """
    for option, count in (("--nodes", options.nodes), ("--cpus-per-task", options.cpus_per_task)):
        check_positive(option, count)
    for option, count in (
        ("--gpus-per-node", options.gpus_per_node),
        ("--max-requeues", options.max_requeues),
    ):
        if count < 0:
            raise InputError(option, count, "0 or more")
    for option, name in (
        ("--job-name", options.job_name),
        ("--partition", options.partition),
        ("--account", options.account),
    ):
        if name is not None and not _NAME.fullmatch(name):
            raise InputError(option, repr(name), "letters, digits, '.', '_', ',' and '-' only")
    if not 0 < options.stop_before < time_limit_seconds(options.time):
        raise InputError(
            "--stop-before",
            options.stop_before,
            f"seconds, more than 0 and less than --time {options.time}",
        )
    if not options.log_dir.is_dir():
        raise InputError(
            "--log-dir",
            options.log_dir,
            "no such folder, and Slurm drops the log where it is missing",
        )
    if not _DIRECTIVE_PATH.fullmatch(str(options.log_dir.resolve())):
        raise InputError(
            "--log-dir", options.log_dir, "no space, quote, backslash or % in a path given to Slurm"
        )
    if options.setup is not None and not options.setup.is_file():
        raise InputError("--setup", options.setup, "no such file")


def _directives(options: SlurmOptions) -> list[str]:
    chosen = {
        "job-name": options.job_name,
        "partition": options.partition,
        "account": options.account,
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": options.cpus_per_task,
        "gpus-per-node": options.gpus_per_node or None,
        "time": options.time,
        "signal": f"B:USR1@{options.stop_before}",
        "output": f"{options.log_dir.resolve()}/%x-%j.out",
        "open-mode": "append",
    }
    return ["requeue", *(f"{name}={value}" for name, value in chosen.items() if value is not None)]


# srun gets --wait instead of --kill-on-bad-exit: when a run is stopped, its nodes end shortly after
# one another, and the first one's exit code must not kill the others while they save.
_TEMPLATE = """\
#!/bin/bash
{directives}

set -u
cd -- {working_dir} || exit 1
{setup}export CUDA_DEVICE_MAX_CONNECTIONS={max_connections}
export OMP_NUM_THREADS={threads}

# The first node is where the others find each other; the port follows the job, as several may share
# a node.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
endpoint="$first_node:$((20000 + SLURM_JOB_ID % 20000))"

# Before the time limit Slurm sends USR1 to this script alone; srun passes it on, and the workers
# save and stop.
stopping=0
step=
ask_to_stop() {{
    stopping=1
    if [[ -n $step ]]; then kill -USR1 "$step"; fi
}}
trap ask_to_stop USR1

srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={cpus} \\
    --kill-on-bad-exit=0 --wait=120 \\
    {agent} --nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint "$endpoint" \\
    --rdzv-id "$SLURM_JOB_ID" \\
    {workers} &
step=$!
if ((stopping)); then kill -USR1 "$step"; fi

# A trapped signal ends `wait` early, with a code above 128.
wait "$step"
status=$?
while ((status > 128)) && kill -0 "$step" 2>/dev/null; do
    wait "$step"
    status=$?
done

if ((status == {resumable} || (stopping && status > 128))); then
    if ((${{SLURM_RESTART_COUNT:-0}} < {max_requeues})); then
        echo "interrupted, resumable: requeueing job $SLURM_JOB_ID"
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "interrupted, and requeued {max_requeues} times already: submit it again to go on"
    fi
fi
exit "$status"
"""
