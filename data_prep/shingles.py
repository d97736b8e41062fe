"""Near-duplicates of documents, found by windows of eight lines ("shingles") in common."""

from __future__ import annotations

from collections.abc import Container, Iterable

_WINDOW_LINES = 8
DUPLICATE_SHARE = 0.02
"""Least share of windows in common that makes a document a near-duplicate."""


def windows_of(text: str) -> Iterable[int]:
    """Returns the hash of every window of eight lines, without indentation and blank lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (
        hash(tuple(lines[i : i + _WINDOW_LINES])) for i in range(len(lines) - _WINDOW_LINES + 1)
    )


def shared_windows(text: str, others: Container[int]) -> float:
    """Returns the share of a text's windows that are among other texts' windows too."""
    found = [window in others for window in windows_of(text)]
    return sum(found) / len(found) if found else 0.0
