"""How a search's loss is called where it is printed: a perplexity where it is one."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_longrope.artifacts.evaluations import PartLoss


def loss_words(perplexity: float | None, score: float | None, parts: Sequence[PartLoss]) -> str:
    """Returns `perplexity 16.9034`, or of a mixture its score and each part's own number.

    >>> loss_words(16.90341, None, ())
    'perplexity 16.9034'
    >>> answers = PartLoss(name="answers", loss=0.15)
    >>> loss_words(None, 71.3, (PartLoss(name="text", loss=2.83, perplexity=16.9), answers))
    'score exp(loss) 71.3000 (text perplexity 16.9000, answers 0.1500 nats)'
    """
    if not parts:
        return "perplexity not finite" if perplexity is None else f"perplexity {perplexity:.4f}"
    value = "not finite" if score is None else f"{score:.4f}"
    return f"score exp(loss) {value} ({', '.join(part.words for part in parts)})"
