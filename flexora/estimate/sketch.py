"""A base model without weights: built from its configuration on the meta device, with the CPU's kernels."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from flexora.backbone.loading import Backbone, describe

#: Operations that autocast computes in half precision.
MATRIX_PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, torch.bmm, torch.baddbmm)

#: Precision of the matrix products under Lightning's names; the others compute in that of the weights.
HALF = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}


class Sketch(Backbone):
    """A :class:`Backbone` whose model has shapes and no data, whatever its size; no weight is read."""

    def load_model(self) -> PreTrainedModel:
        """The frozen model on the meta device.

        Raises:
            FlexoraError: If the configuration cannot be had, or its architecture has no family.
        """
        config = self.load_config()
        describe(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, self.dtype), attn_implementation=self.attention_of(config)
            )
        if self.quantization is not None:
            _quantize(model, self.quantization_config())
        # What a backward pass computes again needs the same kernels.
        return self.prepared(model, context_fn=lambda: (nullcontext(), CpuKernels()))


def _quantize(model: PreTrainedModel, config: Any) -> None:
    """Hold the linear layers in 4 bits as loading does it, by bitsandbytes' own shapes."""
    from bitsandbytes import functional
    from bitsandbytes.nn.modules import Linear4bit, Params4bit
    from transformers.quantizers import AutoHfQuantizer

    if "dynamic" not in functional.name2qmap:  # bitsandbytes keeps it for good: it must have data
        functional.name2qmap["dynamic"] = functional.create_dynamic_map()  # type: ignore[no-untyped-call]
    quantizer = AutoHfQuantizer.from_config(config)
    quantizer.preprocess_model(model=model, device_map=None)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight = torch.empty(module.out_features, module.in_features, dtype=model.dtype, device="meta")
            settings = {
                name: getattr(module.weight, name) for name in ("blocksize", "compress_statistics", "quant_type")
            }
            data, state = functional.quantize_4bit(weight, **settings)
            module.weight = Params4bit(data, quant_state=state, bnb_quantized=True, module=module, **settings)
            module.quant_state = state


def autocast(precision: str | None) -> AbstractContextManager[object]:
    """Autocast as a Trainer of this precision switches it on.

    Args:
        precision: As Lightning spells it.
    """
    half = HALF.get(str(precision))
    return nullcontext() if half is None else torch.autocast("cpu", half)


class CpuKernels(TorchFunctionMode):
    """Gives the meta device the CPU's fused attention with its own backward, and autocast; it has neither."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return self._attention(*args, **kwargs)
        if func in MATRIX_PRODUCTS:
            args = [self._cast(value) for value in args]
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        """To half precision, where autocast is on."""
        casts = torch.is_autocast_enabled("cpu") and isinstance(value, Tensor) and value.is_meta
        return value.to(torch.get_autocast_dtype("cpu")) if casts and value.dtype == torch.float32 else value

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        query, key, value = (self._cast(tensor) for tensor in (query, key, value))
        fused = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
        if dropout_p or not fused:  # torch's plain attention, as second derivatives need it
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -math.inf)
        output, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
        return output  # type: ignore[no-any-return]
