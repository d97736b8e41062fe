"""The subcommands of `longrope`: name, one line of help, and what may start them in several
processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandEntry:
    """One subcommand, known without importing it: its module is `launchers.commands.<name>`, dashes
    as underscores.

    `spreads` says whether several processes share its work as ranks of torch.distributed; N
    processes of any other would do the same work N times.
    """

    help: str
    spreads: bool = False


COMMANDS: dict[str, CommandEntry] = {
    "demo": CommandEntry(
        "The whole method on the embedded model, in minutes, on a laptop CPU.", spreads=True
    ),
    "extend": CommandEntry(
        "Extend a model: search, fine-tune, recover, evaluate, export.", spreads=True
    ),
    "search": CommandEntry(
        "Search the rescale factors of one model at one target length.", spreads=True
    ),
    "train": CommandEntry("Train or fine-tune a model on a packed dataset.", spreads=True),
    "eval": CommandEntry(
        "Evaluate a model on one task: perplexity, or retrieval from a long context.", spreads=True
    ),
    "convert": CommandEntry("Convert between Hugging Face and Megatron checkpoints, and verify."),
    "data": CommandEntry("Pack documents into a token dataset, or inspect one."),
    "factors": CommandEntry("List and show factor sets, the published ones and files."),
    "launch": CommandEntry("Start a subcommand with torchrun or Slurm; prints it, or submits it."),
    "report": CommandEntry("Write the HTML report of a run directory."),
    "doctor": CommandEntry("What this machine has, what is missing, and what that costs."),
}
