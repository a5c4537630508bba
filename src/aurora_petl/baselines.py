"""What the methods of `methods.METHODS` do to a backbone: apply, save, load, count.

Methods of peft train the heads through ``modules_to_save``. What a method trained is saved as peft's files, else as one
safetensors file. peft itself loads what it finds: it warns of a missing weight and goes on with a half-tuned model.
`load_adapter` takes exactly the weights that the method has, or none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapter.additions import additions
from .adapter.card import PEFT_TYPE, PEFT_TYPE_IN_FILES
from .adapter.fit import current_names
from .adapter.targets import default_targets
from .backbones import Tunable, embedded_models
from .errors import AuroraError, first_line, short
from .files import as_os_error, open_tensors, read_json, whole_folder
from .method_options import typed_options
from .methods import METHODS, Method, find_method

WEIGHTS = "trained.safetensors"  # of methods that are not peft's
PARAMETERS = "parameters.safetensors"  # heads that are single parameters, beside an adapter of peft
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
CARD = "README.md"
MEND = "copy the run's folder again, or train anew"


def apply_method(backbone: Tunable, name: str, options: dict[str, Any] | None = None, train_heads: bool = True) -> None:
    """Mark or inject what ``name`` trains; ``backbone.model`` is adapted in place, ``backbone.adapter`` is peft's view.

    Raises:
        AuroraError: if the method is unknown or refuses its options.
    """
    method = find_method(name)
    options = typed_options(name, options or {})
    if method.config is None:
        if method.trains == "heads" and not backbone.heads:
            raise AuroraError(f"method heads: {backbone.name} has no heads for its task; choose another method")
        for weight in backbone.parameters():
            weight.requires_grad_(False)
        for weight in trained_weights(backbone, method).values():
            weight.requires_grad_(True)
        return
    options.setdefault("target_modules", default_targets(backbone.model.config.model_type))
    modules, parameters = split_heads(backbone)
    if train_heads and modules:
        options.setdefault("modules_to_save", modules)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks by the old name
            warnings.filterwarnings("ignore", "Specified to not save vera_A")  # see `METHODS`
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
    if train_heads:
        for weight in parameters.values():
            weight.requires_grad_(True)


def split_heads(backbone: Tunable) -> tuple[list[str], dict[str, nn.Parameter]]:
    """The heads that are modules, which peft trains and saves, by name, and those that are single parameters, such as
    a scale, which peft leaves alone, by name with the parameters."""
    own = dict(backbone.model.named_parameters())
    return [head for head in backbone.heads if head not in own], {h: own[h] for h in backbone.heads if h in own}


def trained_weights(backbone: Tunable, method: Method) -> dict[str, nn.Parameter]:
    """The model's own weights that a method without a peft configuration trains, by name."""
    return {
        name: weight
        for name, weight in backbone.model.named_parameters()
        if method.trains == "everything" or (method.trains == "heads" and is_head(backbone, name))
    }


def save_adapter(backbone: Tunable, folder: Path, card: str = "") -> None:
    """Write what was trained to ``folder``, which appears whole or not at all.

    Args:
        card: the text of its README.md; by default peft's own, of the methods that are peft's.

    Raises:
        AuroraError: if ``folder`` exists.
        OSError: if there is no room or no right to write.
    """
    if folder.exists():
        raise AuroraError(f"{folder} exists already")
    with whole_folder(folder) as partial, as_os_error(folder):
        if backbone.adapter is not None:
            with _silence():  # otherwise peft asks the hub whether the vocabulary grew
                backbone.adapter.save_pretrained(str(partial), save_embedding_layers=False)
            if parameters := _trained_parameters(backbone):
                save_file(parameters, partial / PARAMETERS)
        else:
            save_file(_trained(backbone), partial / WEIGHTS)
        if card:
            (partial / CARD).write_text(card, encoding="utf-8")


def saved_bytes(backbone: Tunable) -> int:
    """Bytes of the weights that `save_adapter` writes; the file's head comes to a few kilobytes more."""
    if backbone.adapter is not None:
        state = get_peft_model_state_dict(backbone.adapter, save_embedding_layers=False)
        state = {**state, **_trained_parameters(backbone)}
    else:
        state = _trained(backbone)
    return sum(value.numel() * value.element_size() for value in state.values())


def _trained_parameters(backbone: Tunable) -> dict[str, Tensor]:
    """The single parameters among the heads that were trained beside an adapter of peft."""
    _, parameters = split_heads(backbone)
    return {name: weight.detach().contiguous() for name, weight in parameters.items() if weight.requires_grad}


def _trained(backbone: Tunable) -> dict[str, Tensor]:
    return {n: w.detach().contiguous() for n, w in backbone.model.named_parameters() if w.requires_grad}


@dataclass(frozen=True)
class Saved:
    """What `save_adapter` wrote.

    Args:
        weights: by the names that they have in the file.
        heads: those that are single parameters, beside an adapter of peft.
        config: of a method of peft.
    """

    weights: dict[str, Tensor]
    heads: dict[str, Tensor]
    config: PeftConfig | None = None


def read_saved(folder: Path, method: str, name: str, mend: str = MEND) -> Saved:
    """Read what `save_adapter` wrote for a method on the model called ``name``.

    Args:
        mend: what a message about another method tells the user to do.

    Raises:
        AuroraError: if files are missing or broken, if they are of another method or model, or if a weight is not
            finite.
    """
    kind = find_method(method)
    file = folder / (PEFT_WEIGHTS if kind.config else WEIGHTS)
    if not file.exists():
        raise AuroraError(f"{folder} has no {file.name}; the run did not finish, continue it with --resume")
    weights = current_names(_read_weights(file))
    if kind.config is None:
        return Saved(weights, {})
    config = _read_config(folder / PEFT_CONFIG, method, kind, weights, name, mend)
    return Saved(weights, _read_weights(folder / PARAMETERS) if (folder / PARAMETERS).exists() else {}, config)


def own_weights(backbone: Tunable, method: str) -> dict[str, Tensor]:
    """What `save_adapter` would write of a backbone to which the method was applied, by the names that files have."""
    kind = find_method(method)
    if kind.config is None:
        return dict(trained_weights(backbone, kind))
    assert backbone.adapter is not None
    return get_peft_model_state_dict(backbone.adapter, save_embedding_layers=False) | _trained_parameters(backbone)


def put_weights(backbone: Tunable, method: str, saved: Saved) -> None:
    """Put weights that fit into a backbone to which the method was applied, and leave alone what trains."""
    if backbone.adapter is not None:
        with _silence():
            set_peft_model_state_dict(backbone.adapter, saved.weights)
    own = dict(backbone.model.named_parameters())
    with torch.no_grad():
        for key, value in (saved.heads if saved.config else saved.weights).items():
            own[key].copy_(value)


def load_adapter(backbone: Tunable, folder: Path, method: str) -> None:
    """Put what `save_adapter` wrote back into a freshly loaded backbone, frozen.

    Raises:
        AuroraError: if files are missing or broken, if they are of another method or model, or if a weight is missing,
            surplus, of another shape or not finite.
    """
    kind, saved = find_method(method), read_saved(folder, method, backbone.name)
    backbone.model.requires_grad_(False)
    if saved.config is None:
        _compare(saved.weights, trained_weights(backbone, kind), folder / WEIGHTS, backbone.name)
        put_weights(backbone, method, saved)
        return
    with _silence():
        try:
            adapter = PeftModel(backbone.model, saved.config)
        except Exception as error:  # an odd configuration can raise anything in peft
            raise AuroraError(
                f"{folder / PEFT_CONFIG} does not fit {backbone.name}: {first_line(error)}; {MEND}"
            ) from error
        own = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    _compare(saved.weights, own, folder / PEFT_WEIGHTS, backbone.name)
    _, parameters = split_heads(backbone)
    places = {name: parameters[name] for name in saved.heads if name in parameters}
    _compare(saved.heads, places, folder / PARAMETERS, backbone.name)
    backbone.adapter = adapter
    put_weights(backbone, method, saved)
    adapter.requires_grad_(False)
    backbone.adapter = adapter.eval()


def _read_weights(file: Path) -> dict[str, Tensor]:
    with open_tensors(file, mend=MEND) as opened:
        state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (safe_open is no mapping)
    for key, value in state.items():
        if not value.is_floating_point():
            raise AuroraError(f"{file}: {short(key)} is of type {value.dtype}, no weight; {MEND}")
        if not value.isfinite().all():
            raise AuroraError(
                f"{file}: {short(key)} holds NaN or infinity; train anew, with a lower train.learning_rate"
            )
    return state


def _compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path, name: str) -> None:
    if surplus := sorted(state.keys() - own.keys()):
        raise AuroraError(f"{file} is of another model or method: {short(surplus[0], 200)} has no place in {name}")
    if missing := sorted(own.keys() - state.keys()):
        raise AuroraError(f"{file} is not whole: it lacks {len(missing)} weights, {missing[0]} among them; {MEND}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise AuroraError(
                f"{file} is of another model than {name}: {key} is {tuple(value.shape)}, not {tuple(own[key].shape)}"
            )


def _read_config(
    path: Path, method: str, kind: Method, state: Mapping[str, Tensor], name: str, mend: str
) -> PeftConfig:
    """A saved peft configuration, of the method and of the size of the weights beside it."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise AuroraError(f"{path} holds {short(content)}, not the configuration of an adapter; {MEND}")
    wanted, given = _peft_type(kind), content.get("peft_type")
    given = PEFT_TYPE if given == PEFT_TYPE_IN_FILES else given
    if given != wanted:
        made = [other for other, way in METHODS.items() if _peft_type(way) == given is not None]
        of = " or ".join(made) or f"peft type {short(given)}"
        raise AuroraError(f"{path}: the adapter is of {of}, but the run's method is {method}; {mend}")
    try:
        with _silence():
            config: Any = PeftConfig.from_pretrained(str(path.parent))
    except Exception as error:  # odd values can raise anything in peft
        raise AuroraError(f"{path} is no configuration of peft: {first_line(error)}; {MEND}") from error
    widest = max((size for value in state.values() for size in value.shape), default=0)
    own = [config.r] if hasattr(config, "r") else []
    for rank in (*own, *(getattr(config, "rank_pattern", None) or {}).values()):
        if not isinstance(rank, int) or not 0 < rank <= widest:  # before memory is taken for it
            raise AuroraError(f"{path}: r is {short(rank)}, which no weight beside it has; {MEND}")
    trained_on = config.base_model_name_or_path
    if trained_on != name and _is_published(trained_on) and _is_published(name):
        raise AuroraError(f"{path}: the adapter was trained on {short(trained_on)}, not on {name}; set model to that")
    config.inference_mode = True
    return config


def _peft_type(method: Method) -> str | None:
    """peft's name of a method."""
    with _silence():
        kind = method.config().peft_type if method.config else None
    return getattr(kind, "value", None)


def _is_published(name: object) -> bool:
    """Whether a model's name says which model it is, as those of folders do not: they move."""
    if not isinstance(name, str):
        return False
    return name in embedded_models() or (name.count("/") == 1 and not name.startswith(".") and not Path(name).exists())


@contextmanager
def _silence() -> Iterator[None]:
    """Without peft's warnings: what they say is compared here, or follows from how methods are saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_head(backbone: Tunable, name: str) -> bool:
    """Whether a weight of this name belongs to a head."""
    return any(f".{head}." in f".{name}." for head in backbone.heads)


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
