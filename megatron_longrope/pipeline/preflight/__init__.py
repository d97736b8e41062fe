"""Checks of a run that need no weights, so that it is refused before hours of work."""
