"""The model families that are carried, and what each one's Hugging Face config means."""
