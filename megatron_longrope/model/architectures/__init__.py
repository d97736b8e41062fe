"""The supported model families, one file each; a family is registered by its import here.

>>> sorted(ARCHITECTURES)[:3]
['llama', 'mistral', 'phi3']
"""

from megatron_longrope.model.architectures import (  # noqa: F401
    llama,
    mistral,
    phi3,
    qwen2,
    qwen3,
    seed_oss,
    smollm3,
)
from megatron_longrope.model.architectures.base import (
    ARCHITECTURES,
    Architecture,
    family_of,
    family_of_megatron_flags,
    megatron_flags,
    with_rope_said,
)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "family_of",
    "family_of_megatron_flags",
    "megatron_flags",
    "with_rope_said",
]
