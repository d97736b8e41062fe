"""Reads and writes GGUF files, the model format of llama.cpp."""
