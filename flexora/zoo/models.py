"""Facts of base models: what they are called, how they are built, what their licence asks for."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from flexora.backbone.converted import CONVERTED_PREFIX
from flexora.zoo.entries import Entry, entry_file, entry_names, read_entry, zoo_root

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Licence(Entry):
    """A licence, and what it asks of those who publish an adapter of the model.

    Attributes:
        id: How the hub calls it; ``other`` where it has no name for it.
        name: Its name, where the hub has none.
        link: Where its text lies.
        notice: A sentence that must stand with what is published.
        name_prefix: What the name of anything published must begin with.
        owners: Owners on the hub whose models are under this licence, or another that names them.
    """

    id: str
    name: str | None = None
    link: str | None = None
    notice: str | None = None
    name_prefix: str | None = None
    owners: list[str] = Field(default_factory=list)


class Licences(Entry):
    """The list of licences, by the names that models call them."""

    licences: dict[str, Licence]


class Shape(Entry):
    """How a decoder is built, in the words of transformers' configurations.

    Attributes:
        num_hidden_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward part.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        head_dim: Width of a head.
        vocab_size: Rows of the embedding.
        tie_word_embeddings: Whether the head is the embedding.
        attention_bias: Whether query, key and value have a bias, in families that leave it open.
    """

    num_hidden_layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tie_word_embeddings: bool = False
    attention_bias: bool | None = None


class ModelFacts(Entry):
    """What is known of a base model before anything of it is loaded.

    Attributes:
        id: Its name on the hub.
        aliases: Other names of models that are built alike and are under the same licence: tuned by its authors, or
            moved.
        revision: Commit on the hub; none where none was seen.
        gated: Whether its licence has to be accepted on the hub first.
        licence: Name of an entry of ``model_zoo/licences.yaml``.
        architecture: Class of transformers.
        shape: How it is built.
        projections: The projections that get LoRA by default.
        lora_parameters: Parameters of LoRA per decoder layer, of r 8 on these projections.
        prepare: How files that transformers can load are made, where the published ones are not.
        note: What else a user should know.
    """

    id: str
    aliases: list[str] = Field(default_factory=list)
    revision: str | None = None
    gated: bool = False
    licence: str
    architecture: str
    shape: Shape
    projections: list[str] = Field(min_length=1)
    lora_parameters: PositiveInt
    prepare: str | None = None
    note: str | None = None

    def config(self) -> PretrainedConfig:
        """Its configuration for transformers, as far as sizes go: enough to build it without weights."""
        import transformers

        model_class = getattr(transformers, self.architecture)
        shape: dict[str, Any] = self.shape.model_dump(exclude_none=True)
        none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # those of the class may be too large
        config: PretrainedConfig = model_class.config_class(**shape, **none, architectures=[self.architecture])
        return config


@cache
def model_facts(name: str) -> ModelFacts:
    """Facts of a base model by its name in the zoo, such as ``llama-3-8b``.

    Raises:
        FlexoraError: If the zoo has none of that name, or its entry is broken.
    """
    return read_entry(ModelFacts, entry_file("models", name))


def licences() -> dict[str, Licence]:
    """The licences that are known, by the names that models call them.

    Raises:
        FlexoraError: If the zoo's list of licences is broken.
    """
    return read_entry(Licences, zoo_root() / "licences.yaml").licences


def licence_of(facts: ModelFacts) -> Licence:
    """The licence of a base model."""
    return licences()[facts.licence]


def known_model(hub_id: str) -> ModelFacts | None:
    """Facts of a base model by its id on the hub, or ``converted:NAME``; none where the zoo does not know it."""
    for name in entry_names("models"):
        facts = model_facts(name)
        names = (facts.id, *facts.aliases, f"{CONVERTED_PREFIX}{name}")
        if hub_id.lower() in map(str.lower, names):
            return facts
    return None
