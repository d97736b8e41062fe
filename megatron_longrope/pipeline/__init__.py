"""The whole method in one run directory: recipe, plan, stages, measurements and result."""
