"""Callbacks of the trainer: metrics, progress, checkpoints, and an orderly stop on a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from megatron_longrope.artifacts.metrics import MetricsFile, MetricsRow
from megatron_longrope.errors import InterruptedRunError
from megatron_longrope.training.trainer import StepReport, Trainer


class WriteMetrics:
    """Writes loss, learning rate, tokens, gradient norm and seconds of each step to a file.

    Once updates were skipped, their number so far too.
    The file is None on every rank but the main one.
    """

    def __init__(self, file: MetricsFile | None) -> None:
        self.file = file

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        """Writes one row of metrics."""
        if self.file is not None:
            self.file.write(
                MetricsRow(
                    stage=self.file.stage,
                    step=report.step,
                    loss=report.loss,
                    lr=report.learning_rate,
                    tokens=trainer.state.tokens,
                    grad_norm=report.gradient_norm,
                    seconds=report.seconds,
                    skipped=report.skipped or None,
                )
            )


class ReportProgress:
    """Calls `show(done, total, message)` every `log_every` steps and after the last."""

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self.show = show
        self._tokens, self._seconds = 0, 0.0

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        """Shows loss, rate and speed since the last time, where it is time to."""
        self._tokens += report.tokens
        self._seconds += report.seconds
        if report.step % trainer.config.log_every and report.step != trainer.config.steps:
            return
        rate = self._tokens / self._seconds
        message = f"loss {report.loss:.4f}  lr {report.learning_rate:.2e}  {rate:,.0f} tokens/s"
        if report.skipped:
            message += f"  {report.skipped} without update: gradient not finite"
        self.show(report.step, trainer.config.steps, message)
        self._tokens, self._seconds = 0, 0.0


class SaveCheckpoints:
    """Calls `save(trainer)` every `checkpoint_every` steps and after the last."""

    def __init__(self, save: Callable[[Trainer], None]) -> None:
        self.save = save

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        """Saves where it is time to."""
        if (
            report.step % trainer.config.checkpoint_every == 0
            or report.step == trainer.config.steps
        ):
            self.save(trainer)


class StopOnSignal:
    """Saves a checkpoint and stops after the current step where SIGTERM or SIGUSR1 arrives.

    SIGUSR1 is Slurm's warning before its time limit. All ranks stop after the same step, whichever
    of them got the signal. This holds within its `with` block only; outside, signals do what they
    did before. A signal that came after the last step is sent again at the end of the block.
    """

    def __init__(self, save: Callable[[Trainer], None]) -> None:
        self.save = save
        self._asked: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        # Python lets only the main thread set signal handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._ask)
                for number in (signal.SIGTERM, signal.SIGUSR1)
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self._asked is not None:
            signal.raise_signal(self._asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
        """Saves and raises InterruptedRunError where any rank got a signal."""
        # Asked on every rank after every step, or a rank would save while others wait in a step.
        if not any(trainer.model.runtime.gather(self._asked is not None)):
            return
        self.save(trainer)
        raise InterruptedRunError(
            f"stopped on a signal after step {report.step}; run the same command again to go on"
        )
