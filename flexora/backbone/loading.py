"""Load a base model and its tokenizer: a hub id, a local folder, or the packaged default."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from flexora.backbone.converted import CONVERTED_PREFIX, converted_folder
from flexora.backbone.families import Family, family_of
from flexora.backbone.gguf import PACKAGED_PREFIX, packaged_model_folder
from flexora.errors import FlexoraError
from flexora.files import sampled_sha256
from flexora.places import own_path, plain_revision

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

#: Flag of bitsandbytes' layers: the CPU has bfloat16.
PACKS = "support_avx512bf16_for_cpu"
#: Kinds of files that hold weights.
WEIGHTS = {".safetensors", ".bin", ".gguf"}
#: A full commit hash of git.
COMMIT = re.compile("[0-9a-f]{40}")
#: The hash that no commit has.
NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class Backbone:
    """Which base model to adapt, and how to hold it in memory.

    Attributes:
        model: A hub id, a local folder, ``packaged:SmolLM2-135M-Instruct``, or ``converted:NAME``, made by ``flexora
            convert``.
        revision: Branch, tag or commit on the hub.
        dtype: Precision of the frozen weights, or of computing with them where they are quantised. The adapter and
            alpha are float32 (float64 beside float64 weights). ``float16`` is for evaluations, and for a fine-tune in
            ``16-mixed``: elsewhere small gradients would be lost in it.
        quantization: ``nf4`` holds the frozen weights of the decoder in 4 bits (QLoRA; needs ``flexora[4bit]``).
        attention: Attention implementation of transformers. By default ``sdpa``, torch's kernels; ``eager`` where the
            model soft-caps its scores (Gemma 2), which they cannot.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        trust_remote_code: Run the code that the model's repository holds for its tokenizer. Needs a local folder, or
            a ``revision`` that is a full commit hash: the code that was read is then the code that runs. The code of
            models and configurations is never run.
    """

    model: str = f"{PACKAGED_PREFIX}SmolLM2-135M-Instruct"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    quantization: Literal["nf4"] | None = None
    attention: Literal["sdpa", "eager"] | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            FlexoraError: If the revision is no name, 4-bit weights are to be used in float64, or code that may change
                is to be run.
        """
        plain_revision(self.revision, "backbone.revision")
        if self.quantization is not None and self.dtype == "float64":
            raise FlexoraError("backbone.quantization: nf4 has no float64; set backbone.dtype to float32 or bfloat16")
        if self.trust_remote_code and not (COMMIT.fullmatch(self.revision or "") or self._is_folder):
            raise FlexoraError(
                "backbone.trust_remote_code: the code may change from day to day; read it, and set backbone.revision "
                "to the full hash of its commit (40 digits)"
            )

    @property
    def _is_folder(self) -> bool:
        return own_path(self.model, "backbone.model").is_dir()

    def resolve(self) -> str:
        """Where transformers finds the files: the whole path of a folder, or the hub id itself.

        Raises:
            FlexoraError: If a local folder does not exist, or a packaged or converted model is not there yet.
        """
        if self.model.startswith(PACKAGED_PREFIX):
            return str(packaged_model_folder(self.model))
        if self.model.startswith(CONVERTED_PREFIX):
            return str(converted_folder(self.model))
        looks_local = self.model.startswith((".", "/", "~")) or self.model.count("/") > 1
        folder = own_path(self.model, "backbone.model")
        if folder.is_dir():
            return str(folder.absolute())
        if looks_local:
            raise FlexoraError(f"backbone.model: the folder {self.model} does not exist; name a folder or a hub id")
        return self.model

    def fingerprint(self) -> str | None:
        """Which weights these are: the hub's commit, or a hash of samples of a folder's files; none where unknown."""
        place = Path(self.resolve())
        if not place.is_dir():
            return getattr(self.load_config(), "_commit_hash", None)
        return sampled_sha256(sorted(file for file in place.iterdir() if file.suffix in WEIGHTS))

    def load_config(self) -> PretrainedConfig:
        """Read the model's configuration alone (no weights).

        Raises:
            FlexoraError: If the files cannot be found or read, or ``attention`` is not for this model.
        """
        config: PretrainedConfig = self._from_pretrained(AutoConfig)
        self.attention_of(config)
        return config

    def attention_of(self, config: PretrainedConfig) -> Literal["sdpa", "eager"]:
        """The attention implementation to load a model with.

        Raises:
            FlexoraError: If it was chosen and cannot compute what the model does.
        """
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        if capped and self.attention == "sdpa":
            raise FlexoraError(
                f"backbone.attention: sdpa cannot soft-cap attention scores as {self.model} does; set it to eager"
            )
        return self.attention or ("eager" if capped else "sdpa")

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            FlexoraError: If it cannot be found or read, or needs code that is not trusted.
        """
        if not self.trust_remote_code:
            return self._from_pretrained(AutoTokenizer)
        # The configuration is given, or its code would be run too. Code that a repository borrows from another would
        # come from that one's newest commit; with a revision that only this one can have, it is not found.
        return self._from_pretrained(
            AutoTokenizer,
            config=self.load_config(),
            trust_remote_code=True,
            code_revision=NO_COMMIT if self._is_folder else self.revision,
        )

    def load_model(self) -> PreTrainedModel:
        """Load the causal language model with every weight frozen.

        Raises:
            FlexoraError: If the files cannot be found or read, or the architecture has no family.
        """
        config = self.load_config()
        describe(config)  # an unsupported architecture is refused before its weights are read
        quantized = {} if self.quantization is None else {"quantization_config": self.quantization_config()}
        model: PreTrainedModel = self._from_pretrained(
            AutoModelForCausalLM,
            dtype=getattr(torch, self.dtype),
            attn_implementation=self.attention_of(config),
            **quantized,
        )
        for module in model.modules():
            # On a CPU with bfloat16, bitsandbytes packs a weight anew when it is first used for inference, rounds its
            # scales, and gives no gradient through it ever after, in training neither.
            if hasattr(module, PACKS):
                setattr(module, PACKS, False)
        return self.prepared(model)

    def prepared(self, model: PreTrainedModel, **checkpointing: Any) -> PreTrainedModel:
        """The model with every weight frozen, and with gradient checkpointing where it is asked for.

        Args:
            model: The model.
            checkpointing: Further arguments of ``torch.utils.checkpoint.checkpoint``.
        """
        model.requires_grad_(False)
        model.config.use_cache = False
        if self.gradient_checkpointing:
            # The non-reentrant form alone works with torch.autograd.grad and needs no input that requires grad.
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **checkpointing})
            # transformers has them require grad for the other form: every layer would then be walked back through,
            # those below the lowest adapted one too.
            model.disable_input_require_grads()
        return model

    def quantization_config(self) -> BitsAndBytesConfig:
        """The settings of QLoRA (Dettmers et al. 2023): normal floats of 4 bits, their scales quantised as well.

        Raises:
            FlexoraError: If bitsandbytes is not installed.
        """
        if find_spec("bitsandbytes") is None:
            raise FlexoraError("backbone.quantization: nf4 needs bitsandbytes; run pip install 'flexora[4bit]'")
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, self.dtype),
        )

    def _from_pretrained(self, auto: Any, **options: Any) -> Any:
        try:
            options = {"trust_remote_code": False, **options}
            return auto.from_pretrained(self.resolve(), revision=self.revision, **options)
        except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())
            raise FlexoraError(
                f"backbone.model: cannot load {self.model}: {reason[:300]}; check name, network and hub login"
            ) from error


@dataclass(frozen=True)
class Architecture:
    """What the rest of the code needs to know of a base model before its weights are loaded."""

    name: str
    num_layers: int
    family: Family


def describe(config: PretrainedConfig) -> Architecture:
    """Read architecture and layer count from a model's configuration.

    Raises:
        FlexoraError: If the configuration names no supported architecture, or a model that sees what comes after.
    """
    name = (config.architectures or ["of an unnamed kind"])[0]
    if getattr(config, "vision_config", None) is not None:
        raise FlexoraError(
            f"backbone.model: architecture {name} is not supported: it reads pictures too; name a checkpoint of text "
            "alone (of Gemma 3 those of 270m and 1b)"
        )
    family = family_of(name)  # first: what is not supported may have no layers to count
    if getattr(config, "use_bidirectional_attention", False):
        raise FlexoraError(
            "backbone.model: use_bidirectional_attention lets each token see those after it, so that none is "
            "predicted; name a causal model"
        )
    return Architecture(name=name, num_layers=config.num_hidden_layers, family=family)
