"""Settings of Lightning's Trainer that are a count or a share: 1 is one batch, 1.0 is all of them."""

from __future__ import annotations

import operator
from functools import reduce
from typing import get_args

import lightning as L


def keep_whole_numbers() -> None:
    """Have parsers try int before float for the Trainer's settings.

    typing has one object for Optional[Union[int, float]] and Optional[Union[float, int]], the one that any library
    named first, and jsonargparse takes the first type that fits: 1 became 1.0. Unions by | keep their order.
    """
    annotations = L.Trainer.__init__.__annotations__
    for name, annotation in annotations.items():
        kinds = get_args(annotation)
        if {int, float} <= set(kinds):
            annotations[name] = reduce(operator.or_, (int, *(kind for kind in kinds if kind is not int)))
