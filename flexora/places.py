"""Paths that users write, and names that others choose: these stay inside the folder that they are looked up in."""

from __future__ import annotations

import re
from pathlib import Path

from flexora.errors import FlexoraError, shown

#: Characters of a name; file systems take 255 bytes, and what is made beside it is called longer.
LONGEST = 200
#: A branch, a tag or a commit; git allows more, but nothing that climbs out of a folder.
_REVISION = re.compile(r"[\w+-][\w.+-]*(?:/[\w+-][\w.+-]*)*")


def own_path(text: str | Path, what: str) -> Path:
    """A path that a user wrote, with ``~`` and ``~name`` replaced by the home folder; nothing need lie there.

    Args:
        text: The path.
        what: The setting or option that it is of, for the message.

    Raises:
        FlexoraError: If there is no such home folder, or the system cannot say what lies there.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (RuntimeError, ValueError) as error:  # no such user; a NUL
        raise FlexoraError(f"{what}: there is no home folder for {shown(str(text))}; write the whole path") from error
    except OSError as error:  # too long, or in a folder that may not be looked into
        raise FlexoraError(f"{what}: cannot look at {shown(str(text))}: {error.strerror}; name another path") from error
    return path


def inside(root: Path, name: str, what: str) -> Path:
    """The place of that name below a folder.

    Args:
        root: The folder.
        name: A relative path.
        what: What the name is of, for the message.

    Raises:
        FlexoraError: If the name is absolute, climbs by ``..``, or is led out by a symbolic link.
    """
    place = root / name
    try:
        is_below = place.resolve().is_relative_to(root.resolve()) and not Path(name).is_absolute() and name != ""
    except (OSError, RuntimeError, ValueError):  # a circle of links; a NUL
        is_below = False
    if not is_below or ".." in place.parts[len(root.parts) :]:
        raise FlexoraError(f"{what}: {name!r} leads out of {root}; name what lies in it")
    return place


def plain_name(name: str, what: str) -> str:
    """Return a name if it is one of a single file or folder: no path, not hidden, not too long.

    Raises:
        FlexoraError: If it is none.
    """
    if not name or name.startswith(".") or {"/", "\\"} & set(name) or not name.isprintable() or len(name) > LONGEST:
        raise FlexoraError(f"{what}: {name!r} is no plain name; write one without slashes and a dot at its beginning")
    return name


def plain_revision(revision: str | None, what: str) -> str | None:
    """Return a revision of a repository if it is one: the hub's client makes it part of a path.

    Raises:
        FlexoraError: If it is none.
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        raise FlexoraError(f"{what}: {revision!r} is no branch, tag or commit; write such a name")
    return revision
