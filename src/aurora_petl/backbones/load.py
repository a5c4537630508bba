"""Names, folders and hub ids to a backbone that offers what a task needs, or to one clear line."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from ..errors import AuroraError, short
from .base import Tunable
from .families import FAMILIES, Family, offering
from .folder import read_config, read_index
from .hub import CONFIG, fetch, is_hub_id


def embedded_models() -> list[str]:
    """Names of the backbones that ship with the package."""
    return sorted(path.parent.name for path in (_assets()).glob("*/model.safetensors"))


def _assets() -> Path:
    return Path(str(files("aurora_petl"))) / "assets"


def load_backbone(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    image_size: int | None = None,
    weights: bool = True,
    task: str = "retrieval",
) -> Any:
    """Load a backbone: an embedded one (``blip-mini``), a local folder, or a model of the Hugging Face hub.

    Weights are read from safetensors only.

    Args:
        image_size: pixels a side of the pictures that it will see; its position embeddings are interpolated to that.
            None: the model's own.
        weights: False reads the configuration alone and puts the model on the meta device, to count weights with.
        task: retrieval gives a `DualEncoder`, which of some families is a `Matcher`; vqa a `Writer`, which of BLIP is a
            `Ranker`.

    Raises:
        AuroraError: if there is no such model, it is of no known family, it lacks weights that the task needs, its
            files cannot be read, or its patches do not fill ``image_size``.
    """
    name = str(name_or_path)
    folder = folder_of(name_or_path, weights=weights, company=weights)
    module, config = _configured(folder, name, task)
    if not weights:
        with torch.device("meta"):
            return module.empty(config, name, task, image_size)
    backbone: Tunable = module.load(folder, config, name, task, image_size)
    cast(nn.Module, backbone.model).to(device=device, dtype=dtype)
    return backbone


def check_company(name_or_path: str | Path, *, image_size: int | None = None, task: str = "retrieval") -> None:
    """Look for what would stop `load_backbone`, without reading weights: what a model needs beside them, and whether a
    folder on this machine has files of them.

    Raises:
        AuroraError: if there is no such model, it is of no known family, its tokenizer or image processor is missing or
            another model's, it cannot read pictures of ``image_size``, or its files of weights are missing or cut.
    """
    folder = folder_of(name_or_path, weights=False, company=True)
    module, config = _configured(folder, str(name_or_path), task)
    module.check(folder, config, str(name_or_path), image_size)
    if Path(resolve(name_or_path)).is_dir():
        read_index(folder)


def folder_of(name_or_path: str | Path, *, weights: bool, company: bool) -> Path:
    """The folder of a model on this machine, see `hub.fetch`."""
    path = resolve(name_or_path)
    return Path(path) if Path(path).is_dir() else fetch(path, weights, company)


def _configured(folder: Path, name: str, task: str) -> tuple[ModuleType, Any]:
    """The module of a model's family, and its configuration.

    Raises:
        AuroraError: if the family does not do the task, or the configuration is not one of it.
    """
    content = read_config(folder)
    family = _family(content["model_type"], name)
    if task not in family.tasks:
        raise AuroraError(
            f"model {name} is of family {family.title}, which does {', '.join(family.tasks)}, not task {short(task)}"
            + (f"; choose a model of type {', '.join(others)}" if (others := offering(task)) else "")
        )
    module = import_module(f".{family.module}", __package__)
    return module, module.configure(content, folder / CONFIG)


def find_family(name_or_path: str | Path) -> Family:
    """The family of a model, by its configuration alone.

    Raises:
        AuroraError: if there is no such model, or it is of no known family.
    """
    folder = folder_of(name_or_path, weights=False, company=False)
    return _family(read_config(folder)["model_type"], str(name_or_path))


def _family(model_type: str, name: str) -> Family:
    family = FAMILIES.get(model_type)
    if family is None:
        raise AuroraError(
            f"model {name} is of type {short(model_type)}, which has no backbone here; "
            f"choose one of type {', '.join(sorted(FAMILIES))}"
        )
    return family


def resolve(name_or_path: str | Path) -> str:
    """The folder or hub id behind a name.

    Raises:
        AuroraError: if it is none of an embedded name, a model folder and a hub id.
    """
    name = str(name_or_path)
    if name in embedded_models():
        return str(_assets() / name)
    try:
        place = Path(name)
        if place.is_dir():
            return name
        if place.is_file():
            make = "; aurora convert makes one of a .pth file" if place.suffix == ".pth" else ""
            raise AuroraError(f"model {short(name)} is a file, not a model folder{make}")
    except (OSError, ValueError):  # too long a name, or one that no file system takes
        pass
    if is_hub_id(name):
        return name
    raise AuroraError(
        f"no model {short(name)}: it is neither embedded ({', '.join(embedded_models())}), nor a folder on this "
        "machine, nor a hub id like Salesforce/blip-itm-base-coco"
    )


def checkpoint_layers(model: Any, reentrant: bool = False) -> None:
    """Switch on gradient checkpointing of a transformers model, under whichever of its two names it has there."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
