"""The base class of RoPE scaling methods, and the registry of all of them."""

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
    """A way to scale rotary embeddings: its settings, its formula, its names and where it is used.

    The fields of a subclass are its settings, and `factors` is its formula. The class attributes
    below tell the command line, recipes, tables and Hugging Face configs everything they need to
    know; all but `name` have a default.
    """

    name: ClassVar[str]
    """The method's name for `--method` and in recipes, tables and factors files."""

    scale_setting: ClassVar[str | None] = "scale"
    """Name of the setting that is s = target/window, the SCALE of `--method NAME:SCALE`.

    None: the method has no such setting.
    """
    without_scale: ClassVar[str | None] = None
    """What the method would be at scale 1; where this is set, SCALE must be written out."""
    is_closed_form: ClassVar[bool] = True
    """Whether scale and geometry determine the factors, so that `--method NAME` takes it."""
    follows_length: ClassVar[bool] = False
    """Whether each input length beyond the window has factors of its own."""

    is_baseline: ClassVar[bool] = False
    """Whether the method is evaluated in every comparison."""
    starts_searches: ClassVar[bool] = False
    """Whether a search may start from its factors."""
    stops_pairs: ClassVar[bool] = False
    """Whether some of its λ stand for infinity: such a start needs a space with an open end."""
    goes_on_tuned: ClassVar[bool] = False
    """Whether the method may be applied on top of fine-tuned factors, as λ_ft times its own λ."""

    hf: ClassVar[HfRopeType | None] = None
    """Its rope_type and keys in a Hugging Face config; None: transformers has no such method."""

    @abstractmethod
    def factors(self, geometry: RopeGeometry, length: int | None = None) -> RopeFactors:
        """Returns the factors for an input of `length` tokens, by default of the target length.

        Raises InputError where the settings do not fit the geometry.
        """

    def factor_set(self, geometry: RopeGeometry, length: int | None = None) -> FactorSet:
        """Returns the factors by input length; `length` matters only where `follows_length`."""
        return FactorSet.single(self.factors(geometry, length))

    @classmethod
    def from_scale(
        cls,
        scale: float,
        settings: Mapping[str, object] | None = None,
        source: str | None = None,
    ) -> Self:
        """Returns the method that extends the window `scale` times, with further `settings`.

        Raises InputError that names a wrong setting and `source`, where the settings were given.

        >>> from megatron_longrope.rope import Yarn
        >>> Yarn.from_scale(8, {"beta_fast": 16}).beta_fast
        16.0
        """
        values = dict(settings or {})
        if cls.scale_setting is not None:
            values[cls.scale_setting] = scale
        return build_config(cls, values, source or f"method {cls.name}")

    @classmethod
    def from_hf(cls, reading: HfReading) -> Self:
        """Returns the method that a Hugging Face config describes; raises InputError.

        By default every key is the setting of the same name, and `factor` is the scale. It is
        called only where `hf` is set, and only with keys that `hf` lists.
        """
        assert cls.hf is not None, cls.name
        values = reading.pick(*cls.hf.keys - {"factor", ORIGINAL_KEY})
        if cls.scale_setting is not None:
            values[cls.scale_setting] = reading.factor
        return build_config(cls, values, f"the HF config's {cls.hf.name}")

    def to_hf(self, geometry: RopeGeometry) -> dict[str, Any] | None:
        """Returns the method as `rope_parameters` without rope_theta, None where `hf` is None.

        `from_hf` reads the same method back. Searched factors are written by `hf_rope_config`.
        """
        if self.hf is None:
            return None
        settings = self.model_dump(exclude_none=True)
        if self.scale_setting is not None:
            settings["factor"] = settings.pop(self.scale_setting)
        if self.hf.has_window:
            settings[ORIGINAL_KEY] = geometry.original_length
        return {"rope_type": self.hf.name, **settings}

    def make_factors(
        self,
        geometry: RopeGeometry,
        rescale: tuple[float, ...],
        target_length: int,
        attention_factor: float = 1.0,
        hf_inverse_frequencies: tuple[float, ...] | None = None,
    ) -> RopeFactors:
        """Returns validated factors whose origin is this method.

        Args:
            geometry: The model's rotary base, head_dim and pretrained window.
            rescale: λ_i of each pair, [head_dim/2].
            target_length: The input length in tokens that these factors are made for.
            attention_factor: t, by which cos and sin are multiplied.
            hf_inverse_frequencies: The float32 frequencies of transformers, [head_dim/2], where its
                order of operations rounds differently from 1 / (λ_i · base^(2i/d)).
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
