"""The table of `longrope extend --dry-run` in terminals of several widths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from checkpoints_tools.hf.folder import read_config
from launchers.printing.stage_table import _table
from megatron_longrope.errors import InputError
from megatron_longrope.pipeline.stages.stage import Cost

_COST = Cost(tokens=6_550_000, backward_tokens=6_550_000, flops=1.5e14)


@dataclass(frozen=True)
class _Planned:
    name: str = "fine-tune-512"
    does: str = "train all weights under the factors for 512: 400 steps of 32 × 512"
    checkpoint: str = "base"
    inputs: tuple[str, ...] = ("checkpoints/base", "data/fine-tune-512")
    outputs: tuple[str, ...] = ("checkpoints/fine-tune-512",)
    cost: Cost = _COST


@pytest.mark.parametrize(("width", "is_wide"), [(80, False), (180, True)])
def test_what_a_stage_does_can_be_read(width: int, is_wide: bool) -> None:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(_table([_Planned()], is_wide))  # type: ignore[list-item]
    words = capture.get().split()
    assert {"train", "weights", "TFLOP", "6.55"} <= set(words)
    assert "…" not in capture.get()
    assert ("checkpoints/fine-tune-512" in words) == is_wide


def test_a_missing_model_folder_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_config(tmp_path / "nowhere")
