"""Aurora: adapt a frozen vision-language model by training about 0.05% of its weights (arXiv 2305.08381).

Importing the package registers the method with peft, so that ``PeftModel.from_pretrained`` reads its adapters; all
other public names are imported when they are first asked for. The ``aurora`` command registers when it needs it, since
the import of PyTorch and peft takes seconds.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import AuroraConfig, AuroraModel
    from .api import load, train
    from .backbones import load_backbone
    from .data import load_dataset
    from .errors import AuroraError
    from .model import Model
    from .search.picture_index import Index
    from .tasks.retrieval import Retrieval
    from .tasks.vqa import VQA

__version__ = "0.1.0"
__all__ = [
    "AuroraConfig",
    "AuroraError",
    "AuroraModel",
    "Index",
    "Model",
    "Retrieval",
    "VQA",
    "load",
    "load_backbone",
    "load_dataset",
    "train",
]

_PLACES = {
    "AuroraConfig": "adapter",
    "AuroraError": "errors",
    "AuroraModel": "adapter",
    "Index": "search.picture_index",
    "Model": "model",
    "Retrieval": "tasks.retrieval",
    "VQA": "tasks.vqa",
    "load": "api",
    "load_backbone": "backbones",
    "load_dataset": "data",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether the ``aurora`` command imports the package: as such, or as ``python -m aurora_petl.cli``, which torchrun
    starts; ``-m`` stands in the place of the module's file until that is found."""
    if sys.argv[:1] == ["-m"] and "aurora_petl.cli" in sys.orig_argv:
        return True
    return getattr(sys.modules.get("aurora_cli"), "running", False)


if not _is_command():
    from . import adapter as adapter
    from . import backbones as backbones  # what the adapter adds to families registers there
