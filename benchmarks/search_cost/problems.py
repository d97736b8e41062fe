"""The search problems on which searchers are compared: the demonstration model beyond its window.

Searchers are compared at 8 and at 32 times the window. At 4 times a search is cheap enough for
many, over which early stopping is replayed. `32x` has the attention factors up to 1.3 that its
reference journal was made with, `32xwide` those of the library, up to 1.41.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from checkpoints_tools.load_any import load_model
from megatron_longrope.data import load_tokenizer
from megatron_longrope.evaluation import EvaluationDocument, PerplexityObjective, documents_sha256
from megatron_longrope.model import LongRopeModel
from megatron_longrope.pipeline.corpus import load_corpus
from megatron_longrope.pipeline.recipe import CorpusConfig, SearchConfig
from megatron_longrope.pipeline.searching import SearchProblem, first_search
from megatron_longrope.presets import model_path
from megatron_longrope.rope import RopeGeometry
from megatron_longrope.runtime import Runtime, start_runtime
from megatron_longrope.search import SEARCHED_ATTENTION_FACTORS

LENGTHS = {"4x": 1024, "8x": 2048, "32x": 8192, "32xwide": 8192}
_NUM_SEARCH = {"4x": 5, "8x": 5, "32x": 3, "32xwide": 3}
_NUM_HELD_OUT = 8


@dataclass(frozen=True)
class Bench:
    """A search problem with its model and documents, which all searchers share."""

    runtime: Runtime
    problem: SearchProblem
    """Space, seeds and length of the search."""
    search: PerplexityObjective
    """The objective on the documents searched on."""
    held_out: PerplexityObjective
    """The objective on other documents, which the results are compared on."""
    identity: dict[str, Any]
    """Identity of the objective for the headers of journals."""
    documents: list[EvaluationDocument]
    """The documents searched on."""

    @property
    def geometry(self) -> RopeGeometry:
        """The rotary geometry of the model."""
        return self.search.model.geometry

    def rung(self, length: int) -> PerplexityObjective:
        """Returns the objective on the first `length` tokens of the documents searched on."""
        texts = [document.prefix(length) for document in self.documents]
        return PerplexityObjective(
            self.search.model,
            texts,
            target_length=self.problem.length,
            max_batch_tokens=self.problem.length,
        )

    @property
    def window(self) -> int:
        """Pretrained window of the model, in tokens."""
        return self.geometry.original_length

    @property
    def scale(self) -> float:
        """Length searched for over the pretrained window."""
        return self.problem.length / self.window


@contextmanager
def open_bench(name: str, dtype: torch.dtype = torch.float32) -> Iterator[Bench]:
    """Yields the problem called `name`, on this process or under torchrun on all processes."""
    length = LENGTHS[name]
    with start_runtime(threads=1) as runtime:
        loaded = load_model(model_path("preset:demo"), runtime, dtype=dtype)
        assert loaded.tokenizer_file is not None
        tokenizer = load_tokenizer(loaded.tokenizer_file)
        corpus = load_corpus(
            CorpusConfig(standard_library=True, judged_on="development"),
            tokenizer,
            max(LENGTHS.values()),
        )
        search, held_out = corpus.search[: _NUM_SEARCH[name]], corpus.held_out[:_NUM_HELD_OUT]
        problem = first_search(SearchConfig(), loaded.model.geometry, length)
        if name == "32x":
            problem = replace(
                problem, space=replace(problem.space, attention_factors=SEARCHED_ATTENTION_FACTORS)
            )
        objective = _objective(loaded.model, search, length)
        identity = {
            **objective.identity(),
            "documents": documents_sha256(search),
            "dtype": str(dtype),
        }
        yield Bench(
            runtime,
            problem,
            objective,
            _objective(loaded.model, held_out, length),
            identity,
            search,
        )


def _objective(
    model: LongRopeModel, documents: list[EvaluationDocument], length: int
) -> PerplexityObjective:
    # one document a pass, so that costs and losses do not depend on how documents are grouped
    texts = [document.prefix(length) for document in documents]
    return PerplexityObjective(model, texts, target_length=length, max_batch_tokens=length)
