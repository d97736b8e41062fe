"""Training of one stage: the trainer, its optimizer, callbacks, checkpoints and metrics."""

from megatron_longrope.runtime import cpu_platform

cpu_platform.install()  # before the imports below bring megatron-core in

from megatron_longrope.artifacts.metrics import MetricsFile  # noqa: E402
from megatron_longrope.training.callbacks import (  # noqa: E402
    ReportProgress,
    SaveCheckpoints,
    StopOnSignal,
    WriteMetrics,
)
from megatron_longrope.training.checkpoints import resume_training, save_training  # noqa: E402
from megatron_longrope.training.config import TrainingConfig  # noqa: E402
from megatron_longrope.training.merging import WeightMerge  # noqa: E402
from megatron_longrope.training.trainer import StepReport, Trainer, TrainState  # noqa: E402

__all__ = [
    "MetricsFile",
    "ReportProgress",
    "SaveCheckpoints",
    "StepReport",
    "StopOnSignal",
    "TrainState",
    "Trainer",
    "TrainingConfig",
    "WeightMerge",
    "WriteMetrics",
    "resume_training",
    "save_training",
]
