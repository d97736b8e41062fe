"""YaRN with the ramp that a search found best for it, so that comparisons give it one too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megatron_longrope.artifacts.journal import JournalEntry, read_journal
from megatron_longrope.evaluation import factors_of
from megatron_longrope.pipeline.searching.stored_spaces import space_from_json
from megatron_longrope.rope import FactorOrigin, RopeFactors
from megatron_longrope.search import Candidate

SEARCHED_RAMP = "searched ramp"
"""What rows of a method say after its name where its ramp was searched, as in `yarn,NAME`."""


def best_ramp(journal: Path, yarn: RopeFactors) -> RopeFactors | None:
    """Returns the best factors of YaRN's form that a search has scored; None if it moved none.

    These are YaRN as published, among the starts, and the ramps that the search moved, 1/λ linear
    between two places, as far as they rise as high as YaRN does; each at any attention factor that
    it was scored at, with the same documents and budget as the search's up to that phase. Never
    worse on these documents than YaRN as published. None too where YaRN was no start, and where
    ramps of another rise were moved. What a descent made of ramps is not among these. Raises
    InputError where the journal is missing or damaged.

    Args:
        journal: The journal of a finished search.
        yarn: YaRN as published for the same model and length.
    """
    header, entries = read_journal(journal)
    space = space_from_json(header["space"])
    published = space.project(Candidate(yarn.rescale, yarn.start_tokens, yarn.attention_factor))
    if not np.allclose(published.rescale, yarn.rescale, rtol=0.0, atol=space.step):
        return None  # a space that gives λ a form of its own, or has no room for YaRN
    ours = [entry for entry in entries if entry.candidate.start_tokens == published.start_tokens]
    if not any(_is_start(entry) and _has_rescale(entry, published) for entry in ours):
        return None
    moved = list(_moved_ramps(entries, published, space.step))
    if not moved:
        return None
    of_yarn = {published.rescale, *(entry.candidate.rescale for entry in moved)}
    scored = [e for e in ours if e.evaluation.usable and e.candidate.rescale in of_yarn]
    if not scored:
        return None
    best = min(scored, key=lambda entry: entry.evaluation.loss)
    origin = FactorOrigin(method=f"yarn,{SEARCHED_RAMP}", source=yarn.origin.source)
    return factors_of(best.candidate, yarn.geometry, yarn.target_length, origin)


def _moved_ramps(
    entries: Sequence[JournalEntry], published: Candidate, step: float
) -> Iterator[JournalEntry]:
    """Yields the ramps that a search moved, if they rise as high as YaRN's.

    `search.ramp` takes the rise from the best start. PI's λ is level and has no ramp; CoPE's last
    λ is near 10⁶; NTK's is s, so that the ramps made of it are YaRN's with other β.
    """
    starts = [entry for entry in entries if _is_start(entry) and entry.evaluation.usable]
    if not starts:
        return
    start = min(starts, key=lambda entry: entry.evaluation.loss).candidate
    # both are on the grid, where rounding may part equal λ by one step
    if abs(start.rescale[-1] - published.rescale[-1]) < 1.5 * step:
        yield from (entry for entry in entries if entry.provenance.origin == "ramp")


def _is_start(entry: JournalEntry) -> bool:
    return entry.provenance.origin == "seed"


def _has_rescale(entry: JournalEntry, candidate: Candidate) -> bool:
    return entry.candidate.rescale == candidate.rescale
