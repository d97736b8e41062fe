"""The three searches of the method: for a first length, for a further one on the tuned model, for
short inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_longrope.artifacts.cost import SearchCost
from megatron_longrope.artifacts.run_directory import RunDirectory
from megatron_longrope.data import TextTokenizer, classic_filler, passkey_document
from megatron_longrope.errors import InputError
from megatron_longrope.evaluation import (
    ComparedMethod,
    EvaluationDocument,
    ObjectivePart,
    PerplexityObjective,
    Tokens,
    baseline_methods,
    factors_of,
)
from megatron_longrope.model import LongRopeModel, ModelShape
from megatron_longrope.model.fingerprint import model_identity
from megatron_longrope.pipeline.main_rank import on_main
from megatron_longrope.pipeline.recipe import SearchConfig, SearchStage, StartName
from megatron_longrope.rope import (
    FactorOrigin,
    FactorSet,
    NoScaling,
    NtkAware,
    PositionInterpolation,
    RopeFactors,
    RopeGeometry,
    Yarn,
    longrope_attention_factor,
    write_factors,
)
from megatron_longrope.runtime import Runtime
from megatron_longrope.search import (
    PAPER_START_TOKENS,
    SEARCHED_ATTENTION_FACTORS,
    Candidate,
    CriticalSpace,
    Journal,
    JournalEntry,
    MemoryJournal,
    Record,
    SearchOutcome,
    SearchProgress,
    SearchSpace,
    grid,
    make_searcher,
    run_search,
    theoretical_critical_pair,
)
from megatron_longrope.search.space import Choices

STARTS: dict[StartName, type[PositionInterpolation | NtkAware | Yarn]] = {
    "pi": PositionInterpolation,
    "ntk": NtkAware,
    "yarn": Yarn,
}
_SHARPEST = 1.4
"""Times the fine-tuned temperature, in a second search."""
_ABOVE_YARN = 1.05
"""Times YaRN's own temperature at least, where a first search's temperatures end: from 13 times the
window on it is more than 1.3, and a bound that the best candidates lean on is no bound to search
in."""
PASS_TOKENS = 2048
"""Documents share a pass up to so many; longer ones go alone. Passes are what data-parallel groups
share out and what candidates are stopped between, so there must be several."""
Show = Callable[[SearchProgress], None]


@dataclass(frozen=True)
class SearchProblem:
    """Where a search runs, where it starts, and what its result is compared with."""

    name: str
    length: int
    space: SearchSpace
    seeds: tuple[Candidate, ...]
    baselines: tuple[ComparedMethod, ...]
    """Each with its own temperature."""


def search_name(
    length: int, config: SearchConfig, kind: Literal["search", "recover"] = "search"
) -> str:
    """Returns what journal and factors are called: `search-4096` of the default searcher,
    `search-4096-evolution` of another, so that several may search in one directory.
    """
    is_default = config.searcher == SearchConfig.model_fields["searcher"].default
    return f"{kind}-{length}" if is_default else f"{kind}-{length}-{config.searcher}"


def first_search(config: SearchConfig, geometry: RopeGeometry, length: int) -> SearchProblem:
    """Returns the search of a pretrained model for `length` tokens: from its `starts`, λ up to
    1.25·s. Raises InputError for settings that have no meaning there.
    """
    _refuse_mistakes(config, "first", length)
    scale = length / geometry.original_length
    choices = _choices(config, scale, geometry, tuned=None)
    num_pairs = geometry.head_dim // 2
    if config.space == "longrope2":
        critical_pair = config.critical_pair or theoretical_critical_pair(
            geometry.head_dim, geometry.base, geometry.original_length
        )
        space: SearchSpace = CriticalSpace.extension(num_pairs, scale, critical_pair, **choices)
    else:
        space = SearchSpace.first_stage(num_pairs, scale, **choices)
    starts = [STARTS[name](scale=scale).factors(geometry) for name in config.starts]
    seeds = _with_temperatures(
        starts, choices["attention_factors"], [longrope_attention_factor_of(scale, geometry)]
    )
    return SearchProblem(
        search_name(length, config), length, space, seeds, tuple(baseline_methods(geometry, length))
    )


def second_search(
    config: SearchConfig, geometry: RopeGeometry, length: int, tuned: RopeFactors
) -> SearchProblem:
    """Returns the search of a fine-tuned model for a further length: λ from λ_ft on, from λ_ft
    times its `starts`.

    Raises InputError for settings that have no meaning there, and for factors of another model.
    """
    _refuse_mistakes(config, "second", length)
    for name in ("base", "head_dim", "original_length"):
        ours, theirs = getattr(geometry, name), getattr(tuned, name)
        if ours != theirs:
            raise InputError(f"fine-tuned factors: {name}", theirs, f"the model's is {ours}")
    scale = length / geometry.original_length
    choices = _choices(config, scale, geometry, tuned, above=True)
    space = SearchSpace.second_stage(tuned.rescale, scale, **choices)
    starts = [second_interpolation(name, tuned, length) for name in config.starts]
    sharper = [times * tuned.attention_factor for times in config.sharper_starts]
    seeds = _with_temperatures(starts, choices["attention_factors"], sharper)
    baselines = [
        ComparedMethod.fixed("fine-tuned", FactorSet.single(tuned)),
        *(
            ComparedMethod.fixed(
                f"fine-tuned · {name}", FactorSet.single(second_interpolation(name, tuned, length))
            )
            for name in STARTS
        ),
    ]
    return SearchProblem(search_name(length, config), length, space, seeds, tuple(baselines))


def recovery_search(
    config: SearchConfig,
    geometry: RopeGeometry,
    length: int,
    tuned: RopeFactors,
    upper: float | None,
) -> SearchProblem:
    """Returns the search for short inputs: λ from 1.0 to `upper`, from no scaling and from the
    tuned factors. Raises InputError for settings that have no meaning there.
    """
    _refuse_mistakes(config, "recovery", length)
    scale = max(1.0, length / geometry.original_length)
    choices = _choices(config, scale, geometry, tuned)
    space = SearchSpace.recovery(tuned.rescale, upper, **choices)
    halfway = tuned.model_copy(update={"rescale": tuple(value**0.5 for value in tuned.rescale)})
    starts = [tuned, halfway, NoScaling().factors(geometry)]
    seeds = _with_temperatures(starts, choices["attention_factors"], [tuned.attention_factor])
    baselines = (
        ComparedMethod.fixed("none", FactorSet.single(NoScaling().factors(geometry))),
        ComparedMethod.fixed("fine-tuned", FactorSet.single(tuned)),
    )
    return SearchProblem(search_name(length, config, "recover"), length, space, seeds, baselines)


def second_interpolation(method: StartName, tuned: RopeFactors, length: int) -> RopeFactors:
    """Returns λ_ft times the factors of pi, ntk or yarn for length / fine-tuned length, and t_ft
    times yarn's t.

    YaRN's ramp stays at the pretrained window: at the fine-tuned length it would interpolate almost
    nothing (on the demonstration model perplexity 90 against 32).
    """
    inner = RopeGeometry(
        base=tuned.base, head_dim=tuned.head_dim, original_length=tuned.original_length
    )
    scale = length / tuned.target_length
    factors = STARTS[method](scale=scale).factors(inner)
    return RopeFactors(
        rescale=tuple(a * b for a, b in zip(tuned.rescale, factors.rescale, strict=True)),
        start_tokens=tuned.start_tokens,
        attention_factor=tuned.attention_factor * factors.attention_factor,
        original_length=tuned.original_length,
        target_length=length,
        base=tuned.base,
        head_dim=tuned.head_dim,
        origin=FactorOrigin(method=method, source="on top of the fine-tuned factors"),
    )


def longrope_attention_factor_of(scale: float, geometry: RopeGeometry) -> float:
    """Returns √(1 + ln s / ln L), Microsoft's and Hugging Face's fixed temperature."""
    return longrope_attention_factor(scale, geometry.original_length)


def search_objective(
    model: LongRopeModel,
    documents: Sequence[EvaluationDocument],
    tokenizer: TextTokenizer,
    config: SearchConfig,
    length: int,
) -> PerplexityObjective:
    """Returns what candidates are scored by: documents at `length`, and where asked for at other
    lengths and the answers of passkeys.
    """
    chosen = documents[: config.num_documents]
    parts = [
        ObjectivePart.last_part(
            _stretches(chosen, length, config.windows_per_document), config.last_fraction
        )
    ]
    for other, weight in config.mixture.items():
        stretches = _stretches(chosen, other, config.windows_per_document)
        parts.append(ObjectivePart.last_part(stretches, config.last_fraction, weight))
    if config.retrieval_documents:
        filler = classic_filler(tokenizer)
        keys = [
            passkey_document(
                tokenizer,
                length,
                number / config.retrieval_documents,
                config.seed * 1000 + number,
                filler,
            )
            for number in range(config.retrieval_documents)
        ]
        parts.append(ObjectivePart.answers(keys, config.retrieval_weight))
    rungs = config.early_stopping.ladder if config.early_stopping else ()
    ladder = [[document.prefix(rung) for document in chosen] for rung in rungs]
    return PerplexityObjective(
        model, parts, target_length=length, max_batch_tokens=max(length, PASS_TOKENS), ladder=ladder
    )


def _stretches(documents: Sequence[EvaluationDocument], length: int, count: int) -> list[Tokens]:
    """`count` consecutive stretches of `length` tokens of each document, from its beginning on."""
    return [
        document.prefix(length * count)[start : start + length]
        for document in documents
        for start in range(0, length * count, length)
    ]


def search_factors(
    problem: SearchProblem,
    objective: PerplexityObjective,
    config: SearchConfig,
    directory: RunDirectory,
    documents_sha256: str,
    show: Show | None = None,
) -> tuple[RopeFactors, SearchOutcome]:
    """Runs a search to its end, from its journal where there is one, and writes the best factors
    down."""
    runtime, geometry = objective.model.runtime, objective.model.geometry
    searcher = make_searcher(
        config,
        problem.space,
        problem.seeds,
        config.seed,
        length=problem.length,
        scale=problem.length / geometry.original_length,
        num_documents=objective.num_documents,
    )
    stopping = config.early_stopping
    judged_by = {
        **judged_on(objective, documents_sha256),
        "early_stopping": stopping and stopping.model_dump(mode="json"),
    }
    with shared_journal(
        runtime, directory.journal(problem.name), searcher.identity(), judged_by
    ) as journal:
        outcome = run_search(
            searcher, objective.stream, journal, stopping=stopping, on_progress=show
        )
    origin = FactorOrigin(
        method="longrope", data=documents_sha256[:16], score=outcome.evaluation.loss
    )
    factors = factors_of(outcome.best, objective.model.geometry, problem.length, origin)
    if runtime.is_main:
        write_factors(directory.factors(problem.name), factors)
    runtime.barrier()
    return factors, outcome


def judged_on(objective: PerplexityObjective, documents_sha256: str) -> dict[str, Any]:
    """Returns JSON values that change whenever evaluations would: of documents, what counts, and
    model. All ranks come here together.
    """
    model = model_identity(objective.model)
    return {**objective.identity(), "documents_sha256": documents_sha256, "model": model}


@contextmanager
def shared_journal(
    runtime: Runtime, path: Path, identity: dict[str, Any], judged_by: dict[str, Any]
) -> Iterator[Record]:
    """Opens a journal on all ranks: the file on the main one, what it held on the others. Raises
    InputError on all."""
    opened: list[Journal] = []

    def entries() -> Any:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "journals", path.parent, f"cannot be made: {error.strerror}"
            ) from error
        opened.append(Journal.open(path, identity, judged_by))
        return opened[0].entries

    found = on_main(runtime, entries)
    if not opened:
        yield MemoryJournal(found)
        return
    with opened[0] as journal:
        yield journal


def search_cost(entries: Sequence[JournalEntry], shape: ModelShape, length: int) -> SearchCost:
    """Returns what evaluations on inputs of `length` tokens took on a model of this shape."""
    return SearchCost.of(entries, shape.forward_flops(length) / length)


def _choices(
    config: SearchConfig,
    scale: float,
    geometry: RopeGeometry,
    tuned: RopeFactors | None,
    above: bool = False,
) -> Choices:
    """`above`: temperatures start at the fine-tuned one (at the first 0.01 from there on), since
    attention over more tokens must be sharper still.
    """
    inherited = (
        tuned.attention_factor
        if tuned is not None
        else longrope_attention_factor_of(scale, geometry)
    )
    temperatures: dict[str, tuple[float, ...]] = {
        "searched": grid(inherited, _SHARPEST * inherited, 0.01)
        if above
        else _grid_from_one(scale, geometry),
        "inherited": (inherited,),
        "fixed": (longrope_attention_factor_of(scale, geometry),),
        "one": (1.0,),
    }
    return {
        "attention_factors": temperatures[config.attention_factor],
        "start_tokens": PAPER_START_TOKENS if config.search_start_tokens else (0,),
    }


def _grid_from_one(scale: float, geometry: RopeGeometry) -> tuple[float, ...]:
    of_yarn = Yarn(scale=scale).factors(geometry).attention_factor
    return grid(1.0, max(SEARCHED_ATTENTION_FACTORS[-1], _ABOVE_YARN * of_yarn), 0.01)


def _refuse_mistakes(config: SearchConfig, stage: SearchStage, length: int) -> None:
    mistake = config.mistake(stage, length)
    if mistake is not None:
        raise InputError(*mistake)


def _with_temperatures(
    starts: Sequence[RopeFactors], allowed: tuple[float, ...], others: Sequence[float]
) -> tuple[Candidate, ...]:
    """Each start with its own temperature and, where that is free, once more with each of
    `others`."""
    own = [
        Candidate(factors.rescale, factors.start_tokens, factors.attention_factor)
        for factors in starts
    ]
    if len(allowed) == 1:
        return tuple(own)
    return (*own, *(replace(each, attention_factor=other) for other in others for each in own))
