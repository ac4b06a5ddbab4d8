"""Recipe, results and selection as others may see them: without the places of the user's machine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from flexora.backbone.converted import CONVERTED_PREFIX
from flexora.backbone.gguf import PACKAGED_PREFIX
from flexora.publish.base import Base
from flexora.publish.rows import public_source
from flexora.runfolder import PHASE_OF_ARM
from flexora.scoring.results import Results
from flexora.search.named import names_file
from flexora.search.selection import Selection
from flexora.zoo.references import is_reference

#: Arms that a run trains by itself, and the base model: their names are never those of folders.
OWN_ARMS = ("base", *PHASE_OF_ARM)


def public_recipe(sections: dict[str, Any], base: Base) -> dict[str, Any]:
    """A resolved recipe with the hub's name of the base model, and of every folder and file its last name alone.

    A packaged or converted model keeps its name: it is no place, and the recipe starts as it stands.

    Args:
        sections: The recipe's sections.
        base: The base model.
    """
    public: dict[str, Any] = copy.deepcopy(sections)
    if not public["backbone"]["model"].startswith((PACKAGED_PREFIX, CONVERTED_PREFIX)):
        public["backbone"] |= {"model": base.id, "revision": base.revision}
    public["output_dir"] = f"runs/{Path(public['output_dir']).name}"
    data = public["data"]["init_args"]
    if "source" in data:
        data["source"] = public_source(data["source"])
    if (named := public["finetune"]["selection"]) is not None and names_file(named):
        public["finetune"]["selection"] = "selection.json"  # what it named lies beside the recipe
    arms = public["evaluate"]["arms"]  # folders are not there for others
    public["evaluate"]["arms"] = [arm for arm in arms if arm in OWN_ARMS or is_reference(arm)]
    cleaned: dict[str, Any] = _without_places(public)
    return cleaned


def public_results(results: Results, base: Base) -> Results:
    """Results that say which weights the figures are of, with arms that are folders by their last names."""
    public = results.model_copy(deep=True)
    for part in [public, *public.parts]:
        part.model = base.measured
        for arm, name in zip(part.arms, public_arms([arm.name for arm in part.arms]), strict=True):
            arm.name = name
    return public


def public_selection(selection: Selection, base: Base) -> Selection:
    """A selection of the hub's base model; where it was taken from, others can see of a reference alone."""
    known = selection.base.model_copy(update={"model": base.id, "revision": base.revision})
    source = selection.source if selection.source and is_reference(selection.source) else None
    return selection.model_copy(update={"base": known, "source": source})


def public_arms(arms: Sequence[str]) -> list[str]:
    """Names of arms, of folders the last ones; those that another arm has, or a run's own might have, get numbers."""
    taken = [*OWN_ARMS, *filter(is_reference, arms)]
    names: list[str] = []
    for arm in arms:
        name = arm
        if arm not in OWN_ARMS and not is_reference(arm):
            last = PurePosixPath(arm.rstrip("/")).name
            same = sum(known == last or known.startswith(f"{last} (") for known in taken)
            name = f"{last} ({same + 1})" if same else last
            taken.append(name)
        names.append(name)
    return names


def _without_places(value: Any) -> Any:
    """Nested settings with the last name of every absolute path; a template of prompts is none."""
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    if isinstance(value, str) and not {"\n", "{"} & set(value):
        for path in (PurePosixPath(value), PureWindowsPath(value)):
            if (path.is_absolute() and len(path.parts) > 2) or value.startswith("~/"):
                return path.name
    return value
