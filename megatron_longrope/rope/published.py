"""The factor sets that Microsoft published for LongRoPE and LongRoPE2, with their sources."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from megatron_longrope.artifacts.factor_file import read_factors
from megatron_longrope.artifacts.factors import FactorOrigin, FactorSet, RopeFactors
from megatron_longrope.artifacts.geometry import RopeGeometry
from megatron_longrope.config import Length, StrictConfig
from megatron_longrope.errors import InputError
from megatron_longrope.rope.methods.longrope import longrope_attention_factor

VERSION = 1


class PublishedModel(StrictConfig):
    """A pretrained model that factors were published for, and the method that found them.

    `original_length` is the pretrained window in tokens; `source` is a key of the file's `sources`.
    """

    model: str
    method: str
    source: str
    base: float
    head_dim: int
    original_length: Length


class PublishedSet(StrictConfig):
    """Published λ for inputs of `target_length` tokens.

    `model` names the pretrained model, which was fine-tuned at `fine_tuned_length` tokens.
    """

    name: str
    model: str
    fine_tuned_length: Length
    target_length: Length
    rescale: tuple[float, ...]


class PublishedFile(StrictConfig):
    """The contents of presets/published_factors.json."""

    format: str
    version: int
    sources: dict[str, str]
    models: dict[str, PublishedModel]
    sets: tuple[PublishedSet, ...]

    def factors(self, entry: PublishedSet) -> RopeFactors:
        """Returns the factors of `entry` with the geometry of its model and their source."""
        model = self.models[entry.model]
        return RopeFactors(
            rescale=entry.rescale,
            attention_factor=_attention_factor(entry, model.original_length),
            original_length=model.original_length,
            target_length=entry.target_length,
            base=model.base,
            head_dim=model.head_dim,
            origin=FactorOrigin(
                method=model.method, model=model.model, source=self.sources[model.source]
            ),
        )


def published_sets() -> tuple[PublishedSet, ...]:
    """Returns every published set, by model, fine-tuned length and target length."""
    return _load().sets


def published_names() -> tuple[str, ...]:
    """Returns the names of all published sets, such as `llama2-7b/2048k-after-256k`."""
    return tuple(entry.name for entry in published_sets())


def published_factors(name: str) -> RopeFactors:
    """Returns the factors published under `name`; raises InputError for an unknown name.

    >>> factors = published_factors("llama2-7b/2048k-after-256k")
    >>> factors.scale, len(factors.rescale), factors.origin.method
    (512.0, 64, 'longrope')
    """
    for entry in published_sets():
        if entry.name == name:
            return _load().factors(entry)
    raise InputError("factors", name, "not a published set; `longrope factors list` shows them")


def find_factors(name_or_file: str) -> FactorSet | None:
    """Returns the published factor set of this name, or the factor set in this file.

    Returns None where it is neither, and raises InputError for a file that is damaged.
    """
    if name_or_file in published_names():
        return FactorSet.single(published_factors(name_or_file))
    return read_factors(name_or_file) if Path(name_or_file).is_file() else None


def resolve_factors(text: str, field: str, geometry: RopeGeometry | None = None) -> FactorSet:
    """Returns the published set, or the set in the factors file, that `text` names.

    Raises InputError that names `field` where it is neither, and where the set is of another
    rotary base or head_dim than `geometry`.
    """
    factor_set = find_factors(text)
    if factor_set is None:
        if Path(text).suffix == ".json" or Path(text).is_dir():
            raise InputError(field, text, "a folder" if Path(text).is_dir() else "no such file")
        rule = "neither a published set, which `longrope factors list` shows, nor a factors file"
        raise InputError(field, text, rule)
    if geometry is None:
        return factor_set
    theirs = factor_set.geometry
    if (theirs.base, theirs.head_dim) != (geometry.base, geometry.head_dim):
        rule = f"made for base {theirs.base:g} and head_dim {theirs.head_dim}"
        raise InputError(
            field, text, f"{rule}; this model has {geometry.base:g} and {geometry.head_dim}"
        )
    return factor_set


def _attention_factor(entry: PublishedSet, original_length: int) -> float:
    """Returns √(1 + ln s / ln L), where s·L is the longest length the model was made for.

    The published files hold no attention factor; Microsoft's code computes it like this. A set for
    short inputs runs a model that was fine-tuned at a longer length, with the attention factor of
    that fine-tuning, hence the longer of the two lengths.
    """
    longest = max(entry.target_length, entry.fine_tuned_length)
    return longrope_attention_factor(longest / original_length, original_length)


@cache
def _load() -> PublishedFile:
    file = files("megatron_longrope").joinpath("presets", "published_factors.json")
    published = PublishedFile.model_validate(json.loads(file.read_text(encoding="utf-8")))
    assert published.version == VERSION, published.version
    return published
