"""Pictures and clips read and made into a model's view by worker processes, while the model computes.

    rows 0 1 2 3 ...  ->  workers, each a process  ->  at most `AHEAD` views wait  ->  in the order of the rows

Workers are those of PyTorch's DataLoader, in training too. How many there are is one setting for training, evaluation
and indexing: what `using` or `use` was told, else `automatic`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..devices import choose
from ..errors import AuroraError
from .rows import Dataset as Rows
from .rows import load_media

MOST = 8  # workers that `automatic` starts; more wait for the disk
AHEAD = 128  # pictures that all workers together make before they are wanted; a few more where they are many
EACH = 64  # rows that it takes to start one more worker
SHARED_MEMORY = 2**30  # bytes that must be free where workers hand over what they made

Made = TypeVar("Made")
_workers: ContextVar[int | None] = ContextVar("workers", default=None)


@contextmanager
def using(workers: int | None) -> Iterator[None]:
    """Let what the block reads be read by so many processes; None changes nothing."""
    token = _workers.set(_workers.get() if workers is None else workers)
    try:
        yield
    finally:
        _workers.reset(token)


def use(workers: int) -> None:
    """Let all that follows be read by so many processes."""
    _workers.set(workers)


def chosen() -> int:
    """How many processes read: what the `using` around says, else `automatic`."""
    workers = _workers.get()
    return automatic() if workers is None else workers


def automatic() -> int:
    """How many workers this machine gets: one for each of this rank's cores but one, `MOST` at most.

    There are none where the model computes on the CPU, whose cores it takes itself; where a rank has fewer than
    three cores; and where the shared memory is small, as in a container that was not given more.
    """
    if choose().type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(MOST, own - 1) if own >= 3 and _shared_memory() >= SHARED_MEMORY else 0


def _shared_memory() -> float:
    """Bytes that are free in shared memory; endless where there is no such limit."""
    place = Path("/dev/shm")
    if not hasattr(os, "statvfs") or not place.is_dir():
        return float("inf")
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


@dataclass(frozen=True)
class _Failed:
    """What a worker gives for what it could not make: an error's message, without the worker's traceback."""

    message: str


@dataclass(frozen=True)
class _Calls(Dataset, Generic[Made]):
    make: Callable[[Any], Made]
    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Made | _Failed:
        try:
            return self.make(self.items[place])
        except AuroraError as error:
            return _Failed(str(error))


def made_ahead(make: Callable[[Any], Made], items: Sequence[Any], each: int = 1) -> Iterator[Made]:
    """What ``make`` makes of each item, in their order, made by worker processes before it is wanted; without workers,
    when it is wanted.

    Args:
        make: travels to the workers, by pickle where processes are not forked.
        each: pictures that an item holds.

    Raises:
        AuroraError: that ``make`` raised, once the items before have been given.
    """
    workers = min(chosen(), len(items) // EACH)
    if not workers:
        yield from map(make, items)
        return
    loader: DataLoader = DataLoader(
        _Calls(make, items),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(1, AHEAD // (workers * each)),
        pin_memory=choose().type == "cuda",
        generator=torch.Generator(),  # else the global one is drawn from
    )
    for made in loader:
        if isinstance(made, _Failed):
            raise AuroraError(made.message)
        yield made


@dataclass(frozen=True)
class _Media:
    """`load_media` of a dataset's rows."""

    dataset: Rows[Any]
    view: Any
    frames: int

    def __call__(self, row: int) -> Tensor:
        return load_media(self.dataset, row, self.view, self.frames, least=self.view.least)


def media_ahead(dataset: Rows[Any], rows: Sequence[int], view: Any, frames: int) -> Iterator[Tensor]:
    """The pictures or clips of some rows through ``view``, see `rows.load_media` and `made_ahead`."""
    return made_ahead(_Media(dataset, view, frames), rows, each=frames if dataset.clips else 1)
