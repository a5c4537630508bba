"""Names of an adapter's weights: in the model, and in a file, where they lack the adapter's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from .fit import current_names, misfit
from .layer import AuroraLayer
from .shared import SharedFactors

PREFIX = "base_model.model."  # of all names in a file; in a model, where a `PeftModel` wraps it


def own_names(model: nn.Module, state_dict: Mapping[str, Any]) -> list[str]:
    """The names in a state dict that are of adapters of this method, whatever their name."""
    owners = [(f"{name}.", module) for name, module in model.named_modules() if name]
    starts = [name for name, module in owners if isinstance(module, SharedFactors)]
    starts += [f"{name}aurora_" for name, module in owners if isinstance(module, AuroraLayer)]
    # peft takes names from the modules, whose units of FSDP1 lengthen them, and would leave out what is in a unit
    short = tuple(start.replace("_fsdp_wrapped_module.", "") for start in starts)
    return [name for name in state_dict if name.startswith(short)]


class SavedTuner(BaseTuner):
    """How peft selects an adapter's weights for a file and finds their places when they are loaded, for models with
    and without a `PeftModel` around them."""

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        names = own_names(model, state_dict) + cls._biases(model, config, state_dict)
        return {name: state_dict[name] for name in names}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The weights of a file by their names in the model.

        Raises:
            ValueError: if these are not the weights of this adapter; torch tells of shapes.
        """
        places = model.state_dict()
        own = [name for name in own_names(model, places) if adapter_name in name.split(".")[-2:]]
        own += cls._biases(model, config, places)
        in_file = {cls._remove_adapter_name_from_key(name, adapter_name).removeprefix(PREFIX): name for name in own}
        weights = {}
        for name, weight in current_names(state_dict).items():
            bare = name.removeprefix(PREFIX)
            weights[in_file.get(bare, name if name in places else bare if bare in places else name)] = weight
        if words := misfit(weights, own, places):
            raise ValueError(f"the weights do not fit adapter {adapter_name!r} of {type(model).__name__}: {words}")
        return weights

    @classmethod
    def _biases(cls, model: nn.Module, config: PeftConfig, state_dict: dict[str, Tensor]) -> list[str]:
        """The names of the biases that are trained, but for those in `modules_to_save`, which peft saves itself."""
        biases = cls._get_learnable_bias_state_dict(model, state_dict, config)
        return [name for name in biases if ".modules_to_save." not in name]
