"""Writes a recipe as a chain of Slurm jobs, one per stage; nothing is submitted.

    python examples/slurm_chain.py recipe.yaml --run-dir runs/mine --time 24:00:00 > submit.sh
    bash submit.sh

Stages that need nothing of one another run side by side. A job that reaches its time limit queues
itself again, and those that wait for it go on waiting.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launchers.extension import named_recipe
from launchers.jobs.slurm import SlurmOptions, slurm_script
from megatron_longrope.pipeline.extend import check_recipe
from megatron_longrope.pipeline.stages.stage import Stage


def waits_for(stage: Stage, earlier: Sequence[Stage]) -> list[str]:
    """Returns the stages that leave a file which this one reads, or writes to as well."""
    files = {*stage.inputs, *stage.outputs}
    return [other.name for other in earlier if files & {*other.outputs}]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a chain of Slurm jobs.")
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("--run-dir", type=Path, required=True, help="on a disk all nodes share")
    parser.add_argument("--scripts", type=Path, default=Path("slurm"), help="folder of the jobs")
    parser.add_argument("--time", default="24:00:00", help="limit of one job")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    arguments = parser.parse_args()

    # What can be refused is refused here, before anything waits in a queue.
    nodes, gpus = arguments.nodes, arguments.gpus_per_node
    recipe = named_recipe(arguments.recipe, ())
    stages = check_recipe(recipe, arguments.run_dir, world_size=nodes * gpus).stages

    arguments.scripts.mkdir(parents=True, exist_ok=True)
    command = ["extend", arguments.recipe, "--run-dir", str(arguments.run_dir), "--stage"]
    job = SlurmOptions(arguments.time, nodes, gpus, log_dir=arguments.scripts)
    print("set -e\ndeclare -A job")
    for number, stage in enumerate(stages):
        options = replace(job, job_name=stage.name)
        script = arguments.scripts / f"{stage.name}.sh"
        script.write_text(slurm_script(options, [*command, stage.name], Path.cwd()))
        needed = "".join(f":${{job[{name}]}}" for name in waits_for(stage, stages[:number]))
        dependency = f"--dependency=afterok{needed} " if needed else ""
        print(f"job[{stage.name}]=$(sbatch --parsable {dependency}{shlex.quote(str(script))})")


if __name__ == "__main__":
    main()
