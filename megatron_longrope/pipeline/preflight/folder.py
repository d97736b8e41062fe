"""Checks that a run directory can be made and written to."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_longrope.errors import InputError


def check_writable(folder: Path, field: str = "run_dir") -> None:
    """Raises InputError, which names `field`, where `folder` cannot be made or written to."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path)
    )
    if not existing.is_dir():
        raise InputError(field, folder, f"{existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(field, folder, f"{existing} may not be written to")
