"""LongRoPE context extension on megatron-core."""
