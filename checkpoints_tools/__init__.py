"""Hugging Face folders ↔ Megatron checkpoints, with proof: weight maps, import, export,
verification, loading."""
