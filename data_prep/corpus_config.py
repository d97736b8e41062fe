"""What a recipe says about where the documents of a run come from."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator

from megatron_longrope.config import StrictConfig

JudgedOn = Literal["test", "development"]


class CorpusConfig(StrictConfig):
    """Where the documents of a run come from; one of three sources is given."""

    standard_library: bool = False
    """The running Python's standard library, as this project divides it."""
    judged_on: JudgedOn = "test"
    """What judges a run on the standard library: `test`, modules of packages this project requires,
    for what is published, or `development`, modules of the library that recipes are compared on.
    Nothing else is measured on test documents, so that no recipe is chosen by them."""
    documents: tuple[str, ...] = ()
    """One list of text files, divided by length: of the documents that reach the target length, the
    first `num_search` are searched on and the next `num_evaluation` are measured on, in the order
    given. All others are trained on."""
    train: tuple[str, ...] = ()
    """Text files to train on; `search` and `evaluation` are given together with it."""
    search: tuple[str, ...] = ()
    """Text files to search on."""
    evaluation: tuple[str, ...] = ()
    """Text files to measure on."""
    num_search: PositiveInt = 5
    num_evaluation: PositiveInt = 3

    @model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        listed = bool(self.train or self.search or self.evaluation)
        if [self.standard_library, bool(self.documents), listed].count(True) != 1:
            raise ValueError(
                "give one of standard_library, documents, or the three lists train, search, "
                "evaluation"
            )
        if listed and not (self.train and self.search and self.evaluation):
            raise ValueError("train, search and evaluation are given together")
        if self.judged_on == "development" and not self.standard_library:
            raise ValueError("judged_on: development is for standard_library: true")
        return self
