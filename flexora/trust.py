"""Which classes a recipe may name: it makes an object of each, so a stranger's recipe could run any code.

Allowed are flexora's public classes, and those that PEFT and Lightning offer for recipes, each by its own name. For
others there is ``--allow-import``, and ``--allow-remote-code`` for the code of a tokenizer's repository. Only command
line and environment give them: a recipe cannot allow itself anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from flexora.errors import FlexoraError

FLAG = "--allow-import"
#: The flag's names, with commas between them: the processes that a command starts inherit them here.
VARIABLE = "FLEXORA_ALLOW_IMPORT"
REMOTE_CODE_FLAG = "--allow-remote-code"
REMOTE_CODE_VARIABLE = "FLEXORA_ALLOW_REMOTE_CODE"

#: Lightning's packages whose public classes the trainer section may name.
_OF_LIGHTNING = (
    *("accelerators", "callbacks", "loggers", "plugins", "plugins.environments", "plugins.io", "plugins.precision"),
    *("profilers", "strategies"),
)

#: Names that were permitted in this process: jsonargparse keeps them until they are denied.
_permitted_before: set[str] = set()


@contextmanager
def permission(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Take the flags that allow something out of a command line, and allow it while the block runs.

    Args:
        arguments: Command line of a verb.

    Yields:
        The other arguments.

    Raises:
        FlexoraError: If a name is none of a package, a module or a class.
    """
    given, rest, names = iter(arguments), [], []
    allowed: dict[str, str] = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if name == FLAG:
            names.append((value if equals else next(given, "")) or " ")  # a flag without a name is a mistake
        elif argument == REMOTE_CODE_FLAG:
            allowed[REMOTE_CODE_VARIABLE] = "1"
        else:
            rest.append(argument)
    if names:
        allowed[VARIABLE] = ",".join([*filter(None, [os.environ.get(VARIABLE)]), *names])
    before = {name: os.environ.get(name) for name in allowed}
    os.environ.update(allowed)
    try:
        _permitted()
        yield rest
    finally:
        for name, value_before in before.items():
            if value_before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value_before


def require_remote_code() -> None:
    """Make sure that the user has allowed code of a model's repository to be run: whoever wrote a recipe may own both.

    Raises:
        FlexoraError: If neither command line nor environment allow it.
    """
    if os.environ.get(REMOTE_CODE_VARIABLE) != "1":
        raise FlexoraError(
            "backbone.trust_remote_code: a recipe cannot allow itself to run a repository's code; read that code, then "
            f"add {REMOTE_CODE_FLAG}"
        )


def restrict_imports() -> None:
    """Have jsonargparse import what :func:`class_names` and the user allow, and nothing else that a value names.

    It is called where recipes are parsed and not on import. jsonargparse keeps it for the process: a script that then
    parses by a parser of its own sets its own rules again.

    Raises:
        FlexoraError: If ``FLEXORA_ALLOW_IMPORT`` holds something else than names.
    """
    from jsonargparse import set_parsing_settings

    permitted = _permitted()
    set_parsing_settings(
        import_path_denylist=["*", *(_permitted_before - permitted)],
        import_path_allowlist=sorted(class_names() | permitted),
        instantiate_subclass_spec_in_any=False,  # settings of another parser, which makes the objects
    )
    _permitted_before.update(permitted)


def known_class(path: object) -> Any:
    """The class of that name, if a recipe may name it and it is there; else None.

    For files that say what an adapter was trained with: they may come from anyone.
    """
    name = str(path)
    module, _, last = name.rpartition(".")
    if not module or not (name in class_names() or any(f"{name}.".startswith(f"{own}.") for own in _permitted())):
        return None
    try:
        return getattr(import_module(module), last, None)
    except ImportError:  # a class of the user's own, which is not here
        return None


def same_class(one: object, other: object) -> bool:
    """Whether two names are those of one class: its own alone, behind its package, or behind where it is defined."""
    return one == other or not _classes(str(one)).isdisjoint(_classes(str(other)))


def _classes(name: str) -> set[Any]:
    names = [name] if "." in name else [full for full in class_names() if full.endswith(f".{name}")]
    return {known_class(full) for full in names} - {None}


def class_names() -> set[str]:
    """Every name of each allowed class: where it is defined, and the packages above that offer it too."""
    import flexora

    import_module("flexora.data.benchmarks")
    offered = {f"flexora.{name}" for name in flexora.__all__}
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith("flexora.")]
    for module in loaded:
        own = [kind for kind in vars(module).values() if isinstance(kind, type)]
        public = [kind.__name__ for kind in own if kind.__module__.startswith("flexora.") and kind.__name__[0] != "_"]
        offered |= {f"{module.__name__}.{name}" for name in public}
    for package, kind in _foreign_classes():
        offered |= {f"{package}.{kind.__name__}", *_names_of(kind)}
    return offered


def _foreign_classes() -> Iterator[tuple[str, type]]:
    import peft

    # Those of methods, and of their parts such as EvaConfig.
    configs = (kind for name, kind in vars(peft).items() if isinstance(kind, type) and name.endswith("Config"))
    yield from (("peft", kind) for kind in configs)
    for name in (f"lightning.pytorch.{package}" for package in _OF_LIGHTNING):
        package = vars(import_module(name))
        public = package.get("__all__") or [known for known in package if not known.startswith("_")]
        yield from ((name, package[known]) for known in public if isinstance(package[known], type))


def _names_of(kind: type) -> Iterator[str]:
    """Where a class is defined, and the packages above that have it under its name."""
    packages = kind.__module__.split(".")
    for length in range(1, len(packages) + 1):
        name = ".".join(packages[:length])
        if getattr(sys.modules.get(name), kind.__name__, None) is kind:
            yield f"{name}.{kind.__name__}"


def _permitted() -> set[str]:
    text = os.environ.get(VARIABLE)
    names = {name.strip() for name in text.split(",")} if text else set()
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.split(".")[0] == "jsonargparse":
            raise FlexoraError(
                f"{FLAG} {name!r}: no package, module or class of yours; write a name such as mine.MyRows"
            )
    return names
