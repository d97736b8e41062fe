"""The name and keys of a scaling method in Hugging Face configs, and the values in one config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.errors import InputError
from megatron_longrope.rope.hf_settings import ORIGINAL_KEY

FACTOR = frozenset({"factor"})
"""The keys of a rope_type whose only setting is its factor."""


class HfRopeType(NamedTuple):
    """A rope_type of transformers: its name, the keys it reads, and those it requires.

    Keys that every rope_type has, such as rope_theta, are not listed.
    """

    name: str
    keys: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()

    @property
    def has_window(self) -> bool:
        """Whether it gives the pretrained window itself, as original_max_position_embeddings.

        For every other rope_type max_position_embeddings is the pretrained window.
        """
        return ORIGINAL_KEY in self.keys


class HfReading(NamedTuple):
    """The rotary settings of one config of transformers 4 or 5, with the model's geometry."""

    parameters: Mapping[str, Any]
    geometry: RopeGeometry
    max_length: int
    """The config's max_position_embeddings, in tokens."""

    @property
    def factor(self) -> float | None:
        """The value of `factor`, None where the config has none; raises InputError below 1."""
        factor = self.parameters.get("factor")
        if factor is None:
            return None
        if not isinstance(factor, int | float) or not 1 <= factor < math.inf:
            raise InputError("factor", factor, "a finite number of at least 1")
        return float(factor)

    @property
    def length_ratio(self) -> float:
        """Quotient of max_position_embeddings and the pretrained window."""
        return self.max_length / self.geometry.original_length

    def pick(self, *keys: str) -> dict[str, Any]:
        """Returns the values of those `keys` that the config has."""
        return {key: self.parameters[key] for key in keys if key in self.parameters}
