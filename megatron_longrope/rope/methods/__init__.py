"""The RoPE scaling methods, one file each: a new one is a file here and a line below."""

from megatron_longrope.rope.methods.base import METHODS as METHODS
from megatron_longrope.rope.methods.base import RopeMethod as RopeMethod

# Importing a method's file registers it in METHODS; the order here is that of tables and lists.
# isort: off
from megatron_longrope.rope.methods.none import NoScaling as NoScaling
from megatron_longrope.rope.methods.pi import PositionInterpolation as PositionInterpolation
from megatron_longrope.rope.methods.ntk import NtkAware as NtkAware
from megatron_longrope.rope.methods.dynamic_ntk import DynamicNtk as DynamicNtk
from megatron_longrope.rope.methods.yarn import Yarn as Yarn
from megatron_longrope.rope.methods.llama3 import Llama3 as Llama3
from megatron_longrope.rope.methods.longrope import LongRope as LongRope
from megatron_longrope.rope.methods.cope import Cope as Cope
