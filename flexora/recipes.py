"""The recipes that come with flexora: where they lie, what their head comments say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

import flexora
from flexora.errors import FlexoraError
from flexora.places import inside


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
    def family(self) -> str:
        """Family of the model; recipes that are of no family in particular lie in folders of other names."""
        return self.name.split("/")[0]

    @cached_property
    def head(self) -> list[str]:
        """Lines of the head comment, without their mark."""
        lines = takewhile(lambda line: line.startswith("#"), self.path.read_text().splitlines())
        return [line.removeprefix("#").strip() for line in lines]

    @property
    def needs(self) -> str:
        """What the head comment says that it needs."""
        said = [line.removeprefix("Needs:").strip() for line in self.head if line.startswith("Needs:")]
        return said[0] if said else ""

    @cached_property
    def benchmark(self) -> str:
        """Class of its data; of a study its benchmarks."""
        sections = load_sections(self.path)
        return ", ".join(sections["recipes"]) if self.is_study else str(sections["data"]["class_path"])

    @property
    def is_study(self) -> bool:
        """Whether it is for ``flexora compare``."""
        return self.family == "studies"


def all_recipes() -> list[RecipeFile]:
    """Every recipe, by name; section files in folders that start with an underscore are not recipes."""
    root = recipes_root()
    names = sorted(path.relative_to(root) for path in root.rglob("*.yaml"))
    kept = [name for name in names if not any(part.startswith("_") for part in name.parts)]
    return [RecipeFile(str(name.with_suffix("")), root / name) for name in kept]


def find_recipe(name: str) -> RecipeFile:
    """Look a recipe up by the name that ``recipes ls`` shows, with or without ``.yaml``.

    Raises:
        FlexoraError: If there is none of that name.
    """
    for recipe in all_recipes():
        if recipe.name == name.removesuffix(".yaml"):
            inside(recipes_root(), f"{recipe.name}.yaml", "recipes")
            return recipe
    raise FlexoraError(f"no recipe is named {name}; flexora recipes ls shows all")


def load_sections(path: Path) -> dict[str, Any]:
    """Read a recipe file, with the sections that name a file of their own filled in.

    Raises:
        FlexoraError: If a file is missing, is not YAML, or is no mapping of sections.
    """
    sections = _load_mapping(path)
    for name, value in sections.items():
        if isinstance(value, str) and value.endswith(".yaml"):
            sections[name] = _load_mapping(path.parent / value)
    return sections


def _load_mapping(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise FlexoraError(f"cannot read {path}: {error.strerror}; name a file that exists") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FlexoraError(f"{path} is not YAML: {' '.join(str(error).split())}; mend it") from error
    if not isinstance(value, dict):
        raise FlexoraError(f"{path} holds no sections; flexora recipes show demo shows how a recipe looks")
    return value
