"""The engine that builds the layers: what is asked for, what is installed, what goes together."""
