"""A task turns a batch into a loss, and a split into scores: one file each, and a line in `settings.TASKS`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .settings import find_task

if TYPE_CHECKING:
    from .base import Task


def task_class(name: str) -> type[Task]:
    """The task called ``name``; its file, and with it PyTorch, is imported only now.

    Raises:
        AuroraError: if there is none.
    """
    found: type[Task] = getattr(import_module(f".{name}", __package__), find_task(name)[1])
    return found
