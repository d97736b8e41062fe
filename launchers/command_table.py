"""The subcommands of `longrope`: their names, one line of help each, and which run in parallel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandEntry:
    """What is known of a subcommand without importing its module.

    The module is `launchers.commands.<name>`, with underscores for dashes.
    """

    help: str
    spreads: bool = False
    """Whether several processes share the command's work as ranks of torch.distributed. N processes
    of any other command would do the same work N times."""


COMMANDS: dict[str, CommandEntry] = {
    "demo": CommandEntry(
        "Run the whole method on a tiny model that comes along, in minutes on a laptop CPU.",
        spreads=True,
    ),
    "extend": CommandEntry(
        "Extend a model to a longer context: search, fine-tune, evaluate, export.", spreads=True
    ),
    "search": CommandEntry(
        "Search the rescale factors of one model for one target length, nothing else.", spreads=True
    ),
    "train": CommandEntry(
        "Train a model from scratch, or train a given one further, on text.", spreads=True
    ),
    "eval": CommandEntry(
        "Measure a model: perplexity, or retrieval from a long context.", spreads=True
    ),
    "convert": CommandEntry(
        "Convert between Hugging Face, GGUF and Megatron checkpoints, and compare them."
    ),
    "data": CommandEntry("Make token datasets from text, look into one, or train a tokenizer."),
    "factors": CommandEntry("Show published factor sets, factor files and the scaling methods."),
    "launch": CommandEntry("Start a command in many processes, with torchrun or as a Slurm job."),
    "report": CommandEntry("Write the HTML report of a run or a search."),
    "doctor": CommandEntry("Say what this machine has, what is missing, and what that costs."),
}
