"""The tables of a run: every method against length, before and after, and further tasks."""

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
from megatron_longrope.pipeline.recipe import EvaluationConfig
from megatron_longrope.pipeline.searching import (
    PASS_TOKENS,
    methods_compared,
    second_interpolation,
)
from megatron_longrope.rope import FactorSet, OwnScaling, RopeFactors

Announce = Callable[[str], None]
SHORT_TOKENS = 4096
"""Of each document: shorter lengths are measured on consecutive stretches of so many tokens."""


@dataclass
class Measurements:
    """Rows as they come in, by the name of their evals file."""

    files: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, task: str, rows: Iterable[Row]) -> None:
        """Adds a task's rows to its file, or to the one that their kind has to itself."""
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
        """Adds a method's rows at one length, from the first token on."""
        self.model.set_factors(factors)
        measured = measure_perplexity(
            self.model,
            self._documents(length),
            length,
            EvaluationLabels(self.name, method, attention_factor),
            bucket_tokens=max(1, min(length // 8, self.window)),
            max_batch_tokens=PASS_TOKENS,
        )
        self.rows.add("perplexity", [*measured.rows, *measured.positions])

    def inside_own_window(self, length: int) -> None:
        """Adds the rows of the model as it arrived over `length` tokens, seen through a sliding
        window of its own size."""
        self.model.set_factors(self.own.factor_set)
        sliding = SlidingWindow(self.window, self.config.sliding_stride or self.window // 4)
        labels = EvaluationLabels(self.name, self.own.label)
        documents = self.documents[: self.config.num_documents]
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
        """Adds a method's rows of every task of the recipe, at lengths of at most `up_to`
        tokens."""
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
        """Adds what an extension to `target` is compared with, each with its own attention factor
        and, at the target, with the searched one."""
        methods = methods_compared(self.own, target, searched.attention_factor)
        for method in methods:
            source = method.attention_factor
            for length in lengths if source == "own" else [target]:
                self.announce(f"perplexity {self.name} {method.name} ({source}) at {length}")
                self.perplexity(method.name, method.factors_at(length), length, source)
        for length in lengths:
            self.perplexity("longrope", searched, length, "searched")

    def second_interpolations(self, tuned: RopeFactors, searched: RopeFactors, length: int) -> None:
        """Adds the config's methods on top of the fine-tuned factors, with their own attention
        factor and the searched."""
        for method in self.config.second_interpolations:
            factors = second_interpolation(method, tuned, length)
            self.announce(f"perplexity {self.name} second {method} at {length}")
            self.perplexity(f"second-{method}", factors, length)
            other = with_attention_factor(FactorSet.single(factors), searched.attention_factor)
            self.perplexity(f"second-{method}", other, length, "searched")

    def _documents(self, length: int) -> Sequence[EvaluationDocument]:
        """Consecutive stretches of `length` tokens, so that all lengths are measured on much the
        same text.

        The first few hundred tokens of a document are not like the rest of it.
        """
        return [
            EvaluationDocument(
                f"{document.name}[{start}:{start + length}]",
                document.tokens[start : start + length],
            )
            for document in self.documents[: self.config.num_documents]
            for start in range(
                0, max(length, min(SHORT_TOKENS, len(document.tokens)) // length * length), length
            )
        ]


def extended_factor_set(
    steps: Sequence[RopeFactors],
    recovered: Sequence[tuple[int, RopeFactors]],
    own: OwnScaling | None = None,
) -> FactorSet:
    """Returns what serves every input length: recovered sets up to their lengths, then each step's
    up to its own.

    `steps` are the last fine-tuned factors and those searched beyond, ascending; the last one
    serves all that is longer. A short set that the model arrived with, in `own`, goes on serving
    what was not recovered.
    """
    ranges: list[dict[str, Any]] = [
        {"up_to": length, "factors": factors} for length, factors in recovered
    ]
    served = max((length for length, _ in recovered), default=0)
    ranges += [
        {"up_to": entry.up_to, "factors": entry.factors}
        for entry in (own.short_ranges if own else ())
        if entry.up_to is not None and entry.up_to > served
    ]
    ranges += [{"up_to": factors.target_length, "factors": factors} for factors in steps[:-1]]
    ranges.append({"up_to": None, "factors": steps[-1]})
    return FactorSet.model_validate({"ranges": ranges})
