"""The folder that is published: all that goes into it is written here, by name; nothing is copied along."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import eval_result_entries_to_yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER

from flexora.errors import FlexoraError
from flexora.files import new_folder, write_atomically, write_json
from flexora.publish.base import Base
from flexora.publish.card import model_card
from flexora.publish.figures import eval_result_entries
from flexora.publish.leaks import private_texts, require_no_leak
from flexora.publish.redaction import public_recipe, public_results, public_selection
from flexora.publish.rows import rows_of
from flexora.publish.run import FinishedRun
from flexora.report.plots import draw
from flexora.zoo.adapters import WEIGHTS
from flexora.zoo.references import is_reference

PEFT_CONFIG = "adapter_config.json"
SELECTION, RECIPE, RESULTS, CARD, NOTICE = "selection.json", "config.yaml", "results.json", "README.md", "NOTICE"
PICTURES = ("alpha.png", "loss.png", "gates.png", "accuracy.png")
EVAL_RESULTS = f"{EVAL_RESULTS_FOLDER}/flexora.yaml"


def write_bundle(run: FinishedRun, base: Base, repo_id: str, target: Path) -> Path:
    """Write the folder, whole or not at all; one that was written before is replaced.

    Args:
        run: The run.
        base: Its base model on the hub.
        repo_id: Where the folder will be on the hub.
        target: The folder.

    Raises:
        FlexoraError: If the folder holds something else, cannot be written, or something private would be in it.
    """
    _require_own(target)
    with new_folder(target, replace=True) as folder:
        shutil.copyfile(run.weights, folder / WEIGHTS)
        peft = run.peft | {"base_model_name_or_path": base.id, "revision": base.revision}
        write_json(folder / PEFT_CONFIG, peft | {"target_modules": _in_order(peft.get("target_modules"))})
        public_selection(run.selection, base).write(folder / SELECTION)
        recipe = public_recipe(run.recipe, base)
        write_atomically(folder / RECIPE, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        results = public_results(run.results, base)
        results.write(folder / RESULTS)
        # Drawn anew: the run's own pictures may show the names of folders.
        parts = replace(run.parts, results=results, courses={})
        if not run.searched:  # those of a search would show other layers
            parts = replace(parts, selection=None, history=None)
        pictures = [path.name for path in draw(parts, folder).values()]
        trained, measured = rows_of(run.recipe["data"]), rows_of(run.evaluation["data"])
        if entries := eval_result_entries(run, base, measured):
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            write_atomically(folder / EVAL_RESULTS, text)
        if base.licence.notice:
            write_atomically(folder / NOTICE, f"{base.licence.notice}\n")
        card = model_card(run, base, trained, measured, repo_id, pictures)
        write_atomically(folder / CARD, f"{card}\n")
        datasets = [own.dataset for own in (*trained, *measured) if own.dataset is not None]
        others = filter(is_reference, recipe["evaluate"]["arms"])
        meant = (repo_id, repo_id.rpartition("/")[2], base.id, *datasets, *others)
        require_no_leak(folder, private_texts(run.folder.root), meant)
    return target


def files_of(folder: Path) -> list[Path]:
    """All files of a published folder, in the order of their names."""
    return sorted(filter(Path.is_file, folder.rglob("*")))


def _require_own(target: Path) -> None:
    """Refuse to replace what was not published from here."""
    if not target.exists():
        return
    own = {WEIGHTS, PEFT_CONFIG, SELECTION, RECIPE, RESULTS, CARD, EVAL_RESULTS, NOTICE, *PICTURES}
    here = [] if not target.is_dir() else [str(file.relative_to(target)) for file in files_of(target)]
    other = next((name for name in here if name not in own), None)
    if target.is_symlink() or not target.is_dir() or other is not None:
        raise FlexoraError(
            f"--to: {target} holds {other or 'no published folder'}, which flexora publish did not write; choose "
            "another place, or take it away"
        )


def _in_order(modules: object) -> object:
    """PEFT writes a set: sorted, the same run gives the same file."""
    return sorted(modules) if isinstance(modules, list) else modules
