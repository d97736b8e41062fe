"""Which engine builds the layers: what a person asks for, what is installed, what combines."""
