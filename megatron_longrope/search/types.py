"""The ask/tell protocol of searchers, and the terms under which candidates are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, Provenance
from megatron_longrope.errors import LongRopeError


class TellError(LongRopeError):
    """A result was told that was not asked for, or not in the order asked."""


Judge = Callable[[Evaluation], bool]
"""Told what has been scored of a candidate so far; True: score no more of it."""


@dataclass(frozen=True)
class Terms:
    """How candidates are to be evaluated: with gradients, with what rule to stop them early, on
    which documents."""

    gradient: bool = False
    judge: Judge | None = None
    sample: tuple[int, ...] | None = None
    """Documents, by number; None: all, from the first on."""


SpaceName = Literal["longrope", "longrope2"]
"""λ of every pair free, or a closed form below the critical pair (LongRoPE2)."""
SearchStage = Literal["first", "second", "recovery"]
"""Of a pretrained model beyond its window; of a fine-tuned one further still; for short inputs."""


@dataclass(frozen=True)
class SearchTask:
    """What a searcher may know of the search beside its space: no more than three numbers."""

    length: int
    """Tokens searched for."""
    scale: float
    """`length` over the pretrained window."""
    num_documents: int
    """Documents that candidates are scored on."""


class Searcher(Protocol):
    """An ask/tell search that knows nothing of models. Same seed, same history → same next
    candidates."""

    def ask(self, n: int) -> list[Candidate]:
        """Returns at most `n` new candidates; none while results it needs are still to be told, or
        when finished."""

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Takes the result of the oldest candidate asked and not yet told; raises TellError for any
        other."""

    @property
    def asks_gradient(self) -> bool:
        """Whether the present round's evaluations are to come with their gradients."""

    @property
    def sample(self) -> tuple[int, ...] | None:
        """The documents that the present round's evaluations are to be made on; None: all."""

    @property
    def round_size(self) -> int:
        """Candidates of the present round."""

    @property
    def num_told_of_round(self) -> int:
        """Number of this round's results already reported."""

    def provenance(self, candidate: Candidate) -> Provenance:
        """Returns where an asked and not yet told candidate came from; raises TellError for any
        other."""

    def identity(self) -> dict[str, Any]:
        """Returns JSON values that fix all it will ever propose: name, seed, settings, space,
        starting points."""

    def state_dict(self) -> dict[str, Any]:
        """Returns JSON values from which `load_state_dict` goes on exactly, random state
        included."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`; raises InputError where it belongs to another search."""

    @property
    def best(self) -> tuple[Candidate, Evaluation] | None:
        """The completed candidate of lowest finite loss told so far; of equals the first."""

    @property
    def finished(self) -> bool:
        """Whether every evaluation of the budget has been told."""

    @property
    def num_evaluations(self) -> int | None:
        """Evaluations from first to last, where that is known in advance."""
