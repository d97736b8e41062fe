"""What happens between steps: metrics, progress, checkpoints, an orderly stop."""

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
    """Writes every step's loss, rate, tokens, gradient norm and seconds to a metrics file, on the
    main rank, and the number of skipped steps once there are any."""

    def __init__(self, file: MetricsFile | None) -> None:
        self.file = file

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
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
    """Calls `show(done, total, message)` every `log_every` steps and at the end."""

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self.show = show
        self._tokens, self._seconds = 0, 0.0

    def after_step(self, trainer: Trainer, report: StepReport) -> None:
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
        if (
            report.step % trainer.config.checkpoint_every == 0
            or report.step == trainer.config.steps
        ):
            self.save(trainer)


class StopOnSignal:
    """Within it SIGTERM and SIGUSR1 (Slurm's warning before its time limit) save after the step
    under way, then stop.

    All ranks agree on the step at which they stop. Outside, signals do what they did before; one
    that came too late for a step is sent again.
    """

    def __init__(self, save: Callable[[Trainer], None]) -> None:
        self.save = save
        self._asked: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
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
        if not any(trainer.model.runtime.gather(self._asked is not None)):
            return
        self.save(trainer)
        raise InterruptedRunError(
            f"stopped on a signal after step {report.step}; run the same command again to go on"
        )
