"""What must never go out: places of this machine, names of user and host, tokens. Every file is searched for them."""

from __future__ import annotations

import getpass
import re
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from huggingface_hub import get_token
from PIL import Image
from safetensors import safe_open

from flexora.errors import FlexoraError
from flexora.packaged import cache_folder
from flexora.recipes import all_recipes
from flexora.secrets import SHORTEST, TOKEN, secret_values

#: An absolute path of two names or more, in a home folder, or with a drive. What follows a letter, a dot, a colon or
#: another slash is part of an address, of a relative path or of a closing tag.
ABSOLUTE = re.compile(
    r"(?<![\w.:/<@-])(?:~?/(?:[\w.@+-]+/)+[\w.@+-]+|~[\w-]*/[\w.@+-]+)"
    r"|file:/+[\w.@+-][^\s\"']*|(?<=\w:)/(?:[\w.@+-]+/)+[\w.@+-]+"
    r"|\b[A-Za-z]:[\\/]{1,2}\w[^\s\"']*|(?<!\w)\\\\[\w.-]+\\[^\s\"']+"
)

#: An address of electronic mail.
MAIL = re.compile(r"(?<![\w/])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")

#: Names of users and hosts that say nothing of a person.
_COMMON = frozenset(("root", "user", "users", "admin", "ubuntu", "debian", "runner", "jovyan", "docker", "localhost"))
_SHORTEST_NAME = 3


def private_texts(run_dir: Path) -> dict[str, str]:
    """Texts that no published file may hold as a whole word or path, each with what it is.

    Args:
        run_dir: The run's folder.
    """
    places = {
        "the home folder": Path.home(),
        "the working folder": Path.cwd(),
        "the run's folder": run_dir.absolute(),
        "flexora's cache": cache_folder().absolute(),
        "the folder for temporary files": Path(tempfile.gettempdir()),
    }
    texts = {str(form): what for what, path in places.items() for form in (path, path.resolve()) if len(path.parts) > 2}
    names = {"the user's name": _user(), "the host's name": socket.gethostname()}
    names["the host's name, short"] = names["the host's name"].partition(".")[0]
    texts |= {name: what for what, name in names.items() if _tells(name)}
    secrets = {f"the value of {name}": value for name, value in secret_values().items()}
    secrets["the hub's token"] = get_token() or ""
    texts |= {value: what for what, value in secrets.items() if len(value) >= SHORTEST}
    return texts


def require_no_leak(folder: Path, private: dict[str, str], meant: tuple[str, ...] = ()) -> None:
    """Search every file of a folder.

    Args:
        folder: The folder.
        private: Texts that may not occur, and what they are.
        meant: Texts that are published on purpose, such as the repository's name with the user's in it.

    Raises:
        FlexoraError: Naming the file and what was found in it, but of a secret not its text.
    """
    for file in sorted(filter(Path.is_file, folder.rglob("*"))):
        for text in _texts(file):
            for allowed in sorted(meant, key=len, reverse=True):
                text = text.replace(allowed, " ")  # noqa: PLW2901
            if (found := find_leak(text, private)) is not None:
                name = file.relative_to(folder)
                raise FlexoraError(
                    f"{name} would publish {found}; nothing was written: take it out of the recipe or the run's files"
                )


def find_leak(text: str, private: dict[str, str]) -> str | None:
    """What of the private is in a text, in words; none where there is nothing."""
    for secret, what in private.items():
        if re.search(rf"(?<![A-Za-z0-9_]){re.escape(secret)}(?![A-Za-z0-9_])", text):
            return what
    if TOKEN.search(text):
        return "what looks like an access token"
    if (mail := MAIL.search(text)) is not None:
        return f"the address {mail[0]}"
    if (path := ABSOLUTE.search(text)) is not None:
        return f"the local path {path[0]}"
    return None


def _texts(file: Path) -> Iterator[str]:
    """What can be read in a file: a text, or what describes weights or a picture."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as weights:
            yield from (f"{name} {value}" for name, value in (weights.metadata() or {}).items())
            yield from weights.keys()
    elif file.suffix == ".png":
        with Image.open(file) as picture:
            yield from (f"{name} {value}" for name, value in picture.info.items())
    else:
        yield file.read_text(encoding="utf-8")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""


def _tells(name: str) -> bool:
    """Whether a name would tell whose machine it was, and is no number or word that may stand anywhere."""
    return len(name) >= _SHORTEST_NAME and name.lower() not in _COMMON | _vocabulary() and not name.isdigit()


@cache
def _vocabulary() -> frozenset[str]:
    """The words of cards and recipes: a machine that is called gpu tells nothing by this name."""
    texts = [(Path(__file__).parent / "card.md.j2").read_text()]
    texts += [recipe.path.read_text() for recipe in all_recipes()]
    return frozenset(word for text in texts for word in re.findall(r"\w+", text.lower()))
