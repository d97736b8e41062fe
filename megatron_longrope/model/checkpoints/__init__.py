"""Megatron checkpoints on disk: torch_dist and Megatron-LM's, read without unpickling foreign
objects."""
