"""The cost of measuring a run, counted from its recipe before anything is run."""

from __future__ import annotations

from megatron_longrope.evaluation import TASKS
from megatron_longrope.model import ModelShape
from megatron_longrope.pipeline.evaluating import SHORT_TOKENS
from megatron_longrope.pipeline.evaluation_settings import EvaluationConfig
from megatron_longrope.pipeline.searching import methods_compared
from megatron_longrope.pipeline.stages.combining import RunParts
from megatron_longrope.pipeline.stages.stage import Cost
from megatron_longrope.rope import OwnScaling


def cost_of_measuring(
    config: EvaluationConfig, parts: RunParts, shape: ModelShape, own: OwnScaling
) -> Cost:
    """Returns tokens and operations of all measurements, as `measure_run` makes them."""
    first, last, window = parts.first.length, parts.steps[-1].length, own.window
    num_methods = len(methods_compared(own, first))
    count = _Counter(config, shape)
    for length in config.lengths:
        count.documents(length, num_methods + 1 if length <= first else 1)  # the pretrained model
        count.documents(length, 1)  # the extended one
        if parts.control and length <= window:
            count.documents(length, 1)
    if first not in config.lengths:
        count.documents(first, num_methods + 1)
    count.documents(first, num_methods)  # at the searched attention factor
    count.documents(first, 2 * parts.first.moves_ramps)
    if parts.tuned and last != parts.tuned.length:
        beyond = len(config.second_interpolations) + parts.steps[-1].moves_ramps
        count.documents(last, 2 * beyond)
    for length in {first, last}:
        # each stride of a document is scored in a window of its own
        windows = config.num_documents * max(1, length // (config.sliding_stride or window // 4))
        count.texts(min(window, length), windows)
    for name, settings in config.tasks.items():
        for length in config.task_lengths(name):
            tokens = TASKS[name].tokens(config.num_documents, length, settings)
            count.texts(length, tokens // length * (2 if length <= first else 1))
    return Cost(tokens=count.tokens, flops=count.flops)


def cost_of_measuring_export(config: EvaluationConfig, shape: ModelShape) -> Cost:
    """Returns tokens and operations of measuring the exported folder, with our own model beside.

    Generated answers are a few tokens more than the document that is read for each.
    """
    count = _Counter(config, shape)
    for length in config.exported_lengths:
        count.documents(length, 1)
    count.texts(max(config.exported_lengths), 1)  # our model, to compare with
    for name, settings in config.tasks.items():
        for length in config.exported_task_lengths(name):
            if TASKS[name].measures_exports:
                count.texts(length, TASKS[name].tokens(0, length, settings) // length)
    return Cost(tokens=count.tokens, flops=count.flops)


class _Counter:
    """Adds up the texts that go forward through a model."""

    def __init__(self, config: EvaluationConfig, shape: ModelShape) -> None:
        self._config, self._shape = config, shape
        self.tokens, self.flops = 0, 0.0

    def texts(self, length: int, times: int) -> None:
        """Adds `times` texts of `length` tokens."""
        self.tokens += length * times
        self.flops += self._shape.forward_flops(length) * times

    def documents(self, length: int, methods: int) -> None:
        """Adds every document under `methods` methods; short lengths take several stretches."""
        stretches = max(1, SHORT_TOKENS // length)
        self.texts(length, self._config.num_documents * stretches * methods)
