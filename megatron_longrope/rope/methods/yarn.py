"""YaRN (arXiv 2309.00071): fast pairs kept, slow ones interpolated, and an attention factor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from megatron_longrope.artifacts.factors import MAX_ATTENTION_FACTOR, RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import build_config
from megatron_longrope.rope.hf_reading import HfReading, HfRopeType
from megatron_longrope.rope.hf_settings import ORIGINAL_KEY
from megatron_longrope.rope.methods.base import METHODS, RopeMethod

if TYPE_CHECKING:
    from typing import Self

_OPTIONAL = frozenset({"attention_factor", "mscale", "mscale_all_dim", "truncate"})
_BETAS = frozenset({"beta_fast", "beta_slow"})


class Yarn(RopeMethod):
    """Pairs are interpolated by their number of turns in the window ("NTK by parts"), with a ramp.

    Pairs that turn more than `beta_fast` times in the pretrained window keep λ = 1, those that turn
    fewer than `beta_slow` times get λ = s, and between them 1/λ falls along a ramp (arXiv
    2309.00071, section 3.2; the paper's β is `beta_fast`, its α `beta_slow`).

    `attention_factor` None means the paper's t = 0.1·ln s + 1 (section 3.4), or with both `mscale`
    keys (DeepSeek) the quotient of two such terms. `truncate` widens the ramp to whole pairs, as
    transformers does by default; the paper does not.

    >>> geometry = RopeGeometry(base=10000.0, head_dim=128, original_length=4096)
    >>> factors = Yarn(scale=8).factors(geometry)
    >>> factors.rescale[0], factors.rescale[-1], round(factors.attention_factor, 4)
    (1.0, 8.0, 1.2079)
    """

    name: ClassVar[str] = "yarn"
    is_baseline: ClassVar[bool] = True
    starts_searches: ClassVar[bool] = True
    goes_on_tuned: ClassVar[bool] = True
    hf: ClassVar[HfRopeType | None] = HfRopeType(
        "yarn", keys=frozenset({"factor", ORIGINAL_KEY}) | _OPTIONAL | _BETAS
    )

    scale: float = Field(ge=1)
    beta_fast: float = Field(default=32, gt=0)
    beta_slow: float = Field(default=1, gt=0)
    attention_factor: float | None = Field(default=None, gt=0, le=MAX_ATTENTION_FACTOR)
    mscale: float | None = Field(default=None, ge=0)
    mscale_all_dim: float | None = Field(default=None, ge=0)
    truncate: bool = True

    @model_validator(mode="after")
    def _check_betas(self) -> Self:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"beta_fast is larger than beta_slow, got {self.beta_fast} and {self.beta_slow}"
            )
        return self

    @classmethod
    def from_hf(cls, reading: HfReading) -> Self:
        """Returns the method of a HF config, read as transformers reads it.

        Without `factor` the scale is the ratio of the config's lengths, and a beta of 0 or null is
        the default.
        """
        betas = {key: value for key, value in reading.pick(*_BETAS).items() if value}
        scale = reading.length_ratio if reading.factor is None else reading.factor
        values = {"scale": scale, **reading.pick(*_OPTIONAL), **betas}
        return build_config(cls, values, "the HF config's yarn")

    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns 1/λ_i = (1 − r_i) + r_i/s with the ramp r, whatever the length."""
        low, high = self._correction_range(geometry)
        # r_i: 0 for pairs up to `low`, 1 from `high` on, linear in i between. The paper's ramp
        # (section 3.2), γ = 1 − r, is linear in the number of turns; its authors' code and
        # transformers make it linear in i.
        ramp = (min(max((i - low) / (high - low), 0.0), 1.0) for i in range(geometry.num_pairs))
        return self.make_factors(
            geometry,
            # 1/((1−r) + r/s), in an order whose every step rounds without decreasing in r
            tuple(self.scale / (self.scale - r * (self.scale - 1.0)) for r in ramp),
            round(self.scale * geometry.original_length),
            attention_factor=self._resolved_attention_factor(),
            hf_inverse_frequencies=self._float32_frequencies(geometry, low, high),
        )

    def _correction_range(self, geometry: RopeGeometry) -> tuple[float, float]:
        """Returns the two different pair indices between which the ramp goes from 0 to 1."""
        low, high = (
            self._pair_with_turns(turns, geometry) for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # As in transformers, the ramp may end beyond the last pair, and an empty one is widened.
        low, high = max(low, 0), min(high, geometry.head_dim - 1)
        return (low, high + 0.001) if low == high else (low, high)

    def _resolved_attention_factor(self) -> float:
        """Returns t: the one given, else DeepSeek's quotient, else the paper's."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.scale, self.mscale) / _mscale(self.scale, self.mscale_all_dim)
        return _mscale(self.scale, 1.0)

    @staticmethod
    def _pair_with_turns(turns: float, geometry: RopeGeometry) -> float:
        """Returns the real number i where pair i makes `turns` turns in the window."""
        # L·θ_i = 2π·turns with θ_i = base^(−2i/d)  ⇔  i = d·ln(L / (2π·turns)) / (2·ln base)
        window_turns = geometry.original_length / (turns * 2 * math.pi)
        return (geometry.head_dim * math.log(window_turns)) / (2 * math.log(geometry.base))

    def _float32_frequencies(
        self, geometry: RopeGeometry, low: float, high: float
    ) -> tuple[float, ...]:
        """Returns the blended frequencies, rounded as transformers rounds them."""
        import torch

        from megatron_longrope.rope.hf_precision import float32_powers, to_floats

        powers = float32_powers(geometry.base, geometry.head_dim)
        pairs = torch.arange(geometry.num_pairs, dtype=torch.float32)
        unscaled_share = 1 - torch.clamp((pairs - low) / (high - low), 0, 1)
        interpolated, unscaled = 1.0 / (self.scale * powers), 1.0 / powers
        return to_floats(interpolated * (1 - unscaled_share) + unscaled * unscaled_share)


def _mscale(scale: float, weight: float) -> float:
    """Returns 0.1·weight·ln(scale) + 1, with weight 1 the paper's √(1/t) (section 3.4)."""
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0


METHODS.register(Yarn.name, Yarn)
