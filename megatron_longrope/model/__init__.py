"""The model: a GPT of megatron-core whose rotary factors come with each batch.

`build_model` makes one, `score_documents` evaluates it, `set_factors` changes its RoPE.
"""

from megatron_longrope.runtime import cpu_platform

cpu_platform.install()  # before the imports below bring megatron-core in

from megatron_longrope.model.builder import build_model, check_shape  # noqa: E402
from megatron_longrope.model.factor_gradient import FactorGradient, score_with_gradient  # noqa: E402
from megatron_longrope.model.forward import DocumentScores, document_logits, score_documents  # noqa: E402
from megatron_longrope.model.longrope_model import LongRopeModel  # noqa: E402
from megatron_longrope.model.shape import ModelShape  # noqa: E402

__all__ = [
    "DocumentScores",
    "FactorGradient",
    "LongRopeModel",
    "ModelShape",
    "build_model",
    "check_shape",
    "document_logits",
    "score_documents",
    "score_with_gradient",
]
