"""The base class of searchers: rounds of proposals, results told in order, and exact state."""

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
    """A candidate of a round and the step of the search it came from."""

    candidate: Candidate
    origin: str
    """One word for the step, such as `seed` or `mutant`, for the journal and reports."""


class Told(NamedTuple):
    """A proposal whose result has been reported, and the result."""

    candidate: Candidate
    origin: str
    evaluation: Evaluation


class RoundSearcher(ABC, Generic[SettingsT]):
    """A searcher that proposes its candidates in rounds.

    A round is drawn when the last result of the round before has been told, so that nothing depends
    on how many candidates are asked for at a time. A subclass implements `next_round`, which draws
    a round from all results told and from its own random state. A subclass with further state has
    an `__init__` of the same parameters that calls this one first.

    The state is the history: `load_state_dict` tells it anew to a fresh searcher, which restores
    everything that a subclass keeps, random state included.

    The class attributes tell recipes and the command line what a searcher is and what it can do.

    Args:
        space: The space of candidates allowed.
        settings: An instance of the class's `Settings`.
        seeds: The candidates that the search starts from. They are projected into the space, and
            duplicates are dropped.
        seed: The number that fixes all random draws.
        task: The length, the scale and the number of documents of the search.
    """

    name: ClassVar[str]
    """The searcher's name in recipes and for `longrope search --searcher`."""
    summary: ClassVar[str]
    """One line of help for the command line."""
    Settings: ClassVar[type[StrictConfig]]
    """The config class of the keys that stand beside `name` in a recipe."""
    options: ClassVar[tuple[SettingOption, ...]] = ()
    """Options of `longrope search` for some of the settings."""
    searches_start_tokens: ClassVar[bool] = True
    """Whether n̂ is searched where the space leaves it open; else it stays as in the best start."""
    unfit_spaces: ClassVar[Mapping[SpaceName, str]] = {}
    """Spaces that the searcher does not work in, each with the reason: a clause after its name."""
    unfit_stages: ClassVar[Mapping[SearchStage, str]] = {}
    """Stages that the searcher is not made for, each with the reason as a clause after its name."""

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
        # The first round is drawn when it is first asked for: the __init__ of a subclass, which
        # makes what next_round needs, runs after this one.
        self._drawn: list[Proposal] | None = None
        self._num_asked = 0  # candidates of the present round that were asked for
        self._num_told = 0  # and those of them whose results are in
        self._best: tuple[Candidate, Evaluation] | None = None

    # -- what a subclass implements

    @classmethod
    def default_settings(cls, length: int) -> SettingsT:
        """Returns the default settings of a search for `length` tokens."""
        return cast(SettingsT, cls.Settings())

    @classmethod
    def moves_ramps(cls, settings: SettingsT) -> bool:
        """Returns whether it moves YaRN's ramp, which leaves the best ramp in its journal."""
        return False

    @classmethod
    def needs_gradients(cls, settings: SettingsT) -> bool:
        """Returns whether a search with these `settings` asks for evaluations with gradients."""
        return False

    @abstractmethod
    def next_round(self) -> list[Proposal]:
        """Returns the proposals of round `self.round_number`; an empty list ends the search."""

    def settings_json(self) -> dict[str, Any]:
        """Returns the settings as the JSON values that the journal's header holds."""
        return self.settings.model_dump(mode="json")

    @property
    @abstractmethod
    def num_evaluations(self) -> int | None:
        """Number of evaluations from first to last; None where it is not known in advance."""

    @property
    def asks_gradient(self) -> bool:
        """Whether the evaluations of this round need gradients."""
        return False

    @property
    def sample(self) -> tuple[int, ...] | None:
        """Numbers of the documents that this round is evaluated on; None for all documents."""
        return None

    # -- ask and tell

    def ask(self, n: int) -> list[Candidate]:
        """Returns the next candidates of this round, at most `n`; an empty list if none is left."""
        if n < 1:
            raise InputError("n", n, "ask for 1 candidate or more")
        first = self._num_asked
        self._num_asked = min(first + n, len(self._round))
        return [proposal.candidate for proposal in self._round[first : self._num_asked]]

    def tell(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Takes the result of the oldest candidate that waits; raises TellError for any other."""
        self._check_oldest(candidate)
        self.history.append(Told(candidate, self._round[self._num_told].origin, evaluation))
        self._num_told += 1
        if evaluation.usable and (self._best is None or evaluation.loss < self._best[1].loss):
            self._best = (candidate, evaluation)
        if self._num_told == len(self._round):  # the round is complete: draw the next one
            self.round_number += 1
            self._drawn = self.next_round()
            self._num_asked = self._num_told = 0

    def provenance(self, candidate: Candidate) -> Provenance:
        """Returns round and origin of a candidate that waits for its result.

        Raises TellError for any other candidate.
        """
        for proposal in self._round[self._num_told : self._num_asked]:
            if proposal.candidate == candidate:
                return Provenance(self.round_number, proposal.origin)
        raise TellError(f"candidate {candidate} is not waiting for its result")

    @property
    def best(self) -> tuple[Candidate, Evaluation] | None:
        """The first completed candidate of lowest finite loss so far, with its evaluation."""
        return self._best

    @property
    def round_size(self) -> int:
        """Number of candidates of the present round."""
        return len(self._round)

    @property
    def num_told_of_round(self) -> int:
        """Number of this round's results already reported."""
        return self._num_told

    @property
    def finished(self) -> bool:
        """Whether the results of the last round have been told."""
        return not self._round

    # -- identity and state

    def identity(self) -> dict[str, Any]:
        """Returns the JSON values that determine the whole search and head its journal."""
        return {
            "searcher": self.name,
            "seed": self.seed,
            "settings": self.settings_json(),
            "space": self.space.to_json(),
            "seeds": [candidate.to_json() for candidate in self.seeds],
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as JSON values: identity, results told, and number still waiting."""
        told = [[told.candidate.to_json(), told.evaluation.to_json()] for told in self.history]
        return {
            "identity": self.identity(),
            "told": told,
            "num_waiting": self._num_asked - self._num_told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Brings a fresh searcher to the state that `state_dict` returned.

        Raises InputError where the state is that of another search, or this searcher not fresh.
        """
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
        """Proposals of the present round; the first round is drawn when it is first asked for."""
        if self._drawn is None:
            self._drawn = self.next_round()
        return self._drawn

    def _check_oldest(self, candidate: Candidate) -> None:
        """Raises TellError unless `candidate` is the one whose result is due."""
        waiting = self._num_asked - self._num_told
        if not waiting:
            raise TellError(f"candidate {candidate} was told, but none is waiting for its result")
        if self._round[self._num_told].candidate != candidate:
            raise TellError(
                f"candidate {candidate} was told out of order: {waiting} are waiting, told in the "
                "order asked"
            )
