"""Tensors that one evaluation keeps for the next, which can do without them, and which notices if they were changed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import first_line
from .files import write_tensors


def keep(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
    """Write tensors, with the folder if it is missing; if that is not possible, print one line and return False.

    Args:
        metadata: what is told of them, ``key`` among it, which says what they were made from.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {**metadata, "digest": digest(tensors, metadata)})
    except OSError as error:
        why = error.strerror or first_line(error)
        print(f"aurora: warning: {path} cannot be written ({why}); it is not kept", file=sys.stderr)
        return False
    return True


def recall(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """What `keep` wrote under ``key``, on the CPU, and what was told of it; None if there is no such file, it is of
    another key, or it is not as it was written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError):
        return None
    written = metadata.pop("digest", "")
    return (tensors, metadata) if digest(tensors, metadata) == written else None


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """A digest of tensors by name, their types and shapes, and of what is told of them."""
    metadata = dict(metadata or {})
    made = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        made.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        made.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()
