"""Ranks of `torch.distributed`, each in a process of its own."""

import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(work: Callable, folder: str, *arguments: object, ranks: int = 2) -> None:
    """Call ``work(rank, folder, *arguments)`` on every rank of a gloo group; an error of one is raised here."""
    mp.spawn(_rank, (ranks, work, folder, *arguments), nprocs=ranks)


def _rank(rank: int, ranks: int, work: Callable, folder: str, *arguments: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    work(rank, folder, *arguments)
    dist.barrier()  # a rank that left early would fail the others
    sys.stdout.flush()
    sys.stderr.flush()
    # FSDP holds the group even after `destroy_process_group`. Its threads would outlive the interpreter's end,
    # and now and then abort the process there, so the process ends without one.
    os._exit(0)
