"""Passkey retrieval: a number that stands once in filler text and is asked for at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, PositiveInt

from megatron_longrope.artifacts.results import EvaluationRows, of_the_product
from megatron_longrope.artifacts.rows import RetrievalRow
from megatron_longrope.artifacts.summaries import Check
from megatron_longrope.config import format_length
from megatron_longrope.evaluation.tasks.base import TASKS
from megatron_longrope.evaluation.tasks.retrieval import RetrievalSettings, RetrievalTask

if TYPE_CHECKING:
    from megatron_longrope.data import PasskeyDocument
    from megatron_longrope.data.passkey import Encoder

INSIDE, BEYOND, EXTENDED = 0.95, 0.10, 0.90
"""Bounds for shares of keys found: at least INSIDE by the base model inside its window, at most
BEYOND from twice its window on, and at least EXTENDED by the extended model, as exported where it
is, at every length."""
_DEPTH_DIGITS = 6
"""Depths that are equal to so many decimal places are one depth: `trial_seed` rounds so as well."""


def _none_twice(depths: tuple[float, ...]) -> tuple[float, ...]:
    rounded = tuple(round(depth, _DEPTH_DIGITS) for depth in depths)
    if len(set(rounded)) < len(rounded):
        raise ValueError("numbers between 0 and 1, none of them twice")
    return rounded


class PasskeySettings(RetrievalSettings):
    """The settings of passkey retrieval."""

    depths: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...],
        Field(min_length=1),
        AfterValidator(_none_twice),
    ] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0),
        description="Where in the text the key stands: 0 at the start … 1 at the end.",
    )
    key_digits: PositiveInt = Field(default=5, description="Digits of each key.")


class Passkey(RetrievalTask[PasskeySettings]):
    """Count how often a model finds a number hidden in filler text.

    The number stands once, at some depth, and is asked for at the end. All digits must be right.
    Documents are generated with the model's tokenizer.
    """

    name = "passkey"
    title = "Passkey retrieval"
    settings_kind = PasskeySettings

    def depths(self, settings: PasskeySettings) -> Sequence[float]:
        """Returns the depths at which keys are hidden."""
        return settings.depths

    def document(
        self,
        tokenizer: Encoder,
        length: int,
        depth: float | None,
        seed: int,
        settings: PasskeySettings,
        prefix: Sequence[int],
    ) -> PasskeyDocument:
        """Returns repeated filler sentences with one key at `depth`.

        Args:
            tokenizer: Encodes the text.
            length: Tokens of the whole document.
            depth: Where the key stands: 0 at the start, 1 at the end.
            seed: What the key depends on.
            settings: The number of digits.
            prefix: Token ids that the document begins with.
        """
        from megatron_longrope.data import passkey_document

        assert depth is not None
        digits = settings.key_digits
        return passkey_document(tokenizer, length, depth, seed, key_digits=digits, prefix=prefix)

    def checks(self, rows: EvaluationRows, window: int) -> list[Check]:
        """Returns checks of the keys found by the base model and by the extended one.

        The base must find them inside its window, or the task says nothing about this model, and
        must not from twice its window on, or there is nothing to extend.
        """
        own = [row for row in rows.retrieval if row.task == self.name]
        base = _accuracies(row for row in own if row.model == "base")
        product = of_the_product(own)
        extended = _accuracies(product)
        inside = [share for length, share in base.items() if length <= window]
        beyond = [share for length, share in base.items() if length >= 2 * window]
        checks = []
        if inside:
            text, found = "passkeys found by the base inside its window", min(inside)
            checks.append(
                Check.of("base-passkeys-inside", text, found, INSIDE, met=found >= INSIDE)
            )
        if beyond:
            text, found = "passkeys found by the base from twice its window on", max(beyond)
            checks.append(
                Check.of("base-passkeys-beyond", text, found, BEYOND, met=found <= BEYOND)
            )
        if extended:
            worst = min(extended, key=lambda length: extended[length])
            which = next(row.model for row in product if row.length == worst)
            text = f"passkeys found by the {which} model, worst length ({format_length(worst)})"
            found = extended[worst]
            checks.append(Check.of("passkeys", text, found, EXTENDED, met=found >= EXTENDED))
        return checks


def _accuracies(rows: Iterable[RetrievalRow]) -> dict[int, float]:
    """Returns the share of keys found at each length, over all depths."""
    found: dict[int, tuple[int, int]] = {}
    for row in rows:
        correct, trials = found.get(row.length, (0, 0))
        found[row.length] = (correct + row.correct, trials + row.trials)
    return {length: correct / trials for length, (correct, trials) in found.items()}


TASKS.register(Passkey.name, Passkey())
