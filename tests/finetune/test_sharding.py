"""FSDP2 in a group of one process: what each method trains there, against one device; and which are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from torch import Tensor, distributed

from flexora.backbone.loading import Backbone
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.finetune.sharding import require_shardable
from tests.finetune.test_methods import METHODS, batches, config_of
from tests.finetune.test_module import loader, trainer

REFUSED = {
    "AdaLoraConfig": "AdaLoraConfig",
    "LoraConfig OLoRA": "olora",
    "LoraConfig PiSSA": "pissa",
    "LoraConfig PiSSA rsLoRA": "pissa",
    "OSFConfig": "OSFConfig",
    "VBLoRAConfig": "VBLoRAConfig",
}


@pytest.fixture(scope="module")
def group_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process is the only one of a group, as if something else had started it."""
    meet = tmp_path_factory.mktemp("group") / "meet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
        yield
        distributed.destroy_process_group()


def fitted(adapter: PeftConfig, model: Path, strategy: str, folder: Path) -> dict[str, Tensor]:
    """The trained parameters after two steps."""
    module = FinetuneModule(Backbone(str(model)), adapter, "1,3", learning_rate=0.03)
    run = trainer([], max_steps=2, strategy=strategy, use_distributed_sampler=False)
    run.fit(module, loader(batches()))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if strategy == "fsdp2":
        with pytest.raises(FlexoraError, match="fsdp2 has sharded the adapter; give weights"):
            module.save_adapter(folder)
    return {name: tensor for name, tensor in run.strategy.lightning_module_state_dict().items() if name in trained}


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in REFUSED])
def test_a_sharded_method_trains_what_it_trains_on_one_device(
    name: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    expected, found = (fitted(config_of(name), tiny_models["llama"], kind, tmp_path) for kind in ("auto", "fsdp2"))
    assert expected
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_needs_its_weights_whole_is_refused(name: str) -> None:
    with pytest.raises(FlexoraError, match=f"adapter: {REFUSED[name]} does not go with strategy fsdp2; train it with"):
        require_shardable(config_of(name), Backbone())
