"""Converts models between Hugging Face, Megatron and GGUF, and compares them bit by bit."""
