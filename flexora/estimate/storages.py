"""How much memory a computation holds, counted by its storages as they come and go."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

#: What Python reads from a tensor without data. Comparisons fail, so that nothing is skipped for being zero.
STAND_INS = {"bool": False, "integer": 1, "real": 1.0}


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations make inside the block, from birth to death.

    Tensors of the meta device have shapes and no data, so a model of any size runs. Those with data among them (token
    ids, masks) keep their values: what is made of them alone is computed. Where Python asks for a number that nobody
    computed it gets a stand-in.

    torch's own ``torch.distributed._tools.mem_tracker`` does not take a model that is run more than once, as the search
    runs it, nor a decoder without its head.

    Attributes:
        live: Bytes held now.
        peak: Most bytes held at once since the start, or since :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.live

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count storages that exist already, each once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._held:
                self._held[key] = weakref.ref(storage, self._release(key, size))
                self.live += size
        self.peak = max(self.peak, self.live)

    def _release(self, key: int, size: int) -> Callable[[object], None]:
        def release(_: object) -> None:
            del self._held[key]
            self.live -= size

        return release

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((*args, *kwargs.values())))
        if any(tensor.is_meta for tensor in inputs):
            if func is torch.ops.aten._local_scalar_dense.default:
                return _stand_in(inputs[0].dtype)
            if any(not tensor.is_meta and tensor.dim() for tensor in inputs):  # numbers may be on any device
                args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        elif func is torch.ops.aten._to_copy.default and inputs:  # what has data keeps it, also beside the weights
            kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        outputs = func(*args, **kwargs)
        self.add(_tensors((outputs,)))
        return outputs


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results, also in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _stand_in(dtype: torch.dtype) -> bool | int | float:
    kind = "bool" if dtype == torch.bool else "real" if dtype.is_floating_point else "integer"
    return STAND_INS[kind]
