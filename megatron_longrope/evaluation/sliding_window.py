"""Windows that slide over a document, so that a model sees more tokens than fit its context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_longrope.config import parse_length
from megatron_longrope.errors import InputError


@dataclass(frozen=True)
class SlidingWindow:
    """Windows of `window` tokens that start every `stride` tokens, until one reaches the end.

    Each token is scored once, by the first window that holds it. In the first window its context is
    everything before it, later the window − stride to window − 1 tokens before it. Raises
    InputError unless 1 ≤ stride < window.

    >>> list(SlidingWindow(4, 2).spans(7))
    [(0, 4, 1), (2, 6, 4), (4, 7, 6)]
    """

    window: int
    """Tokens that the model sees at once."""
    stride: int
    """Tokens from the beginning of one window to the beginning of the next."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.window:
            raise InputError(
                "sliding",
                f"{self.window}:{self.stride}",
                "WINDOW:STRIDE needs 1 <= stride < window",
            )

    @classmethod
    def parse(cls, text: str) -> SlidingWindow:
        """Returns the window written WINDOW:STRIDE in tokens, as in 2k:512."""
        window, colon, stride = text.partition(":")
        if not colon:
            raise InputError("--sliding", text, "is written WINDOW:STRIDE, as in 2k:512")
        return cls(parse_length(window, "--sliding"), parse_length(stride, "--sliding"))

    def spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Yields (start, stop, new): the window tokens[start:stop] scores tokens[new:stop]."""
        new = 1  # the first token of a document is never predicted
        for start in range(0, length, self.stride):
            stop = min(start + self.window, length)
            yield start, stop, new
            new = stop
            if stop == length:
                return
