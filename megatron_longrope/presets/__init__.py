"""What comes with the package: recipes, published factor sets, the demonstration model."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
RECIPES = _HERE / "recipes"
MODELS = _HERE / "models"


def recipe_names() -> list[str]:
    """Returns the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """Returns the file of a shipped recipe, or the path itself where no recipe has that name."""
    shipped = RECIPES / f"{name_or_path}.yaml"
    return shipped if name_or_path in recipe_names() else Path(name_or_path)


def model_path(name_or_path: str) -> Path:
    """Returns the folder of `preset:NAME`, or the path itself."""
    kind, colon, name = name_or_path.partition(":")
    return MODELS / name if colon and kind == "preset" and "/" not in name else Path(name_or_path)
