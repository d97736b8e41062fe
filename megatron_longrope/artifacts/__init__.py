"""The files of a run directory, one schema each; nothing here imports torch."""
