"""`AuroraModel`: puts `AuroraLinear` layers into a model and owns the factors that they share."""

from __future__ import annotations

import functools
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import NoMatchingPeftModuleError
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.constants import DUMMY_TARGET_MODULES, INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import AuroraWarning
from .additions import PASS, add_additions, additions, check_additions
from .config import AuroraConfig
from .factors import AuroraFactors
from .fit import misfit
from .layer import AuroraLayer, AuroraLinear, base_linear
from .targets import TARGET_MODULES, default_slices, default_targets, suggested_targets
from .updates import SharedFactors


class AuroraModel(BaseTuner):
    """Mode approximation (arXiv 2305.08381, section 3.2): see `factors.py` for the method.

    Made by `get_peft_model(model, AuroraConfig(...))`. U, V and lambda (or C) of every adapter are registered
    here, under `aurora_factors.<adapter>`, and referenced by the layers, which own their rows of P. What `context`
    and `gate` add (`additions.py`) cannot be merged into weights: merging leaves it in the model, with a warning, and
    the model that `merge_and_unload` returns still has it, frozen.

    Raises:
        ValueError: if no target modules are given or known for the model, if they match nothing, or if they
            match a module that is not an `nn.Linear`, is quantised, or does not divide into its slices; if `context` or
            `gate` is given and the model has no place for it.
    """

    uses_shared_state = True
    prefix = "aurora_"
    tuner_layer_cls = AuroraLayer
    target_module_mapping = TARGET_MODULES  # type: ignore[assignment]  # rows may be a regex, as peft's own
    aurora_factors: SharedFactors

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.aurora_factors = SharedFactors()

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        """Fill in the default targets, and how many slices the fused layers of this model are.

        Raises:
            ValueError: if there is no default for the model, or one that `layers_to_transform` cannot narrow.
        """
        config, model_type = cast(AuroraConfig, peft_config), model_config.get("model_type")
        rows = config.fused_slices or {}
        config.fused_slices = rows | {name: n for name, n in default_slices(model_config).items() if name not in rows}
        targets = default_targets(model_type) if config.target_modules is None else config.target_modules
        if targets is None:
            endings = {name.rpartition(".")[2] for name, part in self.model.named_modules() if _is_linear(part)}
            suggestion = suggested_targets(endings)
            raise ValueError(
                f"`target_modules` is None and there is no default for model_type {model_type!r} (docs/adapter.md has "
                "the list of those that have one). Please specify `target_modules`"
                f"{f', which may be {suggestion!r} by the names of its layers' if suggestion else ''}."
            )
        if isinstance(targets, str) and config.target_modules is None and config.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` needs `target_modules` as a list, but the default for model_type "
                f"{model_type!r} is the regex {targets!r}. Please specify `target_modules`."
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Check every target before the first one is replaced, so that an error changes nothing."""
        config = cast(AuroraConfig, peft_config)
        if _is_all_linear(config.target_modules):
            _maybe_include_all_linear_layers(config, model)
            self._leave_out_what_cannot_be_adapted(config, model)
        targets = config.target_modules
        if targets == DUMMY_TARGET_MODULES:
            return
        check_additions(model, config)
        for parent, name, addition in additions(model):
            if addition.aurora_factors is not self.aurora_factors:
                raise ValueError(
                    f"{type(parent).__name__}.{name} is of an adapter that was merged into this {type(model).__name__} "
                    "earlier or belongs to another AuroraModel: please adapt a freshly loaded model."
                )
        inside: tuple[str, ...] = ()  # prefixes of layers adapted earlier, whose parts are no targets
        linear_names, matched = set(), False
        for name, module in model.named_modules():
            if not name or name.startswith(inside):
                continue
            if isinstance(module, BaseTunerLayer):
                inside += (f"{name}.",)
            if _is_linear(module):
                linear_names.add(name.rpartition(".")[2])
            if self._check_target_module_exists(config, name):
                _check_target(config, name, module)
                matched = True
                if isinstance(module, AuroraLinear) and module.aurora_factors is not self.aurora_factors:
                    raise ValueError(
                        f"Target module {name} is adapted by another AuroraModel already: call `unload()` on "
                        "that model first, or `add_adapter` to give it a second adapter."
                    )
        if not matched:
            shown = sorted(targets) if isinstance(targets, set) else targets
            narrowed = [
                f"`{field}`={value!r}"
                for field in ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
                if (value := getattr(config, field)) is not None
            ]
            raise NoMatchingPeftModuleError(
                f"`target_modules`={shown!r} matched no module of {type(model).__name__}"
                f"{' with ' + ', '.join(narrowed) if narrowed else ''}; "
                f"its linear layers are named {', '.join(sorted(linear_names))}."
            )

    def _leave_out_what_cannot_be_adapted(self, config: AuroraConfig, model: nn.Module) -> None:
        """Narrow the targets that peft made of "all-linear". The layer of an `nn.MultiheadAttention` goes without a
        word, since it is no layer of its own.

        Raises:
            ValueError: if nothing is left.
        """
        names = cast(set[str], config.target_modules)
        modules = {name: part for name, part in model.named_modules() if self._check_target_module_exists(config, name)}
        unfit = {name: part for name, part in modules.items() if name in names and _unfit(name, part)}
        if unfit and len(unfit) == len(modules):
            _check_target(config, *next(iter(unfit.items())))
        config.target_modules = names - set(unfit)  # type: ignore[assignment]  # as peft expects it
        told = {name: part for name, part in unfit.items() if not _is_of_attention(part)}
        if told:
            kinds = sorted({type(base_linear(part)).__name__ for part in told.values()})
            warnings.warn(
                f"`target_modules`='all-linear' leaves out {len(told)} of {len(modules)} layers, which cannot be "
                f"adapted: those of type {', '.join(kinds)}, {next(iter(told))} among them.",
                AuroraWarning,
                stacklevel=2,
            )

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: AuroraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        split = _check_target(peft_config, current_key, target)
        if adapter_name not in self.aurora_factors:
            self.aurora_factors[adapter_name] = AuroraFactors(peft_config, like=base_linear(target).weight)
            add_additions(self.model, adapter_name, peft_config, self.aurora_factors)
        layer = target if isinstance(target, AuroraLinear) else AuroraLinear(target, self.aurora_factors)
        layer.add_adapter(adapter_name, split)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """peft enters this around a forward pass: hands `adapter_names`, if given, to every adapted layer, in this
        thread alone.

        Raises:
            ValueError: in training, with beam search, and for names of no adapter.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise ValueError(
                "Cannot pass `adapter_names` when the model is in training mode. Please call `model.eval()` first."
            )
        if (kwargs.get("num_beams") or 1) > 1:
            raise ValueError("`adapter_names` does not go with beam search: please set `num_beams=1`")
        if unknown := set(names) - {"__base__", *self.aurora_factors}:
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}. The adapters are "
                f"{', '.join(map(repr, self.aurora_factors))} (and '__base__' for none)."
            )
        layers = [m for m in self.modules() if isinstance(m, (AuroraLinear, AuxiliaryTrainingWrapper))]
        give_names = functools.partial(_give_names, adapter_names=list(names), thread=threading.get_ident())
        hooks = [layer.register_forward_pre_hook(give_names, with_kwargs=True) for layer in layers]
        around, PASS.mixed = PASS.mixed, (self.aurora_factors, list(names))
        try:
            yield
        finally:
            PASS.mixed = around
            for hook in hooks:
                hook.remove()

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]
        uses: Counter[int] = Counter()
        for module in self.model.modules():
            uses.update(map(id, [*module._parameters.values(), *module._modules.values()]))
        for name, module in self.model.named_modules():
            if isinstance(module, AuroraLinear):
                linear = base_linear(module)
                if max(uses[id(linear)], uses[id(linear.weight)]) > 1:
                    raise ValueError(
                        f"{name} shares its weight with another layer, into which the update would be merged as well: "
                        "please leave the adapter unmerged, or give the layers weights of their own before it is added."
                    )
        kept = sorted({addition.about for _, _, addition in additions(self.model) if addition.aurora_form})
        if kept:
            warnings.warn(
                f"{' and '.join(kept)} cannot be folded into weights: what is merged stays in the model beside them, "
                "applied as before. Save the adapter rather than the merged model, which loses that when loaded.",
                AuroraWarning,
                stacklevel=3,
            )

    def _unload_and_optionally_merge(  # type: ignore[override]  # peft's returns a model, whatever it says
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        model = cast(nn.Module, super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names))
        for parent, name, addition in additions(model):
            if merge:
                addition.merge(adapter_names=adapter_names)
            addition.leave(parent, name)
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # peft takes names from the modules, whose units of FSDP1 lengthen them, and would leave out what is in a unit
        return {name: state_dict[name] for name in cls._own_names(model, state_dict)}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """peft's names of a file's weights in the model.

        Raises:
            ValueError: if these are not the weights of this adapter; torch tells of shapes.
        """
        weights = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        places = model.state_dict()
        own = [name for name in cls._own_names(model, places) if adapter_name in name.split(".")[-2:]]
        if words := misfit(weights, own, places):
            raise ValueError(f"the weights do not fit adapter {adapter_name!r} of {type(model).__name__}: {words}")
        return weights

    @classmethod
    def _own_names(cls, model: nn.Module, state_dict: dict[str, torch.Tensor]) -> list[str]:
        """The names in a state dict that are of adapters."""
        owners = (name for name, module in model.named_modules() if isinstance(module, (AuroraModel, AuroraLayer)))
        starts = tuple(f"{name}.{cls.prefix}".replace("_fsdp_wrapped_module.", "") for name in owners)
        return [name for name in state_dict if name.startswith(starts)]

    def __getattr__(self, name: str) -> Any:
        if name == "add_weighted_adapter":
            raise AttributeError(
                "AuroraModel has no add_weighted_adapter: please activate several adapters, "
                "`model.base_model.set_adapter([...])`, which adds their updates up, or save each as a LoRA "
                "(`peft.save_as_lora`) and combine these."
            )
        return super().__getattr__(name)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)  # the rows in the layers
        if autocast_adapter_dtype and adapter_name in self.aurora_factors:
            for factor in self.aurora_factors[adapter_name].parameters():
                if factor.dtype in (torch.float16, torch.bfloat16):
                    factor.data = factor.data.float()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft calls this on every module that has it after loading with low_cpu_mem_usage
        factors = self.aurora_factors[adapter_name]
        if any(factor.device.type == "meta" for factor in factors.parameters()):
            return
        layers = (m for m in self.model.modules() if isinstance(m, AuroraLinear) and adapter_name in m.aurora_P)
        factors.to(device or base_linear(next(layers)).weight.device)


def _give_names(
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    adapter_names: list[str],
    thread: int,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if threading.get_ident() != thread:  # hooks are the layer's; `kwargs` is missing if it is just being removed there
        return None
    return args, {**(kwargs or {}), "adapter_names": adapter_names}


def _check_target(config: AuroraConfig, name: str, module: nn.Module | BaseTunerLayer) -> tuple[int, int]:
    """How a targeted module is split into slices, by rows and by columns.

    Raises:
        ValueError: if it is not a plain `nn.Linear` or does not divide into its slices.
    """
    if words := _unfit(name, module):
        raise ValueError(words)
    base = base_linear(module)
    short = name.rpartition(".")[2]
    rows, columns = split = config.split_of(name)
    for field, slices, side, size in (
        ("fused_slices", rows, "rows", base.out_features),
        ("fused_columns", columns, "columns", base.in_features),
    ):
        if size % slices:
            raise ValueError(
                f"`{field}` makes {slices} slices of target module {name}, but its {size} {side} do not divide by "
                f"{slices}. Please set `{field}={{{short!r}: 1}}` or the right number."
            )
    if rows > 1 and columns > 1:
        raise ValueError(
            f"Target module {name} is in `fused_slices` ({rows}) and in `fused_columns` ({columns}), but a layer "
            f"can be split one way only. Please set it to 1 in `fused_slices` or in `fused_columns`."
        )
    return split


def _unfit(name: str, module: nn.Module | BaseTunerLayer) -> str | None:
    """Why no layer of this kind can be adapted, and what to do, in words; None if it can be."""
    base = base_linear(module)
    if not isinstance(base, nn.Linear):
        return (
            f"Target module {name} is a {type(base).__name__}, but only torch.nn.Linear can be adapted. "
            "Please narrow `target_modules` or name it in `exclude_modules`."
        )
    if _is_of_attention(base):
        return (
            f"Target module {name} belongs to a torch.nn.MultiheadAttention, which takes the weight and never calls "
            f"the layer, so an adapter would do nothing. Please add {name!r} to `exclude_modules`."
        )
    if _is_quantised(base):
        return (
            f"Target module {name} is quantised ({type(base).__name__} with weights of {base.weight.dtype}), but only "
            "weights of 16 bits or more can be adapted. Please load the model without quantisation, in bfloat16 say."
        )
    return None


def _is_all_linear(targets: object) -> bool:
    return isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, or one that peft has wrapped."""
    return isinstance(module, (nn.Linear, BaseTunerLayer))


def _is_of_attention(module: nn.Module | BaseTunerLayer) -> bool:
    """Whether it is the output layer of an `nn.MultiheadAttention`."""
    return isinstance(base_linear(module), NonDynamicallyQuantizableLinear)


def _is_quantised(linear: nn.Linear) -> bool:
    """Whether the weight is 8-bit or less. bitsandbytes quantises on the way to the GPU: until then only names tell."""
    weight = linear.weight
    origins = {parent.__module__.partition(".")[0] for kind in (linear, weight) for parent in type(kind).__mro__}
    return bool(origins & {"bitsandbytes", "torchao"}) or not weight.is_floating_point() or weight.itemsize < 2
