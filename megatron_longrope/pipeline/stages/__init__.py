"""The kinds of stages that a run is made of, one module each."""
