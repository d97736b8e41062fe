"""What a scaling method is called in a Hugging Face config, and what it reads there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.errors import InputError
from megatron_longrope.rope.hf_settings import ORIGINAL_KEY

FACTOR = frozenset({"factor"})
"""The keys of a rope_type that has its factor alone."""


class HfRopeType(NamedTuple):
    """One rope_type: its name, the keys it knows beside rope_theta, and those it cannot do
    without."""

    name: str
    keys: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()

    @property
    def has_window(self) -> bool:
        """Whether it says the pretrained window itself; for the others that is
        max_position_embeddings."""
        return ORIGINAL_KEY in self.keys


class HfReading(NamedTuple):
    """The rotary settings of a config, of either generation, with the geometry they apply to."""

    parameters: Mapping[str, Any]
    geometry: RopeGeometry
    max_length: int
    """max_position_embeddings, in tokens."""

    @property
    def factor(self) -> float | None:
        """The `factor` every scaled rope_type has; None where the config is silent."""
        factor = self.parameters.get("factor")
        if factor is None:
            return None
        if not isinstance(factor, int | float) or not 1 <= factor < math.inf:
            raise InputError("factor", factor, "a finite number of at least 1")
        return float(factor)

    @property
    def length_ratio(self) -> float:
        """max_position_embeddings over the pretrained window."""
        return self.max_length / self.geometry.original_length

    def pick(self, *keys: str) -> dict[str, Any]:
        """Returns those of `keys` the config has."""
        return {key: self.parameters[key] for key in keys if key in self.parameters}
