"""`AuroraModel`: puts adapted layers into a model, and the factors that they share."""

from __future__ import annotations

import functools
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, cast

import torch
from peft import NoMatchingPeftModuleError
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import AuroraWarning
from .additions import PASS, add_additions, additions, check_additions
from .combine import check_combinable, combine, combined_config
from .config import AuroraConfig
from .factors import AuroraFactors
from .kinds import AuroraTorchao
from .layer import AuroraLayer, AuroraLinear, base_linear
from .places import check_target, is_all_linear, is_linear, is_of_attention, layer_class, like_weight, unfit
from .saved import SavedTuner
from .shared import CHILD, SharedFactors, factors_of
from .targets import TARGET_MODULES, default_slices, default_targets, suggested_targets

HEADS_OF_PEFT = {"classifier", "score", "qa_outputs"}  # `modules_to_save` has them by `task_type`, whatever the model


class AuroraModel(SavedTuner):
    """Mode approximation (arXiv 2305.08381, section 3.2): see `factors.py` for the method.

    Made by `get_peft_model(model, AuroraConfig(...))`, `inject_adapter_in_model` and what calls these. U, V and lambda
    (or C) of every adapter are registered in the adapted model, as `aurora_factors.<adapter>`, and referenced by the
    layers, which own their rows of P. What `context` and `gate` add (`additions.py`) cannot be merged into weights:
    merging leaves it in the model, with a warning, and the model that `merge_and_unload` returns still has it, frozen.

    Raises:
        ValueError: if no target modules are given or known for the model, if they match nothing, or if they
            match a module that cannot be adapted (`places.py`) or does not divide into its slices; if `context` or
            `gate` is given and the model has no place for it; if the model has an adapter of this name.
    """

    prefix = "aurora_"
    tuner_layer_cls = AuroraLayer
    target_module_mapping = TARGET_MODULES  # type: ignore[assignment]  # rows may be a regex, as peft's own
    aurora_factors: SharedFactors

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if adapter_name in (factors_of(model) or ()):
            raise ValueError(
                f"{type(model).__name__} is adapted by another AuroraModel already, which has an adapter "
                f"{adapter_name!r}: call `unload()` on that one first, or `add_adapter` to give it a second adapter."
            )
        configs: Any = getattr(model, "peft_config", {})
        before = dict(configs)
        try:
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except Exception:
            configs.clear()  # peft has noted the new adapter there already
            configs.update(before)
            raise

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
            endings = {name.rpartition(".")[2] for name, part in self.model.named_modules() if is_linear(part)}
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
        if is_all_linear(config.target_modules):
            _maybe_include_all_linear_layers(config, model)
            self._leave_out_what_cannot_be_adapted(config, model)
        if config.target_modules != DUMMY_TARGET_MODULES:
            check_additions(model, config)
            self._check_targets(config, model)
            self._check_modules_to_save(config, model)
        if factors_of(model) is None:
            model.add_module(CHILD, SharedFactors())

    def _check_targets(self, config: AuroraConfig, model: nn.Module) -> None:
        targets, factors = config.target_modules, factors_of(model)
        for parent, name, addition in additions(model):
            if addition.aurora_factors is not factors:
                raise ValueError(
                    f"{type(parent).__name__}.{name} is of an adapter that was merged into this {type(model).__name__} "
                    "earlier or belongs to another AuroraModel: please adapt a freshly loaded model."
                )
        inside: tuple[str, ...] = ()  # prefixes of layers adapted earlier, whose parts are no targets
        linear_names, matched = set(), False
        for name, module in model.named_modules():
            if not name or name.startswith(inside):
                continue
            if isinstance(module, (BaseTunerLayer, SharedFactors)):
                inside += (f"{name}.",)
            if is_linear(module):
                linear_names.add(name.rpartition(".")[2])
            if self._check_target_module_exists(config, name):
                check_target(config, name, module)
                matched = True
                if isinstance(module, AuroraLinear) and module.aurora_factors is not factors:
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

    @staticmethod
    def _check_modules_to_save(config: AuroraConfig, model: nn.Module) -> None:
        """Warn of names that peft would pass over in silence, so that a head stays as it is."""
        names = [name for name, _ in model.named_modules() if name]
        wanted = sorted(set(config.modules_to_save or ()) - HEADS_OF_PEFT)
        if unknown := [own for own in wanted if not any(name.endswith(own) for name in names)]:
            own = {name: None for name in (part.rpartition(".")[2] for part in names) if not name.isdigit()}
            close = [f", perhaps {near[0]!r}" for name in unknown[:1] if (near := get_close_matches(name, own))]
            warnings.warn(
                f"`modules_to_save` names {', '.join(map(repr, unknown))}, and no module of {type(model).__name__} is "
                f"called so: nothing is trained or saved for it. Please give the name of a module{''.join(close)}.",
                AuroraWarning,
                stacklevel=2,
            )

    def _leave_out_what_cannot_be_adapted(self, config: AuroraConfig, model: nn.Module) -> None:
        """Narrow the targets that peft made of "all-linear". The layer of an `nn.MultiheadAttention` goes without a
        word, since it is no layer of its own.

        Raises:
            ValueError: if nothing is left.
        """
        names = cast(set[str], config.target_modules)
        modules = {name: part for name, part in model.named_modules() if self._check_target_module_exists(config, name)}
        left_out = {name: part for name, part in modules.items() if name in names and unfit(name, part)}
        if left_out and len(left_out) == len(modules):
            check_target(config, *next(iter(left_out.items())))
        config.target_modules = names - set(left_out)  # type: ignore[assignment]  # as peft expects it
        told = {name: part for name, part in left_out.items() if not is_of_attention(part)}
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
        split = check_target(peft_config, current_key, target)
        if adapter_name not in self.aurora_factors:
            self.aurora_factors[adapter_name] = AuroraFactors(peft_config, like=like_weight(base_linear(target)))
            add_additions(self.model, adapter_name, peft_config, self.aurora_factors)
        layer = target if isinstance(target, AuroraLinear) else self._layer(target)
        layer.add_adapter(adapter_name, split, peft_config.group_of(current_key))
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _layer(self, target: nn.Module) -> AuroraLinear:
        kind = layer_class(base_linear(target))
        assert kind is not None
        if kind is not AuroraTorchao:
            return kind(target, self.aurora_factors)
        quantiser = getattr(self.model, "hf_quantizer", None)
        quantisation = getattr(quantiser, "quantization_config", None)
        return kind(target, self.aurora_factors, getattr(quantisation, "get_apply_tensor_subclass", None))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, nn.MultiheadAttention):  # peft's way takes `weight` over, which that has not
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        # peft freezes what does not belong to a layer
        trained = [factor for factor in self.aurora_factors.parameters() if factor.requires_grad]
        super()._mark_only_adapters_as_trainable(model)
        for factor in trained:
            factor.requires_grad_(True)
        if all(self.peft_config[name].inference_mode for name in self.active_adapters):  # peft trains biases even so
            for name, weight in model.named_parameters():
                if name.endswith(".bias"):
                    weight.requires_grad_(False)

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
            used = (base_linear(module), module.frozen_weight) if isinstance(module, AuroraLinear) else ()
            if any(uses[id(part)] > 1 for part in used):
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
        for module in model.modules():
            if factors_of(module) is not None:
                delattr(module, CHILD)
        return model

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "cat"
    ) -> None:
        """Add an adapter whose update is the weighted sum of those of others, exactly, as with LoRA's "cat". Its rank
        is the sum of theirs. It is not activated.

        Args:
            adapters: names of adapters.
            weights: the factor of each.
            adapter_name: of the new one.
            combination_type: "cat"; what LoRA has beside it approximates and is not offered.

        Raises:
            ValueError: if the name is taken, the type another one, or the adapters cannot be combined.
        """
        if adapter_name in self.peft_config:
            raise ValueError(f"Adapter {adapter_name!r} exists already; please choose another name.")
        if combination_type != "cat":
            raise ValueError(
                f"`combination_type` should be 'cat', which is exact, but is {combination_type!r}. For another, save "
                "the adapters as LoRA (`peft.save_as_lora`) and combine these."
            )
        configs = cast(dict[str, AuroraConfig], self.peft_config)
        check_combinable(configs, adapters, weights)
        configs[adapter_name] = combined_config(self.model, configs, adapters)
        self.inject_adapter(self.model, adapter_name)
        combine(self.model, self.aurora_factors, adapter_name, dict(zip(adapters, weights, strict=True)))

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)  # the rows in the layers
        if autocast_adapter_dtype and adapter_name in self.aurora_factors:
            for factor in self.aurora_factors[adapter_name].parameters():
                if factor.dtype in (torch.float16, torch.bfloat16):
                    factor.data = factor.data.float()


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
