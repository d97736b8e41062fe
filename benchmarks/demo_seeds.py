"""Runs the demonstration with several seeds, and shows mean and range of what its checks measure.

    python -m benchmarks.demo_seeds --out runs/seeds --seeds 1,2,3

A seed is that of the run and of each training: other rows, other batches, other needles. The
pretrained model and the test documents stay. A run takes as long as `make demo`; one that is
finished is not run again, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from megatron_longrope.artifacts.records import read_record
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.artifacts.summaries import Check, RunSummary
from megatron_longrope.config import read_yaml
from megatron_longrope.presets import recipe_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--set", action="append", default=[], help="as `longrope demo --set`")
    options = parser.parse_args()
    checks: dict[str, list[Check]] = defaultdict(list)
    for seed in options.seeds.split(","):
        directory = options.out / f"seed-{seed}"
        command = [sys.executable, "-m", "launchers.main", "demo", "--run-dir", str(directory)]
        for setting in [*_seed_settings(seed), *options.set]:
            command += ["--set", setting]
        subprocess.run(command, check=True)
        for check in read_record(RunDirectory(directory).result, RunSummary).checks:
            question = re.split("[,;] (?:worst|best other)", check.text)[
                0
            ]  # the same for every seed
            checks[f"{check.name}: {question}"].append(check)
    for text, found in checks.items():
        print(_line(text, found))


def _seed_settings(seed: str) -> list[str]:
    steps = read_yaml(recipe_path("demo"))["extension"]
    trained = [number for number, step in enumerate(steps) if "fine_tune" in step]
    places = ["seed", *(f"extension.{number}.fine_tune.training.seed" for number in trained)]
    return [f"{place}={seed}" for place in places]


def _line(text: str, found: list[Check]) -> str:
    values = [float(check.value) for check in found if check.value is not None]
    bounds = [float(check.bound) for check in found if check.bound is not None]
    met = sum(check.met for check in found)
    mean = sum(values) / len(values)
    return (
        f"{mean:.5g} ({min(values):.5g} to {max(values):.5g}), bound {min(bounds):.5g} to "
        f"{max(bounds):.5g}, met {met} of {len(found)}  {text}"
    )


if __name__ == "__main__":
    main()
