"""A saved adapter's files, which may come from anyone: checked before PEFT believes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, get_type_hints

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from safetensors import SafetensorError, safe_open

from flexora.backbone.methods import sits_on_modules
from flexora.errors import FlexoraError, shown
from flexora.files import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

#: More than any method writes: AdaLoRA notes every rank of every module.
LARGEST_CONFIG = 10_000_000
#: Settings that have a module, which is named there, imported, or that build other layers than the model has.
REFUSED = ("megatron_config", "layer_replication", "alora_invocation_tokens")
#: Settings that say how large new tensors become.
RANKS = ("r", "init_r", "target_r", "rank_pattern")
#: Settings that say nothing of what an adapter does: whose it is, and how it was last loaded.
BESIDE = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
#: A rank that no file has to account for.
USUAL_RANK = 4096


def require_weights(folder: Path) -> Path:
    """Return the file of an adapter's weights.

    Raises:
        FlexoraError: If the folder has none, or only a pickle.
    """
    refuse_pickle(folder)
    file: Path = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise FlexoraError(f"the adapter {folder} holds no {SAFETENSORS_WEIGHTS_NAME}; name a whole PEFT folder")
    return file


def fingerprint(folder: Path) -> str | None:
    """Which adapter a folder holds: hashes of its weights and, behind a plus, of its settings; none without weights.

    The same weights under another ``lora_alpha`` are another adapter.
    """
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return None
    weights = sha256_of(file)
    try:
        if (folder / CONFIG_NAME).stat().st_size > LARGEST_CONFIG:
            return weights
        settings = json.loads((folder / CONFIG_NAME).read_bytes())
        kept = {name: _in_order(value) for name, value in settings.items() if name not in BESIDE}
    except (OSError, AttributeError, ValueError, RecursionError):  # told when it is loaded
        return weights
    return f"{weights}+{hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()}"


def same_adapter(scored: str | None, found: str | None) -> bool:
    """Whether two fingerprints are of one adapter; what was scored by an older version has a hash of weights alone."""
    if scored is not None and found is not None and "+" not in scored:
        found = weights_of(found)
    return scored == found


def weights_of(fingerprint: str) -> str:
    """The hash of the weights in a fingerprint."""
    return fingerprint.partition("+")[0]


def _in_order(value: object) -> object:
    """PEFT writes sets of names in an order that varies."""
    return sorted(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else value


def refuse_pickle(folder: Path) -> None:
    """Refuse a folder whose weights are a pickle alone: reading one runs what is in it.

    Raises:
        FlexoraError: If it is one.
    """
    if (folder / WEIGHTS_NAME).is_file() and not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise FlexoraError(
            f"the adapter {folder} holds {WEIGHTS_NAME}, a pickle, which may run any code when it is read; write "
            f"{SAFETENSORS_WEIGHTS_NAME} beside it: safetensors.torch.save_file(torch.load({WEIGHTS_NAME!r}, "
            f"weights_only=True), {SAFETENSORS_WEIGHTS_NAME!r})"
        )


def read_config(folder: Path) -> PeftConfig:
    """Read ``adapter_config.json``: every setting has the type that PEFT declares, and nothing is imported for it.

    Settings that this PEFT does not know are left out, as PEFT does.

    Raises:
        FlexoraError: If it is no such file, the method adapts no linear modules by name, or a setting is of another
            type, larger than its weights, or would import something.
    """
    try:
        settings = _settings(folder)
        config: PeftConfig = PeftConfig.from_peft_type(**settings)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise unreadable(folder, error) from error
    if not sits_on_modules(config):
        raise FlexoraError(
            f"the adapter {folder} is of type {config.peft_type.value}, which adapts no linear modules by name; only "
            "adapters that do can be scored"
        )
    config.auto_mapping = None  # a module to import the model's class from
    return config


def unreadable(folder: Path, error: BaseException) -> FlexoraError:
    """What is said of an adapter that cannot be loaded."""
    reason = shown(str(error), 200) or type(error).__name__
    return FlexoraError(f"cannot load the adapter {folder}: {reason}; name a PEFT folder made for this base model")


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of a file that are PEFT's, of its types.

    Raises:
        ValueError: Among others, saying what is wrong.
    """
    file = folder / CONFIG_NAME
    if file.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{CONFIG_NAME} has more than {LARGEST_CONFIG:,} bytes")
    try:
        settings = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{CONFIG_NAME} is not JSON: {error}") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"{CONFIG_NAME}: peft_type {str(kind)[:40]} is none that PEFT knows")
    types = get_type_hints(PEFT_TYPE_TO_CONFIG_MAPPING[kind])
    known = {name: value for name, value in settings.items() if name in types and name != "runtime_config"}
    for name, value in known.items():
        if name in REFUSED and value is not None:
            raise ValueError(f"{CONFIG_NAME}: {name} is not supported")
        _require_type(name, value, types[name])
    largest = max(_ranks({name: known.get(name) for name in RANKS}), default=0)
    if largest > USUAL_RANK and largest > _largest_side(folder):
        raise ValueError(f"{CONFIG_NAME}: a rank of {largest} is larger than any of the adapter's weights")
    return known


def _require_type(name: str, value: object, kind: Any) -> None:
    try:
        schema = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticUserError:  # a class with rules of its own
        schema = TypeAdapter(kind)
    if name == "lora_alpha" and isinstance(value, float) and isfinite(value):
        value = int(value)  # PEFT writes the alpha of a converted rsLoRA with decimals, and reads it so
    try:
        schema.validate_json(json.dumps(value))  # JSON's lists stand for PEFT's sets
    except ValidationError as error:
        raise ValueError(f"{CONFIG_NAME}: {name}: {error.errors()[0]['msg']}") from error


def _ranks(value: object) -> list[int]:
    """All numbers in nested settings."""
    if isinstance(value, Mapping | list):
        inner = value.values() if isinstance(value, Mapping) else value
        return [rank for one in inner for rank in _ranks(one)]
    return [value] if isinstance(value, int) else []


def _largest_side(folder: Path) -> int:
    """The longest side of a tensor in the adapter's weights."""
    try:
        with safe_open(require_weights(folder), framework="pt") as weights:
            return max((side for name in weights.keys() for side in weights.get_slice(name).get_shape()), default=0)  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
