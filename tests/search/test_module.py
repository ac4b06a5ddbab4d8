"""The search module under Lightning's Trainer: what it leaves behind, and how it starts again."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.data.bilevel import OuterBatch
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.randomness import step_seed
from flexora.search.callbacks import SearchFiles
from flexora.search.estimators import FirstOrder, OuterStep
from flexora.search.module import SearchModule
from flexora.search.problem import BilevelProblem
from flexora.search.schedule import schedule
from flexora.search.state import snapshot, to_file


def fit(model: Path, rows: Path, folder: Path, trainer: dict[str, Any] | None = None, **settings: Any) -> SearchModule:
    """Search three outer steps, or that many repeats of them."""
    backbone = Backbone(str(model))
    adapter = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1)
    module = SearchModule(backbone, adapter, outer_steps=3, batch_size=4, alpha_lr=0.1, **settings)
    data = ArcEasy(backbone, source=str(rows), validation_rows=8, max_length=64)
    runner = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SearchFiles(folder)],
        **(trainer or {}),
    )
    runner.fit(module, datamodule=data.bilevel(3, module.inner_steps, module.batch_size, repeats=module.repeats))
    return module


def test_the_model_is_plain_lora_again_after_the_search(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    assert module.alpha.any()
    scalings = {layer.scaling["default"] for layer in module.model.modules() if isinstance(layer, LoraLayer)}
    assert scalings == {2.0}


def test_a_search_stopped_after_its_last_step_still_gives_its_selection(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    first = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    again = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    assert again.history == first.history
    assert again.selection() == first.selection()
    assert torch.equal(again.alpha, first.alpha)


class Dead(FirstOrder):
    """An estimator whose hypergradient is 0."""

    def __call__(self, problem: BilevelProblem, batch: OuterBatch, seed: int) -> OuterStep:
        step = super().__call__(problem, batch, seed)
        return replace(step, hypergradient=torch.zeros_like(step.hypergradient))


def test_a_search_whose_alpha_never_moved_has_no_result(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path, estimator=Dead())
    assert module.outer_step == 3
    with pytest.raises(FlexoraError, match=r"search: alpha never moved, .*search\.clip_norm and adapter$"):
        module.selection()


def test_a_checkpoint_of_lightning_holds_no_base_model(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    module.trainer.save_checkpoint(tmp_path / "own.ckpt")
    kept = torch.load(tmp_path / "own.ckpt", weights_only=True)["state_dict"]
    assert set(kept) == {"alpha", *(f"model.{name}" for name in module.bilevel_problem.gates.names)}
    assert torch.equal(kept["alpha"], module.alpha)
    again = SearchModule(module.backbone, module.adapter)
    again.configure_model()
    assert not again.load_state_dict(kept, strict=False).unexpected_keys


def test_no_search_goes_on_from_a_checkpoint_of_lightning(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    module.trainer.save_checkpoint(tmp_path / "own.ckpt")
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False)
    data = ArcEasy(module.backbone, source=str(benchmark_folder), validation_rows=8, max_length=64).bilevel(3, 2, 4)
    again = SearchModule(module.backbone, module.adapter, outer_steps=3, batch_size=4)
    with pytest.raises(FlexoraError, match=r"^search: a checkpoint of Lightning's .*SearchFiles, which resumes$"):
        trainer.fit(again, datamodule=data, ckpt_path=tmp_path / "own.ckpt", weights_only=True)
    kept = {"backbone": module.backbone, "adapter": module.adapter}  # its LoRA may be had
    assert torch.equal(SearchModule.load_from_checkpoint(tmp_path / "own.ckpt", **kept).alpha, module.alpha)


def test_a_snapshot_stays_as_it_is(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later steps change neither what is copied nor the moments, which are not."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def recorded(search: SearchModule) -> dict[str, Any]:
        state = snapshot(search)
        assert state["inner_buffers"] is search.bilevel_problem.state.buffers
        kept.append((state, deepcopy(to_file(state))))
        return state

    monkeypatch.setattr("flexora.search.callbacks.snapshot", recorded)
    fit(tiny_models["llama"], benchmark_folder, tmp_path, checkpoint_every=1, repeats=2)
    assert len(kept) == 12
    for state, then in kept:
        torch.testing.assert_close(to_file(state), then, rtol=0, atol=0)
    moment = to_file(kept[-1][0])["inner_buffers"][0][0]
    assert moment.any()
    assert moment.untyped_storage().nbytes() == moment.nbytes


def test_only_the_first_process_keeps_the_state() -> None:
    files: Any = SearchFiles(Path("nowhere"))
    files.on_train_batch_start(SimpleNamespace(is_global_zero=False), SimpleNamespace(outer_step=3))
    assert (files._before, files._made) == (None, 3)


def test_float64_throughout(tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path, {"precision": "64-true"})
    problem = module.problem
    assert problem is not None
    moments = [moment for kept in problem.state.buffers for moment in kept]
    kinds = {tensor.dtype for tensor in (module.alpha, *problem.theta, *moments)}
    assert kinds == {torch.float64}


def test_layers_of_different_sizes_are_refused() -> None:
    with pytest.raises(FlexoraError, match=r"adapter\.rank_pattern"):
        SearchModule(Backbone(), LoraConfig(rank_pattern={"q_proj": 4}))


def test_repeats_start_again_with_other_rows(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    once = fit(tiny_models["llama"], benchmark_folder, tmp_path / "once")
    twice = fit(tiny_models["llama"], benchmark_folder, tmp_path / "twice", repeats=2)
    assert twice.history[:3] == once.history
    first, again = twice.history[0], twice.history[3]
    assert [row.repeat for row in twice.history] == [1, 1, 1, 2, 2, 2]
    assert again.outer_step == 4
    # Adam's first step from zero is the learning rate, whatever the gradient: alpha and its state were reset.
    for row in (first, again):
        assert max(map(abs, row.alpha)) == pytest.approx(0.1, rel=1e-3)
    assert again.validation_loss != first.validation_loss
    selection = twice.selection()
    assert selection.stability is not None
    assert selection.stability.repeats is not None
    assert len(selection.stability.repeats.choices) == 2
    assert selection.stability.last_steps == 3
    assert selection.alpha == pytest.approx([sum(row.alpha[layer] for row in twice.history) / 6 for layer in range(4)])


@pytest.mark.parametrize("stop", [3, 4], ids=["between", "within"])
def test_a_search_stopped_in_its_repeats_continues_to_the_same_bits(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path, stop: int
) -> None:
    whole = fit(tiny_models["llama"], benchmark_folder, tmp_path / "whole", repeats=2, checkpoint_every=1)

    settings = {"repeats": 2, "checkpoint_every": 1}
    fit(tiny_models["llama"], benchmark_folder, tmp_path / "cut", {"limit_train_batches": stop}, **settings)
    continued = fit(tiny_models["llama"], benchmark_folder, tmp_path / "cut", **settings)
    assert continued.history == whole.history
    assert continued.selection() == whole.selection()


def test_a_check_against_the_exact_hypergradient_changes_nothing(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    plain = fit(tiny_models["llama"], benchmark_folder, tmp_path / "plain")
    checked = fit(tiny_models["llama"], benchmark_folder, tmp_path / "checked", check_every=2)
    assert [row.alpha for row in checked.history] == [row.alpha for row in plain.history]
    cosines = [row.cosine for row in checked.history]
    assert cosines[0] is cosines[2] is None
    assert cosines[1] is not None
    assert 0.999 < cosines[1] <= 1.000001
    settings = checked.selection().search
    assert settings is not None
    assert settings["smallest_cosine_with_exact"] == cosines[1]


def test_rows_in_another_order_are_refused(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    with pytest.raises(FlexoraError, match="outer step 1 where 4 is due"):
        module.training_step({"outer_step": 0, "train": [], "validation": []}, 0)


def test_repeats_have_their_own_start_rows_and_held_out_rows(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[list[torch.Tensor], int, int]] = []
    begin = SearchModule._start_again

    def watched(search: SearchModule, repeat: int) -> None:
        begin(search, repeat)
        problem = search.bilevel_problem
        assert not any(moment.any() for kept in problem.state.buffers for moment in kept)
        starts.append((problem.copy_theta(), problem.state.step, problem.state.clock))

    monkeypatch.setattr(SearchModule, "_start_again", watched)
    fit(tiny_models["llama"], benchmark_folder, tmp_path, repeats=3)
    (second, *clocks), (third, *_) = starts
    assert clocks == [0, 0]
    for place, (one, other) in enumerate(zip(second, third, strict=True)):
        if place % 2:  # B
            assert not one.any()
            assert not other.any()
        else:
            assert not torch.equal(one, other)
    data = ArcEasy(Backbone(str(tiny_models["llama"])), source=str(benchmark_folder), validation_rows=8, max_length=64)
    loader = data.bilevel(3, 2, 4, repeats=2).train_dataloader()
    orders = [
        [row for t in loader.dataset[k]["train"] for micro in t for row in micro["rows"].tolist()] for k in (0, 3)
    ]
    assert orders[0] != orders[1]
    held_out = [{str(row["sequences"]) for row in data.split(repeat)[1]} for repeat in range(2)]
    for k, own in ((0, held_out[0]), (3, held_out[1])):
        loader.dataset[k]
        assert {str(row["sequences"]) for row in loader.dataset._splits[k // 3][1].data} == own
    assert held_out[0] != held_out[1]


def test_the_schedule_reaches_the_inner_steps(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    settings = {"inner_schedule": "cosine", "inner_warmup_ratio": 0.34}
    search = fit(tiny_models["llama"], benchmark_folder, tmp_path, **settings)
    expected = schedule("cosine", 0.34, 6)
    factors = [search.bilevel_problem.schedule(step) for step in range(6)]
    assert factors == [expected(step) for step in range(6)]
    assert factors[0] == 0.0
    assert search.bilevel_problem.state.clock == 6


def test_batches_made_for_other_settings_are_refused(tiny_models: dict[str, Path], benchmark_folder: Path) -> None:
    backbone = Backbone(str(tiny_models["llama"]))
    search = SearchModule(backbone, LoraConfig(r=2), outer_steps=3)
    data = ArcEasy(backbone, source=str(benchmark_folder), validation_rows=8, max_length=64).bilevel(6, 2, 8)
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(FlexoraError, match=r"outer_steps is 3, but data\.bilevel was given 6"):
        trainer.fit(search, datamodule=data)


def test_batches_of_the_other_phase_are_refused(tiny_models: dict[str, Path], benchmark_folder: Path) -> None:
    backbone, adapter = Backbone(str(tiny_models["llama"])), LoraConfig(r=2)
    data = ArcEasy(backbone, source=str(benchmark_folder), validation_rows=8, max_length=64)
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(FlexoraError, match=r"^search: .* give the Trainer data\.bilevel"):
        trainer.fit(SearchModule(backbone, adapter, outer_steps=3), datamodule=data)
    with pytest.raises(FlexoraError, match=r"^finetune: .* give the Trainer the benchmark itself"):
        trainer.fit(FinetuneModule(backbone, adapter), datamodule=data.bilevel(3, 2, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check_every": 0}, r"search\.check_every"),
        ({"repeats": 0}, r"search\.repeats"),
        ({"inner_warmup_ratio": 1.0}, r"search\.inner_warmup_ratio"),
        ({"alpha_lr": 0.0}, r"search\.alpha_lr: 0.0 must be positive$"),
        ({"clip_norm": 0.0}, r"search\.clip_norm: 0.0 must be positive; null switches clipping off"),
        ({"clip_norm": -1.0}, r"search\.clip_norm: -1.0 must be positive"),
        ({"adapter": LoraConfig(alora_invocation_tokens=[5], task_type="CAUSAL_LM")}, "alora_invocation_tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FlexoraError, match=message):
        SearchModule(Backbone(), **({"adapter": LoraConfig()} | settings))


@pytest.mark.parametrize(
    ("start", "repeats", "message"),
    [
        ("orthogonal", 2, "init_lora_weights orthogonal; leave it at true"),  # it could not be drawn again
        ("pissa", 1, "not pissa, which a gate would scale as well"),
    ],
)
def test_starts_that_do_not_suit_a_search_are_refused(start: Any, repeats: int, message: str) -> None:
    with pytest.raises(FlexoraError, match=message):
        SearchModule(Backbone(), LoraConfig(init_lora_weights=start), repeats=repeats)


def test_no_two_outer_steps_share_their_dropout() -> None:
    seeds = {step_seed(seed, step) for seed in range(40) for step in range(2_000)}
    assert len(seeds) == 80_000
    assert min(b - a for a, b in zip(sorted(seeds), sorted(seeds)[1:], strict=False)) > 1_000_000
    torch.manual_seed(max(seeds) + 1_000_000)
