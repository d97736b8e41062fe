"""Factor sets for tests that need some, whatever they are."""

from __future__ import annotations

from megatron_longrope.rope import (
    FactorOrigin,
    NoScaling,
    OwnScaling,
    RopeFactors,
    RopeGeometry,
)

GEOMETRY = RopeGeometry(base=10000.0, head_dim=64, original_length=256)

UNSCALED = OwnScaling(NoScaling().factor_set(GEOMETRY))


def made_factors(target: int, temperature: float = 1.1, growth: float = 1.0) -> RopeFactors:
    """Returns factors of a model with 32 pairs and a window of 256, rising to 1 + `growth`."""
    rescale = tuple(1 + growth * pair / 31 for pair in range(32))
    return RopeFactors(
        rescale=rescale,
        attention_factor=temperature,
        original_length=256,
        target_length=target,
        base=10000.0,
        head_dim=64,
        origin=FactorOrigin(method="test"),
    )
