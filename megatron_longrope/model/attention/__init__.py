"""Attention over long contexts: kernels, the context-parallel ring, and the engines that run
them."""
