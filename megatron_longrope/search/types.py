"""The ask/tell protocol of searchers, and the terms under which candidates are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, Provenance
from megatron_longrope.errors import LongRopeError


class TellError(LongRopeError):
    """A searcher was told a result that it did not ask for, or not in the order it asked."""


Judge = Callable[[Evaluation], bool]
"""A stopping rule: returns whether a candidate is hopeless, given what is scored of it so far."""


@dataclass(frozen=True)
class Terms:
    """How candidates are evaluated: with gradients or not, by which stopping rule, on what."""

    gradient: bool = False
    """Whether the derivatives by λ and t are wanted too, which takes a backward pass."""
    judge: Judge | None = None
    """The rule by which scoring stops early; None scores every candidate to the end."""
    sample: tuple[int, ...] | None = None
    """Numbers of the documents to score on; None for all documents, from the first on."""


SpaceName = Literal["longrope", "longrope2", "open"]
"""The kind of space: λ of every pair up to 1.25·s, LongRoPE2's, with a closed form below the
critical pair, or λ of every pair up to where it stands still."""
SearchStage = Literal["first", "second", "recovery"]
"""The stage of a search.

`first` is on the pretrained model beyond its window, `second` on the fine-tuned model beyond its
fine-tuned length, `recovery` on the extended model for short inputs.
"""


@dataclass(frozen=True)
class SearchTask:
    """The three numbers that a searcher knows of the search beside its space."""

    length: int
    """The context length in tokens that factors are searched for."""
    scale: float
    """The context length over the pretrained window."""
    num_documents: int
    """Number of documents that candidates are scored on."""


class Searcher(Protocol):
    """An ask/tell search, which knows nothing of models.

    It is deterministic: the seed and the results told so far determine the next candidates.
    """

    def ask(self, n: int) -> list[Candidate]:
        """Returns the next candidates, at most `n`.

        The list is empty when the search is finished, and while results are still to be told that
        the next candidates depend on.
        """

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Takes the result of the oldest candidate that waits; raises TellError for any other."""

    @property
    def asks_gradient(self) -> bool:
        """Whether the evaluations of the present round need gradients."""

    @property
    def sample(self) -> tuple[int, ...] | None:
        """Numbers of the documents that the present round is evaluated on; None for all."""

    @property
    def round_size(self) -> int:
        """Number of candidates of the present round."""

    @property
    def num_told_of_round(self) -> int:
        """Number of this round's results already reported."""

    def provenance(self, candidate: Candidate) -> Provenance:
        """Returns round and origin of a candidate that waits for its result.

        Raises TellError for any other candidate.
        """

    def identity(self) -> dict[str, Any]:
        """Returns the JSON values that determine the search: name, seed, settings, space, seeds."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values, random state included."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state` in a fresh searcher; raises InputError for that of another search."""

    @property
    def best(self) -> tuple[Candidate, Evaluation] | None:
        """The first completed candidate of lowest finite loss so far, with its evaluation."""

    @property
    def finished(self) -> bool:
        """Whether the search is over: every evaluation has been told."""

    @property
    def num_evaluations(self) -> int | None:
        """Number of evaluations from first to last; None where it is not known in advance."""
