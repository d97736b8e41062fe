"""The evaluation tasks, one file each; importing a file registers its task.

No task imports torch before it runs, so that a command line lists them at once.
"""

from megatron_longrope.evaluation.tasks import key_value as key_value
from megatron_longrope.evaluation.tasks import passkey as passkey
from megatron_longrope.evaluation.tasks import perplexity as perplexity
from megatron_longrope.evaluation.tasks.base import TASKS, Task, TaskInputs, TaskSettings
from megatron_longrope.evaluation.tasks.retrieval import RetrievalSettings, RetrievalTask

__all__ = [
    "TASKS",
    "RetrievalSettings",
    "RetrievalTask",
    "Task",
    "TaskInputs",
    "TaskSettings",
]
