"""Sharding for the fine-tune: each device holds a part of every decoder layer (FSDP2), and one file the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from peft import AdaLoraConfig, OSFConfig, VBLoRAConfig
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from flexora.errors import FlexoraError
from flexora.finetune.initialization import moves_base

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.distributed.device_mesh import DeviceMesh

    from flexora.backbone.families import Family
    from flexora.backbone.loading import Backbone


class FullyShard(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all devices of all nodes; ``trainer.strategy: fsdp2`` names it.

    Args:
        process_group_backend: Backend of the collectives; by default the one of the device.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Shard over all devices: by itself Lightning shards over nodes alone."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained parameters, whole, on global rank zero: a checkpoint holds no others."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)


#: AdaLoRA uses its parameters between the layers' passes, VB-LoRA shares one among the layers, and OSF hangs its hooks,
#: which project the gradients, on parameters that sharding replaces.
_WHOLE = (AdaLoraConfig, OSFConfig, VBLoRAConfig)

StrategyRegistry.register("fsdp2", FullyShard, description="Fully sharded data parallelism for the fine-tune")


def require_shardable(adapter: PeftConfig, backbone: Backbone) -> None:
    """Refuse what needs whole parameters on a device.

    Raises:
        FlexoraError: If the base is in 4 bits, or the adapter's method needs its own parameters whole, or changes those
            of the base.
    """
    if backbone.quantization is not None:
        raise FlexoraError(
            "backbone.quantization: fsdp2 cannot shard weights in 4 bits; remove it, or train with strategy ddp"
        )
    if isinstance(adapter, _WHOLE) or moves_base(adapter):
        kind = adapter.init_lora_weights if moves_base(adapter) else type(adapter).__name__
        raise FlexoraError(f"adapter: {kind} does not go with strategy fsdp2; train it with strategy ddp")


def shard(model: PeftModel, family: Family, mesh: DeviceMesh) -> None:
    """Shard every decoder layer, with its adapter, over a mesh of one dimension.

    FSDP2 shards each parameter by itself, so that a unit may hold frozen and trained ones (FSDP1 cannot: PyTorch issue
    104690). Embeddings, the last norm and the head stay whole on each device: the loss calls them outside of the
    model's own forward, and models tie them.

    Args:
        model: The base model with its adapter.
        family: The model's family.
        mesh: The devices.

    Raises:
        FlexoraError: If something is trained outside of the decoder layers, which no device would synchronise.
    """
    base = model.get_base_model()
    for layer in base.get_submodule(family.layers):
        fully_shard(layer, mesh=mesh)
    decoder = base.get_decoder()  # a unit of no parameters, whose forward joins those of the layers
    whole = {name: parameter for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=set(whole.values()))
    if trained := next((name for name, parameter in whole.items() if parameter.requires_grad), None):
        raise FlexoraError(
            f"finetune: {trained} lies outside of the decoder layers, which fsdp2 alone shards; train it with "
            "strategy ddp"
        )
