"""Progress of long work: a live line on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import click

from megatron_longrope.artifacts.evaluations import PartLoss

_SECONDS_BETWEEN_LINES = 15.0


class ProgressLines:
    """Prints stages and steps on stderr, on the main rank alone.

    On a terminal each step overwrites the one before. Elsewhere a step has a line of its own: one
    in 15 seconds at most, and always the last step of a stage.
    """

    def __init__(self, is_main: bool) -> None:
        self.is_main = is_main
        self.live = sys.stderr.isatty()
        self._started = time.monotonic()
        self._last_line = 0.0
        self._open_line = False

    def stage(self, text: str) -> None:
        """Prints that a stage begins, with the time since the command started."""
        self._say(f"[{self._elapsed()}] {text}", final=True)

    def step(
        self, done: int, total: int | None, message: str, eta_seconds: float | None = None
    ) -> None:
        """Prints how far a stage is: steps done, of how many (None: unknown), and the time left."""
        share = f"{done}/{total}" if total else str(done)
        eta = "" if eta_seconds is None else f"  {_clock(eta_seconds)} left"
        self._say(f"  {share}  {message}{eta}", final=total is not None and done >= total)

    def counter(self) -> Callable[[int, int, str], None]:
        """Returns a function `show(done, total, message)` that also prints the time left.

        The time left follows from the rate since its first call.
        """
        first: list[tuple[float, int]] = []

        def show(done: int, total: int, message: str) -> None:
            now = time.monotonic()
            if not first:
                first.append((now, done))
            since, begun = first[0]
            rate = (done - begun) / (now - since) if done > begun else None
            self.step(done, total, message, (total - done) / rate if rate else None)

        return show

    def bytes_counter(self) -> Callable[[int, int], None]:
        """Returns a function `show(done, total)` of bytes that also prints rate and time left."""
        first: list[tuple[float, int]] = []

        def show(done: int, total: int) -> None:
            now = time.monotonic()
            if not first:
                first.append((now, done))
            since, begun = first[0]
            rate = (done - begun) / (now - since) if now > since else 0.0
            left = f"  {_clock((total - done) / rate)} left" if rate else ""
            self._say(
                f"  {done / 1e9:.2f} of {total / 1e9:.2f} GB  {rate / 1e6:.0f} MB/s{left}",
                final=done >= total,
            )

        return show

    def _say(self, text: str, final: bool) -> None:
        if not self.is_main:
            return
        now = time.monotonic()
        if self.live:
            click.echo(f"\r\x1b[K{text}", nl=final, err=True)
        elif final or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            click.echo(text, err=True)
            self._last_line = now

    def _elapsed(self) -> str:
        return _clock(time.monotonic() - self._started)


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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
