"""The recipes that come with flexora: where they lie, what their head comments say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import flexora
from flexora.errors import FlexoraError


def recipes_root() -> Path:
    """Folder of the recipes: inside the installed package, or beside it in a checkout."""
    package = Path(flexora.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe of the collection."""

    name: str
    path: Path

    @property
    def headline(self) -> str:
        """First line of the head comment."""
        first = self.path.read_text().split("\n", 1)[0]
        return first.removeprefix("#").strip()


def all_recipes() -> list[RecipeFile]:
    """Every recipe, by name; section files in folders that start with an underscore are not recipes."""
    root = recipes_root()
    paths = sorted(path for path in root.rglob("*.yaml") if not any(part.startswith("_") for part in path.parts))
    return [RecipeFile(str(path.relative_to(root).with_suffix("")), path) for path in paths]


def find_recipe(name: str) -> RecipeFile:
    """Look a recipe up by the name that ``recipes ls`` shows, with or without ``.yaml``.

    Raises:
        FlexoraError: If there is none of that name.
    """
    for recipe in all_recipes():
        if recipe.name == name.removesuffix(".yaml"):
            return recipe
    raise FlexoraError(f"no recipe is named {name}; flexora recipes ls shows all")
