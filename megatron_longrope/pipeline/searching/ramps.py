"""YaRN with the ramp that a search found best for it, so that comparisons give it one too."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_longrope.artifacts.journal import JournalEntry, read_journal
from megatron_longrope.evaluation import factors_of
from megatron_longrope.rope import FactorOrigin, RopeFactors

SEARCHED_RAMP = "searched ramp"
"""What rows of a method say after its name where its ramp was searched, as in `yarn,NAME`."""
_ROUNDED = 0.0051
"""A search keeps λ in steps of 0.01, so that YaRN's own λ are off by half of that at most."""
_OF_RAMPS = frozenset(("ramp", "temperature"))
"""Origins of candidates that are ramps of YaRN's form, moved in place or in attention factor."""

_ABOVE_YARN = 1.01
"""The last λ of a ramp over YaRN's at most: the grid moves it by half a step."""


def best_ramp(journal: Path, yarn: RopeFactors) -> RopeFactors | None:
    """Returns the best factors of YaRN's form that a search has scored; None if it moved none.

    These are the candidates of its rounds of ramps, 1/λ linear between two places, and YaRN's own,
    each at an attention factor that the search tried it with: the same documents and budget as the
    search's up to that phase. What a descent made of them is not among these. Raises InputError
    where the journal is missing or damaged.

    Args:
        journal: The journal of a finished search.
        yarn: YaRN as published for the same model and length.
    """
    _, entries = read_journal(journal)
    if not any(entry.provenance.origin in _OF_RAMPS for entry in entries):
        return None
    scored = [entry for entry in entries if entry.evaluation.usable and _is_ramp(entry, yarn)]
    if not scored:
        return None
    best = min(scored, key=lambda entry: entry.evaluation.loss)
    origin = FactorOrigin(method=f"yarn,{SEARCHED_RAMP}", source=yarn.origin.source)
    return factors_of(best.candidate, yarn.geometry, yarn.target_length, origin)


def _is_ramp(entry: JournalEntry, yarn: RopeFactors) -> bool:
    """Says whether an entry is a ramp that was moved, or YaRN's own among the starts.

    A ramp from a start such as CoPE, whose last λ is far above YaRN's, is not of YaRN's form.
    """
    if entry.provenance.origin in _OF_RAMPS:
        return entry.candidate.rescale[-1] <= _ABOVE_YARN * yarn.rescale[-1]
    return entry.provenance.origin == "seed" and np.allclose(
        entry.candidate.rescale, yarn.rescale, rtol=1e-6, atol=_ROUNDED
    )
