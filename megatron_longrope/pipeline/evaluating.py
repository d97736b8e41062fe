"""Measures one model under many factor sets, for the tables of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_longrope.artifacts.rows import AttentionFactorSource, EvaluationLabels, Row
from megatron_longrope.data import TextTokenizer
from megatron_longrope.evaluation import (
    TASKS,
    EvaluationDocument,
    SlidingWindow,
    measure_perplexity,
    with_attention_factor,
)
from megatron_longrope.evaluation.tasks import TaskInputs
from megatron_longrope.model import LongRopeModel
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.searching import (
    PASS_TOKENS,
    methods_compared,
    second_interpolation,
)
from megatron_longrope.rope import FactorRange, FactorSet, OwnScaling, RopeFactors

Announce = Callable[[str], None]
SHORT_TOKENS = 4096
"""Shorter lengths are measured on stretches of so many tokens at the beginning of a document."""


@dataclass
class Measurements:
    """The rows of a run, by the name of the file in evals/ that they are written to."""

    files: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, task: str, rows: Iterable[Row]) -> None:
        """Adds a task's rows to the task's file, or to the file of their kind where it has one."""
        for row in rows:
            self.files.setdefault(row.FILE or task, []).append(row)


@dataclass(frozen=True)
class Evaluator:
    """Measures one model under many factor sets on the held-out documents."""

    model: LongRopeModel
    own: OwnScaling
    """The scaling that the model of the run arrived with."""
    name: str
    documents: Sequence[EvaluationDocument]
    tokenizer: TextTokenizer
    config: EvaluationConfig
    rows: Measurements
    announce: Announce = lambda text: None

    @property
    def window(self) -> int:
        """Longest input in tokens that the model of the run was made for as it arrived."""
        return self.own.window

    def perplexity(
        self,
        method: str,
        factors: FactorSet | RopeFactors,
        length: int,
        attention_factor: AttentionFactorSource = "own",
    ) -> None:
        """Adds a method's perplexity rows at `length` tokens, each document read in one pass."""
        self.model.set_factors(factors)
        measured = measure_perplexity(
            self.model,
            stretches(self.documents[: self.config.num_documents], length),
            length,
            EvaluationLabels(self.name, method, attention_factor),
            bucket_tokens=bucket_tokens(length, self.window),
            max_batch_tokens=PASS_TOKENS,
        )
        self.rows.add("perplexity", [*measured.rows, *measured.positions])

    def inside_own_window(self, length: int) -> None:
        """Adds rows of the model as it arrived that reads `length` tokens through its own window.

        The window slides over the document, so that the model never leaves its trained range.
        """
        self.model.set_factors(self.own.factor_set)
        sliding = SlidingWindow(self.window, self.config.sliding_stride or self.window // 4)
        labels = EvaluationLabels(self.name, self.own.label)
        documents = stretches(self.documents[: self.config.num_documents], length)
        measured = measure_perplexity(
            self.model, documents, length, labels, sliding=sliding, max_batch_tokens=PASS_TOKENS
        )
        self.rows.add("perplexity", measured.rows)

    def tasks(
        self,
        method: str,
        factors: FactorSet | RopeFactors,
        attention_factor: AttentionFactorSource = "own",
        up_to: int | None = None,
    ) -> None:
        """Adds a method's rows of all tasks in the recipe, at lengths of at most `up_to` tokens."""
        self.model.set_factors(factors)
        labels = EvaluationLabels(self.name, method, attention_factor)
        for name, settings in self.config.tasks.items():
            task = TASKS[name]
            documents = self.documents[: self.config.num_documents] if task.needs_documents else ()
            prefix = self.tokenizer.document_prefix()
            inputs = TaskInputs(self.model, self.tokenizer, documents, prefix, PASS_TOKENS)
            for length in self.config.task_lengths(name):
                if up_to is None or length <= up_to:
                    self.announce(f"{name} {self.name} {method} at {length}")
                    self.rows.add(name, task.run(inputs, length, settings, labels))

    def baselines(self, target: int, lengths: Sequence[int], searched: RopeFactors) -> None:
        """Adds the rows of all that an extension to `target` is compared with.

        The methods have their own attention factor and, at the target, the `searched` one as well.
        """
        methods = methods_compared(self.own, target, searched.attention_factor)
        for method in methods:
            source = method.attention_factor
            for length in lengths if source == "own" else [target]:
                self.announce(f"perplexity {self.name} {method.name} ({source}) at {length}")
                self.perplexity(method.name, method.factors_at(length), length, source)
        for length in lengths:
            self.perplexity("longrope", searched, length, "searched")

    def second_interpolations(self, tuned: RopeFactors, searched: RopeFactors, length: int) -> None:
        """Adds rows of the recipe's scaling methods applied on top of the fine-tuned factors.

        Each method has its own attention factor, and once more the searched one.
        """
        for method in self.config.second_interpolations:
            factors = second_interpolation(method, tuned, length)
            self.with_both_attention_factors(f"second-{method}", factors, searched)

    def with_both_attention_factors(
        self, method: str, factors: RopeFactors, searched: RopeFactors
    ) -> None:
        """Adds rows of factors at their target length, as they are and at the searched t."""
        length = factors.target_length
        self.announce(f"perplexity {self.name} {method} at {length}")
        self.perplexity(method, factors, length)
        other = with_attention_factor(FactorSet.single(factors), searched.attention_factor)
        self.perplexity(method, other, length, "searched")


def stretches(documents: Sequence[EvaluationDocument], length: int) -> list[EvaluationDocument]:
    """Returns the stretches of documents to measure `length` tokens on.

    Long lengths take the beginning of each document, short ones consecutive stretches of its first
    SHORT_TOKENS tokens: all lengths are then measured on much the same text, while the first few
    hundred tokens alone are not like the rest of a document.
    """
    return [
        EvaluationDocument(
            f"{document.name}[{start}:{start + length}]",
            document.tokens[start : start + length],
        )
        for document in documents
        for start in range(
            0, max(length, min(SHORT_TOKENS, len(document.tokens)) // length * length), length
        )
    ]


def bucket_tokens(length: int, window: int) -> int:
    """Returns the width in tokens of a bucket of positions, at most the model's own window."""
    return max(1, min(length // 8, window))


def extended_factor_set(
    steps: Sequence[RopeFactors],
    recovered: Sequence[tuple[int, RopeFactors]],
    short: Sequence[FactorRange] = (),
) -> FactorSet:
    """Returns the factor set of the extended model, which serves every input length.

    `recovered` holds (length, factors) for short inputs up to that length. `steps` are the last
    fine-tuned factors and those searched beyond them, ascending in length: each serves inputs up to
    its own length, and the last one everything longer as well. The `short` ranges, which short rows
    were trained under or the model arrived with, serve the lengths that were not recovered.
    """
    ranges: list[dict[str, Any]] = [
        {"up_to": length, "factors": factors} for length, factors in recovered
    ]
    served = max((length for length, _ in recovered), default=0)
    ranges += [
        {"up_to": entry.up_to, "factors": entry.factors}
        for entry in short
        if entry.up_to is not None and entry.up_to > served
    ]
    ranges += [{"up_to": factors.target_length, "factors": factors} for factors in steps[:-1]]
    ranges.append({"up_to": None, "factors": steps[-1]})
    return FactorSet.model_validate({"ranges": ranges})
