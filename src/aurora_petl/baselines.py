"""Ways to tune a backbone, by name: Aurora, any peft method beside it, heads only, full fine-tuning.

A new one is one `Method` here. Methods of peft train the heads through ``modules_to_save``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import peft
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .adapter import AuroraConfig
from .adapter.fusion import additions
from .adapter.model import TARGET_MODULES
from .backbones import Tunable
from .errors import AuroraError, first_line, short
from .files import as_os_error, whole_folder
from .method_options import typed_options

WEIGHTS = "trained.safetensors"  # of methods that are not peft's


@dataclass(frozen=True)
class Method:
    """``config`` makes a peft configuration from the method's options; without one, ``trains`` names what trains."""

    about: str
    config: Callable[..., PeftConfig] | None = None
    trains: str = "nothing"  # nothing | heads | everything

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.config is not None or self.trains != "nothing"


METHODS: dict[str, Method] = {
    "aurora": Method("mode approximation: factors shared by all attention matrices", AuroraConfig),
    "lora": Method("peft's LoRA on the same attention matrices", peft.LoraConfig),
    "dora": Method("peft's LoRA with magnitudes", lambda **options: peft.LoraConfig(use_dora=True, **options)),
    "vera": Method(  # its random projections are drawn again from their seed, not saved
        "peft's VeRA on the same attention matrices",
        lambda **options: peft.VeraConfig(**({"save_projection": False} | options)),
    ),
    "heads": Method("projections, ITM head and temperature only", trains="heads"),
    "full": Method("full fine-tuning", trains="everything"),
    "zero-shot": Method("the pretrained model as it is"),
}


def apply_method(backbone: Tunable, name: str, options: dict[str, Any] | None = None, train_heads: bool = True) -> None:
    """Mark or inject what ``name`` trains; ``backbone.model`` is adapted in place, ``backbone.adapter`` is peft's view.

    Raises:
        AuroraError: if the method is unknown or refuses its options.
    """
    method = find_method(name)
    options = dict(options or {})
    if method.config is None:
        if options:
            raise AuroraError(f"method {name} takes no method_options, got {short(', '.join(options))[1:-1]}")
        for weight in backbone.parameters():
            weight.requires_grad_(method.trains == "everything")
        if method.trains == "heads":
            if not backbone.heads:
                raise AuroraError(f"method heads: {backbone.name} has no heads for its task; choose another method")
            for head in _heads(backbone):
                head.requires_grad_(True)
        return
    options = typed_options(name, method.config, options)
    options.setdefault("target_modules", TARGET_MODULES.get(backbone.model.config.model_type))
    if train_heads and backbone.heads:
        options.setdefault("modules_to_save", list(backbone.heads))
    try:
        backbone.adapter = cast(PeftModel, get_peft_model(backbone.model, method.config(**options)))
    except (
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        ImportError,
        NotImplementedError,
    ) as error:
        raise AuroraError(f"method {name} refuses method_options: {first_line(error, 600)}") from error


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises:
        AuroraError: if there is none.
    """
    if name not in METHODS:
        raise AuroraError(f"no method {short(name)}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def _heads(backbone: Tunable) -> list[nn.Module]:
    return [backbone.model.get_submodule(name) for name in backbone.heads]


def save_adapter(backbone: Tunable, folder: Path) -> None:
    """Write what was trained to ``folder``: peft's files for its methods, else one safetensors file. Atomic: the
    folder appears whole.

    Raises:
        AuroraError: if ``folder`` exists.
    """
    if folder.exists():
        raise AuroraError(f"{folder} exists already")
    with whole_folder(folder) as partial, as_os_error(folder):
        if backbone.adapter is not None:
            # otherwise peft asks the hub whether the vocabulary grew
            backbone.adapter.save_pretrained(str(partial), save_embedding_layers=False)
        else:
            save_file(_trained(backbone), partial / WEIGHTS)


def saved_bytes(backbone: Tunable) -> int:
    """Bytes of the weights that `save_adapter` writes; the file's head comes to a few kilobytes more."""
    if backbone.adapter is not None:
        state = get_peft_model_state_dict(backbone.adapter, save_embedding_layers=False)
    else:
        state = _trained(backbone)
    return sum(value.numel() * value.element_size() for value in state.values())


def _trained(backbone: Tunable) -> dict[str, Tensor]:
    return {n: w.detach().contiguous() for n, w in backbone.model.named_parameters() if w.requires_grad}


def load_adapter(backbone: Tunable, folder: Path, method: str) -> None:
    """Put what `save_adapter` wrote back into a freshly loaded backbone, frozen.

    Raises:
        AuroraError: if files are missing, broken or of another model.
    """
    config = find_method(method).config
    wanted = folder / ("adapter_model.safetensors" if config else WEIGHTS)
    if not wanted.is_file():
        raise AuroraError(f"{folder} has no {wanted.name}; the run did not finish, continue it with --resume")
    try:
        if config is not None:
            backbone.adapter = PeftModel.from_pretrained(backbone.model, str(folder))
            return
        backbone.model.requires_grad_(False)
        unexpected = backbone.model.load_state_dict(load_file(wanted), strict=False).unexpected_keys
    except (RuntimeError, SafetensorError) as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise AuroraError(f"{wanted} is broken or of another model than {backbone.name}: {last}") from error
    if unexpected:
        raise AuroraError(f"{wanted} is of another model: {unexpected[0]} has no place in {backbone.name}")


def is_head(backbone: Tunable, name: str) -> bool:
    """Whether a weight of this name belongs to a head."""
    return any(head in name.split(".") for head in backbone.heads)


def weight_counts(backbone: Tunable) -> dict[str, int]:
    """Trainable weights by group: ``adapter`` and, of these, ``fusion`` (context and gates), ``heads``, all together,
    and those of the frozen model."""
    heads = sum(
        weight.numel()
        for name, weight in backbone.module.named_parameters()
        if weight.requires_grad and is_head(backbone, name)
    )
    trainable = sum(weight.numel() for weight in backbone.parameters() if weight.requires_grad)
    copies = sum(  # peft keeps the untrained heads beside the trained ones
        weight.numel() for name, weight in backbone.module.named_parameters() if ".modules_to_save." in name
    )
    every = sum(weight.numel() for weight in backbone.parameters()) - copies
    adapter = trainable - heads
    fusion = sum(
        weight.numel()
        for _, _, addition in additions(backbone.module)
        for weight in addition.parameters()
        if weight.requires_grad
    )
    whole = every - (adapter if backbone.adapter is not None else 0)
    return {"adapter": adapter, "fusion": fusion, "heads": heads, "trainable": trainable, "model": whole}
