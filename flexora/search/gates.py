"""Layer gates ``g = n * softmax(alpha)`` in PEFT's own ``scaling``, and their gradient at no cost.

The gate multiplies the LoRA output of its layer once: ``h = W0 x + g_i * (lora_alpha / r) * B A x``. It is written into
PEFT's ``scaling`` as a plain float, so a gated model runs exactly as plain LoRA runs and saves no more activations.

The loss sees only the product ``g_i * B``, which gives the gradient of the gate from that of B:

    dL/dg_i = sum over the layer's adapted projections of <B, dL/dB> / g_i

and, through the softmax, ``dL/dalpha_j = c_j - (g_j / n) * sum_i c_i`` with ``c_i = g_i * dL/dg_i``. No division is
left, so a gate near zero does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"


def gates_of(alpha: Tensor) -> Tensor:
    """``n * softmax(alpha)`` of shape ``[n]``; exactly 1.0 at ``alpha = 0``.

    ``n * torch.softmax(0)`` is not exact (n = 41, 47, ...): the product rounds what the division rounded. Here the
    logarithm of n is rounded as ``logsumexp`` rounds it, and the two cancel.
    """
    count = torch.full_like(alpha[0], alpha.numel())
    return torch.exp(alpha - torch.logsumexp(alpha, 0) + torch.log(count))


@dataclass
class _Site:
    """One adapted projection: its layer, PEFT's module, its own scaling, and the place of its B among theta."""

    layer: int
    module: LoraLayer
    scaling: float
    b_index: int


class Gates:
    """The gates of a model that has LoRA on every layer.

    Args:
        model: PEFT model with one LoRA adapter.
        layers_path: Path of the list of decoder layers, from the model's family.
        num_layers: Number of decoder layers n.

    Attributes:
        theta: The LoRA parameters in a fixed order; hypergradients and optimiser states follow it.

    Raises:
        FlexoraError: If the adapter has parameters beside A and B (DoRA magnitudes, biases): the identity above then
            does not hold.
    """

    def __init__(self, model: PeftModel, layers_path: str, num_layers: int) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        for name, _ in named:
            if not name.endswith((f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")):
                raise FlexoraError(
                    f"search: {name} is neither LoRA's A nor B; search needs plain LoRA (no DoRA, no bias)"
                )
        self.theta: list[torch.nn.Parameter] = [parameter for _, parameter in named]
        self.num_layers = num_layers
        index = {id(parameter): place for place, parameter in enumerate(self.theta)}
        self._sites = []
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and ADAPTER in module.lora_B:
                layer = int(name.split(f"{layers_path}.", 1)[1].split(".", 1)[0])
                b_index = index[id(module.lora_B[ADAPTER].weight)]
                self._sites.append(_Site(layer, module, module.scaling[ADAPTER], b_index))

    def apply(self, gates: Tensor) -> None:
        """Write the gates, ``[n]``, into the model."""
        values = gates.tolist()
        for site in self._sites:
            site.module.scaling[ADAPTER] = site.scaling * values[site.layer]

    def restore(self) -> None:
        """Give every projection its own scaling back: the model is plain LoRA again."""
        for site in self._sites:
            site.module.scaling[ADAPTER] = site.scaling

    def alpha_gradient(self, gradients: Sequence[Tensor], alpha: Tensor) -> Tensor:
        """Gradient of a loss with respect to alpha, from its gradient with respect to theta at the same point.

        Args:
            gradients: ``dL/dtheta`` in the order of :attr:`theta`.
            alpha: Layer hyperparameters, ``[n]``, whose gates are applied.

        Returns:
            ``[n]``, in alpha's precision; it sums to zero, as every gradient through a softmax does.
        """
        contribution = torch.zeros_like(alpha)
        for site in self._sites:
            b = self.theta[site.b_index].detach()
            contribution[site.layer] += torch.sum(b * gradients[site.b_index]).to(alpha.dtype)
        return contribution - gates_of(alpha.detach()) / self.num_layers * contribution.sum()
