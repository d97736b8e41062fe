"""The subcommands of `longrope`: name, one line of help, and what may start them in several
processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CommandEntry:
    """One subcommand, known without importing it: its module is `launchers.commands.<name>`, dashes
    as underscores.

    `spread` says how it uses several processes: as ranks of torch.distributed, as ranks of MPI, or
    not at all (then N processes would do the same work N times).
    """

    help: str
    spread: Literal["torch", "mpi", "none"] = "none"


COMMANDS: dict[str, CommandEntry] = {
    "demo": CommandEntry(
        "The whole method on the embedded model, in minutes, on a laptop CPU.", "torch"
    ),
    "extend": CommandEntry(
        "Run every stage of a recipe: search, fine-tune, recover, evaluate, export.", "torch"
    ),
    "search": CommandEntry(
        "Search the rescale factors of one model at one target length.", "torch"
    ),
    "train": CommandEntry("Train or fine-tune a model on a packed dataset.", "torch"),
    "eval": CommandEntry(
        "Evaluate a model on one task: perplexity, or retrieval from a long context.", "torch"
    ),
    "convert": CommandEntry("Convert between Hugging Face and Megatron checkpoints, and verify."),
    "data": CommandEntry("Pack documents into a token dataset, or inspect one."),
    "factors": CommandEntry("List and show factor sets, the published ones and files."),
    "launch": CommandEntry(
        "Start a subcommand with torchrun, Slurm or MPI; prints it, or submits it."
    ),
    "report": CommandEntry("Write the HTML report of a run directory."),
    "doctor": CommandEntry("What this machine has, what is missing, and what that costs."),
}
