"""The config field that names a searcher and holds its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SerializeAsAny, model_serializer, model_validator
from pydantic.fields import FieldInfo

from megatron_longrope.artifacts.evaluations import Candidate
from megatron_longrope.config import StrictConfig
from megatron_longrope.errors import InputError
from megatron_longrope.search.rounds import RoundSearcher
from megatron_longrope.search.searchers import DEFAULT_SEARCHER, SEARCHERS
from megatron_longrope.search.space import SearchSpace
from megatron_longrope.search.types import SearchTask


class SearcherChoice(StrictConfig):
    """A searcher by name with its settings beside the name; a name alone takes the defaults.

    >>> SearcherChoice.model_validate({"name": "random", "evaluations": 20}).model_dump()
    {'name': 'random', 'evaluations': 20}
    >>> SearcherChoice.model_validate("evolution").settings is None
    True
    """

    name: str = DEFAULT_SEARCHER
    settings: SerializeAsAny[StrictConfig] | None = None
    """The settings given; None means the defaults, which may depend on the length searched."""

    @model_validator(mode="before")
    @classmethod
    def _with_settings_of_its_own(cls, values: object) -> object:
        """Validates every key beside the name with the settings of the searcher named."""
        if isinstance(values, str):
            values = {"name": values}
        if not isinstance(values, Mapping):
            return values
        kind = _kind_of(values)
        given = {key: value for key, value in values.items() if key != "name"}
        # a ValidationError raised here keeps its keys; pydantic puts the path to this field first
        settings = kind.Settings.model_validate(given) if given else None
        return {"name": kind.name, "settings": settings}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json") if self.settings is not None else {}
        return {"name": self.name, **settings}

    @classmethod
    def keys_of(cls, values: object) -> Mapping[str, FieldInfo]:
        """Returns the keys that `values` may have: the name, and the named searcher's settings."""
        kind = _kind_of(values if isinstance(values, Mapping) else {})
        return {"name": cls.model_fields["name"], **kind.Settings.model_fields}

    @property
    def kind(self) -> type[RoundSearcher[Any]]:
        """The searcher's class, which says what it can do."""
        return SEARCHERS[self.name]

    def settings_for(self, length: int) -> StrictConfig:
        """Returns the settings given, else the defaults of a search for `length` tokens."""
        if self.settings is not None:
            return self.settings
        defaults: StrictConfig = self.kind.default_settings(length)
        return defaults

    def moves_ramps(self, length: int) -> bool:
        """Returns whether a search for `length` tokens moves YaRN's ramp."""
        return self.kind.moves_ramps(self.settings_for(length))

    def needs_gradients(self, length: int) -> bool:
        """Returns whether a search for `length` tokens asks for evaluations with gradients."""
        return self.kind.needs_gradients(self.settings_for(length))

    def build(
        self, space: SearchSpace, seeds: Sequence[Candidate], seed: int, task: SearchTask
    ) -> RoundSearcher[Any]:
        """Returns a new searcher in `space` that starts from `seeds`; `seed` fixes its draws."""
        return self.kind(space, self.settings_for(task.length), seeds, seed, task)


def _kind_of(values: Mapping[str, Any]) -> type[RoundSearcher[Any]]:
    name = str(values.get("name", DEFAULT_SEARCHER))
    try:
        return SEARCHERS[name]
    except InputError as error:  # pydantic names the place of a ValueError
        raise ValueError(f"no searcher is called {name}: {error.rule}") from None
