"""What a scaling method is, and the registry of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_longrope.artifacts.factors import FactorOrigin, FactorSet, RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import StrictConfig, build_config
from megatron_longrope.registry import Registry
from megatron_longrope.rope.hf_reading import HfReading, HfRopeType
from megatron_longrope.rope.hf_settings import ORIGINAL_KEY

if TYPE_CHECKING:
    from typing import Self


class RopeMethod(StrictConfig, ABC):
    """A scaling method: its settings, the factors they give, its names outside, its uses.

    The fields of a subclass are the settings; the class attributes below say everything that
    command line, recipes, tables and Hugging Face configs need to know. All but `name` have a
    default.
    """

    name: ClassVar[str]
    """What `--method`, recipes, tables and factor files call it."""

    scale_setting: ClassVar[str | None] = "scale"
    """The setting that s = target/window fills (SCALE of `--method NAME:SCALE`); None: no setting
    does."""
    without_scale: ClassVar[str | None] = None
    """What the method would be without a SCALE; where this is set, SCALE must be written out."""
    is_closed_form: ClassVar[bool] = True
    """Whether a scale and the model's geometry are enough: `--method NAME` takes it."""
    follows_length: ClassVar[bool] = False
    """Whether each input length beyond the window has factors of its own."""

    is_baseline: ClassVar[bool] = False
    """Whether every comparison shows it."""
    starts_searches: ClassVar[bool] = False
    """Whether a search may start from its factors."""
    goes_on_tuned: ClassVar[bool] = False
    """Whether it may be put on top of fine-tuned factors: λ_ft times its own λ."""

    hf: ClassVar[HfRopeType | None] = None
    """Its name and keys in a Hugging Face config; None: transformers does not know the method."""

    @abstractmethod
    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors for an input of `length` tokens; None: for the length the method was
        made for.

        Raises InputError where the settings do not fit the geometry.
        """

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns the factors by input length; `length` matters where `follows_length`."""
        return FactorSet.single(self.factors(geometry, length))

    @classmethod
    def from_scale(
        cls,
        scale: float,
        settings: Mapping[str, object] | None = None,
        source: str | None = None,
    ) -> Self:
        """Returns the method that extends the window `scale` times, with further `settings`.

        Raises InputError that names a wrong setting; `source` is where the settings were given.
        """
        values = dict(settings or {})
        if cls.scale_setting is not None:
            values[cls.scale_setting] = scale
        return build_config(cls, values, source or f"method {cls.name}")

    @classmethod
    def from_hf(cls, reading: HfReading) -> Self:
        """Returns the method a Hugging Face config describes; raises InputError.

        Here every key is the setting of that name, and `factor` is the scale. Only called for a
        method with `hf`, and only with its keys.
        """
        assert cls.hf is not None, cls.name
        values = reading.pick(*cls.hf.keys - {"factor", ORIGINAL_KEY})
        if cls.scale_setting is not None:
            values[cls.scale_setting] = reading.factor
        return build_config(cls, values, f"the HF config's {cls.hf.name}")

    def to_hf(self, geometry: RopeGeometry) -> dict[str, Any] | None:
        """Returns the method as itself in `rope_parameters`, without rope_theta; None where
        transformers does not know it.

        `from_hf` reads back the same method. Factors that were searched go another way: see
        `hf_rope_config`.
        """
        if self.hf is None:
            return None
        settings = self.model_dump(exclude_none=True)
        if self.scale_setting is not None:
            settings["factor"] = settings.pop(self.scale_setting)
        if self.hf.has_window:
            settings[ORIGINAL_KEY] = geometry.original_length
        return {"rope_type": self.hf.name, **settings}

    def _factors(
        self,
        geometry: RopeGeometry,
        rescale: tuple[float, ...],
        target_length: int,
        attention_factor: float = 1.0,
        hf_inverse_frequencies: tuple[float, ...] | None = None,
    ) -> RopeFactors:
        """Returns validated factors whose origin is this method.

        Args:
            geometry: the model's base, head_dim and window.
            rescale: λ, one per pair.
            target_length: the length in tokens these factors are made for.
            attention_factor: t, by which cos and sin are multiplied.
            hf_inverse_frequencies: transformers' own float32 frequencies, where its order of
                operations rounds differently from 1 / (λ · base^(2i/d)).
        """
        values = {
            "rescale": rescale,
            "attention_factor": attention_factor,
            "target_length": target_length,
            "origin": FactorOrigin(method=self.name),
            "hf_inverse_frequencies": hf_inverse_frequencies,
        }
        return build_config(RopeFactors, geometry.model_dump() | values, f"factors of {self.name}")


METHODS: Registry[type[RopeMethod]] = Registry("method")
"""Every scaling method by name, in the order of tables and lists."""
