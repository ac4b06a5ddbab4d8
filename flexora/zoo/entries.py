"""Entries of the model zoo: YAML files below ``model_zoo``, found by name and validated whenever they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

import flexora
from flexora.errors import FlexoraError
from flexora.places import inside

#: What a reference to the zoo begins with.
PREFIX = "zoo:"


class Entry(BaseModel):
    """Shared settings: what is not known is a mistake of writing, and refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


EntryT = TypeVar("EntryT", bound=Entry)


def zoo_root() -> Path:
    """Folder of the zoo: inside the installed package, or beside it in a checkout."""
    package = Path(flexora.__file__).parent
    inside = package / "model_zoo"
    return inside if inside.is_dir() else package.parent / "model_zoo"


def entry_names(kind: str) -> list[str]:
    """Names of all entries of a kind: ``models``, ``selections`` or ``adapters``."""
    return sorted(path.stem for path in (zoo_root() / kind).glob("*.yaml"))


def plain(name: str) -> str:
    """A name as it is compared: ``llama3-8b``, ``llama-3-8B`` and ``Llama_3_8b`` are one."""
    return "".join(character for character in name.lower() if character.isalnum())


def find_entry(kind: str, name: str) -> str:
    """The name of an entry as its file writes it.

    Names are compared, never joined to a path: what a user types cannot lead out of the zoo.

    Raises:
        FlexoraError: If there is none of that name.
    """
    for known in entry_names(kind):
        if plain(known) == plain(name):
            return known
    raise FlexoraError(f"the zoo has no {kind.removesuffix('s')} {name!r}; flexora zoo ls shows all")


def entry_file(kind: str, name: str) -> Path:
    """The file of an entry.

    Raises:
        FlexoraError: If there is none of that name, or it is a link that leads out of the zoo.
    """
    return inside(zoo_root(), f"{kind}/{find_entry(kind, name)}.yaml", "zoo")


def read_entry(schema: type[EntryT], file: Path) -> EntryT:
    """Read and validate an entry.

    Raises:
        FlexoraError: If the file cannot be read or does not follow the schema; one line that names the first problem.
    """
    try:
        return schema.model_validate(yaml.safe_load(file.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise FlexoraError(f"cannot read {file}: {' '.join(str(error).split())}; mend or restore it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        what = first["msg"].removeprefix("Value error, ")
        raise FlexoraError(f"{file} is not a valid entry of the zoo: {where}: {what}; mend it") from error
