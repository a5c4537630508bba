"""An adapted `nn.MultiheadAttention`, as open_clip's models have it.

PyTorch's module keeps the matrices of query, key and value in one parameter and reads the weight of its output layer
without calling that layer, so there is no call that an update could join. The adapted module therefore runs on weights
with their updates added, which a shallow copy of it holds for the time of a pass: nothing of the frozen module changes,
and several threads may run it. As with peft's LoRA all four matrices are adapted, and the weights lie under the same
names: three slices here, one in `base_layer.out_proj`.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from .layer import AuroraLinear
from .shared import SharedFactors


class AuroraProjection(AuroraLinear):
    """The output layer of the attention, which is never called."""

    formed_together = False


class AuroraAttention(AuroraLinear):
    """A frozen `nn.MultiheadAttention` whose queries, keys and values have one width, with its updates.

    Args:
        base_layer: the attention. Its output layer is wrapped in place.
        factors: the shared factors of the model by adapter name.
    """

    formed_together = False
    _qkv_same_embed_dim = False  # else `nn.TransformerEncoderLayer` reads the weights and never calls the module

    def __init__(self, base_layer: nn.Module, factors: SharedFactors) -> None:
        super().__init__(base_layer, factors)
        self._base.out_proj = AuroraProjection(self._base.out_proj, factors)

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        return base.embed_dim, 3 * base.embed_dim

    @property
    def _base(self) -> Any:
        return self.get_base_layer()

    @property
    def frozen_weight(self) -> Tensor:
        weight: Tensor = self._base.in_proj_weight
        return weight

    def __getattr__(self, name: str) -> Any:
        """What the frozen attention has: `embed_dim`, `batch_first`, `in_proj_weight`, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def add_adapter(self, name: str, split: tuple[int, int], group: int = 0) -> None:
        super().add_adapter(name, split, group)
        self._base.out_proj.add_adapter(name, (1, 1), group)

    def forward(  # type: ignore[override]  # called by this name
        self, query: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Any:
        """As `nn.MultiheadAttention.forward`.

        Raises:
            TypeError: with `adapter_names`, since all items of a batch share the weights of a pass.
        """
        if adapter_names is not None:
            raise TypeError("An adapted nn.MultiheadAttention does not support mixed adapter batches.")
        if self.disable_adapters:
            for layer in (self, self._base.out_proj):
                if layer.merged:
                    layer.unmerge()
        attention = self.base_layer if self.disable_adapters else self._with_updates()
        return attention(query, *args, **kwargs)

    def _with_updates(self) -> nn.Module:
        base: nn.Module = self._base
        projection: Any = base.out_proj
        whole: Any = copy.copy(base)
        output: Any = copy.copy(projection.get_base_layer())
        whole._parameters = {**base._parameters, "in_proj_weight": self.weight_with_updates()}
        output._parameters = {**output._parameters, "weight": projection.weight_with_updates()}
        whole._modules = {**base._modules, "out_proj": output}
        return whole  # type: ignore[no-any-return]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False  # peft's LoRA adds the update of the output layer twice, so it would compute something else

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The frozen attention, with the updates of the adapters if `merge`; peft calls it when it unloads."""
        base, projection = self._base, self._base.out_proj
        if merge:
            for layer in (self, projection):
                layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        base.out_proj = projection.get_base_layer()
        return self.base_layer
