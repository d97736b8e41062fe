"""What all searchers share: what they can do, proposals in rounds, results told in order, the best
so far, and exact state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, cast

from megatron_longrope.artifacts.evaluations import Candidate, Evaluation, Provenance
from megatron_longrope.artifacts.identity import check_same
from megatron_longrope.config import StrictConfig
from megatron_longrope.errors import InputError
from megatron_longrope.search.options import SettingOption
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import SearchStage, SearchTask, SpaceName, TellError

SettingsT = TypeVar("SettingsT", bound=StrictConfig)


class Proposal(NamedTuple):
    """A candidate of a round and how it came about."""

    candidate: Candidate
    origin: str


class Told(NamedTuple):
    """A proposal and its result."""

    candidate: Candidate
    origin: str
    evaluation: Evaluation


class RoundSearcher(ABC, Generic[SettingsT]):
    """A searcher that proposes in rounds.

    A round is drawn when the last result of the one before has been told, so that nothing depends
    on how many candidates are asked for at a time. A subclass says what a round holds in
    `next_round`, from all that was told and its own random state. One with a state of its own has
    an `__init__` of the same parameters that calls this one first.

    The state is the history: `load_state_dict` tells it anew to a fresh searcher, which restores
    whatever a subclass keeps, random state included.

    Class attributes say what a searcher is and can do; recipes and the command line ask for them.

    Args:
        space: The candidates allowed.
        settings: Of the class's `Settings`.
        seeds: Where the search starts; they are projected into the space, duplicates dropped.
        seed: Of whatever is random.
        task: What is searched for.
    """

    name: ClassVar[str]
    """What recipes and `longrope search --searcher` call it."""
    summary: ClassVar[str]
    """One line of help."""
    Settings: ClassVar[type[StrictConfig]]
    """The keys that stand beside the name in a recipe; `name` is none of them."""
    options: ClassVar[tuple[SettingOption, ...]] = ()
    """Settings that have an option of `longrope search`."""
    searches_start_tokens: ClassVar[bool] = True
    """Whether n̂ is searched where the space leaves it open; else it stays as in the best start."""
    unfit_spaces: ClassVar[Mapping[SpaceName, str]] = {}
    """Spaces the searcher does not work in, and why: a clause that follows its name."""
    unfit_stages: ClassVar[Mapping[SearchStage, str]] = {}
    """Stages the searcher makes no sense for, and why: a clause that follows its name."""

    def __init__(
        self,
        space: SearchSpace,
        settings: SettingsT,
        seeds: Sequence[Candidate],
        seed: int,
        task: SearchTask,
    ) -> None:
        if not seeds:
            raise InputError(
                "seeds", "none", "the search starts from 1 candidate or more (PI, NTK, YaRN ...)"
            )
        self.space, self.settings, self.seed, self.task = space, settings, seed, task
        self.seeds = tuple(dict.fromkeys(space.project(candidate) for candidate in seeds))
        self.history: list[Told] = []
        self.round_number = 0
        self._drawn: list[Proposal] | None = None  # None: not even the first round
        self._num_asked = 0  # of this round
        self._num_told = 0
        self._best: tuple[Candidate, Evaluation] | None = None

    # -- what a subclass gives

    @classmethod
    def default_settings(cls, length: int) -> SettingsT:
        """Returns the settings of a search for `length` tokens where none are given."""
        return cast(SettingsT, cls.Settings())

    @classmethod
    def needs_gradients(cls, settings: SettingsT) -> bool:
        """Whether evaluations with gradients are among those that `settings` lead to."""
        return False

    @abstractmethod
    def next_round(self) -> list[Proposal]:
        """Returns the proposals of round `self.round_number`, none when the search is over."""

    def settings_json(self) -> dict[str, Any]:
        """Returns the settings as JSON values, as the journal's header holds them."""
        return self.settings.model_dump(mode="json")

    @property
    @abstractmethod
    def num_evaluations(self) -> int | None:
        """Evaluations from first to last, where that is known in advance."""

    @property
    def asks_gradient(self) -> bool:
        """Whether this round's evaluations are to come with their gradients."""
        return False

    @property
    def sample(self) -> tuple[int, ...] | None:
        """The documents that this round's evaluations are to be made on; None: all."""
        return None

    # -- ask and tell

    def ask(self, n: int) -> list[Candidate]:
        """Returns at most `n` candidates, never more than this round has left; none when it is all
        asked."""
        if n < 1:
            raise InputError("n", n, "ask for 1 candidate or more")
        first = self._num_asked
        self._num_asked = min(first + n, len(self._round))
        return [proposal.candidate for proposal in self._round[first : self._num_asked]]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Takes the result of the oldest candidate not yet told; raises TellError for any other."""
        self._check_oldest(candidate)
        self.history.append(Told(candidate, self._round[self._num_told].origin, evaluation))
        self._num_told += 1
        if evaluation.usable and (self._best is None or evaluation.loss < self._best[1].loss):
            self._best = (candidate, evaluation)
        if self._num_told == len(self._round):
            self.round_number += 1
            self._drawn = self.next_round()
            self._num_asked = self._num_told = 0

    def provenance(self, candidate: Candidate) -> Provenance:
        """Returns round and origin of a candidate asked and not yet told; raises TellError for any
        other."""
        for proposal in self._round[self._num_told : self._num_asked]:
            if proposal.candidate == candidate:
                return Provenance(self.round_number, proposal.origin)
        raise TellError(f"candidate {candidate} is not waiting for its result")

    @property
    def best(self) -> tuple[Candidate, Evaluation] | None:
        """The completed candidate of lowest finite loss told so far; of equals the first."""
        return self._best

    @property
    def round_size(self) -> int:
        """Candidates of the present round."""
        return len(self._round)

    @property
    def num_told_of_round(self) -> int:
        """Number of this round's results already reported."""
        return self._num_told

    @property
    def finished(self) -> bool:
        """Whether the last round has been told."""
        return not self._round

    # -- identity and state

    def identity(self) -> dict[str, Any]:
        """Returns what fixes the whole search: name, seed, settings, space and seeds, as JSON
        values."""
        return {
            "searcher": self.name,
            "seed": self.seed,
            "settings": self.settings_json(),
            "space": self.space.to_json(),
            "seeds": [candidate.to_json() for candidate in self.seeds],
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values: what was told, and how many more were asked."""
        told = [[told.candidate.to_json(), told.evaluation.to_json()] for told in self.history]
        return {
            "identity": self.identity(),
            "told": told,
            "num_waiting": self._num_asked - self._num_told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where `state_dict` was taken, from a fresh searcher; raises InputError
        for another's."""
        check_same(state["identity"], self.identity(), "search state")
        if self.history or self._num_asked:
            raise InputError(
                "search state",
                f"{len(self.history)} told",
                "is loaded into a searcher not yet asked",
            )
        for candidate, evaluation in state["told"]:
            self.ask(1)
            self.tell(Candidate.from_json(candidate), Evaluation.from_json(evaluation))
        if state["num_waiting"]:
            self.ask(state["num_waiting"])

    @property
    def _round(self) -> list[Proposal]:
        """The present round; the first one is drawn when it is first asked for."""
        if self._drawn is None:
            self._drawn = self.next_round()
        return self._drawn

    def _check_oldest(self, candidate: Candidate) -> None:
        waiting = self._num_asked - self._num_told
        if not waiting:
            raise TellError(f"candidate {candidate} was told, but none is waiting for its result")
        if self._round[self._num_told].candidate != candidate:
            raise TellError(
                f"candidate {candidate} was told out of order: {waiting} are waiting, told in the "
                "order asked"
            )
