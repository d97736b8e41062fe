"""Attention over long contexts: block kernels, the context-parallel ring, and the engines."""
