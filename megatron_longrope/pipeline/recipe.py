"""The recipe of an extension run: model, documents, the steps of the method, and measurements.

The classes here are the schema of a recipe's YAML file: their fields are its keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from data_prep.corpus_config import CorpusConfig
from megatron_longrope.config import Length, StrictConfig, format_length
from megatron_longrope.errors import InputError
from megatron_longrope.model.engine.settings import BackendSettings, Recompute
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.rope import AnglePrecision
from megatron_longrope.rope.methods.uses import (
    SearchStart,
    default_search_starts,
    second_interpolations,
    stops_pairs,
)
from megatron_longrope.runtime import ParallelLayout
from megatron_longrope.search import EarlyStopping, SearcherChoice, SearchStage, SpaceName
from megatron_longrope.training import TrainingConfig

ShortInputs = Literal["extended", "pretrained", "unscaled"]
DtypeName = Literal["float32", "bfloat16"]


class RetrievalConfig(StrictConfig):
    """Generated retrieval documents mixed into the training rows: passkeys and key–value lists."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of all training tokens that are of generated documents."""
    min_length: Length = 64
    max_length: Length = 256
    """Generated documents have `min_length` to `max_length` tokens."""
    key_value_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the generated documents that are key–value lists."""
    copy_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the generated documents that repeat a random passage; the rest hides passkeys."""
    text_filler_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the passkey documents whose filler is text that is trained on."""
    longest_key: int = Field(default=5, ge=5)
    """Passkeys have 5 digits up to this many. In long keys a digit repeats, and to go on after one
    that stands twice in the key a model has to look further back than one digit, which is where
    small models fail."""

    @model_validator(mode="after")
    def _consistent(self) -> RetrievalConfig:
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length={self.min_length} must not exceed max_length={self.max_length}"
            )
        if self.key_value_share + self.copy_share > 1:
            raise ValueError("key_value_share and copy_share together must not exceed 1")
        return self


class TrainingDataConfig(StrictConfig):
    """How training rows are made: pieces of text and retrieval documents, packed into rows."""

    sequence_length: Length
    """Tokens of a row."""
    piece_length: Length | None = None
    """Most tokens of one document in a row; by default the whole row."""
    short_piece_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the text that is cut into pieces of the pretrained window instead, so that short
    inputs stay trained."""
    retrieval: RetrievalConfig = RetrievalConfig()

    @property
    def longest_piece(self) -> int:
        """Most tokens of one document in a row."""
        return self.piece_length or self.sequence_length


class SearchConfig(StrictConfig):
    """One search: by which searcher, on which documents, and what is searched."""

    searcher: SearcherChoice = SearcherChoice()
    """The name of a searcher, or `{name: …}` with settings of that searcher beside its name."""
    num_documents: PositiveInt = 5
    """Number of documents searched on; all, where there are fewer."""
    windows_per_document: PositiveInt = 1
    """Consecutive stretches of the searched length taken from each document: short lengths need
    more than one."""
    last_fraction: float = Field(default=1.0, gt=0, le=1)
    """The part at the end of each document whose predictions count."""
    mixture: dict[Length, PositiveFloat] = Field(default_factory=dict)
    """Further lengths and their weights, where the searched length has weight 1: the first tokens
    of the same documents count at these lengths too, so that one factor set serves a range."""
    retrieval_documents: NonNegativeInt = 0
    """Number of passkey documents of the searched length whose answers count as well, after the
    needle-driven perplexity of LongRoPE2 (arXiv 2502.20082)."""
    retrieval_weight: PositiveFloat = 0.5
    attention_factor: Literal["searched", "inherited", "fixed", "one"] | PositiveFloat = "searched"
    """Which attention factors candidates may have. `searched`: from 1.0 to 1.3 or to 1.05 times
    YaRN's, whichever is more; beyond a fine-tuned length, from 1.0 to 1.4 times the fine-tuned one;
    in both cases as far as those of the starts. `inherited`: that of the fine-tuned factors, in a
    recovery that of the longest inputs. `fixed`: √(1 + ln s / ln L), in a recovery with the s of
    the extended length. `one`: 1. A number: that, such as the one of a further target whose factors
    the weights are to be trained for."""
    search_start_tokens: bool = False
    """Whether n̂ is searched; otherwise it is 0."""
    starts: tuple[SearchStart, ...] = Field(default_factory=default_search_starts, min_length=1)
    """The scaling methods that the search of an extension starts from, each with its own attention
    factor and with a second one. A recovery has starts of its own."""
    sharper_starts: tuple[PositiveFloat, ...] = (1.2,)
    """Beyond a fine-tuned length, those second attention factors over the fine-tuned one."""
    space: SpaceName = "longrope"
    """`longrope`: λ up to 1.25·s. `longrope2` (arXiv 2502.20082): λ from s to 2s from the critical
    pair on, a closed form below it; for a first extension. `open`: λ up to where a pair stands
    still, as a start such as `cope` needs it; for extensions."""
    critical_pair: PositiveInt | None = None
    """For `longrope2`: the number of the critical pair; by default what theory says."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """When candidates are stopped early; `null`: each candidate is scored on all documents."""
    seed: NonNegativeInt = 1

    @model_validator(mode="after")
    def _critical_pair_is_of_longrope2(self) -> SearchConfig:
        if self.critical_pair is not None and self.space != "longrope2":
            raise ValueError("critical_pair belongs to space: longrope2")
        return self

    @model_validator(mode="after")
    def _searcher_can_do_it(self) -> SearchConfig:
        name, kind = self.searcher.name, self.searcher.kind
        if self.search_start_tokens and not kind.searches_start_tokens:
            raise ValueError(
                f"search_start_tokens: searcher {name} keeps n̂ as its best start has it"
            )
        if self.space in kind.unfit_spaces:
            raise ValueError(f"searcher: {name} {kind.unfit_spaces[self.space]}")
        return self

    def mistake(self, stage: SearchStage, length: int) -> tuple[str, str, str] | None:
        """Returns field, value and rule of a setting that has no meaning in `stage` at `length`.

        Returns None where all settings have.
        """
        ladder = self.early_stopping.ladder if self.early_stopping else ()
        if ladder and ladder[-1] >= length:
            rule = f"rungs are shorter than the {format_length(length)} searched"
            return "search.early_stopping.ladder", format_length(ladder[-1]), rule
        if stage != "first" and self.space == "longrope2":
            return "search.space", self.space, "is for the first extension of a pretrained model"
        if stage == "recovery" and self.space == "open":
            return "search.space", self.space, "is for extensions: a recovery has its own `upper`"
        standing = [name for name in self.starts if stops_pairs(name)]
        if standing and self.space != "open":
            rule = "slows pairs to a standstill, which is in search.space=open alone"
            return "search.starts", standing[0], rule
        if stage == "first" and self.attention_factor == "inherited":
            return (
                "search.attention_factor",
                "inherited",
                "nothing is fine-tuned yet: searched, fixed or one",
            )
        if (
            stage != "second"
            and self.sharper_starts != type(self).model_fields["sharper_starts"].default
        ):
            return (
                "search.sharper_starts",
                str(list(self.sharper_starts)),
                "is for searches beyond a fine-tuned length",
            )
        on_tuned = second_interpolations()
        first_only = [name for name in self.starts if name not in on_tuned]
        if stage == "second" and first_only:
            rule = f"does not go on top of fine-tuned factors: one of {', '.join(on_tuned)}"
            return "search.starts", first_only[0], rule
        reason = self.searcher.kind.unfit_stages.get(stage)
        return ("search.searcher", self.searcher.name, reason) if reason else None


class FineTuneConfig(StrictConfig):
    """One fine-tuning at the length of a step, under its searched factors."""

    training: TrainingConfig
    data: TrainingDataConfig
    short_inputs: ShortInputs = "extended"
    """The factors that pieces within the pretrained window are trained under. `extended`: the
    searched ones, as all (LongRoPE). In rows of their own (LongRoPE2's mixed windows, arXiv
    2502.20082): `pretrained`, those the model arrived with, mostly none at all; `unscaled`, the
    same λ, mostly 1, with the searched temperature, which Hugging Face's format can carry beside
    the long set if later steps inherit it."""
    merge: float = Field(default=1.0, gt=0, le=1)
    """Of the way from the weights before to the trained ones. Below 1 short inputs lose less
    (WiSE-FT, arXiv 2109.01903); what it costs the long context, if anything, `longrope eval` tells.
    """
    control: bool = False
    """Also train the pretrained model for the same steps and tokens at its own window, to compare
    with."""


class ExtensionStep(StrictConfig):
    """A search for one length, and fine-tuning with what it found; without fine-tuning, a second
    interpolation."""

    length: Length
    search: SearchConfig
    fine_tune: FineTuneConfig | None = None


class RecoveryStep(StrictConfig):
    """A search on the extended model for inputs up to `length`, with smaller λ allowed."""

    length: Length
    search: SearchConfig
    """As of an extension; `attention_factor` is `inherited` where it is not given."""
    upper: PositiveFloat | None = None

    @field_validator("search", mode="before")
    @classmethod
    def _inherits_unless_said(cls, search: object) -> object:
        """Fills in the attention factor of the longest inputs, which an export shares."""
        if isinstance(search, Mapping):
            return {"attention_factor": "inherited", **search}
        return search

    @model_validator(mode="after")
    def _starts_are_of_extensions(self) -> RecoveryStep:
        if self.search.starts != default_search_starts():
            raise ValueError(
                "search.starts: a recovery starts from the fine-tuned factors, from halfway and "
                "from none"
            )
        return self


class Recipe(StrictConfig):
    """The whole of one run."""

    name: str
    model: str
    """An HF folder, or `preset:NAME` for a model that comes with the package."""
    corpus: CorpusConfig
    extension: tuple[ExtensionStep, ...] = Field(min_length=1)
    recovery: tuple[RecoveryStep, ...] = ()
    evaluation: EvaluationConfig
    parallel: ParallelLayout = ParallelLayout()
    backend: BackendSettings = BackendSettings()
    """FP8 in it concerns training alone, unless `fp8_scoring` is set."""
    recompute: Recompute = "none"
    """Activations computed again in the backward pass instead of kept: none, attention's
    (selective) or all (full)."""
    offload: bool = False
    """With recompute=full: keep each layer's input in host memory between the passes."""
    dtype: DtypeName = "float32"
    angle_precision: AnglePrecision = "float64"
    seed: NonNegativeInt = 1234
    export: bool = True

    @model_validator(mode="after")
    def _offload_of_recomputed(self) -> Recipe:
        if self.offload and self.recompute != "full":
            raise ValueError(
                "offload moves the inputs of recomputed layers: recompute=full, not "
                f"{self.recompute}"
            )
        return self

    @model_validator(mode="after")
    def _searches_fit_their_stages(self) -> Recipe:
        for place, length, search, stages in self._searches():
            found = (search.mistake(stage, length) for stage in stages)
            mistakes = [mistake for mistake in found if mistake is not None]
            if len(mistakes) == len(stages):  # whatever the model arrives with
                field, value, rule = mistakes[0]
                raise ValueError(f"{place}.{field}: {value} {rule}")
            if self.angle_precision == "hf" and search.searcher.needs_gradients(length):
                raise ValueError(
                    f"angle_precision: hf has no gradients, which {place}.search "
                    f"({search.searcher.name}) needs"
                )
        return self

    def check_searches(self, *, arrives_scaled: bool) -> None:
        """Raises InputError for a search whose settings have no meaning in its stage.

        On a model that arrives with scaling of its own the first searches build on that, as
        searches beyond a fine-tuned length do.
        """
        for place, length, search, stages in self._searches():
            stage: SearchStage = "second" if arrives_scaled and "second" in stages else stages[0]
            mistake = search.mistake(stage, length)
            if mistake is not None:
                field, value, rule = mistake
                raise InputError(f"{place}.{field}", value, rule)

    def _searches(self) -> Iterator[tuple[str, int, SearchConfig, tuple[SearchStage, ...]]]:
        """Yields place, length, settings and possible stages of each search.

        Where there are two stages, it depends on the model which of them the search is.
        """
        tunes = any(step.fine_tune is not None for step in self.extension)
        for number, step in enumerate(self.extension):
            builds_on_training = tunes and step.fine_tune is None
            stages: tuple[SearchStage, ...] = (
                ("second",) if builds_on_training else ("first", "second")
            )
            yield f"extension.{number}", step.length, step.search, stages
        for number, recovery in enumerate(self.recovery):
            yield f"recovery.{number}", recovery.length, recovery.search, ("recovery",)

    @model_validator(mode="after")
    def _ascending(self) -> Recipe:
        lengths = [step.length for step in self.extension]
        if lengths != sorted(set(lengths)):
            raise ValueError(f"extension lengths must ascend, got {lengths}")
        tuned = [step.fine_tune is not None for step in self.extension]
        if tuned != sorted(tuned, reverse=True):
            raise ValueError("steps with fine_tune come before those without")
        return self

    @property
    def searches(self) -> list[tuple[str, SearchConfig, int]]:
        """Place, settings and length in tokens of each search."""
        return [(place, search, length) for place, length, search, _ in self._searches()]

    @property
    def target_length(self) -> int:
        return self.extension[-1].length
