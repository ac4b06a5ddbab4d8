"""Family registry: per architecture, where the decoder layers are and which projections can be adapted.

Many names share a class: Yi, Vicuna and SmolLM are Llama's, Zephyr is Mistral's, Qwen 2.5 is Qwen 2's. What else sets
families apart (windows, soft-capping, tied weights) is read from a model's own configuration, wherever it matters.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from flexora.errors import FlexoraError


@dataclass(frozen=True)
class Family:
    """How the models of one architecture are built.

    Attributes:
        name: Short name, also the folder name under ``recipes``.
        architectures: Class names of transformers that share this layout.
        projections: Path of every linear projection inside a decoder layer, in forward order.
        default: The projections of the paper: query and value.
        layers: Path of the list of decoder layers inside the causal language model.
    """

    name: str
    architectures: tuple[str, ...]
    projections: tuple[str, ...]
    default: tuple[str, ...] = ("q_proj", "v_proj")
    layers: str = "model.layers"

    def expand(self, names: Collection[str] | str | None) -> list[str]:
        """Resolve what a user may write for projections into their short names, in forward order.

        Args:
            names: Short names such as ``q_proj``, the word ``all-linear``, or nothing for the paper's choice.

        Raises:
            FlexoraError: If a name is unknown to this family or none is given.
        """
        known = [path.rsplit(".", 1)[-1] for path in self.projections]
        if names is None:
            return [name for name in known if name in self.default]
        if names == "all-linear":
            return known
        wanted = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            what = f"unknown projection {unknown[0]!r}" if unknown else "no projection is named"
            raise FlexoraError(f"target modules: {what}; {self.name} has {', '.join(known)} (or all-linear)")
        return [name for name in known if name in wanted]

    def module_name(self, layer: int, projection: str) -> str:
        """Full module name of a projection (short name) in a layer, as PEFT's ``target_modules`` takes it."""
        path = next(path for path in self.projections if path.rsplit(".", 1)[-1] == projection)
        return f"{self.layers}.{layer}.{path}"


_ATTENTION = tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
_SPLIT = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_FUSED = ("mlp.gate_up_proj", "mlp.down_proj")
_REGISTRY: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a family to the registry.

    Raises:
        ValueError: If one of its architectures is registered already.
    """
    for architecture in family.architectures:
        if architecture in _REGISTRY:
            raise ValueError(f"{architecture} is registered already, by family {_REGISTRY[architecture].name}")
    _REGISTRY.update(dict.fromkeys(family.architectures, family))
    return family


for _name, _architectures, _mlp in (
    ("llama", ("LlamaForCausalLM",), _SPLIT),
    ("mistral", ("MistralForCausalLM",), _SPLIT),
    ("glm", ("GlmForCausalLM", "Glm4ForCausalLM"), _FUSED),
    ("qwen", ("Qwen2ForCausalLM", "Qwen3ForCausalLM"), _SPLIT),
    ("gemma", ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"), _SPLIT),
):
    register(Family(_name, _architectures, (*_ATTENTION, *_mlp)))


def family_of(architecture: str) -> Family:
    """Look an architecture up.

    Raises:
        FlexoraError: If no family is registered for it.
    """
    try:
        return _REGISTRY[architecture]
    except KeyError:
        known = ", ".join(sorted(_REGISTRY))
        raise FlexoraError(f"backbone.model: architecture {architecture} is not supported; known are {known}") from None
