"""Files that come with the package: recipes, published factors, the demonstration model."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
RECIPES = _HERE / "recipes"
MODELS = _HERE / "models"


def recipe_names() -> list[str]:
    """Returns the names of the recipes of this package.

    >>> "demo" in recipe_names()
    True
    """
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """Returns the file of a recipe of this package, or the path itself for any other name."""
    shipped = RECIPES / f"{name_or_path}.yaml"
    return shipped if name_or_path in recipe_names() else Path(name_or_path)


def model_path(name_or_path: str) -> Path:
    """Returns the folder of the model `preset:NAME` of this package, or the path itself."""
    kind, colon, name = name_or_path.partition(":")
    return MODELS / name if colon and kind == "preset" and "/" not in name else Path(name_or_path)
