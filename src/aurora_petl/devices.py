"""The device and the precision that a run computes in, chosen in one place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from .errors import AuroraError

NAMES = ("auto", "cuda", "mps", "cpu")


@dataclass
class _Choice:
    name: str = "auto"


_choice = _Choice()
_inside: ContextVar[str | None] = ContextVar("device", default=None)


def use(name: str) -> None:
    """Make every later `choose` give this device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises:
        AuroraError: if there is no such device here.
    """
    choose(name)
    _choice.name = name


@contextmanager
def using(name: str | torch.device | None) -> Iterator[None]:
    """The same for a block, and for its thread alone; None changes nothing.

    Raises:
        AuroraError: if there is no such device here.
    """
    if name is not None:
        name = str(name)
        choose(name)
    token = _inside.set(_inside.get() if name is None else name)
    try:
        yield
    finally:
        _inside.reset(token)


def choose(name: str | None = None) -> torch.device:
    """The device called ``name``; without a name the one of the `using` around it, else the one that `use` was told,
    ``auto`` by default: this rank's GPU (``LOCAL_RANK`` of torchrun, else the first), then Apple's MPS, then the CPU.

    Raises:
        AuroraError: if there is no such device here.
    """
    if name is None:
        name = _inside.get() or _choice.name
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available() and "WORLD_SIZE" not in os.environ:
            name = "mps"
        else:
            name = "cpu"
    kind, _, number = name.partition(":")
    if kind not in NAMES[1:] or (number and not (kind == "cuda" and number.isdecimal())):
        raise AuroraError(f"no device {name!r}; choose one of {', '.join(NAMES)}, or cuda:N for the GPU of number N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        place = int(number) if number else local
        if place >= count:
            raise AuroraError(f"device {name}: this machine has {count or 'no'} CUDA GPUs; choose another --device")
        return torch.device("cuda", place)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise AuroraError("device mps: this machine has no Apple GPU that PyTorch can use; choose another --device")
    return torch.device(kind)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16, so that training under autocast pays."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(supported and supported())
    return False
