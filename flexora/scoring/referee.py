"""lm-evaluation-harness as a referee: it scores the same rows with the same adapter, by its own code and templates."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from flexora.backbone.loading import Backbone
from flexora.data.datamodule import AnswerDataModule
from flexora.data.json_rows import as_row, numbers
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.reading import read_row, with_shots
from flexora.errors import FlexoraError
from flexora.scoring.accuracy import RowScore
from flexora.scoring.results import Comparison

#: A difference of two log-likelihoods that the order of additions in float32 explains.
NEAR_TIE = 2e-3


def compare(ours: Sequence[RowScore], theirs: Sequence[Sequence[float]]) -> Comparison:
    """Compare our scores with the referee's log-likelihoods, ``[rows][choices]``."""
    referee = [
        RowScore(list(scores), row.chars, row.answer, row.answer_tokens)
        for row, scores in zip(ours, theirs, strict=True)
    ]
    pairs = list(zip(ours, referee, strict=True))
    differing = [their for our, their in pairs if our.prediction("acc") != their.prediction("acc")]
    margins = [sorted(row.log_likelihoods)[-1] - sorted(row.log_likelihoods)[-2] for row in differing]
    return Comparison(
        referee=f"lm-eval {version('lm_eval')}",
        rows=len(pairs),
        largest=max(
            abs(our - their) for row in pairs for our, their in zip(*(r.log_likelihoods for r in row), strict=True)
        ),
        other_predictions=len(differing),
        near_ties=sum(margin < NEAR_TIE for margin in margins),
        accuracy=sum(row.value("acc") for row in ours) / len(pairs),
        referee_accuracy=sum(row.value("acc") for row in referee) / len(pairs),
    )


def require_referee(data: AnswerDataModule, backbone: Backbone, devices: int) -> None:
    """Make sure that the harness is there and can score such rows.

    Args:
        data: The benchmark or mixture.
        backbone: The base model.
        devices: Devices of the evaluation. The harness would spread its own processes over several.

    Raises:
        FlexoraError: If it is not installed, the rows have no choices, are a chat or no reported ones, the base is in
            4 bits, or there are several devices.
    """
    if devices > 1:
        raise FlexoraError("evaluate.referee: the harness scores on one device; set evaluate.trainer.devices to 1")
    if backbone.quantization is not None:
        raise FlexoraError("evaluate.referee: the harness loads the base in full; remove backbone.quantization")
    if find_spec("lm_eval") is None:
        raise FlexoraError("evaluate.referee: lm-eval is not installed; run pip install 'flexora[referee]'")
    for part in data.parts:
        if part.development_rows is not None:
            raise FlexoraError("evaluate.referee: it scores reported rows; remove data.development_rows")
        if not isinstance(part, MultipleChoiceDataModule) or part.chat_template:
            raise FlexoraError(
                f"evaluate.referee: {part.benchmark_name} has no choices or a chat template; score it without a referee"
            )


def harness_model(
    data: AnswerDataModule, backbone: Backbone, adapter: Path | None, device: str = "cpu", batch_size: int = 8
) -> Any:
    """The harness's own model class, which loads base and adapter by itself.

    Args:
        data: The benchmark or mixture, for the longest sequence.
        backbone: The base model.
        adapter: A PEFT folder, or none.
        device: Where it computes.
        batch_size: Sequences of one of its forward passes.
    """
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=backbone.resolve(),
        revision=backbone.revision or "main",
        dtype=backbone.dtype,
        device=device,
        batch_size=batch_size,
        max_length=data.max_length - 1,  # it counts what the model reads, and the last token is only predicted
        trust_remote_code=False,
        **({} if adapter is None else {"peft": str(adapter)}),
    )


def harness_scores(data: MultipleChoiceDataModule, model: Any) -> list[list[float]]:
    """Log-likelihoods of every choice of the reported rows by the harness, ``[rows][choices]``, in nats.

    Where the prompt style is the harness's own, its published task writes the prompts from the rows' official fields;
    elsewhere it is handed ours.

    Args:
        data: The benchmark.
        model: A model of :func:`harness_model`.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        task = write_task(data, Path(folder))
        results = simple_evaluate(
            model, tasks=[str(task)], bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
        )
    assert results is not None
    (samples,) = results["samples"].values()
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    return [[float(score) for score, _ in sample["filtered_resps"]] for sample in ordered]


def write_task(data: MultipleChoiceDataModule, folder: Path) -> Path:
    """Write the reported rows, the solved examples and a task file of the harness that points to them."""
    files = {"reported": str(folder / "reported.parquet")}
    task: dict[str, Any] = {"task": f"flexora_{data.benchmark_name}", "dataset_path": "parquet", "dataset_name": None}
    task |= {"training_split": None, "validation_split": None, "test_split": "reported"}
    rows = raw_rows(data)
    if data.prompt_style == data.referee_style and data.referee is not None and data.trained:
        rows = _official(data, rows)
        task["include"] = str(_published_task(data.referee))
        if data.num_fewshot:
            files["examples"] = str(folder / "examples.parquet")
            Dataset.from_list(_official(data, data.example_rows)).to_parquet(files["examples"])
            task |= {"num_fewshot": data.num_fewshot, "fewshot_split": "examples"}
            task["fewshot_config"] = {"sampler": "first_n"}
    else:
        rows = [_prompted(data, row) for row in rows]
        task |= {"output_type": "multiple_choice", "target_delimiter": "", "doc_to_text": "context"}
        task |= {"doc_to_choice": "continuations", "doc_to_target": "answer"}
    Dataset.from_list(rows).to_parquet(files["reported"])
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(task | {"dataset_kwargs": {"data_files": files}}))
    return path


@cache
def _published_task(name: str) -> Path:
    """The harness's own file of a task; reading its whole index takes a quarter of a minute."""
    from lm_eval.tasks import TaskManager

    return Path(TaskManager().task_index[name].yaml_path)


def raw_rows(data: MultipleChoiceDataModule) -> list[dict[str, Any]]:
    """The reported rows in their official fields, in their order."""
    raw = data.raw(data.reported_split)
    place = {line: index for index, line in enumerate(numbers(raw))}
    return [as_row(raw[place[line]]) for line in data.reported_set["line"]]


def _official(data: MultipleChoiceDataModule, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The official fields alone: others may hold a number here and text there, which Arrow does not take."""
    return [{field: row[field] for field in data.benchmark.fields} for row in rows]


def _prompted(data: MultipleChoiceDataModule, row: dict[str, Any]) -> dict[str, Any]:
    """A row in our words, for a task without any of its own."""
    pairs = with_shots(read_row(row, data.benchmark.fields, data.reader()), data.examples)
    assert pairs is not None
    contexts, continuations = zip(*pairs.pairs, strict=True)
    assert len(set(contexts)) == 1, "only the completion style of WinoGrande has several contexts"
    return {"context": contexts[0], "continuations": list(continuations), "answer": pairs.answer}
