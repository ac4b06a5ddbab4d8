"""The run that is published: all of it is there, and the figures are of this very adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from flexora.backbone.adapter_files import fingerprint, same_adapter
from flexora.errors import FlexoraError
from flexora.files import sha256_of
from flexora.report.run import Run
from flexora.runfolder import RunFolder
from flexora.scoring.results import ArmResult, Results
from flexora.search.selection import Selection
from flexora.zoo.adapters import WEIGHTS

#: The arm whose adapter is published.
ARM = "flexora"


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run leaves.

    Attributes:
        folder: Its folder.
        recipe: The resolved recipe that the adapter was trained with.
        evaluation: The resolved recipe that it was evaluated with.
        selection: The layers that were trained.
        results: The figures of all arms.
        peft: The adapter's configuration, as PEFT wrote it.
        sha256: Hash of the adapter's weights.
        parts: Search and history, for the pictures.
    """

    folder: RunFolder
    recipe: dict[str, Any]
    evaluation: dict[str, Any]
    selection: Selection
    results: Results
    peft: dict[str, Any]
    sha256: str
    parts: Run

    @property
    def weights(self) -> Path:
        """The adapter's weights, safetensors."""
        return self.folder.adapter("finetune") / WEIGHTS

    @property
    def method(self) -> str:
        """Class of the adapter's configuration."""
        override = self.recipe["finetune"].get("adapter") or {}
        path: str = override.get("class_path") or self.recipe["adapter"]["class_path"]
        return path.rpartition(".")[2]

    @property
    def searched(self) -> bool:
        """Whether the layers are those of the run's own search."""
        return self.recipe["finetune"]["selection"] is None

    @property
    def illustrative(self) -> bool:
        """Whether the search was too short to trust its choice."""
        return bool((self.selection.search or {}).get("illustrative"))

    @property
    def arm(self) -> ArmResult:
        """The figures of the adapter."""
        return next(arm for arm in self.results.arms if arm.name == ARM)

    @classmethod
    def read(cls, root: Path) -> FinishedRun:
        """Read a run.

        Raises:
            FlexoraError: If a phase is not done, a file is missing or broken, or the evaluation is of another adapter,
                another base model or development rows.
        """
        folder = RunFolder(root)
        if not root.is_dir():
            raise FlexoraError(f"{root} is no folder; name the output_dir of a run")
        for phase in ("finetune", "evaluate"):
            if not folder.is_done(phase):
                raise FlexoraError(f"{root}: {phase} is not done; run flexora {phase}, or flexora run, first")
        adapter = folder.adapter("finetune")
        try:
            peft = json.loads((adapter / "adapter_config.json").read_text())
            with safe_open(adapter / WEIGHTS, framework="pt"):  # a broken file is told here
                sha256 = sha256_of(adapter / WEIGHTS)
            recipe, evaluation = (
                yaml.safe_load((root / phase / "config.yaml").read_text()) for phase in ("finetune", "evaluate")
            )
        except (OSError, ValueError, SafetensorError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise FlexoraError(f"{root}: cannot read all of the run: {reason[:200]}; run flexora run again") from error
        results = Results.read(folder.results)
        scored = folder.settings("evaluate")["adapters"].get(ARM)
        if (
            scored is None
            or not same_adapter(scored, fingerprint(adapter))
            or ARM not in [arm.name for arm in results.arms]
        ):
            raise FlexoraError(
                f"{root}: the evaluation is not of the adapter in {adapter}; run flexora evaluate with {ARM} among "
                "evaluate.arms again"
            )
        if results.development:
            raise FlexoraError(
                f"{root}: development rows were scored, but a card tells of the reported split; remove "
                "data.development_rows and run flexora evaluate again"
            )
        for name in ("model", "revision"):
            if evaluation["backbone"][name] != recipe["backbone"][name]:
                raise FlexoraError(
                    f"{root}: trained with backbone.{name} {recipe['backbone'][name]}, evaluated with "
                    f"{evaluation['backbone'][name]}; evaluate again"
                )
        selection = Selection.read(folder.selection_of("finetune"))
        return cls(folder, recipe, evaluation, selection, results, peft, sha256, Run.read(root))
