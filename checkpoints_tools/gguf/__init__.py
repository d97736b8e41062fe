"""GGUF files to Hugging Face folders and back."""
