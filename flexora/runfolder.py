"""The folder of a run: where each phase writes, which phases are done, and with which settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flexora.errors import FlexoraError
from flexora.files import write_atomically, write_json
from flexora.secrets import without_secrets
from flexora.trust import same_class

#: Setting that holds the hashes of the local files that a phase's rows come from.
FILES = "files"
#: Phase that trains the adapter of an arm; any other arm but the base is a PEFT folder.
PHASE_OF_ARM = {"flexora": "finetune", "lora": "lora"}
#: Settings that older folders do not name, and what they did.
ADDED: dict[str, dict[str, Any]] = {"data": {"every_turn": True, "choices": []}}


@dataclass(frozen=True)
class RunFolder:
    """Paths and marks below ``output_dir``.

    A phase is done when its ``done.json`` exists; it is written after everything else and holds the settings. A phase
    on several machines needs a file system that they share.
    """

    root: Path

    @property
    def selection(self) -> Path:
        """The selection that the search wrote."""
        return self.selection_of("search")

    @property
    def results(self) -> Path:
        """The evaluation's results."""
        return self.root / "evaluate" / "results.json"

    @property
    def samples(self) -> Path:
        """What every arm said to every row of the evaluation."""
        return self.root / "evaluate" / "samples.jsonl"

    def selection_of(self, phase: str) -> Path:
        """The selection that a search wrote, or that a fine-tune was made with."""
        return self.root / phase / "selection.json"

    def settings(self, phase: str) -> dict[str, Any]:
        """The settings that a finished phase was run with."""
        settings: dict[str, Any] = json.loads(self.mark(phase).read_text())
        return settings

    def adapter(self, phase: str) -> Path:
        """The PEFT folder of a fine-tune, or of what the search trained."""
        return self.root / phase / "adapter"

    def mark(self, phase: str) -> Path:
        """The file that says a phase is done."""
        return self.root / phase / "done.json"

    def is_done(self, phase: str) -> bool:
        """Whether a phase is finished."""
        return self.mark(phase).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder.

        Raises:
            FlexoraError: If another process works in it, or it cannot be written to.
        """
        lock = FileLock(self.root / ".lock", timeout=0)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise FlexoraError(
                f"output_dir: another process works in {self.root}; wait for it or choose another output_dir"
            ) from error
        except OSError as error:
            raise FlexoraError(
                f"output_dir: cannot write to {self.root}: {error}; choose another output_dir"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def start(self, phase: str, settings: Mapping[str, Any]) -> None:
        """Make sure a phase may run here. Without a checkpoint nothing was made yet, and any settings may follow.

        Raises:
            FlexoraError: If it is finished, or an unfinished one was started with other settings.
        """
        if self.is_done(phase):
            raise FlexoraError(
                f"output_dir: {self.root / phase} already holds a finished run; choose another output_dir, or delete "
                "that folder to do it again"
            )
        if any((self.root / phase / "checkpoints").glob("*")):
            # It compares the rows themselves.
            begun = {name: value for name, value in settings.items() if name != FILES}
            self._require_same(self.root / phase / "settings.json", phase, begun)
        write_json(self.root / phase / "settings.json", _shareable(settings))

    def require_same(self, phase: str, settings: Mapping[str, Any]) -> None:
        """Make sure a finished phase was run with these settings.

        Args:
            phase: The phase.
            settings: The settings that are known now; others that the phase added itself are not compared.

        Raises:
            FlexoraError: Naming the first setting that differs.
        """
        self._require_same(self.mark(phase), phase, settings)

    def finish(self, phase: str, settings: Mapping[str, Any]) -> None:
        """Mark a phase as done."""
        write_json(self.mark(phase), _shareable(settings))

    def write_config(self, phase: str, text: str) -> Path:
        """Keep the resolved recipe that a phase runs with, but no token that is in it."""
        return write_atomically(self.root / phase / "config.yaml", without_secrets(text))

    def _require_same(self, file: Path, phase: str, settings: Mapping[str, Any]) -> None:
        if not file.is_file():
            return
        new, old = _shareable(settings), json.loads(file.read_text())
        if FILES not in old:  # of a folder that is older than this setting
            new.pop(FILES, None)
        old = {name: value for name, value in old.items() if name in new}
        for section, added in ADDED.items():
            if isinstance(old.get(section), dict):
                before = {name: value for name, value in added.items() if name in new[section]}
                old[section] = before | old[section]
        change = first_difference(old, new)
        if change:
            raise FlexoraError(
                f"output_dir: {self.root / phase} was made with other settings ({change}); choose another output_dir, "
                "or delete that folder"
            )


def _shareable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file holds them: in JSON's types, with no token in them."""
    kept: dict[str, Any] = json.loads(without_secrets(json.dumps(settings)))
    return kept


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Name the first setting in which two nested settings differ, as ``search.outer_steps 5 -> 6``.

    A class by another of its names is the same one.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key == "class_path" and same_class(old.get(key), new.get(key)):
                continue
            if change := first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key)):
                return change
        return None
    lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    if old == new or (lists and not any(first_difference(a, b) for a, b in zip(old, new, strict=True))):
        return None
    return f"{path} {old} -> {new}"
